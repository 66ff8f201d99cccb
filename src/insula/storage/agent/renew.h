/* Making this guest another machine than the one whose memory it woke up with.
 *
 * Each function renews one thing that two machines must not share, and returns 0 or an errno. What programs
 * that run already have read of it (a cached host name, a library's own random numbers) is out of reach here;
 * an image's own /usr/lib/insula/renew restarts those that matter.
 */
#define MAX_CARDS 256
#define RENEW_HOOK "/usr/lib/insula/renew"

/* linux/random.h, which musl does not bring */
#define RNDADDENTROPY_ _IOW('R', 0x03, int[2])
#define RNDRESEEDCRNG_ _IO('R', 0x07)

static int write_line(const char *path, int flags, const char *text) {
    char line[512];
    size_t length = strnlen(text, sizeof line - 1);
    int error = 0;
    memcpy(line, text, length);
    line[length++] = '\n';
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_TRUNC | flags, 0644);
    if (fd < 0)
        return errno;
    if (write(fd, line, length) != (ssize_t)length)
        error = errno;
    close(fd);
    return error;
}

/* The kernel mixes the host's bytes in and forgets what it had made of its own, so that what comes next is
 * nobody else's. Without the second step it would go on for minutes with the key that all siblings share. */
static int renew_random(const uint8_t *bytes, size_t length) {
    struct {
        int bits, size;
        uint8_t bytes[256];
    } entropy = {(int)length * 8, (int)length, {0}};
    int error = 0, fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno;
    if (length == 0 || length > sizeof entropy.bytes)
        error = EINVAL;
    if (!error) {
        memcpy(entropy.bytes, bytes, length);
        if (ioctl(fd, RNDADDENTROPY_, &entropy) < 0 || ioctl(fd, RNDRESEEDCRNG_) < 0)
            error = errno;
    }
    memset(&entropy, 0, sizeof entropy);
    close(fd);
    return error;
}

static int renew_clock(uint64_t nanoseconds) {
    struct timespec now = {(time_t)(nanoseconds / 1000000000), (long)(nanoseconds % 1000000000)};
    return clock_settime(CLOCK_REALTIME, &now) < 0 ? errno : 0;
}

static int renew_hostname(const char *name) {
    if (sethostname(name, strlen(name)) < 0)
        return errno;
    /* An image that keeps no name on disk takes it from elsewhere at its next boot. */
    int error = write_line("/etc/hostname", 0, name);
    return error == ENOENT ? 0 : error;
}

/* machine-id(5). D-Bus has a copy of its own where it is older than systemd's. */
static int renew_machine_id(const char *id) {
    struct stat status;
    int error = write_line("/etc/machine-id", O_CREAT, id);
    if (!error && lstat("/var/lib/dbus/machine-id", &status) == 0 && S_ISREG(status.st_mode))
        error = write_line("/var/lib/dbus/machine-id", 0, id);
    return error;
}

static bool parse_mac(const char *text, uint8_t mac[6]) {
    unsigned part[6];
    int end = 0;
    if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &part[0], &part[1], &part[2], &part[3], &part[4], &part[5], &end) != 6 || text[end])
        return false;
    for (int i = 0; i < 6; i++)
        mac[i] = (uint8_t)part[i];
    return true;
}

static int set_mac(const char *interface, const uint8_t mac[6]) {
    struct ifreq request = {0}, address = {0};
    int error = 0, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return errno;
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", interface);
    address = request;
    if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
        error = errno;
    short flags = request.ifr_flags;
    request.ifr_flags = (short)(flags & ~IFF_UP);
    if (!error && ioctl(fd, SIOCSIFFLAGS, &request) < 0)
        error = errno;
    address.ifr_hwaddr.sa_family = 1; /* ARPHRD_ETHER */
    memcpy(address.ifr_hwaddr.sa_data, mac, 6);
    if (!error && ioctl(fd, SIOCSIFHWADDR, &address) < 0)
        error = errno;
    request.ifr_flags = flags;
    if (ioctl(fd, SIOCSIFFLAGS, &request) < 0 && !error)
        error = errno;
    close(fd);
    return error;
}

/* The card that has the address `from` gets the address `to`. Doing it twice is doing it once: the host asks
 * again when its daemon died before it had heard our answer. */
static int renew_mac(const char *from, const char *to) {
    uint8_t old[6], new[6];
    struct ifaddrs *all = NULL;
    int error = ENODEV;
    if (!parse_mac(from, old) || !parse_mac(to, new))
        return EINVAL;
    if (getifaddrs(&all) < 0)
        return errno;
    for (struct ifaddrs *a = all; a; a = a->ifa_next) {
        if (!a->ifa_addr || a->ifa_addr->sa_family != AF_PACKET)
            continue;
        const struct sockaddr_ll *hardware = (const void *)a->ifa_addr;
        if (hardware->sll_halen != 6)
            continue;
        if (memcmp(hardware->sll_addr, new, 6) == 0)
            error = 0;
        if (memcmp(hardware->sll_addr, old, 6) == 0) {
            error = set_mac(a->ifa_name, new);
            break;
        }
    }
    freeifaddrs(all);
    return error;
}

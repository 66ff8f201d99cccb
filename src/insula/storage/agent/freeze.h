/* Bringing the guest's file systems to rest for a copy of its disks, and letting them go on.
 *
 * A child of the agent does it, the keeper: freezing takes as long as there is data to write out, and nobody may
 * block the agent's loop. And no guest may stay frozen, whichever of the two is killed:
 *
 *     the agent ends, or its session does ──end of file──> the keeper thaws what it has frozen
 *     the keeper's time is over ──> it thaws
 *     the keeper is killed ──end of file──> the agent thaws whatever is frozen
 *
 * From the first FIFREEZE on the keeper opens no file for writing and asks for no memory: it holds a descriptor of
 * each file system that it froze. Which ones, in which order, and what is not taken for a failure is as in the
 * QEMU guest agent (qga/commands-posix.c, qmp_guest_fsfreeze_do_freeze_list).
 */
#define MOST_FROZEN_MS 60000
#define MAX_FROZEN 512
#ifndef MOUNTINFO
#define MOUNTINFO "/proc/self/mountinfo" /* proc_pid_mountinfo(5); tests have a list of their own */
#endif

/* linux/fs.h, which musl does not bring */
#define FIFREEZE_ _IOWR('X', 119, int)
#define FITHAW_ _IOWR('X', 120, int)

enum word_kind { W_FROZE = 1, W_FAILED, W_THAWED, W_EXPIRED /* thawed unasked */ };
struct word { /* what the keeper says; one datagram */
    uint32_t kind, count;
    int32_t error;  /* of W_FAILED, and of W_THAWED when one could not be thawed */
    char path[192]; /* which one */
};

struct mount {
    struct mount *next;
    char path[];
};

static struct {
    int fd;
    const char *path;
} frozen[MAX_FROZEN];
static uint32_t frozen_count;

/* mountinfo writes blanks, newlines and backslashes as \ooo. */
static void decode_path(char *path) {
    char *to = path;
    for (char *from = path; *from; to++) {
        unsigned byte;
        if (*from == '\\' && sscanf(from + 1, "%3o", &byte) == 1) {
            *to = (char)byte;
            from += 4;
        } else {
            *to = *from++;
        }
    }
    *to = 0;
}

/* Where the file systems of block devices are mounted, the last mounted first: one whose device is a file on
 * another comes to rest before that one. Returns 0 or an errno. */
static int list_mounts(struct mount **all) {
    FILE *file = fopen(MOUNTINFO, "re");
    char *line = NULL;
    size_t size = 0;
    if (!file)
        return errno;
    while (getline(&line, &size, file) > 0) {
        unsigned major, minor;
        int start = 0, end = 0;
        const char *type = strstr(line, " - ");
        if (!type || sscanf(line, "%*u %*u %u:%u %*s %n%*s%n", &major, &minor, &start, &end) != 2 || !end)
            continue;
        if (major == 0 && strncmp(type, " - btrfs ", 9) != 0)
            continue; /* of no device; btrfs shows none, as it may have many */
        line[end] = 0;
        decode_path(line + start);
        struct mount *mount = malloc(sizeof *mount + strlen(line + start) + 1);
        if (!mount)
            break;
        strcpy(mount->path, line + start);
        mount->next = *all;
        *all = mount;
    }
    int error = feof(file) ? 0 : errno ? errno : EIO;
    free(line);
    fclose(file);
    return error;
}

/* Returns 0 or an errno. EBUSY: it is at rest already, seen by another mount of it, or by somebody else's wish, and
 * then not ours to thaw. EOPNOTSUPP: there is no rest for it (FAT, FUSE); it is written out at least. */
static int freeze_one(const char *path) {
    if (frozen_count == MAX_FROZEN)
        return ENFILE;
    int error = 0, fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    if (ioctl(fd, FIFREEZE_, 0) == 0) {
        frozen[frozen_count].fd = fd;
        frozen[frozen_count++].path = path;
        return 0;
    }
    error = errno;
    if (error == EOPNOTSUPP)
        syncfs(fd);
    close(fd);
    return error == EOPNOTSUPP || error == EBUSY ? 0 : error;
}

/* The last frozen first. EINVAL: it was not frozen any more. */
static struct word thaw_frozen(void) {
    struct word word = {.kind = W_THAWED};
    while (frozen_count > 0) {
        frozen_count--;
        if (ioctl(frozen[frozen_count].fd, FITHAW_, 0) == 0) {
            word.count++;
        } else if (errno != EINVAL) {
            word.error = errno;
            snprintf(word.path, sizeof word.path, "%s", frozen[frozen_count].path);
        }
        close(frozen[frozen_count].fd);
    }
    return word;
}

/* What the agent does when the keeper was killed: nobody knows any more which ones it had frozen. */
static struct word thaw_everything(void) {
    struct word word = {.kind = W_THAWED};
    struct mount *all = NULL, *next;
    list_mounts(&all);
    for (; all; all = next) {
        int fd = open(all->path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (fd >= 0 && ioctl(fd, FITHAW_, 0) == 0)
            word.count++;
        if (fd >= 0)
            close(fd);
        next = all->next;
        free(all);
    }
    return word;
}

/* Whether the agent has said that it is enough, or ended, within so many ms. */
static bool told_to_thaw(int agent, int64_t ms) {
    struct pollfd poll_agent = {.fd = agent, .events = POLLIN};
    return poll(&poll_agent, 1, ms > 0 ? (int)ms : 0) > 0;
}

/* The errno with which the freezing of `path` ended, 0 if all are at rest. */
static int freeze_all(int agent, int64_t deadline, const struct mount *all, const char **path) {
    for (; all; all = all->next) {
        *path = all->path;
        int error = freeze_one(all->path);
        if (error)
            return error;
        if (told_to_thaw(agent, 0))
            return ECANCELED;
        if (now_ms() >= deadline)
            return ETIME;
    }
    return 0;
}

/* The keeper. What needs memory (the list of mounts) is made before anything is frozen. */
static _Noreturn void keep_frozen(int agent, uint32_t ms) {
    const char *path = "";
    struct mount *all = NULL;
    int64_t deadline = now_ms() + ms;
    int error = list_mounts(&all);
    if (!error)
        error = freeze_all(agent, deadline, all, &path);
    struct word word = {.kind = W_FROZE, .count = frozen_count};
    if (error) {
        thaw_frozen();
        word = (struct word){.kind = W_FAILED, .error = error};
        snprintf(word.path, sizeof word.path, "%s", path);
    }
    bool nobody = write(agent, &word, sizeof word) < 0, told = nobody;
    if (frozen_count == 0)
        _exit(nobody);
    while (!told && now_ms() < deadline)
        told = told_to_thaw(agent, deadline - now_ms());
    word = thaw_frozen();
    if (!told)
        word.kind = W_EXPIRED;
    nobody = write(agent, &word, sizeof word) < 0;
    _exit(nobody);
}

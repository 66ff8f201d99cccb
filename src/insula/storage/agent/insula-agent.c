/* insula-agent: runs commands in a Linux guest for the host, over one byte channel.
 *
 *     insula-agent [--shutdown PROGRAM] DEVICE     a virtio-serial port: its path, or its name
 *     insula-agent [--shutdown PROGRAM] --fd N     an inherited socket, connected or listening (tests)
 *
 * The protocol is docs/reference/guest-agent.md. One thread, one poll() loop, no memory that grows:
 *
 *     channel --read--> in_buf --parse--> handlers --> streams (a command each)
 *     channel <-write-- out_buf <--frames-- replies, output of commands
 *
 * Nobody may block the loop. Output of commands is read only while the host granted credit for it and
 * out_buf has room, so a slow reader on the host stops its own command and no other. What waits for room sets
 * `starved`, and the loop comes back to it. Whenever the channel breaks or its bytes make no sense, the
 * session ends: commands get SIGHUP and are forgotten, and we hunt for the next SYNC.
 *
 * Users come from /etc/passwd and /etc/group alone: a static program cannot load glibc's NSS modules.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <ifaddrs.h>
#include <limits.h>
#include <net/if.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum {
    VERSION = 1,
    HEADER = 16, /* magic, type, 3 zero bytes, stream, length */
    SEAL = 4,    /* after the payload: the low half of the session's nonce */
    MAX_PAYLOAD = 64 * 1024,
    MAX_FRAME = HEADER + MAX_PAYLOAD + SEAL,
    SYNC_PAYLOAD = 12, /* nonce, version */
    SYNC_FRAME = HEADER + SYNC_PAYLOAD + SEAL,
    MAX_STREAMS = 64,
    MAX_WORDS = 4096,
    STDIN_WINDOW = 128 * 1024, /* what the host may send ahead to one command */
    CHUNK = 32 * 1024,
    IN_SIZE = 2 * MAX_FRAME,
    OUT_SIZE = 4 * MAX_FRAME,
    SMALL = 512, /* room for any frame that is neither output nor INFO_REPLY */
    QUIET_MS = 100,
    ENDLESS_MS = 1000,
    REOPEN_MS = 100,
    WAIT_HOST_MS = 1000,
    RETURN_MS = 1000,
};
static const uint32_t MAGIC = 0x534e4989; /* 89 'I' 'N' 'S' on the wire: not text, not UTF-8 */

enum type {
    SYNC = 1, SYNC_REPLY, PING, PONG, INFO, INFO_REPLY, SHUTDOWN, SHUTDOWN_REPLY, RENEW, RENEW_REPLY,
    FREEZE, FREEZE_REPLY, THAW, THAW_REPLY,
    EXEC = 16, STARTED, STDIN, STDIN_EOF, STDOUT, STDERR, WINDOW, SIGNAL, RESIZE, EXIT, CLOSE,
    ERROR = 31,
};
enum reason { R_PROTOCOL = 1, R_EXEC, R_CWD, R_USER, R_BUSY, R_SYSTEM, R_UNSUPPORTED, R_FROZEN, R_FILE_SYSTEM };
enum capability { CAN_TTY = 1, CAN_USER = 2, CAN_RENEW = 4, CAN_FREEZE = 8, CAN_REFRESH = 16 };
enum exec_flag { FLAG_TTY = 1 };

struct stream {
    bool used, tty, reaped, stdin_eof;
    uint32_t id;
    pid_t pid;             /* also its session and process group */
    int status_fd;         /* the child's word why it could not exec; EOF: it did */
    int in_fd, out_fd, err_fd;
    int tty_fd;            /* the terminal's master, open until the child is reaped: closing it kills with SIGHUP,
                              and output ends (EIO) when a child closes its files, a moment before it exits */
    int in_poll, out_poll, err_poll, status_poll; /* places in this round's pollfds, or -1 */
    uint32_t credit;       /* bytes of output the host is ready to take */
    uint8_t *in_buf;       /* STDIN_WINDOW bytes, from the first STDIN on */
    size_t in_start, in_len;
    uint32_t in_owed;      /* bytes given to the command, not yet granted to the host again */
    int wait_status;
    int64_t exited_at, quiet_since;
    size_t unread;         /* what lay in the pipes when the child ended: its own words, never dropped */
};

static struct {
    const char *device; /* NULL with --fd */
    int listen_fd;      /* -1 unless --fd is a listening socket */
    int fd;             /* -1 while there is none */
    int edge_fd;        /* epoll on fd, edge-triggered, see watch_edges() */
    bool no_host;       /* the port is open here, and closed on the host's side */
    int64_t left_at;    /* since when, in ms */
    bool doubtful;      /* the session may be one whose host has gone */
} channel = {.listen_fd = -1, .fd = -1, .edge_fd = -1};

/* Who keeps the file systems at rest, see freeze.h. `freezing` until it has said how many, then `at_rest`;
 * `thawing` from our word to its own that they go on. */
static struct {
    enum { IDLE, FREEZING, AT_REST, THAWING } state;
    int fd;          /* -1 while there is none */
    int poll;        /* its place in this round's pollfds, or -1 */
    bool awaited;    /* the host waits for an answer, to `stream` */
    uint32_t stream;
} keeper = {.fd = -1, .poll = -1};

static struct stream streams[MAX_STREAMS];
static uint8_t in_buf[IN_SIZE], out_buf[OUT_SIZE];
static size_t in_len, out_start, out_len;
static bool in_session, starved;
static uint32_t session_seal;
static int child_signals = -1; /* signalfd for SIGCHLD */
static int shutdown_mode = -1; /* waits for its reply to leave */
static const char *shutdown_program;

static void session_end(void);
static void start_thaw(void);
static void channel_hangup(int error);

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

#include "freeze.h"
#include "renew.h"

static void set_nonblocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

/* ---- Reading and writing payloads: little endian, strings with a 32-bit length ---------------------- */

struct reader {
    uint8_t *at, *end;
    bool bad;
};
struct writer {
    uint8_t *at, *end;
};

static uint64_t load(const uint8_t *p, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++)
        value |= (uint64_t)p[i] << (8 * i);
    return value;
}

static void store(uint8_t *p, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++)
        p[i] = (uint8_t)(value >> (8 * i));
}

static uint32_t take(struct reader *r, int bytes) {
    if (r->end - r->at < bytes) {
        r->bad = true;
        return 0;
    }
    r->at += bytes;
    return (uint32_t)load(r->at - bytes, bytes);
}

/* The string in place, moved over its own length so that there is room for the NUL. */
static char *take_string(struct reader *r) {
    static char empty[1];
    uint32_t length = take(r, 4);
    if (r->bad || length > (size_t)(r->end - r->at) || memchr(r->at, 0, length)) {
        r->bad = true;
        return empty;
    }
    char *text = (char *)r->at - 4;
    memmove(text, r->at, length);
    text[length] = 0;
    r->at += length;
    return text;
}

static void put(struct writer *w, uint64_t value, int bytes) {
    if (w->end - w->at < bytes)
        return;
    store(w->at, value, bytes);
    w->at += bytes;
}

static void put_string(struct writer *w, const char *text) {
    size_t length = strlen(text), room = (size_t)(w->end - w->at);
    if (room < 4)
        return;
    if (length > room - 4)
        length = room - 4;
    put(w, length, 4);
    memcpy(w->at, text, length);
    w->at += length;
}

/* ---- Frames to the host ------------------------------------------------------------------------------ */

static bool has_room(size_t bytes) {
    if (OUT_SIZE - out_len >= bytes)
        return true;
    starved = true;
    return false;
}

/* Where the payload of the next frame goes; the caller has asked has_room(). */
static uint8_t *frame_payload(size_t length) {
    if (OUT_SIZE - out_start - out_len < HEADER + length + SEAL) {
        memmove(out_buf, out_buf + out_start, out_len);
        out_start = 0;
    }
    return out_buf + out_start + out_len + HEADER;
}

static void frame_end(enum type type, uint32_t stream, size_t length) {
    uint8_t *header = out_buf + out_start + out_len;
    store(header, MAGIC, 4);
    store(header + 4, type, 4);
    store(header + 8, stream, 4);
    store(header + 12, length, 4);
    store(header + HEADER + length, session_seal, SEAL);
    out_len += HEADER + length + SEAL;
}

static void send_frame(enum type type, uint32_t stream, const void *payload, size_t length) {
    uint8_t *to = frame_payload(length);
    if (length > 0)
        memcpy(to, payload, length);
    frame_end(type, stream, length);
}

static void send_error(uint32_t stream, enum reason reason, int error, const char *text) {
    uint8_t payload[256];
    struct writer w = {payload, payload + sizeof payload};
    put(&w, reason, 4);
    put(&w, (uint32_t)error, 4);
    put_string(&w, text);
    send_frame(ERROR, stream, payload, (size_t)(w.at - payload));
}

/* The host's bytes make no sense: nothing that follows can be trusted until the next SYNC. */
static void protocol_error(const char *text) {
    if (has_room(SMALL))
        send_error(0, R_PROTOCOL, EPROTO, text);
    session_end();
}

/* ---- Commands ---------------------------------------------------------------------------------------- */

struct request { /* an EXEC, decoded */
    uint32_t window, flags;
    struct winsize size;
    char *argv[MAX_WORDS + 1], *env[MAX_WORDS + 1];
    char *cwd, *user;
};

struct identity { /* who a command is run as, and what it hears of that */
    bool other; /* than we are: `gid` and `groups` are its own */
    uid_t uid;
    gid_t gid, groups[256];
    size_t group_count;
    const char *name, *home, *shell;
};

static struct stream *find_stream(uint32_t id) {
    for (size_t i = 0; i < MAX_STREAMS; i++)
        if (streams[i].used && streams[i].id == id)
            return &streams[i];
    return NULL;
}

static void forget_stream(struct stream *s) {
    close_fd(&s->status_fd);
    close_fd(&s->in_fd);
    close_fd(&s->out_fd);
    close_fd(&s->err_fd);
    close_fd(&s->tty_fd);
    free(s->in_buf);
    *s = (struct stream){.used = false};
}

/* Until the child has called setsid there is no group of its own: then the signal is for it alone. */
static void signal_stream(struct stream *s, int number) {
    if (s->reaped)
        return; /* its pid may be somebody else's by now */
    if (s->tty && (number == SIGINT || number == SIGQUIT || number == SIGTSTP)) {
        pid_t foreground = tcgetpgrp(s->tty_fd); /* as the keys would, which a shell's job hears, not the shell */
        if (foreground > 0 && kill(-foreground, number) == 0)
            return;
    }
    if (kill(-s->pid, number) < 0 && errno == ESRCH)
        kill(s->pid, number);
}

static void hang_up_stream(struct stream *s) {
    signal_stream(s, SIGHUP);
    signal_stream(s, SIGCONT); /* a stopped process gets its SIGHUP only when it goes on */
    forget_stream(s);
}

static void session_end(void) {
    for (size_t i = 0; i < MAX_STREAMS; i++)
        if (streams[i].used)
            hang_up_stream(&streams[i]);
    keeper.awaited = false;
    start_thaw();
    in_session = false;
}

/* ---- What a command needs: found by us, as a child of vfork may not touch memory, which is ours ------ */

#ifndef PASSWD
#define PASSWD "/etc/passwd" /* tests have users of their own */
#endif

struct lines {
    int fd;
    size_t start, length;
    char text[4096];
};

/* In place and without its end; NULL: there is none. One that does not fit is no user's, and passed over. */
static char *next_line(struct lines *file) {
    bool too_long = false;
    for (;;) {
        char *line = file->text + file->start;
        char *end = memchr(line, '\n', file->length);
        if (end) {
            size_t used = (size_t)(end - line) + 1;
            file->start += used;
            file->length -= used;
            *end = 0;
            if (!too_long)
                return line;
            too_long = false;
            continue;
        }
        memmove(file->text, line, file->length);
        file->start = 0;
        if (file->length == sizeof file->text) {
            too_long = true;
            file->length = 0;
        }
        ssize_t n = read(file->fd, file->text + file->length, sizeof file->text - file->length);
        if (n < 0 || (n == 0 && file->length == 0))
            return NULL;
        if (n == 0)
            file->text[file->length + (size_t)n++] = '\n'; /* the last line may lack it */
        file->length += (size_t)n;
    }
}

/* Digits and nothing else. */
static bool parse_number(const char *text, unsigned *number) {
    uint64_t value = 0;
    const char *at = text;
    for (; *at >= '0' && *at <= '9' && value <= UINT32_MAX; at++)
        value = 10 * value + (uint64_t)(*at - '0');
    *number = (unsigned)value;
    return at != text && !*at && value <= UINT32_MAX;
}

/* A line of passwd(5), cut at its colons. */
static bool parse_user(char *line, struct identity *id) {
    char *fields[7];
    for (int i = 0; i < 7; i++) {
        fields[i] = line;
        line = strchr(line, ':');
        if (!line && i < 6)
            return false;
        if (i < 6)
            *line++ = 0;
    }
    id->name = fields[0];
    id->home = fields[5];
    id->shell = fields[6];
    return parse_number(fields[2], &id->uid) && parse_number(fields[3], &id->gid);
}

static void find_groups(struct identity *id) {
    struct group *g;
    FILE *file = fopen("/etc/group", "re");
    id->group_count = 0;
    if (!file)
        return;
    id->groups[id->group_count++] = id->gid;
    while ((g = fgetgrent(file)))
        for (char **member = g->gr_mem; *member && id->group_count < 256; member++)
            if (strcmp(*member, id->name) == 0)
                id->groups[id->group_count++] = g->gr_gid;
    fclose(file);
}

/* By name or number; "" means ourselves, who need not be listed. What is found is good until the next call.
 * By hand, not by fgetpwent(): stdio is a lot of cold code on the way of a fork's first command. */
static bool find_identity(const char *who, struct identity *id) {
    static struct lines passwd;
    char *line;
    unsigned number = geteuid();
    bool numeric = !*who || parse_number(who, &number), found = false;
    passwd.start = passwd.length = 0;
    passwd.fd = open(PASSWD, O_RDONLY | O_CLOEXEC);
    while (!found && (line = next_line(&passwd)))
        found = parse_user(line, id) && (numeric ? id->uid == number : strcmp(id->name, who) == 0);
    close_fd(&passwd.fd);
    if (!found) {
        id->name = id->shell = "";
        id->home = "/";
    }
    id->other = *who && found && id->uid != geteuid();
    if (id->other)
        find_groups(id);
    return found || !*who;
}

/* In the place of the variable of the same name, if there is one. */
static void set_variable(char **environment, char *word) {
    size_t name = (size_t)(strchr(word, '=') - word) + 1;
    while (*environment && strncmp(*environment, word, name) != 0)
        environment++;
    if (!*environment)
        environment[1] = NULL;
    *environment = word;
}

/* A clean environment: what an init system gave to us (NOTIFY_SOCKET ...) is not the command's. */
static char **build_environment(struct request *r, const struct identity *id) {
    enum { ROOM = sizeof "LOGNAME=" + sizeof((struct lines *)0)->text };
    static char home[ROOM], user[ROOM], logname[ROOM], shell[ROOM];
    static char *environment[MAX_WORDS + 7]; /* six of ours, and the end */
    char **next = environment;
    *next++ = (char *)"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    strcpy(stpcpy(*next++ = home, "HOME="), id->home);
    if (*id->name) {
        strcpy(stpcpy(*next++ = user, "USER="), id->name);
        strcpy(stpcpy(*next++ = logname, "LOGNAME="), id->name);
        strcpy(stpcpy(*next++ = shell, "SHELL="), *id->shell ? id->shell : "/bin/sh");
    }
    if (r->flags & FLAG_TTY)
        *next++ = (char *)"TERM=xterm";
    *next = NULL;
    for (char **word = r->env; *word; word++)
        set_variable(environment, *word);
    return environment;
}

/* ---- The child: system calls and nothing else ---------------------------------------------------------- */

static _Noreturn void child_fail(int status_fd, enum reason reason, int error) {
    uint32_t word[2] = {reason, (uint32_t)error};
    if (write(status_fd, word, sizeof word) < 0)
        _exit(126);
    _exit(127);
}

static _Noreturn void run_child(const struct request *r, const struct identity *id, const int fds[3], int status_fd) {
    sigset_t none;
    sigemptyset(&none);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGHUP, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    if (r->flags & FLAG_TTY)
        ioctl(fds[0], TIOCSCTTY, 0);
    if (dup2(fds[0], 0) < 0 || dup2(fds[1], 1) < 0 || dup2(fds[2], 2) < 0)
        child_fail(status_fd, R_SYSTEM, errno);
    umask(022);
    if (id->other && (setgroups(id->group_count, id->groups) < 0 || setgid(id->gid) < 0 || setuid(id->uid) < 0))
        child_fail(status_fd, R_USER, errno);
    if (*r->cwd ? chdir(r->cwd) < 0 : chdir(id->home) < 0 && chdir("/") < 0)
        child_fail(status_fd, R_CWD, errno);
    execvp(r->argv[0], r->argv);
    child_fail(status_fd, R_EXEC, errno);
}

/* Nothing is copied for a child of vfork, and we stand still until it is another program. So there is none for
 * what may hang on its way (a directory or a program on a server), or for a user who could stop it there. */
static pid_t start_child(const struct request *r, const struct identity *id, char **environment, const int fds[3],
                         int status_fd) {
    char **own = environ;
    bool at_once = !id->other && !*r->cwd && !strchr(r->argv[0], '/');
    environ = environment; /* where execvp() looks for PATH, and what it hands on */
    pid_t pid = at_once ? vfork() : fork();
    if (pid == 0)
        run_child(r, id, fds, status_fd);
    environ = own;
    return pid;
}

/* theirs: the child's stdin, stdout, stderr; ours: the other ends, or thrice the master. Returns 0 or an errno. */
static int open_tty(struct request *r, int theirs[3], int ours[3]) {
    char name[64];
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0)
        return errno;
    ours[2] = master;
    if (grantpt(master) < 0 || unlockpt(master) < 0 || ptsname_r(master, name, sizeof name) != 0)
        return errno;
    ioctl(master, TIOCSWINSZ, &r->size);
    for (int i = 0; i < 3; i++)
        if ((theirs[i] = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0)
            return errno;
    for (int i = 0; i < 2; i++)
        if ((ours[i] = fcntl(master, F_DUPFD_CLOEXEC, 0)) < 0)
            return errno;
    return 0;
}

static int open_pipes(int theirs[3], int ours[3]) {
    for (int i = 0; i < 3; i++) {
        int ends[2]; /* read, write */
        if (pipe2(ends, O_CLOEXEC) < 0)
            return errno;
        theirs[i] = ends[i == 0 ? 0 : 1];
        ours[i] = ends[i == 0 ? 1 : 0];
    }
    return 0;
}

static void start_command(struct stream *s, struct request *r) {
    static struct identity id;
    int theirs[3] = {-1, -1, -1}, ours[3] = {-1, -1, -1}, status[2] = {-1, -1};
    s->tty = r->flags & FLAG_TTY;
    enum reason reason = find_identity(r->user, &id) ? R_SYSTEM : R_USER;
    int error = reason == R_USER ? ENOENT : s->tty ? open_tty(r, theirs, ours) : open_pipes(theirs, ours);
    if (!error && pipe2(status, O_CLOEXEC) < 0)
        error = errno;
    if (!error && (s->pid = start_child(r, &id, build_environment(r, &id), theirs, status[1])) < 0)
        error = errno;
    for (int i = 0; i < 3; i++) {
        close_fd(&theirs[i]);
        if (ours[i] >= 0)
            set_nonblocking(ours[i]);
    }
    close_fd(&status[1]);
    s->in_fd = ours[0];
    s->out_fd = ours[1];
    s->err_fd = s->tty ? -1 : ours[2];
    s->tty_fd = s->tty ? ours[2] : -1;
    s->status_fd = status[0];
    if (error) {
        send_error(s->id, reason, error, strerror(error));
        forget_stream(s);
    } else {
        set_nonblocking(s->status_fd);
    }
}

static void take_words(struct reader *p, char **words) {
    uint32_t count = take(p, 4);
    if (count > MAX_WORDS)
        p->bad = true;
    for (uint32_t i = 0; i < count && !p->bad; i++)
        *words++ = take_string(p);
    *words = NULL;
}

static void handle_exec(uint32_t id, struct reader *p) {
    static struct request r;
    r.window = take(p, 4);
    r.flags = take(p, 4);
    r.size = (struct winsize){.ws_row = (uint16_t)take(p, 2)};
    r.size.ws_col = (uint16_t)take(p, 2);
    take_words(p, r.argv);
    take_words(p, r.env);
    r.cwd = take_string(p);
    r.user = take_string(p);
    for (char **word = r.env; !p->bad && *word; word++)
        if (!strchr(*word, '='))
            p->bad = true;
    if (p->bad || p->at != p->end || !r.argv[0] || id == 0 || find_stream(id)) {
        protocol_error("malformed EXEC");
        return;
    }
    struct stream *s = streams;
    while (s < streams + MAX_STREAMS && s->used)
        s++;
    if (s == streams + MAX_STREAMS) {
        send_error(id, R_BUSY, EAGAIN, "too many commands at once");
        return;
    }
    *s = (struct stream){.used = true, .id = id, .credit = r.window,
                         .in_poll = -1, .out_poll = -1, .err_poll = -1, .status_poll = -1};
    start_command(s, &r);
}

/* A command that stopped reading loses what was meant for it, like a writer into a closed pipe. */
static void drop_stdin(struct stream *s) {
    s->in_owed += (uint32_t)s->in_len;
    s->in_len = 0;
    close_fd(&s->in_fd);
}

static void end_stdin(struct stream *s) {
    struct termios settings;
    if (s->tty && s->in_fd >= 0 && tcgetattr(s->in_fd, &settings) == 0 && (settings.c_lflag & ICANON) &&
        write(s->in_fd, &settings.c_cc[VEOF], 1) < 0 && errno == EAGAIN)
        return; /* closing a terminal would hang it up, so it gets the key that ends input */
    close_fd(&s->in_fd);
}

static void write_stdin(struct stream *s) {
    while (s->in_len > 0 && s->in_fd >= 0) {
        ssize_t n = write(s->in_fd, s->in_buf + s->in_start, s->in_len);
        if (n < 0) {
            if (errno != EAGAIN && errno != EINTR)
                drop_stdin(s);
            break;
        }
        s->in_start += (size_t)n;
        s->in_len -= (size_t)n;
        s->in_owed += (uint32_t)n;
    }
    if (s->in_len == 0)
        s->in_start = 0;
    if (s->in_len == 0 && s->stdin_eof)
        end_stdin(s);
}

static void handle_stdin(struct stream *s, struct reader *p) {
    size_t length = (size_t)(p->end - p->at);
    /* in_owed counts against the window until it is granted: the host has not been told that it is free. */
    if (length > STDIN_WINDOW - s->in_len - s->in_owed || s->stdin_eof) {
        protocol_error("STDIN beyond the window or after STDIN_EOF");
        return;
    }
    if (s->in_fd < 0) { /* nobody reads: take it and drop it, as the host cannot know yet */
        s->in_owed += (uint32_t)length;
        return;
    }
    if (!s->in_buf && !(s->in_buf = malloc(STDIN_WINDOW))) {
        protocol_error("out of memory");
        return;
    }
    if (STDIN_WINDOW - s->in_start - s->in_len < length) {
        memmove(s->in_buf, s->in_buf + s->in_start, s->in_len);
        s->in_start = 0;
    }
    memcpy(s->in_buf + s->in_start + s->in_len, p->at, length);
    s->in_len += length;
    write_stdin(s);
}

static void grant_stdin(struct stream *s) {
    bool due = s->in_owed >= STDIN_WINDOW / 2 || (s->in_owed > 0 && s->in_len == 0);
    if (!due || s->stdin_eof || !has_room(MAX_FRAME))
        return;
    uint8_t payload[4];
    store(payload, s->in_owed, 4);
    send_frame(WINDOW, s->id, payload, sizeof payload);
    s->in_owed = 0;
}

/* Output may fill out_buf only so far that the next request of the host still has room for its answer. */
static bool may_read_output(const struct stream *s) {
    return s->status_fd < 0 && s->credit > 0 && has_room(MAX_FRAME + HEADER + CHUNK + SEAL);
}

static void read_output(struct stream *s, int *fd, enum type type) {
    if (!may_read_output(s))
        return;
    size_t want = s->credit < CHUNK ? s->credit : CHUNK;
    ssize_t n = read(*fd, frame_payload(want), want);
    if (n > 0) {
        frame_end(type, s->id, (size_t)n);
        s->credit -= (uint32_t)n;
        s->unread -= (size_t)n < s->unread ? (size_t)n : s->unread;
        s->quiet_since = now_ms();
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        close_fd(fd); /* EIO is how a terminal without anybody on it ends */
    }
}

static void read_start(struct stream *s) {
    uint32_t word[2];
    if (!has_room(MAX_FRAME))
        return;
    ssize_t n = read(s->status_fd, word, sizeof word);
    if (n < 0)
        return;
    if (n == sizeof word) {
        send_error(s->id, (enum reason)word[0], (int)word[1], strerror((int)word[1]));
        forget_stream(s);
        return;
    }
    close_fd(&s->status_fd);
    uint8_t payload[4];
    store(payload, (uint32_t)s->pid, 4);
    send_frame(STARTED, s->id, payload, sizeof payload);
}

/* When the command is over although its pipes are open: a grandchild has them, and has said nothing for a
 * moment. One that never falls silent (`yes &`) is cut off once all that lay there at the end was read. */
static int64_t ms_until_over(const struct stream *s, int64_t now) {
    if (s->out_fd < 0 && s->err_fd < 0)
        return 0;
    if (s->credit == 0 || OUT_SIZE - out_len < 2 * MAX_FRAME)
        return INT_MAX; /* silent because we do not listen */
    int64_t quiet = s->quiet_since + QUIET_MS - now, endless = s->exited_at + ENDLESS_MS - now;
    int64_t left = s->unread == 0 && endless < quiet ? endless : quiet;
    return left > 0 ? left : 0;
}

static void finish_command(struct stream *s) {
    uint8_t payload[8];
    bool killed = WIFSIGNALED(s->wait_status);
    store(payload, killed, 4);
    store(payload + 4, (uint32_t)(killed ? WTERMSIG(s->wait_status) : WEXITSTATUS(s->wait_status)), 4);
    send_frame(EXIT, s->id, payload, sizeof payload);
    forget_stream(s);
}

static void reap_children(void) {
    struct signalfd_siginfo ignored;
    int status;
    pid_t pid;
    while (read(child_signals, &ignored, sizeof ignored) > 0)
        continue;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        for (struct stream *s = streams; s < streams + MAX_STREAMS; s++) {
            int waiting = 0;
            if (!s->used || s->reaped || s->pid != pid)
                continue;
            s->reaped = true;
            s->wait_status = status;
            s->exited_at = s->quiet_since = now_ms();
            if (s->out_fd >= 0 && ioctl(s->out_fd, FIONREAD, &waiting) == 0)
                s->unread += (size_t)waiting;
            if (s->err_fd >= 0 && ioctl(s->err_fd, FIONREAD, &waiting) == 0)
                s->unread += (size_t)waiting;
            drop_stdin(s);
        }
    }
}

/* ---- What the guest is, and ending it ------------------------------------------------------------------ */

static void put_os(struct writer *w) {
    char line[512];
    FILE *file = fopen("/etc/os-release", "re");
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, "PRETTY_NAME=", 12) != 0)
            continue;
        char *name = line + 12;
        name[strcspn(name, "\n")] = 0;
        if (*name == '"' || *name == '\'') {
            name++;
            name[strcspn(name, "\"'")] = 0;
        }
        put_string(w, name);
        fclose(file);
        return;
    }
    if (file)
        fclose(file);
    put_string(w, "Linux");
}

static void put_address(struct writer *w, const struct ifaddrs *a) {
    char text[INET6_ADDRSTRLEN], with_prefix[INET6_ADDRSTRLEN + 16];
    bool six = a->ifa_addr->sa_family == AF_INET6;
    size_t where = six ? offsetof(struct sockaddr_in6, sin6_addr) : offsetof(struct sockaddr_in, sin_addr);
    int prefix = 0;
    inet_ntop(a->ifa_addr->sa_family, (const uint8_t *)a->ifa_addr + where, text, sizeof text);
    for (size_t i = 0; a->ifa_netmask && i < (six ? 16u : 4u); i++)
        prefix += __builtin_popcount(((const uint8_t *)a->ifa_netmask)[where + i]);
    snprintf(with_prefix, sizeof with_prefix, "%s/%d", text, prefix);
    put_string(w, with_prefix);
}

static void put_interface(struct writer *w, const struct ifaddrs *all, const struct ifaddrs *link) {
    const struct sockaddr_ll *hardware = (const void *)link->ifa_addr;
    char mac[3 * 8 + 1] = "";
    for (int i = 0; i < hardware->sll_halen && i < 8; i++)
        sprintf(mac + strlen(mac), i ? ":%02x" : "%02x", hardware->sll_addr[i]);
    put_string(w, link->ifa_name);
    put_string(w, mac);
    uint8_t *count_at = w->at;
    uint32_t count = 0;
    put(w, 0, 4);
    for (const struct ifaddrs *a = all; a && w->end - w->at > 256; a = a->ifa_next) {
        if (!a->ifa_addr || strcmp(a->ifa_name, link->ifa_name) != 0)
            continue;
        if (a->ifa_addr->sa_family == AF_INET || a->ifa_addr->sa_family == AF_INET6) {
            put_address(w, a);
            count++;
        }
    }
    store(count_at, count, 4);
}

static void handle_info(uint32_t stream) {
    uint8_t *payload = frame_payload(MAX_PAYLOAD);
    struct writer w = {payload, payload + MAX_PAYLOAD};
    struct utsname system;
    struct timespec up;
    struct ifaddrs *all = NULL;
    uname(&system);
    clock_gettime(CLOCK_BOOTTIME, &up);
    put_string(&w, system.nodename);
    put_os(&w);
    put_string(&w, system.release);
    put(&w, (uint64_t)up.tv_sec * 1000 + (uint64_t)up.tv_nsec / 1000000, 8);
    uint8_t *count_at = w.at;
    uint32_t count = 0;
    put(&w, 0, 4);
    if (getifaddrs(&all) < 0)
        all = NULL; /* a kernel without network: no interfaces */
    for (struct ifaddrs *a = all; a && w.end - w.at > 1024; a = a->ifa_next)
        if (a->ifa_addr && a->ifa_addr->sa_family == AF_PACKET) {
            put_interface(&w, all, a);
            count++;
        }
    if (all)
        freeifaddrs(all);
    store(count_at, count, 4);
    frame_end(INFO_REPLY, stream, (size_t)(w.at - payload));
}

/* A shell as PID 1 (our micro image) hears no request to power off, and nobody else would stop its children. */
static bool init_is_shell(void) {
    static const char *const shells[] = {"sh", "ash", "bash", "dash", "hush", "busybox"};
    char words[256] = "";
    FILE *file = fopen("/proc/1/cmdline", "re");
    size_t length = file ? fread(words, 1, sizeof words - 2, file) : 0;
    if (file)
        fclose(file);
    words[length] = 0;
    char *name = strrchr(words, '/');
    name = name ? name + 1 : words;
    for (size_t i = 0; i < sizeof shells / sizeof *shells; i++)
        if (strcmp(name, shells[i]) == 0)
            return true;
    return false;
}

static void run_shutdown(int mode) {
    static const char *const verbs[] = {"poweroff", "reboot", "halt"};
    static const int commands[] = {RB_POWER_OFF, RB_AUTOBOOT, RB_HALT_SYSTEM};
    if (fork() != 0)
        return;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    if (shutdown_program) {
        execl(shutdown_program, shutdown_program, verbs[mode], (char *)NULL);
        _exit(127);
    }
    setenv("PATH", "/sbin:/usr/sbin:/bin:/usr/bin", 1);
    if (!init_is_shell()) {
        execlp(verbs[mode], verbs[mode], (char *)NULL);
        execlp("systemctl", "systemctl", verbs[mode], (char *)NULL);
        execlp("busybox", "busybox", verbs[mode], (char *)NULL);
    }
    kill(-1, SIGTERM); /* all but PID 1 and this process */
    nanosleep(&(struct timespec){.tv_nsec = 200 * 1000 * 1000}, NULL);
    sync();
    int trigger = open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC);
    if (trigger >= 0 && write(trigger, "u", 1) == 1) /* remount everything read-only */
        sync();
    reboot(commands[mode]);
    _exit(1);
}

static void handle_shutdown(uint32_t stream, struct reader *p) {
    uint32_t mode = take(p, 1);
    if (p->bad || mode > 2) {
        protocol_error("malformed SHUTDOWN");
        return;
    }
    send_frame(SHUTDOWN_REPLY, stream, NULL, 0);
    shutdown_mode = (int)mode;
}

/* ---- Another identity -------------------------------------------------------------------------------- */

static void put_result(struct writer *w, uint32_t *count, const char *what, int error) {
    put_string(w, what);
    put(w, (uint32_t)error, 4);
    ++*count;
}

/* All is read before anything is done: half an identity would be nobody's. None at all means that the guest goes
 * on as itself, from a memory that was saved, and only what time has spoiled is renewed. Random numbers come first: nothing
 * that is made of them may be made of what siblings share. */
static void handle_renew(uint32_t stream, struct reader *p) {
    static char *cards[MAX_CARDS][2];
    uint8_t *payload = frame_payload(MAX_PAYLOAD);
    struct writer w = {payload + 4, payload + MAX_PAYLOAD};
    uint32_t count = 0;
    uint64_t low = take(p, 4), now = low | (uint64_t)take(p, 4) << 32;
    uint32_t length = take(p, 4);
    const uint8_t *entropy = p->at;
    if (p->bad || length > (size_t)(p->end - p->at)) {
        protocol_error("malformed RENEW");
        return;
    }
    p->at += length;
    const char *hostname = take_string(p), *machine_id = take_string(p);
    uint32_t all = take(p, 4);
    for (uint32_t i = 0; i < all && i < MAX_CARDS && !p->bad; i++) {
        cards[i][0] = take_string(p);
        cards[i][1] = take_string(p);
    }
    if (p->bad || p->at != p->end || !*hostname != !*machine_id) {
        protocol_error("malformed RENEW");
        return;
    }
    put_result(&w, &count, "random", renew_random(entropy, length));
    put_result(&w, &count, "clock", renew_clock(now));
    if (*hostname) {
        put_result(&w, &count, "hostname", renew_hostname(hostname));
        put_result(&w, &count, "machine-id", renew_machine_id(machine_id));
    }
    for (uint32_t i = 0; i < all; i++)
        put_result(&w, &count, "mac", renew_mac(cards[i][0], cards[i][1]));
    if (*hostname)
        put_result(&w, &count, "hook", access(RENEW_HOOK, X_OK) < 0 ? errno : 0);
    store(payload, count, 4);
    frame_end(RENEW_REPLY, stream, (size_t)(w.at - payload));
}

/* ---- File systems at rest ------------------------------------------------------------------------------ */

static void answer_freezing(enum type type, uint32_t count) {
    uint8_t payload[4];
    store(payload, count, 4);
    send_frame(type, keeper.stream, payload, sizeof payload);
    keeper.awaited = false;
}

/* The keeper has none of our descriptors: a command would not see the end of its input, nor a new agent find the
 * port free. It ends by its own time or with us, whatever signal is sent to all. */
static _Noreturn void run_keeper(int agent, uint32_t ms) {
    signal(SIGHUP, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    setsid();
    for (size_t i = 0; i < MAX_STREAMS; i++)
        if (streams[i].used)
            forget_stream(&streams[i]);
    close_fd(&channel.fd);
    close_fd(&channel.listen_fd);
    close_fd(&channel.edge_fd);
    close_fd(&child_signals);
    keep_frozen(agent, ms);
}

static void handle_freeze(uint32_t stream, struct reader *p) {
    uint32_t ms = take(p, 4);
    int ends[2];
    if (p->bad || p->at != p->end || ms == 0) {
        protocol_error("malformed FREEZE");
        return;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) {
        send_error(stream, R_SYSTEM, errno, strerror(errno));
        return;
    }
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        run_keeper(ends[1], ms < MOST_FROZEN_MS ? ms : MOST_FROZEN_MS);
    }
    int error = errno;
    close(ends[1]);
    keeper.fd = ends[0];
    if (pid < 0) {
        close_fd(&keeper.fd);
        send_error(stream, R_SYSTEM, error, strerror(error));
        return;
    }
    set_nonblocking(keeper.fd);
    keeper.state = FREEZING;
    keeper.awaited = true;
    keeper.stream = stream;
}

static void start_thaw(void) {
    if (keeper.state == IDLE || keeper.state == THAWING)
        return;
    if (keeper.awaited)
        send_error(keeper.stream, R_SYSTEM, ECANCELED, strerror(ECANCELED));
    shutdown(keeper.fd, SHUT_WR);
    keeper.awaited = false;
    keeper.state = THAWING;
}

static void handle_thaw(uint32_t stream) {
    start_thaw();
    keeper.stream = stream;
    if (keeper.state == IDLE)
        answer_freezing(THAW_REPLY, 0);
    else
        keeper.awaited = true;
}

/* Requests that write, or that are for a guest whose last freeze is over. */
static bool needs_thawed(enum type type) {
    return type == EXEC || type == RENEW || type == SHUTDOWN || type == FREEZE || type == THAW;
}

/* What the keeper says. Its end without a word is that of one who was killed: then we do its work. */
static void read_keeper(void) {
    struct word word;
    bool freezing = keeper.state == FREEZING;
    if (!has_room(SMALL))
        return;
    ssize_t n = read(keeper.fd, &word, sizeof word);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n == sizeof word && word.kind == W_FROZE && word.count > 0) {
        if (!freezing)
            return; /* it has not heard yet that it is to thaw, and does so next */
        answer_freezing(FREEZE_REPLY, word.count);
        keeper.state = AT_REST;
        return;
    }
    if (n != sizeof word) {
        word = thaw_everything();
        word.error = freezing ? ECHILD : 0;
    }
    if (!freezing && (word.kind == W_FAILED || word.kind == W_EXPIRED))
        word = (struct word){.kind = W_THAWED}; /* they went on before we said so */
    close_fd(&keeper.fd);
    keeper.state = IDLE;
    if (keeper.awaited && word.error)
        send_error(keeper.stream, *word.path ? R_FILE_SYSTEM : R_SYSTEM, word.error,
                   *word.path ? word.path : strerror(word.error));
    else if (keeper.awaited)
        answer_freezing(freezing ? FREEZE_REPLY : THAW_REPLY, word.count);
    keeper.awaited = false;
}

/* ---- Frames from the host ------------------------------------------------------------------------------ */

static void handle_sync(const uint8_t *payload) {
    uint8_t reply[24];
    session_end();
    out_len = 0; /* meant for the session before */
    in_session = true;
    channel.doubtful = false;
    session_seal = (uint32_t)load(payload, 4);
    memcpy(reply, payload, 8);
    store(reply + 8, VERSION, 4);
    store(reply + 12, CAN_TTY | CAN_USER | CAN_RENEW | CAN_FREEZE | CAN_REFRESH, 4);
    store(reply + 16, MAX_STREAMS, 4);
    store(reply + 20, STDIN_WINDOW, 4);
    send_frame(SYNC_REPLY, 0, reply, sizeof reply);
}

static void handle_stream_frame(enum type type, struct stream *s, struct reader *p) {
    uint32_t first = type == STDIN ? 0 : take(p, type == RESIZE ? 2 : type == STDIN_EOF || type == CLOSE ? 0 : 4);
    switch (type) {
    case STDIN:
        handle_stdin(s, p);
        break;
    case STDIN_EOF:
        s->stdin_eof = true;
        write_stdin(s);
        break;
    case WINDOW:
        if (p->bad || first > UINT32_MAX / 2 || s->credit > UINT32_MAX / 2) {
            protocol_error("malformed WINDOW");
            return;
        }
        s->credit += first;
        s->quiet_since = now_ms(); /* it is silent from now on, if it is */
        break;
    case SIGNAL:
        if (p->bad || first == 0 || first > 64)
            protocol_error("malformed SIGNAL");
        else
            signal_stream(s, (int)first);
        break;
    case RESIZE: {
        struct winsize size = {.ws_row = (uint16_t)first, .ws_col = (uint16_t)take(p, 2)};
        if (p->bad)
            protocol_error("malformed RESIZE");
        else if (s->tty)
            ioctl(s->tty_fd, TIOCSWINSZ, &size);
        break;
    }
    default: /* CLOSE */
        hang_up_stream(s);
    }
}

static void handle_frame(enum type type, uint32_t id, uint8_t *payload, size_t length) {
    struct reader p = {payload, payload + length, false};
    struct stream *s;
    if (keeper.state != IDLE && needs_thawed(type) && type != THAW) {
        send_error(id, R_FROZEN, EBUSY, "the file systems are frozen");
        return;
    }
    switch (type) {
    case PING:
        send_frame(PONG, id, payload, length);
        break;
    case INFO:
        handle_info(id);
        break;
    case SHUTDOWN:
        handle_shutdown(id, &p);
        break;
    case RENEW:
        handle_renew(id, &p);
        break;
    case FREEZE:
        handle_freeze(id, &p);
        break;
    case THAW:
        handle_thaw(id);
        break;
    case EXEC:
        handle_exec(id, &p);
        break;
    case STDIN: case STDIN_EOF: case WINDOW: case SIGNAL: case RESIZE: case CLOSE:
        s = find_stream(id); /* NULL: it has ended, and the host could not know yet */
        if (s)
            handle_stream_frame(type, s, &p);
        break;
    default:
        send_error(id, R_UNSUPPORTED, ENOSYS, "unknown frame type");
    }
}

static bool is_sync(const uint8_t *frame) {
    return load(frame, 4) == MAGIC && load(frame + 4, 4) == SYNC && load(frame + 8, 4) == 0 &&
           load(frame + 12, 4) == SYNC_PAYLOAD &&
           memcmp(frame + HEADER, frame + HEADER + SYNC_PAYLOAD, SEAL) == 0;
}

/* Bytes to drop before the next SYNC, or as many as surely hold none. */
static size_t hunt(const uint8_t *at, size_t length) {
    size_t i = 0;
    while (length - i >= SYNC_FRAME && !is_sync(at + i))
        i++;
    return i;
}

/* Bytes to drop of a frame that nobody may be there to complete; 0: no SYNC has come after it. */
static size_t cut_short(const uint8_t *at, size_t left) {
    size_t next = 1 + hunt(at + 1, left - 1);
    return channel.doubtful && left - next >= SYNC_FRAME ? next : 0;
}

/* How many bytes were dealt with; 0: a frame is not complete, or its answer has no room yet. */
static size_t parse_one(uint8_t *at, size_t left) {
    if (left >= SYNC_FRAME && is_sync(at)) {
        handle_sync(at + HEADER);
        return SYNC_FRAME;
    }
    if (!in_session)
        return left >= SYNC_FRAME ? hunt(at, left) : 0;
    if (left < HEADER)
        return 0;
    uint32_t type = (uint32_t)load(at + 4, 4), id = (uint32_t)load(at + 8, 4);
    size_t length = load(at + 12, 4);
    if (load(at, 4) != MAGIC || length > MAX_PAYLOAD) {
        protocol_error("malformed header");
        return 1;
    }
    if (left < HEADER + length + SEAL || (type == SYNC && left < SYNC_FRAME))
        return cut_short(at, left);
    if (!has_room(MAX_FRAME))
        return 0;
    if (keeper.state == THAWING && needs_thawed((enum type)type))
        return 0; /* it came after the thaw, and waits for it */
    if (type == SYNC || load(at + HEADER + length, SEAL) != session_seal) {
        protocol_error("wrong seal"); /* a frame cut short by a host that died: the SYNC may be inside it */
        return 1;
    }
    handle_frame((enum type)type, id, at + HEADER, length);
    return HEADER + length + SEAL;
}

static void parse_input(void) {
    size_t at = 0, used;
    while (at < in_len && (used = parse_one(in_buf + at, in_len - at)) > 0)
        at += used;
    in_len -= at;
    memmove(in_buf, in_buf + at, in_len);
}

/* ---- The channel --------------------------------------------------------------------------------------- */

/* A port by its name: without udev (our micro image) there is no /dev/virtio-ports. */
static int open_by_name(const char *name) {
    char path[PATH_MAX], found[128];
    struct dirent *entry;
    int fd = -1;
    DIR *ports = opendir("/sys/class/virtio-ports");
    while (ports && fd < 0 && (entry = readdir(ports))) {
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        FILE *file = fopen(path, "re");
        bool match = file && fgets(found, sizeof found, file);
        if (file)
            fclose(file);
        if (!match)
            continue;
        found[strcspn(found, "\n")] = 0;
        if (strcmp(found, name) != 0)
            continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    }
    if (ports)
        closedir(ports);
    return fd;
}

/* A port that has hung up says so without end, which poll() would spin on. An edge-triggered epoll speaks
 * only when something changes: the driver wakes its waiters when the host opens the port again. */
static void watch_edges(void) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    channel.edge_fd = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(channel.edge_fd, EPOLL_CTL_ADD, channel.fd, &event);
}

static void open_channel(void) {
    if (channel.listen_fd >= 0) {
        channel.fd = accept4(channel.listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        return;
    }
    const char *slash = strrchr(channel.device, '/');
    channel.fd = open(channel.device, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (channel.fd < 0)
        channel.fd = open_by_name(slash ? slash + 1 : channel.device);
    if (channel.fd >= 0)
        watch_edges();
}

static void channel_hangup(int error) {
    if (channel.device && error == 0) {
        if (channel.no_host)
            return;
        /* The port stays. The driver tells of hosts and hands out what they say in no order: this may be the
         * end of the host before the one whose SYNC we have answered. So what was read and what is to be said
         * is kept, and the session ends with the next SYNC, or when nobody comes for a while. */
        channel.no_host = channel.doubtful = true;
        channel.left_at = now_ms();
        return;
    }
    session_end();
    in_len = out_len = 0;
    if (!channel.device && channel.listen_fd < 0)
        exit(0);
    channel.no_host = false;
    close_fd(&channel.edge_fd);
    close_fd(&channel.fd);
}

static void read_channel(void) {
    while (in_len < IN_SIZE) {
        ssize_t n = read(channel.fd, in_buf + in_len, IN_SIZE - in_len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0 || (n < 0 && errno != EAGAIN)) {
            channel_hangup(n == 0 ? 0 : errno);
            return;
        }
        if (n < 0) {
            channel.no_host = false;
            return;
        }
        in_len += (size_t)n;
    }
}

static void write_channel(void) {
    while (out_len > 0 && channel.fd >= 0 && !channel.no_host) {
        ssize_t n = write(channel.fd, out_buf + out_start, out_len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            if (errno != EAGAIN)
                channel_hangup(errno);
            return;
        }
        out_start += (size_t)n;
        out_len -= (size_t)n;
    }
    if (out_len == 0)
        out_start = 0;
}

/* ---- The loop ------------------------------------------------------------------------------------------ */

static struct pollfd polls[3 + 4 * MAX_STREAMS];
static int poll_count;

static int add_poll(int fd, short events) {
    polls[poll_count] = (struct pollfd){.fd = fd, .events = events};
    return poll_count++;
}

static bool ready(int place) { return place >= 0 && polls[place].revents != 0; }

/* Fills polls; returns the time in ms after which something is due without any of them, or -1. */
static int plan_round(void) {
    int64_t now = now_ms(), due = INT_MAX;
    poll_count = 0;
    add_poll(child_signals, POLLIN);
    if (channel.fd < 0) {
        add_poll(channel.listen_fd, POLLIN);
        due = channel.device ? REOPEN_MS : INT_MAX;
    } else if (channel.no_host) {
        add_poll(channel.edge_fd, POLLIN);
        due = WAIT_HOST_MS; /* an edge lost between read and poll must not be for ever */
        if (in_session && channel.left_at + RETURN_MS - now < due)
            due = channel.left_at + RETURN_MS > now ? channel.left_at + RETURN_MS - now : 0;
    } else {
        add_poll(channel.fd, (short)((in_len < IN_SIZE ? POLLIN : 0) | (out_len > 0 ? POLLOUT : 0)));
    }
    keeper.poll = keeper.fd >= 0 && has_room(SMALL) ? add_poll(keeper.fd, POLLIN) : -1;
    for (struct stream *s = streams; s < streams + MAX_STREAMS; s++) {
        if (!s->used)
            continue;
        bool listen = may_read_output(s);
        s->status_poll = s->status_fd >= 0 ? add_poll(s->status_fd, POLLIN) : -1;
        s->in_poll = s->in_fd >= 0 && (s->in_len > 0 || s->stdin_eof) ? add_poll(s->in_fd, POLLOUT) : -1;
        s->out_poll = listen && s->out_fd >= 0 ? add_poll(s->out_fd, POLLIN) : -1;
        s->err_poll = listen && s->err_fd >= 0 ? add_poll(s->err_fd, POLLIN) : -1;
        if (s->reaped && s->status_fd < 0 && ms_until_over(s, now) < due)
            due = ms_until_over(s, now);
    }
    return due == INT_MAX ? -1 : (int)due;
}

static void serve_channel(void) {
    if (channel.fd < 0) {
        open_channel();
        return;
    }
    if (channel.no_host) {
        struct epoll_event taken;
        epoll_wait(channel.edge_fd, &taken, 1, 0);
        read_channel();
    } else if (polls[1].revents & (POLLIN | POLLHUP | POLLERR)) {
        if (in_len == IN_SIZE && (polls[1].revents & POLLHUP)) {
            channel_hangup(0);
            session_end(); /* which lacks from now on what we could not parse yet, and nobody waits for */
            in_len = out_len = 0;
        } else {
            read_channel();
        }
    }
}

static void serve_stream(struct stream *s) {
    if (ready(s->status_poll))
        read_start(s);
    if (s->used && ready(s->in_poll))
        write_stdin(s);
    if (s->used && ready(s->out_poll))
        read_output(s, &s->out_fd, STDOUT);
    if (s->used && ready(s->err_poll))
        read_output(s, &s->err_fd, STDERR);
    if (!s->used)
        return;
    s->status_poll = s->in_poll = s->out_poll = s->err_poll = -1;
    grant_stdin(s);
    if (s->reaped && s->status_fd < 0 && ms_until_over(s, now_ms()) == 0 && has_room(MAX_FRAME))
        finish_command(s);
}

static _Noreturn void serve(void) {
    static size_t first; /* another stream comes first each round: all get their share of out_buf */
    for (;;) {
        bool again = starved && OUT_SIZE - out_len >= 3 * MAX_FRAME;
        starved = false;
        int timeout = plan_round();
        if (poll(polls, (nfds_t)poll_count, again ? 0 : timeout) < 0)
            continue; /* EINTR: revents are not valid */
        if (ready(0))
            reap_children();
        serve_channel();
        if (in_session && channel.no_host && now_ms() - channel.left_at >= RETURN_MS) {
            session_end();
            out_len = 0; /* meant for it */
        }
        if (ready(keeper.poll))
            read_keeper();
        parse_input();
        first = (first + 1) % MAX_STREAMS;
        for (size_t i = 0; i < MAX_STREAMS; i++) {
            struct stream *s = &streams[(first + i) % MAX_STREAMS];
            if (s->used)
                serve_stream(s);
        }
        write_channel();
        if (shutdown_mode >= 0 && (out_len == 0 || channel.fd < 0 || channel.no_host)) {
            run_shutdown(shutdown_mode);
            shutdown_mode = -1;
        }
    }
}

static _Noreturn void usage(void) {
    fputs("usage: insula-agent [--shutdown PROGRAM] DEVICE\n"
          "       insula-agent [--shutdown PROGRAM] --fd N\n", stderr);
    exit(64);
}

static void use_descriptor(const char *text) {
    char *rest;
    int listening = 0, fd = (int)strtol(text, &rest, 10);
    socklen_t size = sizeof listening;
    if (!*text || *rest || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        usage();
    getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size);
    set_nonblocking(fd);
    *(listening ? &channel.listen_fd : &channel.fd) = fd;
}

int main(int argc, char **argv) {
    sigset_t child;
    int null, i = 1;
    while ((null = open("/dev/null", O_RDWR)) >= 0 && null <= 2)
        continue; /* 0, 1 and 2 must not become pipes of a command */
    close_fd(&null);
    if (i + 1 < argc && strcmp(argv[i], "--shutdown") == 0) {
        shutdown_program = argv[i + 1];
        i += 2;
    }
    if (argc - i == 2 && strcmp(argv[i], "--fd") == 0)
        use_descriptor(argv[i + 1]);
    else if (argc - i == 1 && argv[i][0] != '-')
        channel.device = argv[i];
    else
        usage();
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    child_signals = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
    serve();
}

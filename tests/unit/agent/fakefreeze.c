/* Linked between the agent and ioctl(2) (-Wl,--wrap=ioctl): no file system of this host is ever frozen.
 *
 * A mount point is a directory D. D/refuses holds the errno that freezing it fails with, D/is-frozen is there
 * while it is frozen, and $FREEZE_LOG lists what was done to which. Freezing takes as long as D/waits is there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

int __real_ioctl(int fd, unsigned long request, void *argument);

static void note(const char *what, const char *path) {
    char line[PATH_MAX];
    int length = snprintf(line, sizeof line, "%s %s\n", what, strrchr(path, '/') + 1);
    int log = open(getenv("FREEZE_LOG"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (log < 0 || write(log, line, (size_t)length) != length)
        abort();
    close(log);
}

static int fail(int error) {
    errno = error;
    return -1;
}

static int freeze(const char *path, const char *mark) {
    char name[PATH_MAX + 16];
    int error = 0;
    snprintf(name, sizeof name, "%s/waits", path);
    if (access(name, F_OK) == 0)
        note("wait", path);
    while (access(name, F_OK) == 0)
        usleep(1000);
    snprintf(name, sizeof name, "%s/refuses", path);
    FILE *file = fopen(name, "re");
    if (file && fscanf(file, "%d", &error) != 1)
        abort();
    if (file)
        fclose(file);
    if (!error && access(mark, F_OK) == 0)
        error = EBUSY;
    if (error)
        return fail(error);
    close(open(mark, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    note("freeze", path);
    return 0;
}

int __wrap_ioctl(int fd, unsigned long request, void *argument) {
    unsigned long freeze_request = (unsigned long)_IOWR('X', 119, int), thaw_request = (unsigned long)_IOWR('X', 120, int);
    char link[64], path[PATH_MAX] = "", mark[PATH_MAX + 16];
    if ((request & 0xffffffff) != freeze_request && (request & 0xffffffff) != thaw_request)
        return __real_ioctl(fd, request, argument);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, path, sizeof path - 1) < 0)
        return fail(EBADF);
    snprintf(mark, sizeof mark, "%s/is-frozen", path);
    if ((request & 0xffffffff) == freeze_request)
        return freeze(path, mark);
    if (unlink(mark) < 0)
        return fail(EINVAL);
    note("thaw", path);
    return 0;
}

/* A disk that refuses: loaded before the C library, it counts the calls that write below a folder,
   by SQLite and by Python alike, and fails them from a given one on. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { OFF, ONCE, UNTIL_FREED, FOREVER, SHORT, SYNC };

static char folder[PATH_MAX];
static int mode = OFF, number;
static long first, seen;

/* Counts calls below `path` from now on, and fails from the `from`-th on, as `how` says. */
void refuse(const char *path, long from, int how, int error) {
    snprintf(folder, sizeof folder, "%s", path);
    first = from, seen = 0, mode = how, number = error;
}

long calls(void) { return seen; }

static int is_below(const char *path) {
    return folder[0] && !strncmp(path, folder, strlen(folder));
}

static int is_ours(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = folder[0] ? readlink(link, path, sizeof path - 1) : -1;
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

/* Whether this call fails. */
static int fails(int is_sync) {
    if (mode == SYNC && !is_sync) return 0;
    seen++;
    if (mode == OFF || seen < first) return 0;
    if ((mode == ONCE || mode == SYNC) && seen > first) return 0;
    errno = number;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define WRITE(name, parameters, arguments)                                                 \
    ssize_t name parameters {                                                              \
        if (is_ours(fd) && fails(0)) {                                                     \
            if (mode != SHORT || seen > first || count < 2) return -1;                     \
            count /= 2; /* what there was room for; the next call is refused */            \
        }                                                                                  \
        return REAL(name) arguments;                                                       \
    }
WRITE(write, (int fd, const void *data, size_t count), (fd, data, count))
WRITE(pwrite, (int fd, const void *data, size_t count, off_t at), (fd, data, count, at))
WRITE(pwrite64, (int fd, const void *data, size_t count, off64_t at), (fd, data, count, at))

int fsync(int fd) { return is_ours(fd) && fails(1) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return is_ours(fd) && fails(1) ? -1 : REAL(fdatasync)(fd); }
int ftruncate(int fd, off_t size) {
    return is_ours(fd) && fails(0) ? -1 : REAL(ftruncate)(fd, size);
}
int ftruncate64(int fd, off64_t size) {
    return is_ours(fd) && fails(0) ? -1 : REAL(ftruncate64)(fd, size);
}
int posix_fallocate(int fd, off_t at, off_t size) {
    return is_ours(fd) && fails(0) ? number : REAL(posix_fallocate)(fd, at, size);
}
int posix_fallocate64(int fd, off64_t at, off64_t size) {
    return is_ours(fd) && fails(0) ? number : REAL(posix_fallocate64)(fd, at, size);
}
int rename(const char *from, const char *to) {
    return is_below(to) && fails(0) ? -1 : REAL(rename)(from, to);
}

/* Giving room back is never refused, and there is some afterwards. */
int truncate(const char *path, off_t size) {
    if (is_below(path) && mode == UNTIL_FREED && seen >= first) mode = OFF;
    return REAL(truncate)(path, size);
}
int truncate64(const char *path, off64_t size) {
    if (is_below(path) && mode == UNTIL_FREED && seen >= first) mode = OFF;
    return REAL(truncate64)(path, size);
}

#define OPEN(name)                                                                         \
    int name(const char *path, int flags, ...) {                                           \
        va_list more;                                                                      \
        va_start(more, flags);                                                             \
        mode_t permissions = flags & O_CREAT ? va_arg(more, mode_t) : 0;                   \
        va_end(more);                                                                      \
        if (flags & O_CREAT && access(path, F_OK) && is_below(path) && fails(0)) return -1; \
        return REAL(name)(path, flags, permissions);                                       \
    }
OPEN(open)
OPEN(open64)

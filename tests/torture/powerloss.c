/* Writes down, in order, what a process does to the files below POWERLOSS_ROOT, in POWERLOSS_LOG.
 *
 * Preloaded (LD_PRELOAD). Each record is one line, `name path number number\n` with the path's
 * spaces kept out by the caller's choice of folder, followed for a write by its bytes. A record is
 * appended by one system call after the call it is about and before that returns, so that what one
 * process did because of another's message lies behind it, and a sync counts from when it was done.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int log_fd = -1;
static const char *root;

__attribute__((constructor)) static void start(void) {
    const char *log = getenv("POWERLOSS_LOG");
    root = getenv("POWERLOSS_ROOT");
    if (log && root) {
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
        log_fd = real(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
}

static int is_ours(const char *path) {
    return log_fd >= 0 && !strncmp(path, root, strlen(root));
}

/* The path behind a descriptor, where it is one of ours and still has a name. */
static int path_of(int fd, char *path) {
    char link[64];
    if (log_fd < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return is_ours(path) && !strstr(path, " (deleted)");
}

static void note(const char *name, const char *path, const char *to, long long a, long long b,
                 const void *data, size_t size) {
    char head[2 * PATH_MAX + 100];
    int saved = errno;
    int n = snprintf(head, sizeof head, "%s\t%s\t%s\t%lld\t%lld\n", name, path, to, a, b);
    struct iovec parts[2] = {{head, n}, {(void *)data, size}};
    if (writev(log_fd, parts, 2) != (ssize_t)(n + size)) _exit(99);
    errno = saved;
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

static int opened(int fd, int flags, int is_new) {
    char path[PATH_MAX];
    if (fd >= 0 && (flags & (O_CREAT | O_TRUNC)) && path_of(fd, path)) {
        if (is_new) note("create", path, "", 0, 0, "", 0);
        if (flags & O_TRUNC) note("truncate", path, "", 0, 0, "", 0);
    }
    return fd;
}

#define OPEN(name)                                               \
    int name(const char *path, int flags, ...) {                 \
        va_list rest;                                            \
        va_start(rest, flags);                                   \
        int mode = flags & O_CREAT ? va_arg(rest, int) : 0;      \
        va_end(rest);                                            \
        int is_new = flags & O_CREAT && access(path, F_OK) != 0; \
        return opened(REAL(name)(path, flags, mode), flags, is_new); \
    }
OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t n = REAL(write)(fd, data, size);
    char path[PATH_MAX];
    if (n > 0 && fd != log_fd && path_of(fd, path))
        note("write", path, "", lseek(fd, 0, SEEK_CUR) - n, n, data, n);
    return n;
}

#define PWRITE(name, offset_type)                                                  \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) {      \
        ssize_t n = REAL(name)(fd, data, size, offset);                            \
        char path[PATH_MAX];                                                       \
        if (n > 0 && path_of(fd, path)) note("write", path, "", offset, n, data, n); \
        return n;                                                                  \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define TRUNCATE(name, offset_type)                                             \
    int name(int fd, offset_type size) {                                        \
        int result = REAL(name)(fd, size);                                      \
        char path[PATH_MAX];                                                    \
        if (!result && path_of(fd, path)) note("truncate", path, "", size, 0, "", 0); \
        return result;                                                          \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define SYNC(name)                                                              \
    int name(int fd) {                                                          \
        int result = REAL(name)(fd);                                            \
        char path[PATH_MAX];                                                    \
        if (!result && path_of(fd, path)) note("sync", path, "", 0, 0, "", 0);  \
        return result;                                                          \
    }
SYNC(fsync)
SYNC(fdatasync)

int rename(const char *from, const char *to) {
    int result = REAL(rename)(from, to);
    if (!result && is_ours(from)) note("rename", from, to, 0, 0, "", 0);
    return result;
}

int unlink(const char *path) {
    int result = REAL(unlink)(path);
    if (!result && is_ours(path)) note("unlink", path, "", 0, 0, "", 0);
    return result;
}

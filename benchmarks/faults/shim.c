/* Faults below Python: a library for LD_PRELOAD that counts the calls by which a process changes files below a folder,
 * and kills the process at the n-th or fails it with an error. A write that a fault meets does half of its bytes first,
 * as a full disk and a crash do.
 *
 * fault_arm() reads the environment, and the count begins at 0; without METAGAN_FAULT_FOLDER calls pass uncounted.
 *
 *   METAGAN_FAULT_FOLDER  absolute path; files outside it are left alone
 *   METAGAN_FAULT_CALLS   names of the counted calls, separated by commas
 *   METAGAN_FAULT_AT      number of the call that meets the fault, from 1; 0: count only
 *   METAGAN_FAULT_ERRNO   error number; 0: SIGKILL
 *   METAGAN_FAULT_LASTS   1: all later ones fail too, as while a disk is full
 *   METAGAN_FAULT_CLOCK   seconds by which the wall clock jumps to and fro, at each reading; the monotonic one does not
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char folder[PATH_MAX];
static char calls[512]; /* ",name,name," */
static long fault_at;
static int fault_errno, lasts, armed;
static long clock_jump;
static atomic_long counted, readings;

__attribute__((visibility("default"))) void fault_arm(void) {
    const char *place = getenv("METAGAN_FAULT_FOLDER"), *names = getenv("METAGAN_FAULT_CALLS");
    const char *at = getenv("METAGAN_FAULT_AT"), *error = getenv("METAGAN_FAULT_ERRNO");
    const char* stays = getenv("METAGAN_FAULT_LASTS");
    armed = place != NULL;
    snprintf(folder, sizeof folder, "%s", place ? place : "");
    snprintf(calls, sizeof calls, ",%s,", names ? names : "");
    fault_at = at ? atol(at) : 0;
    fault_errno = error ? atoi(error) : 0;
    const char* jump = getenv("METAGAN_FAULT_CLOCK");
    lasts = stays && *stays == '1';
    clock_jump = jump ? atol(jump) : 0;
    counted = 0;
}

__attribute__((visibility("default"))) long fault_count(void) { return counted; }

static int is_below(const char* path) {
    size_t length = strlen(folder);
    return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

/* Whether a path, as seen from an open folder, is below the watched one; symbolic links are not followed. */
static int concerns(int directory, const char* path) {
    char base[PATH_MAX], whole[2 * PATH_MAX];
    if (!armed || !path) return 0;
    if (path[0] == '/') return is_below(path);
    if (directory == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return 0;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t length = readlink(link, base, sizeof base - 1);
        if (length < 0) return 0;
        base[length] = 0;
    }
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return is_below(whole);
}

static int concerns_descriptor(int descriptor) {
    char link[64], path[PATH_MAX];
    if (!armed) return 0;
    int kept = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = kept;
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

/* Count a call; return whether it meets the fault. */
static int meets_fault(const char* name) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, ",%s,", name);
    if (!strstr(calls, quoted)) return 0;
    long number = ++counted;
    return fault_at && (number == fault_at || (lasts && number > fault_at));
}

/* Die, or set the error. */
static int fail(void) {
    if (!fault_errno) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    errno = fault_errno;
    return -1;
}

#define REAL(name)                 \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int descriptor, const void* data, size_t size) {
    REAL(write);
    if (concerns_descriptor(descriptor) && meets_fault("write")) {
        if (size > 1 && (!lasts || counted == fault_at)) {
            ssize_t half = real(descriptor, data, size / 2);
            if (fault_errno == ENOSPC) return half; /* a short write; the next fails */
        }
        return fail();
    }
    return real(descriptor, data, size);
}

ssize_t pwrite64(int descriptor, const void* data, size_t size, off64_t offset) {
    REAL(pwrite64);
    if (concerns_descriptor(descriptor) && meets_fault("write")) {
        if (size > 1) real(descriptor, data, size / 2, offset);
        return fail();
    }
    return real(descriptor, data, size, offset);
}

ssize_t pwrite(int descriptor, const void* data, size_t size, off_t offset) {
    return pwrite64(descriptor, data, size, offset);
}

ssize_t writev(int descriptor, const struct iovec* parts, int count) {
    REAL(writev);
    if (concerns_descriptor(descriptor) && meets_fault("write")) {
        if (count > 1) real(descriptor, parts, count / 2);
        return fail();
    }
    return real(descriptor, parts, count);
}

/* The creation of files and temporary ones, and opening for writing. */
static int is_write(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }

#define OPEN(name)                                                                             \
    int name(const char* path, int flags, ...) {                                               \
        REAL(name);                                                                            \
        va_list rest;                                                                          \
        va_start(rest, flags);                                                                 \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                \
        va_end(rest);                                                                          \
        if (is_write(flags) && concerns(AT_FDCWD, path) && meets_fault("open")) return fail(); \
        return real(path, flags, mode);                                                        \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                            \
    int name(int directory, const char* path, int flags, ...) {                                 \
        REAL(name);                                                                             \
        va_list rest;                                                                           \
        va_start(rest, flags);                                                                  \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                 \
        va_end(rest);                                                                           \
        if (is_write(flags) && concerns(directory, path) && meets_fault("open")) return fail(); \
        return real(directory, path, flags, mode);                                              \
    }
OPENAT(openat)
OPENAT(openat64)

#define ONE_PATH(name, parameters, arguments, directory, path, called)       \
    int name parameters {                                                    \
        REAL(name);                                                          \
        if (concerns(directory, path) && meets_fault(called)) return fail(); \
        return real arguments;                                               \
    }
ONE_PATH(rename, (const char* from, const char* to), (from, to), AT_FDCWD, to, "rename")
ONE_PATH(renameat, (int a, const char* from, int b, const char* to), (a, from, b, to), b, to, "rename")
ONE_PATH(unlink, (const char* path), (path), AT_FDCWD, path, "unlink")
ONE_PATH(unlinkat, (int at, const char* path, int flags), (at, path, flags), at, path, "unlink")
ONE_PATH(rmdir, (const char* path), (path), AT_FDCWD, path, "unlink")
ONE_PATH(mkdir, (const char* path, mode_t mode), (path, mode), AT_FDCWD, path, "mkdir")
ONE_PATH(mkdirat, (int at, const char* path, mode_t mode), (at, path, mode), at, path, "mkdir")
ONE_PATH(link, (const char* from, const char* to), (from, to), AT_FDCWD, to, "link")
ONE_PATH(linkat, (int a, const char* from, int b, const char* to, int flags), (a, from, b, to, flags), b, to, "link")
ONE_PATH(symlink, (const char* target, const char* path), (target, path), AT_FDCWD, path, "link")
ONE_PATH(symlinkat, (const char* target, int at, const char* path), (target, at, path), at, path, "link")
ONE_PATH(truncate64, (const char* path, off64_t size), (path, size), AT_FDCWD, path, "truncate")

#define ONE_DESCRIPTOR(name, parameters, arguments, called)                        \
    int name parameters {                                                          \
        REAL(name);                                                                \
        if (concerns_descriptor(descriptor) && meets_fault(called)) return fail(); \
        return real arguments;                                                     \
    }
ONE_DESCRIPTOR(fsync, (int descriptor), (descriptor), "fsync")
ONE_DESCRIPTOR(fdatasync, (int descriptor), (descriptor), "fsync")
ONE_DESCRIPTOR(ftruncate, (int descriptor, off_t size), (descriptor, size), "truncate")
ONE_DESCRIPTOR(ftruncate64, (int descriptor, off64_t size), (descriptor, size), "truncate")
ONE_DESCRIPTOR(flock, (int descriptor, int operation), (descriptor, operation), "flock")

int clock_gettime(clockid_t clock, struct timespec* now) {
    REAL(clock_gettime);
    int result = real(clock, now);
    if (clock_jump && clock == CLOCK_REALTIME) now->tv_sec += ++readings % 2 ? clock_jump : -clock_jump;
    return result;
}

/* Semaphores are files in /dev/shm: a full one fails here. */
sem_t* sem_open(const char* name, int flags, ...) {
    REAL(sem_open);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    unsigned value = flags & O_CREAT ? va_arg(rest, unsigned) : 0;
    va_end(rest);
    if (armed && meets_fault("sem_open")) {
        fail();
        return SEM_FAILED;
    }
    return real(name, flags, mode, value);
}

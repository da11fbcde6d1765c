/* Preloaded before the C library: counts a process's calls on the files below one folder, and lets the n-th fail, be
   cut short, or kill the process. Python, safetensors, polars and torch all write through these. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, CREATE, READ, WRITE, SYNC, RENAME, MAKE, REMOVE, LINK, CUT, KINDS };
enum { FAIL, PART, KILL };

static char prefix[4096], aside[4096];
static int on, mask, nth, wrong, action, lasting, journal = -1, fired, kept;
static long counts[KINDS];

void attack_arm(const char *folder, int kinds, int n, int error, int what, int stays, const char *log, const char *keep) {
    snprintf(prefix, sizeof prefix, "%s/", folder);
    snprintf(aside, sizeof aside, "%s", keep ? keep : "");
    if (log) journal = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    mask = kinds, nth = n, wrong = error, action = what, lasting = stays, fired = 0;
    memset(counts, 0, sizeof counts);
    on = 1;
}

void attack_counts(long *out) { on = 0; memcpy(out, counts, sizeof counts); }

static int absolute(int folder, const char *path, char *out) {
    char where[64];
    long n = 0;
    if (!path) return 0;
    if (path[0] != '/') {
        snprintf(where, sizeof where, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
        n = syscall(SYS_readlinkat, AT_FDCWD, where, out, 4000);
        if (n < 0) return 0;
        out[n++] = '/';
    }
    snprintf(out + n, 4096 - n, "%s", path);
    return !strncmp(out, prefix, strlen(prefix));
}

static int named(int file, char *out) {
    char where[64];
    snprintf(where, sizeof where, "/proc/self/fd/%d", file);
    long n = syscall(SYS_readlinkat, AT_FDCWD, where, out, 4000);
    if (n < 0) return 0;
    out[n] = 0;
    return !strncmp(out, prefix, strlen(prefix)) || (strlen(out) + 1 == strlen(prefix) && !strncmp(out, prefix, n));
}

static void note(const char *kind, const char *path, const char *other, long number) {
    char line[8400];
    if (journal < 0) return;
    int n = snprintf(line, sizeof line, "%s\t%s\t%s\t%ld\n", kind, path, other, number);
    syscall(SYS_write, journal, line, n);
}

/* A copy of what a call is about to change; its number, or 0 where there is nothing. */
static long keep(const char *path) {
    char to[4200], block[65536];
    struct stat status;
    long n;
    if (journal < 0 || lstat(path, &status) || !S_ISREG(status.st_mode)) return 0;
    snprintf(to, sizeof to, "%s/%d", aside, ++kept);
    int in = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY), out = syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_CREAT, 0600);
    while ((n = syscall(SYS_read, in, block, sizeof block)) > 0) syscall(SYS_write, out, block, n);
    syscall(SYS_close, in), syscall(SYS_close, out);
    return kept;
}

/* 0: go on; -1: fail; 1: a part of it */
static int due(int kind) {
    counts[kind]++;
    if (!(mask >> kind & 1)) return 0;
    if (fired ? !lasting : --nth) return 0;
    int part = action == PART && kind == WRITE && !fired;
    fired = 1;
    if (action == KILL) syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    if (part) return 1;
    errno = wrong;
    return -1;
}

static int opened(int folder, const char *path, int flags, int mode) {
    char full[4096];
    long old = 0;
    int fresh = 0, writes = (flags & O_ACCMODE) != O_RDONLY;
    if (on && absolute(folder, path, full) && !(flags & O_DIRECTORY)) {
        if (due(writes ? CREATE : OPEN) < 0) return -1;
        if (writes && journal >= 0) old = keep(full), fresh = !old;
    }
    int file = syscall(SYS_openat, folder, path, flags, mode);
    if (on && file >= 0 && writes && (old || fresh)) note(fresh ? "create" : "change", full, "", old);
    return file;
}

#define MODE(last) int mode = 0; if (flags & (O_CREAT | __O_TMPFILE)) { va_list a; va_start(a, last); mode = va_arg(a, int); va_end(a); }
int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags) return opened(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags) return opened(folder, path, flags | O_LARGEFILE, mode); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static FILE *fopened(const char *name, const char *path, const char *mode) {
    char full[4096];
    FILE *(*real)(const char *, const char *) = dlsym(RTLD_NEXT, name);
    if (on && absolute(AT_FDCWD, path, full) && due(mode[0] == 'r' && !strchr(mode, '+') ? OPEN : CREATE) < 0) return NULL;
    return real(path, mode);
}
FILE *fopen(const char *path, const char *mode) { return fopened("fopen", path, mode); }
FILE *fopen64(const char *path, const char *mode) { return fopened("fopen64", path, mode); }

static int about(int file, int kind, const char *word) {
    char full[4096];
    if (!on || !named(file, full)) return 0;
    int found = due(kind);
    if (word && found >= 0) note(word, full, "", 0);
    return found;
}
static size_t some(int file, size_t n, int *how) {
    *how = about(file, WRITE, "write");
    return *how > 0 ? n / 2 : n;
}
ssize_t read(int file, void *to, size_t n) { return about(file, READ, 0) < 0 ? -1 : syscall(SYS_read, file, to, n); }
ssize_t pread(int file, void *to, size_t n, off_t at) { return about(file, READ, 0) < 0 ? -1 : syscall(SYS_pread64, file, to, n, at); }
ssize_t pread64(int file, void *to, size_t n, off64_t at) { return about(file, READ, 0) < 0 ? -1 : syscall(SYS_pread64, file, to, n, at); }
ssize_t write(int file, const void *from, size_t n) { int how; n = some(file, n, &how); return how < 0 ? -1 : syscall(SYS_write, file, from, n); }
ssize_t pwrite(int file, const void *from, size_t n, off_t at) { int how; n = some(file, n, &how); return how < 0 ? -1 : syscall(SYS_pwrite64, file, from, n, at); }
ssize_t pwrite64(int file, const void *from, size_t n, off64_t at) { int how; n = some(file, n, &how); return how < 0 ? -1 : syscall(SYS_pwrite64, file, from, n, at); }
ssize_t writev(int file, const struct iovec *v, int n) { int how; some(file, 0, &how); return how < 0 ? -1 : syscall(SYS_writev, file, v, how > 0 && n > 1 ? n / 2 : n); }
ssize_t sendfile(int out, int in, off_t *at, size_t n) { int how; n = some(out, n, &how); return how < 0 ? -1 : syscall(SYS_sendfile, out, in, at, n); }
ssize_t sendfile64(int out, int in, off64_t *at, size_t n) { return sendfile(out, in, (off_t *)at, n); }
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t n, unsigned flags) {
    int how;
    n = some(out, n, &how);
    return how < 0 ? -1 : syscall(SYS_copy_file_range, in, from, out, to, n, flags);
}

static int synced(int file, long call) {
    char full[4096];
    struct stat status;
    if (on && named(file, full)) {
        if (due(SYNC) < 0) return -1;
        if (!fstat(file, &status)) note(S_ISDIR(status.st_mode) ? "names" : "sync", full, "", status.st_size);
    }
    return syscall(call, file);
}
int fsync(int file) { return synced(file, SYS_fsync); }
int fdatasync(int file) { return synced(file, SYS_fdatasync); }

static int moved(int a, const char *from, int b, const char *to) {
    char full[4096], other[4096];
    long old = 0;
    int ours = on && absolute(a, from, full), there = on && absolute(b, to, other);
    if (ours || there) {
        if (due(RENAME) < 0) return -1;
        old = keep(other);
    }
    int found = syscall(SYS_renameat2, a, from, b, to, 0);
    if (!found && (ours || there)) note("rename", full, other, old);
    return found;
}
int rename(const char *from, const char *to) { return moved(AT_FDCWD, from, AT_FDCWD, to); }
int renameat(int a, const char *from, int b, const char *to) { return moved(a, from, b, to); }

#define SIMPLE(kind, word, folder, path, call) \
    char full[4096]; \
    long old = 0; \
    int ours = on && absolute(folder, path, full); \
    if (ours && due(kind) < 0) return -1; \
    if (ours && kind == REMOVE) old = keep(full); \
    int found = call; \
    if (!found && ours) note(word, full, "", old); \
    return found;
int mkdirat(int folder, const char *path, mode_t mode) { SIMPLE(MAKE, "make", folder, path, syscall(SYS_mkdirat, folder, path, mode)) }
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
int unlinkat(int folder, const char *path, int flags) { SIMPLE(REMOVE, flags ? "rmdir" : "remove", folder, path, syscall(SYS_unlinkat, folder, path, flags)) }
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int symlinkat(const char *to, int folder, const char *path) { SIMPLE(LINK, "create", folder, path, syscall(SYS_symlinkat, to, folder, path)) }
int symlink(const char *to, const char *path) { return symlinkat(to, AT_FDCWD, path); }
int linkat(int a, const char *from, int folder, const char *path, int flags) { SIMPLE(LINK, "create", folder, path, syscall(SYS_linkat, a, from, folder, path, flags)) }
int link(const char *from, const char *path) { return linkat(AT_FDCWD, from, AT_FDCWD, path, 0); }
int ftruncate(int file, off_t n) { return about(file, CUT, "write") < 0 ? -1 : syscall(SYS_ftruncate, file, n); }
int ftruncate64(int file, off64_t n) { return about(file, CUT, "write") < 0 ? -1 : syscall(SYS_ftruncate, file, n); }

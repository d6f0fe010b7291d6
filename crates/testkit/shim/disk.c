/*
 * A disk that forgets: preloaded (LD_PRELOAD) into a process, it writes down what the process does to the files of one folder,
 * so that the folder can be made anew as a power cut would have left it (crates/testkit/src/power.rs), and takes orders to fail.
 *
 * FERRULE_SHIM_FOLDER   the folder, absolute, without a slash at its end
 * FERRULE_SHIM_LOG      the log, outside of it; records are appended
 * FERRULE_SHIM_CONTROL  the orders: a file of ORDERS 64-bit words, mapped, so that an order is a write to that file
 *
 * A record: uint32 kind, uint32 bytes of data, int64 a, int64 b, data; in the byte order of the machine. What changes a file is
 * written down BEFORE it is done, so a process killed in between has at most done less than the log says, which a power cut
 * may leave anyhow. A sync is written down when it begins and AFTER it returned, so a sync in the log did happen. One lock around record and call: the
 * order of the log is the order of the calls. A call that then fails is taken back by a record of its own.
 *
 * No real sync is done: the medium is the log, and what it holds survives the process.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPEN = 1, WRITE, LENGTH, SYNC_BEGIN, SYNC_END, SYNC_FAILED, RENAME, UNLINK, CLOSE, DUP, TAKEN_BACK, UNKNOWN };

/* The words of the control file. */
enum {
    SYNC_ERRNO,  /* syncs fail with this errno ... */
    SYNC_AFTER,  /* ... once so many have passed ... */
    SYNC_TIMES,  /* ... so many times; -1: from then on */
    WRITE_ERRNO, /* ENOSPC: what makes a file longer fails; EROFS: whatever changes anything */
    WRITE_AFTER,
    WRITE_TIMES,
    SYNC_DELAY,  /* a sync takes a random time up to so many microseconds */
    SYNC_LIES,   /* a sync returns 0 and has done nothing */
    SYNC_FLOOR,  /* a sync takes at least so many microseconds ... */
    SYNC_SPIKE,  /* ... and one in 32 takes so many */
    KILL_AT,     /* the process is killed before its record of this number, when not 0 */
    RECORDS,     /* told: records so far */
    FAILED,      /* told: calls that failed by order */
    ORDERS
};

#define FDS 65536
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *folder;
static size_t folder_len;
static int log_fd = -1;
static volatile int64_t none[ORDERS], *orders = none;
static int64_t records;
static uint64_t noise = 0x9e3779b97f4a7c15u;
static ino_t inode_of[FDS]; /* 0: not a file of the folder */

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void)
{
    const char *log = getenv("FERRULE_SHIM_LOG"), *control = getenv("FERRULE_SHIM_CONTROL");
    const char *of = getenv("FERRULE_SHIM_FOLDER");
    if (!log || !control || !of)
        return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, control, O_RDWR | O_CLOEXEC, 0);
    void *map = fd < 0 ? MAP_FAILED : mmap(0, sizeof none, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (map == MAP_FAILED || log_fd < 0) {
        fprintf(stderr, "disk shim: cannot open %s or %s\n", log, control);
        _exit(70);
    }
    orders = map;
    folder = of;
    folder_len = strlen(of);
}

/* A path of the folder, from there on ("" for the folder itself); or null. */
static const char *inside(const char *path)
{
    if (!folder || !path || strncmp(path, folder, folder_len) != 0)
        return 0;
    path += folder_len;
    if (*path == 0)
        return path;
    return *path == '/' ? path + 1 : 0;
}

static int64_t record(uint32_t kind, int64_t a, int64_t b, const struct iovec *data, int count)
{
    struct iovec parts[66];
    struct { uint32_t kind, bytes; int64_t a, b; } head = { kind, 0, a, b };
    if (count > 65)
        count = 65; /* of more, the first: a short write is one that the caller goes on from */
    for (int n = 0; n < count; n++) {
        head.bytes += (uint32_t)data[n].iov_len;
        parts[n + 1] = data[n];
    }
    parts[0] = (struct iovec){ &head, sizeof head };
    if (orders[KILL_AT] && records + 1 >= orders[KILL_AT]) {
        syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
        for (;;)
            pause();
    }
    /* The log is a file in memory or on a disk with room: a short or failed write ends the run rather than falsify it. */
    size_t all = sizeof head + head.bytes;
    if (syscall(SYS_writev, log_fd, parts, count + 1) != (ssize_t)all)
        abort();
    orders[RECORDS] = ++records;
    return records;
}

static int64_t record_text(uint32_t kind, int64_t a, int64_t b, const char *text)
{
    struct iovec data = { (void *)text, strlen(text) };
    return record(kind, a, b, &data, 1);
}

/* Whether an order says that this call fails; then errno is set. */
static int fails(int which)
{
    if (!orders[which])
        return 0;
    if (orders[which + 1] > 0) {
        orders[which + 1]--;
        return 0;
    }
    if (orders[which + 2] == 0)
        return 0;
    if (orders[which + 2] > 0)
        orders[which + 2]--;
    orders[FAILED]++;
    errno = (int)orders[which];
    return 1;
}

static int refuses_change(void)
{
    return orders[WRITE_ERRNO] == EROFS && fails(WRITE_ERRNO);
}

static int refuses_growth(int fd, int64_t end)
{
    struct stat st;
    if (orders[WRITE_ERRNO] == EROFS)
        return fails(WRITE_ERRNO);
    return orders[WRITE_ERRNO] && fstat(fd, &st) == 0 && end > st.st_size && fails(WRITE_ERRNO);
}

/* Whether fd is a file of the folder; one closed behind our back and used again for something else is not. */
static int ours(int fd)
{
    struct stat st;
    if (fd < 0 || fd >= FDS || !inode_of[fd])
        return 0;
    int saved = errno;
    if (fstat(fd, &st) != 0 || st.st_ino != inode_of[fd]) {
        inode_of[fd] = 0;
        errno = saved;
        return 0;
    }
    return 1;
}

static void enter(void) { pthread_mutex_lock(&lock); }
static void leave(void) { int saved = errno; pthread_mutex_unlock(&lock); errno = saved; }

/* ---- names ---- */

static int open_at(int dir, const char *path, int flags, mode_t mode)
{
    const char *name = dir == AT_FDCWD || (path && *path == '/') ? inside(path) : 0;
    if (!name)
        return (int)syscall(SYS_openat, dir, path, flags, mode);
    enter();
    struct stat st;
    int saved = errno, there = stat(path, &st) == 0;
    int creates = !there && (flags & O_CREAT), writes = (flags & O_ACCMODE) != O_RDONLY;
    errno = saved;
    if ((creates || (writes && orders[WRITE_ERRNO] == EROFS)) && refuses_change()) {
        leave();
        return -1;
    }
    int64_t number = creates ? record_text(OPEN, -1, 1, name) : 0;
    int fd = (int)syscall(SYS_openat, dir, path, flags, mode);
    if (fd >= 0 && fd < FDS && fstat(fd, &st) == 0 && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))) {
        inode_of[fd] = st.st_ino;
        record_text(OPEN, fd, 0, name);
        if (there && (flags & O_TRUNC) && writes)
            record(LENGTH, fd, 0, 0, 0);
    } else if (fd < 0 && number) {
        record(TAKEN_BACK, number, 0, 0, 0);
    }
    leave();
    return fd;
}

static mode_t mode_of(int flags, va_list rest)
{
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

#define OPENS(name)                                                                                                            \
    int name(const char *path, int flags, ...)                                                                                 \
    {                                                                                                                          \
        va_list rest;                                                                                                          \
        va_start(rest, flags);                                                                                                 \
        mode_t mode = mode_of(flags, rest);                                                                                    \
        va_end(rest);                                                                                                          \
        return open_at(AT_FDCWD, path, flags, mode);                                                                           \
    }
#define OPENS_AT(name)                                                                                                         \
    int name(int dir, const char *path, int flags, ...)                                                                        \
    {                                                                                                                          \
        va_list rest;                                                                                                          \
        va_start(rest, flags);                                                                                                 \
        mode_t mode = mode_of(flags, rest);                                                                                    \
        va_end(rest);                                                                                                          \
        return open_at(dir, path, flags, mode);                                                                                \
    }
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)

int close(int fd)
{
    if (!ours(fd))
        return (int)syscall(SYS_close, fd);
    enter();
    record(CLOSE, fd, 0, 0, 0);
    inode_of[fd] = 0;
    int result = (int)syscall(SYS_close, fd);
    leave();
    return result;
}

int fcntl64(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    int tracked = (command == F_DUPFD || command == F_DUPFD_CLOEXEC) && ours(fd);
    if (!tracked)
        return REAL(fcntl64)(fd, command, argument);
    enter();
    int copy = REAL(fcntl64)(fd, command, argument);
    if (copy >= 0 && copy < FDS) {
        inode_of[copy] = inode_of[fd];
        record(DUP, fd, copy, 0, 0);
    }
    leave();
    return copy;
}

static int copied(int fd, int copy, int result)
{
    if (result >= 0 && copy < FDS) {
        int was = inode_of[copy] != 0, is = ours(fd);
        if (was)
            record(CLOSE, copy, 0, 0, 0);
        inode_of[copy] = is ? inode_of[fd] : 0;
        if (is)
            record(DUP, fd, copy, 0, 0);
    }
    return result;
}

int dup3(int fd, int copy, int flags)
{
    enter();
    int result = copied(fd, copy, (int)syscall(SYS_dup3, fd, copy, flags));
    leave();
    return result;
}

int dup2(int fd, int copy)
{
    return fd == copy ? (fcntl64(fd, F_GETFD, (void *)0) < 0 ? -1 : fd) : dup3(fd, copy, 0);
}

int fcntl(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return fcntl64(fd, command, argument);
}

static int rename_to(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
    const char *a = inside(from), *b = inside(to);
    if (!a && !b)
        return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    enter();
    int result = -1;
    if (!refuses_change()) {
        struct iovec names[2] = { { (void *)(a ? a : ""), a ? strlen(a) + 1 : 1 }, { (void *)(b ? b : ""), b ? strlen(b) : 0 } };
        /* mv asks for RENAME_NOREPLACE first: a rename all the same, or an error. */
        int64_t number = record(a && b && !(flags & ~RENAME_NOREPLACE) ? RENAME : UNKNOWN, 0, 0, names, 2);
        result = (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
        if (result != 0)
            record(TAKEN_BACK, number, 0, 0, 0);
    }
    leave();
    return result;
}

int rename(const char *from, const char *to) { return rename_to(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int d, const char *from, int e, const char *to) { return rename_to(d, from, e, to, 0); }
int renameat2(int d, const char *from, int e, const char *to, unsigned f) { return rename_to(d, from, e, to, f); }

int unlinkat(int dir, const char *path, int flags)
{
    const char *name = inside(path);
    if (!name || (flags & AT_REMOVEDIR))
        return (int)syscall(SYS_unlinkat, dir, path, flags);
    enter();
    int result = -1;
    if (!refuses_change()) {
        int64_t number = record_text(UNLINK, 0, 0, name);
        result = (int)syscall(SYS_unlinkat, dir, path, flags);
        if (result != 0)
            record(TAKEN_BACK, number, 0, 0, 0);
    }
    leave();
    return result;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

/* ---- bytes ---- */

static ssize_t write_at(int fd, const struct iovec *data, int count, off64_t at)
{
    enter();
    off64_t end = at;
    if (at < 0) {
        struct stat st;
        int appends = fcntl64(fd, F_GETFL, (void *)0) & O_APPEND;
        end = appends && fstat(fd, &st) == 0 ? st.st_size : lseek64(fd, 0, SEEK_CUR);
    }
    off64_t from = end;
    if (count > 65)
        count = 65;
    for (int n = 0; n < count; n++)
        end += (off64_t)data[n].iov_len;
    ssize_t done = -1;
    if (!refuses_growth(fd, end)) {
        int64_t number = record(WRITE, fd, from, data, count);
        done = at < 0 ? syscall(SYS_writev, fd, data, count) : syscall(SYS_pwritev, fd, data, count, at, 0L);
        if (done != end - from)
            record(TAKEN_BACK, number, done < 0 ? 0 : done, 0, 0);
    }
    leave();
    return done;
}

ssize_t write(int fd, const void *data, size_t size)
{
    struct iovec one = { (void *)data, size };
    return ours(fd) ? write_at(fd, &one, 1, -1) : syscall(SYS_write, fd, data, size);
}
ssize_t writev(int fd, const struct iovec *data, int count)
{
    return ours(fd) ? write_at(fd, data, count, -1) : syscall(SYS_writev, fd, data, count);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    struct iovec one = { (void *)data, size };
    return ours(fd) ? write_at(fd, &one, 1, at) : syscall(SYS_pwrite64, fd, data, size, at);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return pwrite64(fd, data, size, at); }
ssize_t pwritev64(int fd, const struct iovec *data, int count, off64_t at)
{
    return ours(fd) ? write_at(fd, data, count, at) : syscall(SYS_pwritev, fd, data, count, at, 0L);
}
ssize_t pwritev(int fd, const struct iovec *data, int count, off_t at) { return pwritev64(fd, data, count, at); }

int ftruncate64(int fd, off64_t length)
{
    if (!ours(fd))
        return (int)syscall(SYS_ftruncate, fd, length);
    enter();
    int result = -1;
    if (!refuses_growth(fd, length)) {
        int64_t number = record(LENGTH, fd, length, 0, 0);
        result = (int)syscall(SYS_ftruncate, fd, length);
        if (result != 0)
            record(TAKEN_BACK, number, 0, 0, 0);
    }
    leave();
    return result;
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

static int allocate(int fd, int mode, off64_t at, off64_t size)
{
    struct stat st;
    if (!ours(fd))
        return (int)syscall(SYS_fallocate, fd, mode, at, size);
    enter();
    int result = -1;
    if (!refuses_growth(fd, at + size)) {
        if (mode)
            record_text(UNKNOWN, fd, mode, "fallocate");
        else if (fstat(fd, &st) == 0 && st.st_size < at + size)
            record(LENGTH, fd, at + size, 0, 0);
        result = (int)syscall(SYS_fallocate, fd, mode, at, size);
        if (result != 0)
            record_text(UNKNOWN, fd, errno, "failed fallocate");
    }
    leave();
    return result;
}
int fallocate64(int fd, int mode, off64_t at, off64_t size) { return allocate(fd, mode, at, size); }
int fallocate(int fd, int mode, off_t at, off_t size) { return allocate(fd, mode, at, size); }
int posix_fallocate64(int fd, off64_t at, off64_t size) { return allocate(fd, 0, at, size) ? errno : 0; }
int posix_fallocate(int fd, off_t at, off_t size) { return allocate(fd, 0, at, size) ? errno : 0; }

/* What copies inside the kernel is refused, and done by reads and writes instead. */
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags)
{
    if (ours(out)) {
        errno = EXDEV;
        return -1;
    }
    return syscall(SYS_copy_file_range, in, from, out, to, size, flags);
}
ssize_t sendfile64(int out, int in, off64_t *from, size_t size)
{
    if (ours(out)) {
        errno = EINVAL;
        return -1;
    }
    return syscall(SYS_sendfile, out, in, from, size);
}

/* A file that is written through a mapping cannot be followed: said, so that the rig refuses the log. */
void *mmap64(void *at, size_t size, int protection, int flags, int fd, off64_t from)
{
    if ((flags & MAP_SHARED) && (protection & PROT_WRITE) && ours(fd)) {
        enter();
        record_text(UNKNOWN, fd, 0, "shared mapping");
        leave();
    }
    return (void *)syscall(SYS_mmap, at, size, protection, flags, fd, from);
}
void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t from)
{
    return mmap64(at, size, protection, flags, fd, from);
}

/* ---- syncs ---- */

static int sync_file(int fd, int call)
{
    if (!ours(fd))
        return (int)syscall(call, fd);
    enter();
    if (fails(SYNC_ERRNO)) {
        record(SYNC_FAILED, fd, 0, 0, 0);
        leave();
        return -1;
    }
    if (orders[SYNC_LIES]) {
        leave();
        return 0;
    }
    int64_t number = record(SYNC_BEGIN, fd, 0, 0, 0);
    noise = noise * 6364136223846793005u + 1442695040888963407u;
    int64_t pause_us = orders[SYNC_DELAY] > 0 ? (int64_t)((noise >> 33) % (uint64_t)orders[SYNC_DELAY]) : 0;
    if (pause_us < orders[SYNC_FLOOR])
        pause_us = orders[SYNC_FLOOR];
    if (orders[SYNC_SPIKE] && (noise >> 59) == 0)
        pause_us = orders[SYNC_SPIKE];
    leave();
    if (pause_us) {
        struct timespec time = { pause_us / 1000000, pause_us % 1000000 * 1000 };
        nanosleep(&time, 0);
    }
    enter();
    record(SYNC_END, fd, number, 0, 0);
    leave();
    return 0;
}
int fsync(int fd) { return sync_file(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_file(fd, SYS_fdatasync); }

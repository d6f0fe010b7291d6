/*
 * Another wall clock for one process: preloaded (LD_PRELOAD), it adds to the real time what a file says, which may change while the process runs.
 *
 * FERRULE_SHIM_CLOCK  a file of one int64 in the machine's byte order, mapped: seconds to add
 *
 * Not by taking the C library's clock_gettime's place, because Rust programs (rustix) ask the kernel's page for it (the vDSO) without the C library. So the
 * page itself is changed: the kernel lets a process write its own copy, as debuggers need it. Monotonic clocks, timers and files' times stay what they are,
 * as when somebody sets the clock.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#ifndef __x86_64__
#error "the jump below is one of x86_64"
#endif

static volatile int64_t *add;

/* Without errno, as the page's own functions are. */
static long ask(clockid_t clock, struct timespec *time)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "0"((long)SYS_clock_gettime), "D"((long)clock), "S"(time) : "rcx", "r11", "memory");
    return result;
}

static int own_clock_gettime(clockid_t clock, struct timespec *time)
{
    long result = ask(clock, time);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        time->tv_sec += *add;
    return (int)result;
}

static int own_gettimeofday(struct timeval *time, void *zone)
{
    struct timespec now;
    (void)zone;
    own_clock_gettime(CLOCK_REALTIME, &now);
    if (time) {
        time->tv_sec = now.tv_sec;
        time->tv_usec = now.tv_nsec / 1000;
    }
    return 0;
}

static time_t own_time(time_t *time)
{
    struct timespec now;
    own_clock_gettime(CLOCK_REALTIME, &now);
    if (time)
        *time = now.tv_sec;
    return now.tv_sec;
}

static void end(const char *what)
{
    fprintf(stderr, "clock shim: %s\n", what);
    _exit(70);
}

/* mov rax, own; jmp rax */
static void replace(char *function, void *own)
{
    uintptr_t page = (uintptr_t)function & ~(uintptr_t)4095;
    unsigned char jump[12] = { 0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0 };
    memcpy(jump + 2, &own, sizeof own);
    if (mprotect((void *)page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC) != 0 &&
        mprotect((void *)page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC) != 0)
        end("the kernel's page cannot be written");
    memcpy(function, jump, sizeof jump);
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FERRULE_SHIM_CLOCK");
    if (!path)
        return;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    void *map = fd < 0 ? MAP_FAILED : mmap(0, sizeof *add, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        end("the file cannot be mapped");
    close(fd);
    add = map;

    char *base = (char *)getauxval(AT_SYSINFO_EHDR);
    if (!base)
        end("there is no such page");
    Elf64_Ehdr *head = (Elf64_Ehdr *)base;
    Elf64_Phdr *parts = (Elf64_Phdr *)(base + head->e_phoff);
    char *shift = base;
    Elf64_Dyn *dynamic = 0;
    for (int n = 0; n < head->e_phnum; n++) {
        if (parts[n].p_type == PT_LOAD)
            shift = base + parts[n].p_offset - parts[n].p_vaddr;
        if (parts[n].p_type == PT_DYNAMIC)
            dynamic = (Elf64_Dyn *)(base + parts[n].p_offset);
    }
    Elf64_Sym *symbols = 0;
    const char *names = 0;
    for (Elf64_Dyn *entry = dynamic; entry && entry->d_tag != DT_NULL; entry++) {
        if (entry->d_tag == DT_SYMTAB)
            symbols = (Elf64_Sym *)(shift + entry->d_un.d_ptr);
        if (entry->d_tag == DT_STRTAB)
            names = shift + entry->d_un.d_ptr;
    }
    if (!symbols || !names || (const char *)symbols > names)
        end("its symbols are not where they are elsewhere");
    /* The names follow the symbols. */
    int found = 0;
    for (Elf64_Sym *symbol = symbols; (const char *)(symbol + 1) <= names; symbol++) {
        const char *name = names + symbol->st_name;
        char *function = shift + symbol->st_value;
        if (strcmp(name, "__vdso_clock_gettime") == 0) {
            replace(function, (void *)own_clock_gettime);
            found = 1;
        } else if (strcmp(name, "__vdso_gettimeofday") == 0) {
            replace(function, (void *)own_gettimeofday);
        } else if (strcmp(name, "__vdso_time") == 0) {
            replace(function, (void *)own_time);
        }
    }
    if (!found)
        end("it has no clock");
}

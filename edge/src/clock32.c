// The clock that Rust's std asks on 32-bit musl, where it has seconds of 32 bits: after 2038-01-19 musl's own fails and std panics.
//
// This one stands still then. Whatever needs the time asks the crate `clock`, which has 64 bits; what is left is dependencies that mix a clock into
// a random seed (foldhash) or count how old something is. By these headers `struct timespec` and clock_gettime() have 64 bits.
#include <stdint.h>
#include <time.h>

struct timespec32 {
    int32_t seconds, nanoseconds;
};

// The symbol without a suffix is the one with 32 bits.
int ferrule_clock_gettime32(clockid_t clock, struct timespec32 *out) __asm__("clock_gettime");

int ferrule_clock_gettime32(clockid_t clock, struct timespec32 *out) {
    _Static_assert(sizeof(time_t) == 8, "musl 1.2 or newer");
    struct timespec now;
    int ended = clock_gettime(clock, &now);
    if (ended == 0) {
        out->seconds = now.tv_sec > INT32_MAX ? INT32_MAX : (int32_t)now.tv_sec;
        out->nanoseconds = (int32_t)now.tv_nsec;
    }
    return ended;
}

/* A guest that shows when it stands: it writes to its memory, and says so on its serial port.
 *
 *     pulse MEGABYTES
 *
 * Reads its clock in a loop; each millisecond it writes a byte to the port, and to as many pages as make up
 * MEGABYTES a second. A guest's own clock stands when the guest does, so whoever wants to know how long it stood
 * looks at the port, from outside, with a clock that goes on (bench/pulse.py).
 *
 *     gcc -O2 -static -nostdlib -ffreestanding -fno-stack-protector -fno-tree-loop-distribute-patterns
 *
 * Without a C library it is small enough to be handed to a guest on a command line.
 */
#include <asm/unistd.h>
#include <linux/time.h>

#define PAGE 4096L
#define REGION (64L << 20)
#define BEAT 1000000L /* nanoseconds */

static long call(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static long now(void) {
    struct __kernel_timespec time;
    call(__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, (long)&time, 0, 0, 0, 0);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

__attribute__((used)) static void beat(const long *stack) {
    const char *text = (const char *)stack[2];
    long megabytes = 0, at = 0, port = call(__NR_open, (long)"/dev/ttyS0", 1 /* O_WRONLY */, 0, 0, 0, 0);
    for (; *text >= '0' && *text <= '9'; text++)
        megabytes = megabytes * 10 + (*text - '0');
    volatile char *region =
        (volatile char *)call(__NR_mmap, 0, REGION, 3 /* read, write */, 0x22 /* private, anonymous */, -1, 0);
    if (port < 0 || (long)region < 0)
        call(__NR_exit, 1, 0, 0, 0, 0, 0);
    long pages = megabytes * (1 << 20) / PAGE / 1000;
    for (long next = now();;) {
        if (now() < next)
            continue;
        next = now() + BEAT; /* not next + BEAT: what was missed while it stood is not made up for */
        call(__NR_write, port, (long)".", 1, 0, 0, 0);
        for (long i = 0; i < pages; i++, at = (at + PAGE) % REGION)
            region[at]++;
    }
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall beat\n");

/*
 * Both ends of the time from a crash to its delegate.
 *
 *   latency crasher FILE [MIB]  for each byte on standard input, forks a child that crashes, with MIB of memory in its core,
 *                              writes the time of the crash to FILE and answers with a byte
 *   latency FILE               as a delegate: writes to FILE the time at which it was started, and that at which the core had ended
 *   latency enter PID PROGRAM FILE
 *                              as the least that a helper in C could be: enters the namespaces of PID, and has PROGRAM run there
 *   latency store CORE FILE    as a plain handler of the host: writes the core to CORE, and to FILE when that was done
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void note(const char *path, const char *format, double first, double second)
{
    FILE *file = fopen(path, "a");
    if (!file)
        err(1, "%s", path);
    fprintf(file, format, first, second);
    fclose(file);
}

static void crash(volatile double *crashed, size_t size)
{
    char *memory = malloc(size);
    if (!memory)
        err(1, "malloc");
    /* Not zero: the kernel leaves pages of zeros that nobody has touched out of the core. */
    memset(memory, 'x', size);
    /* What brought the order here, in a container the engine's processes, has to go back to sleep: it would be measured too. */
    usleep(50000);
    /* Nothing between the time and the crash: writing a file takes longer in a container. */
    *crashed = now();
    *(volatile int *)16 = 0;
}

static int enter(char **argv)
{
    int kinds = CLONE_NEWPID | CLONE_NEWCGROUP | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWNS;
    int process = syscall(SYS_pidfd_open, atoi(argv[2]), 0);
    if (process < 0 || setns(process, kinds))
        err(1, "%s", argv[2]);
    pid_t child = fork();
    if (child == 0) {
        execl(argv[3], argv[3], argv[4], (char *)NULL);
        err(1, "%s", argv[3]);
    }
    /* Holds the core until the delegate has ended. */
    return child < 0 || waitpid(child, NULL, 0) < 0;
}

int main(int argc, char **argv)
{
    static char buffer[1 << 16];
    char byte;

    if (argc < 2)
        errx(2, "usage: latency [crasher] FILE [MIB]");
    if (argc == 2) {
        double started = now();
        while (read(0, buffer, sizeof buffer) > 0)
            ;
        note(argv[1], "delegate %.9f %.9f\n", started, now());
        return 0;
    }
    if (!strcmp(argv[1], "enter"))
        return enter(argv);
    if (!strcmp(argv[1], "store")) {
        int core = open(argv[2], O_CREAT | O_TRUNC | O_WRONLY, 0600);
        ssize_t length;
        while ((length = read(0, buffer, sizeof buffer)) > 0)
            if (core < 0 || write(core, buffer, length) != length)
                err(1, "%s", argv[2]);
        note(argv[3], "delegate %.9f %.9f\n", now(), now());
        return 0;
    }
    volatile double *crashed = mmap(NULL, sizeof *crashed, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (crashed == MAP_FAILED)
        err(1, "mmap");
    while (read(0, &byte, 1) == 1) {
        pid_t child = fork();
        if (child == 0)
            crash(crashed, (argc > 3 ? (size_t)atoi(argv[3]) : 0) << 20);
        if (child < 0 || waitpid(child, NULL, 0) < 0)
            err(1, "fork");
        note(argv[2], "crash %.9f %.0f\n", *crashed, 0);
        if (write(1, "k", 1) != 1)
            err(1, "write");
    }
    return 0;
}

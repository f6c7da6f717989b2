/*
 * Both ends of the time from a crash to its delegate, and the least that a helper in C could be.
 *
 *   latency crasher FILE         for each line "MIB COUNT TIME" on standard input: has COUNT children crash at the monotonic TIME, each
 *                                with MIB of memory in its core; writes to FILE when each crashed and when it was gone, and
 *                                answers with a byte
 *   latency loop COUNT           COUNT children, each of which has one child after the other crash, until standard input ends;
 *                                then prints how many crashes there were
 *   latency FILE                 as a delegate: writes to FILE when it was started, when the core had ended, and its bytes
 *   latency enter PID PROGRAM FILE
 *                                as a helper: enters the namespaces of PID, and has PROGRAM run there
 *   latency serve SOCKET PROGRAM FILE
 *                                as a server: does that for each crash at the core-dump socket SOCKET
 *   latency store CORE FILE      as a plain handler of the host: writes the core to CORE, and to FILE what a delegate writes
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST 512
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

/* What the kernel says and is answered at its core-dump socket; include/uapi/linux/coredump.h, Linux 6.17. */
struct message {
    uint32_t size, rest;
    uint64_t mask;
};
#define KERNEL 1
#define WAIT 8

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void note(const char *path, const char *text)
{
    /* One call: hundreds of processes write to one file. */
    int file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0666);
    if (file < 0 || write(file, text, strlen(text)) != (ssize_t)strlen(text))
        err(1, "%s", path);
    close(file);
}

/* Reads the core to its end, and writes it to a file if there is one. */
static size_t drain(int file)
{
    static char buffer[1 << 16];
    size_t size = 0;
    ssize_t length;
    while ((length = read(0, buffer, sizeof buffer)) > 0) {
        if (file >= 0 && write(file, buffer, length) != length)
            err(1, "write");
        size += length;
    }
    return size;
}

static void note_delegate(const char *path, double started, size_t size)
{
    char line[128];
    snprintf(line, sizeof line, "delegate %.9f %.9f %zu\n", started, now(), size);
    note(path, line);
}

static void crash(void)
{
    *(volatile int *)16 = 0;
}

static void crash_at(double time, volatile double *crashed, size_t size)
{
    struct timespec until = {.tv_sec = (time_t)time, .tv_nsec = (long)((time - (time_t)time) * 1e9)};
    char *memory = malloc(size);
    if (!memory)
        err(1, "malloc");
    /* Not zero: the kernel leaves pages of zeros that nobody has touched out of the core. */
    memset(memory, 'x', size);
    /* What brought the order here, in a container the engine's processes, has to go back to sleep: it would be measured too. */
    usleep(50000);
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    /* Nothing between the time and the crash: writing a file takes longer in a container. */
    *crashed = now();
    crash();
}

static int crasher(const char *path)
{
    static char text[MOST * 64];
    pid_t pids[MOST];
    double gone[MOST], time;
    int mib, count;
    volatile double *crashed =
        mmap(NULL, MOST * sizeof *crashed, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (crashed == MAP_FAILED)
        err(1, "mmap");
    while (scanf("%d %d %lf", &mib, &count, &time) == 3 && count <= MOST) {
        for (int index = 0; index < count; index++) {
            pids[index] = fork();
            if (pids[index] == 0)
                crash_at(time, &crashed[index], (size_t)mib << 20);
            if (pids[index] < 0)
                err(1, "fork");
        }
        for (int left = count; left > 0; left--) {
            pid_t ended = wait(NULL);
            for (int index = 0; index < count; index++)
                if (pids[index] == ended)
                    gone[index] = now();
        }
        for (int index = 0, length = 0; index < count; index++)
            length += sprintf(text + length, "crash %.9f %.9f\n", crashed[index], gone[index]);
        note(path, text);
        if (write(1, "k", 1) != 1)
            err(1, "write");
    }
    return 0;
}

static int loop(int count)
{
    char byte;
    unsigned *crashes = mmap(NULL, sizeof *crashes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (crashes == MAP_FAILED)
        err(1, "mmap");
    while (count-- > 0)
        if (fork() == 0)
            for (;;) {
                pid_t child = fork();
                if (child == 0)
                    crash();
                if (child > 0 && waitpid(child, NULL, 0) > 0)
                    __atomic_fetch_add(crashes, 1, __ATOMIC_RELAXED);
            }
    while (read(0, &byte, 1) > 0)
        ;
    printf("%u\n", *crashes);
    /* The first process of the container: the others end with it. */
    return 0;
}

static int enter(int process, const char *program, const char *path)
{
    int kinds = CLONE_NEWPID | CLONE_NEWCGROUP | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWNS;
    if (process < 0 || setns(process, kinds))
        err(1, "setns");
    pid_t child = fork();
    if (child == 0) {
        execl(program, program, path, (char *)NULL);
        _exit(1);
    }
    return child;
}

/* Holds the core until the delegate has ended. */
static int wait_for(pid_t child)
{
    return child < 0 || waitpid(child, NULL, 0) < 0;
}

/* Tells the server that this worker needs a successor. */
static int taken = -1;
static void tell(void)
{
    if (taken >= 0 && write(taken, "t", 1) == 1)
        taken = -1;
}

static int deliver(int listener, char **argv)
{
    struct message request, answer = {.size = sizeof answer, .mask = KERNEL | WAIT};
    char rest[4096];
    uint32_t mark;
    int process;
    socklen_t length = sizeof process;
    int core = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    if (core < 0 || getsockopt(core, SOL_SOCKET, SO_PEERPIDFD, &process, &length))
        err(1, "accept");
    if (recv(core, &request, sizeof request, MSG_WAITALL) != sizeof request || request.size > sizeof rest ||
        (request.size > sizeof request && recv(core, rest, request.size - sizeof request, MSG_WAITALL) < 0) ||
        write(core, &answer, sizeof answer) != sizeof answer ||
        recv(core, &mark, sizeof mark, MSG_WAITALL) != sizeof mark || mark != 0)
        errx(1, "this is not Linux 6.17");
    if (dup2(core, 0) != 0)
        err(1, "dup2");
    pid_t child = enter(process, argv[3], argv[4]);
    /* Only now: the next worker must not cost this crash anything. */
    tell();
    return wait_for(child);
}

static int serve(char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int ends[2];
    char byte;
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strncpy(address.sun_path, argv[2], sizeof address.sun_path - 1);
    unlink(argv[2]);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096) ||
        pipe2(ends, O_CLOEXEC))
        err(1, "%s", argv[2]);
    prctl(PR_SET_NAME, "yardstick");
    signal(SIGCHLD, SIG_IGN);
    /* One worker waits; the next one is started when that one has its crash. */
    for (;;) {
        pid_t worker = fork();
        if (worker == 0) {
            signal(SIGCHLD, SIG_DFL);
            taken = ends[1];
            atexit(tell);
            exit(deliver(listener, argv));
        }
        if (worker < 0 || read(ends[0], &byte, 1) != 1)
            err(1, "fork");
    }
}

int main(int argc, char **argv)
{
    if (argc == 2) {
        double started = now();
        size_t size = drain(-1);
        note_delegate(argv[1], started, size);
        return 0;
    }
    if (argc == 3 && !strcmp(argv[1], "crasher"))
        return crasher(argv[2]);
    if (argc == 3 && !strcmp(argv[1], "loop"))
        return loop(atoi(argv[2]));
    if (argc == 5 && !strcmp(argv[1], "enter"))
        return wait_for(enter(syscall(SYS_pidfd_open, atoi(argv[2]), 0), argv[3], argv[4]));
    if (argc == 5 && !strcmp(argv[1], "serve"))
        return serve(argv);
    if (argc == 4 && !strcmp(argv[1], "store")) {
        int core = open(argv[2], O_CREAT | O_TRUNC | O_WRONLY, 0600);
        if (core < 0)
            err(1, "%s", argv[2]);
        size_t size = drain(core);
        note_delegate(argv[3], now(), size);
        return 0;
    }
    errx(2, "usage: see the head of latency.c");
}

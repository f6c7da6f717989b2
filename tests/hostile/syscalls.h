/*
 * Asks for every system call once, with arguments that none of them can use, and writes the answers to a file:
 * a number and errno a line. A filter answers before the kernel has looked at the arguments.
 */
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* Those of this program's own architecture. */
static int ask_for(int number)
{
	errno = 0;
	syscall(number, -1L, -1L, -1L, -1L, -1L, -1L);
	return errno;
}

/* These end or stop whoever asks, or make all of the machine wait. */
static const int left_out[] = {
	SYS_rt_sigreturn, SYS_pause, SYS_clone, SYS_fork, SYS_vfork, SYS_exit, SYS_exit_group,
	SYS_rt_sigsuspend, SYS_sync, SYS_clone3, -1,
};

/* Those of i386, which a program of 64 bits may use, too. */
static int ask_for_i386(int number)
{
	int answer;
	__asm__ volatile("int $0x80" : "=a"(answer) : "a"(number), "b"(-1), "c"(-1), "d"(-1), "S"(-1), "D"(-1) : "memory");
	return answer < 0 && answer > -4096 ? -answer : 0;
}

/* The same in asm/unistd_32.h, and sigreturn and sigsuspend. */
static const int left_out_i386[] = {173, 29, 120, 2, 190, 1, 252, 179, 36, 435, 119, 72, -1};

static void ask_for_all(const char *path, int (*ask)(int), const int *without)
{
	FILE *to = fopen(path, "we");
	int status;
	if (!to)
		fail(path);
	for (int number = 0; number < 462; number++) {
		const int *skipped = without;
		while (*skipped >= 0 && *skipped != number)
			skipped++;
		if (*skipped >= 0)
			continue;
		/* One child a call: what it does to the caller does not matter. */
		pid_t child = fork();
		if (child == 0) {
			alarm(1);
			/* Where the kernel takes no int 0x80, it is no crash for the helper. */
			setrlimit(RLIMIT_CORE, &(struct rlimit){1, 1});
			_exit(ask(number));
		}
		if (waitpid(child, &status, 0) == child && WIFEXITED(status))
			fprintf(to, "%d %d\n", number, WEXITSTATUS(status));
	}
	fclose(to);
}

static void ask_for_system_calls(const char *role)
{
	char path[64];
	snprintf(path, sizeof path, "/out/%s.syscalls", role);
	ask_for_all(path, ask_for, left_out);
	snprintf(path, sizeof path, "/out/%s.syscalls-i386", role);
	ask_for_all(path, ask_for_i386, left_out_i386);
}

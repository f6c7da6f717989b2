/*
 * crash [-p] [-r DIRECTORY] [-m MEBIBYTES] [-l | -c COUNT]
 *
 * Records what it is in $RECORD_DIRECTORY/process.PID and dies of SIGSEGV.
 *   -p  gives up all permitted capabilities first, but not the bounding set, nor uid 0
 *   -r  changes its root directory first
 *   -m  fills that much memory, so that the core is that large
 *   -l  crashes in a second thread, after the first one, the leader, has exited
 *   -c  COUNT children crash, all at once, while the parent waits for them and then ends with exit status 0
 */
#include "facts.h"

#include <linux/capability.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static size_t memory;

static void give_up_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {{0}};
	if (syscall(SYS_capset, &header, none))
		fail("capset");
}

/* A name that the backtrace of the core must show. */
__attribute__((noinline)) static void the_defect(void)
{
	*(volatile int *)16 = 1;
}

static void record(void)
{
	char directory[PATH_MAX];
	snprintf(directory, sizeof directory, "%s/process.%d", record_directory(), getpid());
	write_facts(directory);
	if (memory) {
		/* Every page differs from every other: nothing on the way can take it for a hole. */
		unsigned *words = malloc(memory);
		if (!words)
			fail("malloc");
		for (size_t i = 0; i < memory / sizeof *words; i++)
			words[i] = 0x9E3779B9u * (unsigned)(i + 1);
	}
}

static void *crash_without_leader(void *leader)
{
	pthread_join(*(pthread_t *)leader, NULL);
	/* pthread_join returns before the kernel has made a zombie of the leader. */
	usleep(100000);
	record();
	the_defect();
	return NULL;
}

static int crash_in_children(int count)
{
	int ready[2], start[2], status;
	char byte;
	if (pipe2(ready, O_CLOEXEC) || pipe2(start, O_CLOEXEC))
		fail("pipe2");
	for (int i = 0; i < count; i++) {
		pid_t child = fork();
		if (child < 0)
			fail("fork");
		if (child == 0) {
			close(start[1]);
			record();
			if (write(ready[1], "", 1) != 1)
				fail("write");
			/* Nothing is ever written: the end of file, when the parent closes it, starts all at once. */
			if (read(start[0], &byte, 1) == 0)
				the_defect();
			_exit(98);
		}
	}
	for (int i = 0; i < count; i++)
		if (read(ready[0], &byte, 1) != 1)
			fail("read");
	close(start[1]);
	for (int i = 0; i < count; i++)
		if (wait(&status) < 0 || !WIFSIGNALED(status))
			return 97;
	return 0;
}

int main(int argc, char **argv)
{
	int option, children = 0, without_leader = 0;
	pthread_t self = pthread_self(), thread;

	umask(0);
	while ((option = getopt(argc, argv, "pr:m:lc:")) != -1)
		switch (option) {
		case 'p':
			give_up_capabilities();
			break;
		case 'r':
			if (chroot(optarg) || chdir("/"))
				fail(optarg);
			break;
		case 'm':
			memory = strtoul(optarg, NULL, 10) << 20;
			break;
		case 'l':
			without_leader = 1;
			break;
		case 'c':
			children = atoi(optarg);
			break;
		default:
			return 96;
		}
	if (children)
		return crash_in_children(children);
	if (without_leader) {
		if (pthread_create(&thread, NULL, crash_without_leader, &self))
			fail("pthread_create");
		pthread_exit(NULL);
	}
	record();
	the_defect();
}

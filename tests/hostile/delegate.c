/*
 * A delegate that the container chose. $ATTACK says what it does; a delegate has the environment of the faulting process.
 * Without it: records what it is in $RECORD_DIRECTORY/delegate.$CORE_PID, with the core beside it.
 */
#include "../support/programs/facts.h"
#include "locks.h"
#include "syscalls.h"

#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

static int is(const char *attack)
{
	const char *chosen = getenv("ATTACK");
	return chosen && !strcmp(chosen, attack);
}

static void read_slowly(void)
{
	char buffer[4096];
	while (read(0, buffer, sizeof buffer) > 0)
		usleep(100000);
}

/* At most 6.25 MiB a second. */
static void read_on(void)
{
	char buffer[1 << 16];
	while (read(0, buffer, sizeof buffer) > 0)
		usleep(10000);
}

static void read_all(void)
{
	char buffer[1 << 16];
	while (read(0, buffer, sizeof buffer) > 0)
		;
}

/* Takes the room in standard input that the helper has just found there. */
static void fill_own_input(void)
{
	char page[4096] = {0};
	while (access("/out/held", F_OK))
		usleep(10000);
	int both = open("/proc/self/fd/0", O_RDWR | O_NONBLOCK);
	if (both < 0 || write(both, page, sizeof page) != sizeof page)
		fail("/proc/self/fd/0");
	close(open("/out/filled", O_CREAT | O_WRONLY, 0666));
	while (access("/out/go", F_OK))
		usleep(10000);
	if (read(both, page, sizeof page) != sizeof page)
		fail("standard input");
	close(both);
	read_all();
}

/* A daemon, out of the session and of every group of this process, keeps all of our descriptors open. */
static void leave_daemon(void)
{
	if (fork())
		_exit(0);
	setsid();
	if (fork())
		_exit(0);
	for (;;)
		pause();
}

/* Another process of the container, of whatever user, has standard input open from now on. */
static void pass_on(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/out/socket"};
	char space[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec part = {"", 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &(int){0}, sizeof(int));
	int client = socket(AF_UNIX, SOCK_STREAM, 0);
	while (connect(client, (struct sockaddr *)&address, sizeof address))
		usleep(10000);
	if (sendmsg(client, &message, 0) < 0)
		fail("sendmsg");
	while (access("/out/received", F_OK))
		usleep(10000);
}

static void lock_errors(void)
{
	int target = full_socket(), errors = open("/proc/self/fd/2", O_RDONLY | O_NONBLOCK);
	if (errors < 0)
		fail("/proc/self/fd/2");
	if (fork() == 0)
		for (;;)
			splice(errors, NULL, target, NULL, 1 << 20, 0);
	if (fork() == 0)
		for (;;)
			if (write(2, "words\n", 6) < 0)
				_exit(0);
	read_all();
	for (;;)
		pause();
}

static int lock_in_thread(void *unused)
{
	(void)unused;
	/* Only now do the others close theirs. */
	usleep(300000);
	lock_by_reading(0);
	return 0;
}

/* A daemon, one thread of which has descriptors of its own: those of the process, which /proc/PID/fd shows, are closed. */
static void lock_in_daemon(void)
{
	static char stack[1 << 18] __attribute__((aligned(16)));
	if (fork() == 0) {
		setsid();
		if (clone(lock_in_thread, stack + sizeof stack, CLONE_VM | CLONE_FS | CLONE_SIGHAND | CLONE_THREAD, NULL) < 0)
			fail("clone");
		for (int file = 0; file < 16; file++)
			close(file);
		for (;;)
			pause();
	}
	sleep(2);
}

/* Device rules hang on the control group: making the node is allowed to a container, opening it is not. */
static void open_disk(void)
{
	FILE *to = fopen("/out/disk", "we");
	char *disk = getenv("DISK");
	int major = atoi(disk), minor = atoi(strchr(disk, ':') + 1);
	if (mknod("/tmp/disk", S_IFBLK | 0600, makedev(major, minor)))
		fprintf(to, "mknod: %s\n", strerror(errno));
	int file = open("/tmp/disk", O_RDONLY);
	fprintf(to, "open: %s\n", file < 0 ? strerror(errno) : "it worked");
	fclose(to);
}

static void record(void)
{
	char hidden[PATH_MAX], final[PATH_MAX], buffer[1 << 16];
	const char *pid = getenv("CORE_PID");
	size_t length;

	snprintf(hidden, sizeof hidden, "%s/.delegate.%s", record_directory(), pid ? pid : "unknown");
	snprintf(final, sizeof final, "%s/delegate.%s", record_directory(), pid ? pid : "unknown");
	write_facts(hidden);
	copy_proc(hidden, "stat");
	FILE *core = create(hidden, "core");
	while ((length = fread(buffer, 1, sizeof buffer, stdin)) > 0)
		if (fwrite(buffer, 1, length, core) != length)
			fail("core");
	fclose(core);
	if (rename(hidden, final))
		fail(final);
}

/* Each way to change the file that this program is executed from, one line for each in /out/own. */
static void change_own_program(void)
{
	FILE *to = fopen("/out/own", "we");
	if (!to)
		fail("/out/own");
	int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	fprintf(to, "seals %d\n", fcntl(file, F_GET_SEALS));
	fprintf(to, "unseal %s\n", fcntl(file, F_ADD_SEALS, 0) < 0 ? strerror(errno) : "it worked");
	fprintf(to, "truncate %s\n", truncate("/proc/self/exe", 0) < 0 ? strerror(errno) : "it worked");
	int again = open("/proc/self/exe", O_RDWR | O_CLOEXEC);
	fprintf(to, "open %s\n", again < 0 ? strerror(errno) : "it worked");
	fprintf(to, "directory %s\n", openat(file, "..", O_RDONLY) < 0 ? strerror(errno) : "it worked");
	fclose(to);
}

int main(int argc, char **argv)
{
	if (is("never-reads") || is("never-ends")) {
		if (is("never-ends"))
			read_all();
		for (;;)
			pause();
	} else if (is("reads-slowly"))
		read_slowly();
	else if (is("locks-input"))
		lock_by_reading(0);
	else if (is("locks-errors"))
		lock_errors();
	else if (is("locks-in-thread"))
		lock_in_daemon();
	else if (is("passes-on"))
		pass_on();
	else if (is("daemon"))
		leave_daemon();
	else if (is("waits")) {
		while (access("/out/go", F_OK))
			usleep(10000);
		read_all();
	} else if (is("fills-its-input")) {
		fill_own_input();
	} else if (is("stops"))
		raise(SIGSTOP);
	else if (is("crashes")) {
		read_all();
		abort();
	} else if (is("talks")) {
		for (int line = 0; line < 100000; line++)
			if (write(2, "\x1b[31m 0123456789 0123456789 0123456789 0123456789\n", 50) < 0)
				break;
		read_all();
	} else if (is("opens-disk")) {
		read_all();
		open_disk();
	} else if (is("system-calls")) {
		read_all();
		ask_for_system_calls("delegate");
	} else if (is("dies"))
		raise(SIGKILL);
	else if (is("gives-up"))
		return 7;
	else if (is("wants-nothing"))
		return 0;
	else if (is("reads-on"))
		read_on();
	else if (is("floods")) {
		char line[4096] = {0};
		for (int i = 0; i < 1 << 20; i++)
			if (write(1, line, sizeof line) < 0)
				break;
	} else if (is("eats")) {
		for (;;) {
			char *block = malloc(1 << 20);
			if (block)
				memset(block, 1, 1 << 20);
		}
	} else if (is("needs-memory")) {
		volatile char *memory = malloc(40 << 20);
		for (size_t i = 0; i < 40 << 20; i += 4096)
			memory[i] = 1;
		record();
	} else if (is("drips")) {
		/* A pause after each byte: so the helper finds one byte at a time. */
		while (write(2, "x", 1) == 1)
			usleep(20);
	} else if (is("fails")) {
		read_all();
		return 7;
	} else if (is("changes-itself")) {
		change_own_program();
		while (access("/out/go", F_OK))
			usleep(10000);
		read_all();
	} else if (is("tells-words")) {
		/* Each word of the command line as it came, a NUL after it. */
		read_all();
		FILE *to = fopen("/out/words", "we");
		for (int i = 1; i < argc; i++)
			fwrite(argv[i], 1, strlen(argv[i]) + 1, to);
		fclose(to);
	} else
		record();
	return 0;
}

/*
 * The kernel keeps a pipe locked while splice(2) waits for where it leads: whoever asks how much is in the pipe, reads it,
 * writes to it or closes it waits as well, past every signal.
 */
#include <sys/socket.h>

/* Nobody reads it, and it takes nothing more: whoever writes to it waits. */
static int full_socket(void)
{
	static const char bytes[1 << 16];
	int ends[2];
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		fail("socketpair");
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	while (write(ends[0], bytes, sizeof bytes) > 0)
		;
	while (write(ends[0], bytes, 1) > 0)
		;
	fcntl(ends[0], F_SETFL, 0);
	return ends[0];
}

/* Locks the pipe by its read end, when something has been read and the rest has come. */
static void lock_by_reading(int pipe)
{
	char page[4096];
	int target = full_socket();
	if (read(pipe, page, sizeof page) < 0)
		fail("read");
	usleep(200000);
	while (splice(pipe, NULL, target, NULL, 1 << 20, 0) > 0)
		;
}

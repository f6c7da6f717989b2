/*
 * recorder WORD... : a handler of the host, which records how it was started in the directory RECORDS, one file a fact,
 * and under a new name for each start. Compiled for one test, with -DRECORDS="...", because a handler has no environment.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static FILE *create(const char *directory, const char *name)
{
	char path[PATH_MAX];
	snprintf(path, sizeof path, "%s/%s", directory, name);
	FILE *file = fopen(path, "we");
	if (!file)
		exit(99);
	return file;
}

static void write_words(const char *directory, const char *name, char **words)
{
	FILE *to = create(directory, name);
	for (; *words; words++)
		fwrite(*words, 1, strlen(*words) + 1, to);
	fclose(to);
}

/* Without what tells one process from another, and what depends on the moment. */
static void write_status(const char *directory, mode_t mask)
{
	static const char *const kept[] = {"Uid", "Gid", "Groups", "SigPnd", "SigBlk", "SigIgn", "SigCgt", "Cap", "NoNew", "Seccomp"};
	char line[4096], target[PATH_MAX];
	struct rlimit limit;
	FILE *from = fopen("/proc/self/status", "re"), *to = create(directory, "status");
	while (from && fgets(line, sizeof line, from))
		for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
			if (!strncmp(line, kept[i], strlen(kept[i])))
				fputs(line, to);
	from = fopen("/proc/self/cgroup", "re");
	while (from && fgets(line, sizeof line, from))
		fputs(line, to);
	fprintf(to, "umask %o\n", mask);
	for (int i = 0; i < RLIMIT_NLIMITS; i++)
		if (!getrlimit(i, &limit))
			fprintf(to, "limit %d %lu %lu\n", i, (unsigned long)limit.rlim_cur, (unsigned long)limit.rlim_max);
	ssize_t length = readlink("/proc/self/cwd", target, sizeof target);
	fprintf(to, "cwd %.*s\nsession %d\n", (int)length, target, getsid(0));
	fclose(to);
}

int main(int argc, char **argv, char **environment)
{
	char hidden[PATH_MAX], final[PATH_MAX], path[64], target[PATH_MAX], buffer[1 << 16];
	char descriptors[8192] = "";
	ssize_t length;
	int used = 0;
	(void)argc;

	/* Before anything else is opened. */
	for (int fd = 0; fd < 1024; fd++) {
		int flags = fcntl(fd, F_GETFL);
		if (flags < 0)
			continue;
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		length = readlink(path, target, sizeof target);
		/* The number of a pipe is another one each time. */
		length = length > 5 && !strncmp(target, "pipe:", 5) ? 5 : length;
		used += snprintf(descriptors + used, sizeof descriptors - used, "%d %.*s flags=%o cloexec=%d\n", fd, (int)length,
				 target, flags, fcntl(fd, F_GETFD));
	}
	mode_t mask = umask(0);
	snprintf(hidden, sizeof hidden, RECORDS "/.%d", getpid());
	snprintf(final, sizeof final, RECORDS "/%d", getpid());
	if (mkdir(hidden, 0777))
		exit(98);
	write_words(hidden, "arguments", argv);
	write_words(hidden, "environment", environment);
	write_status(hidden, mask);
	FILE *to = create(hidden, "descriptors");
	fputs(descriptors, to);
	fclose(to);
	to = create(hidden, "pidfd");
	FILE *from = fopen("/proc/self/fdinfo/3", "re");
	while (from && fgets(buffer, sizeof buffer, from))
		if (!strncmp(buffer, "Pid:", 4))
			fputs(buffer, to);
	fclose(to);
	to = create(hidden, "core");
	while ((length = read(0, buffer, sizeof buffer)) > 0)
		fwrite(buffer, 1, length, to);
	fclose(to);
	return rename(hidden, final) ? 97 : 0;
}

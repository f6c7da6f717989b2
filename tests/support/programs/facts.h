/*
 * What a process can say about itself, written into a directory: the faulting process (crash.c) and its delegate
 * (probe.c) both do it with this code, so that a test lays the two records side by side.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

/* Which directory the records go to: /out, or what the test says in the environment. */
static const char *record_directory(void)
{
	const char *directory = getenv("RECORD_DIRECTORY");
	return directory ? directory : "/out";
}

static void fail(const char *what)
{
	perror(what);
	exit(99);
}

static FILE *create(const char *directory, const char *name)
{
	char path[PATH_MAX];
	snprintf(path, sizeof path, "%s/%s", directory, name);
	FILE *file = fopen(path, "we");
	if (!file)
		fail(path);
	return file;
}

/* A chroot has no /proc: what cannot be read there is simply not in the record. */
static void copy_proc(const char *directory, const char *name)
{
	char path[PATH_MAX], buffer[4096];
	ssize_t length;
	snprintf(path, sizeof path, "/proc/thread-self/%s", name);
	int from = open(path, O_RDONLY | O_CLOEXEC);
	if (from < 0)
		return;
	FILE *to = create(directory, name);
	while ((length = read(from, buffer, sizeof buffer)) > 0)
		fwrite(buffer, 1, length, to);
	fclose(to);
	close(from);
}

static void write_link(FILE *to, const char *name)
{
	char path[PATH_MAX], target[PATH_MAX];
	snprintf(path, sizeof path, "/proc/thread-self/%s", name);
	ssize_t length = readlink(path, target, sizeof target);
	if (length >= 0)
		fprintf(to, "%s %.*s\n", name, (int)length, target);
}

/* One file a fact. /proc/thread-self and not /proc/self: the latter is the leader, which may have exited. */
static void write_facts(const char *directory)
{
	static const char *const files[] = {"cgroup", "cmdline", "environ", "limits", "oom_score_adj", "status"};
	static const char *const links[] = {
		"ns/cgroup", "ns/ipc", "ns/mnt", "ns/net", "ns/pid", "ns/time", "ns/user", "ns/uts",
		"ns/pid_for_children", "ns/time_for_children", "cwd", "exe", "root",
	};
	char open_descriptors[1024];
	int used = 0;
	struct stat root;
	struct utsname names;

	/* Before anything else is opened. */
	open_descriptors[0] = 0;
	for (int fd = 0; fd < 1024 && used < 1000; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			used += snprintf(open_descriptors + used, sizeof open_descriptors - used, "%d ", fd);

	if (mkdir(directory, 0777) && errno != EEXIST)
		fail(directory);
	for (size_t i = 0; i < sizeof files / sizeof *files; i++)
		copy_proc(directory, files[i]);

	FILE *to = create(directory, "links");
	for (size_t i = 0; i < sizeof links / sizeof *links; i++)
		write_link(to, links[i]);
	fclose(to);

	to = create(directory, "facts");
	fprintf(to, "descriptors %s\n", open_descriptors);
	if (stat("/", &root) == 0)
		fprintf(to, "root_inode %llu:%llu\n", (unsigned long long)root.st_dev, (unsigned long long)root.st_ino);
	if (uname(&names) == 0)
		fprintf(to, "hostname %s\n", names.nodename);
	fclose(to);

	/* The label of a security module, in a file without a slash in its name. */
	int label = open("/proc/thread-self/attr/current", O_RDONLY | O_CLOEXEC);
	if (label >= 0) {
		char buffer[4096];
		ssize_t length = read(label, buffer, sizeof buffer);
		to = create(directory, "label");
		if (length > 0)
			fwrite(buffer, 1, length, to);
		fclose(to);
		close(label);
	}
}

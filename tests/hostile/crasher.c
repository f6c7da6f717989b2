/*
 * crasher ACTION... does one thing after the other, then dies of SIGSEGV.
 *
 *   fork=COUNT     that many children go on; the parent waits, says "children ended" and ends
 *   keep=SECONDS   a child goes on; the parent waits, says "child ended", and keeps the container alive
 *   leave=SECONDS  a child goes on; the parent keeps the container alive and does not wait for it
 *   sleep=SECONDS  does nothing for that long
 *   second         goes on in a second thread; the first one ends
 *   join=FILE      joins the namespace of that file
 *   execute=PATH   executes that program, which goes on
 *   root=PATH      makes that directory its root directory
 *   own-network    a network namespace of its own
 *   own-mounts     a mount namespace of its own; jail: with /jail as the root of it
 *   receiver=USER  a process of that user holds the descriptor that it is sent over /out/socket
 *   locker=USER    the same, and has the kernel lock it
 *   record         writes what it is to /out/process.PID
 *   wait=FILE      waits until the file is there
 *   user           becomes user 1000, group 1000, groups 2000 and 3000
 *   ambient        the same, with CAP_CHOWN in its ambient set
 *   give           gives up all permitted capabilities, but not the bounding set, nor user 0
 *   userns=KIND    user 1000 in a user namespace of its own: mapped, unmapped, or denied (setgroups)
 *   thread         a second thread, with namespaces of its own, goes on
 *   thread-user    a second thread, of user and group 1000 while the first one is root, goes on
 *   limits         changes resource limits, umask, nice and oom_score_adj
 *   memory=MIB     fills that much memory
 *   mapped=MIB     maps a file of that size, whose pages it never reads, and has them dumped
 *   build-ids=COUNT  maps that many programs, each with a build id, below directories of very long names
 *   inflate=MIB    has that much in memory, which is the same MiB again and again and is not dumped
 *   traced=COUNT   that many children go on, whose end the parent stops: they have crashed, and stay
 *   thread-traced=COUNT  the same, a moment after each other, but the parent traces only a second thread of each, and stops its end
 *   compressible=MIB  fills that much memory with the same byte
 *   reserve=TIB    reserves that much memory and never uses it
 *   untouched=MIB  the same in mebibytes
 *   modest         processor 0 alone, and scheduled when nobody else wants to be
 *   tiny           has no memory dumped
 *   path=LENGTH    the program is at a path of that length
 *   name           a name full of bytes that matter elsewhere: thread, host, path
 *   environ=KIND   an environment of its own: letters, large, many (200,000 variables) or unterminated
 *   title          writes a title over its environment, as setproctitle(3) does
 *   setid          user 1000 executes a set-user-id program of root, which goes on; become: it becomes root altogether
 *   capable        user 1000 executes a program with a file capability, which goes on
 *   delegate=KIND  puts something else where the delegate is
 *   plant=KIND     puts something where a core file would be, whatever the pid; KIND.truncated: where it is while it is written
 *   fake-proc      covers /proc with a directory of its own
 *   syscalls       asks for every system call: /out/process.syscalls, and those of i386: /out/process.syscalls-i386
 *   seccomp=KIND   strict, or filter: a filter of its own
 *   watch=SECONDS  makes children crash and looks at each process that then appears
 *   hold=SECONDS   the same, holds the program of each and tries to open it for writing later
 *   hold-userns=SECONDS  with children that have a user namespace of their own
 *   read-lock=PATH a lock of that file for reading, and one by flock(2), for a minute
 *   lease=SECONDS  the same, asks for a lease of the program, and keeps that for five seconds
 *   storm=COUNT    that many processes have one child after the other crash, for ever
 *   kill-crashes=COUNT  the same, and they kill the children meanwhile, and wait for each only after some twenty others
 *   series=COUNT   that many children go on, a moment after each other
 *   loop=COUNT     one child goes on, and when it has ended the next one, that many times
 *   limit=NAME:N   sets both of a resource's limits: fsize, data, stack, files or memory
 *   other-user     becomes a user whom no other process here is
 *   sandbox=KIND   a namespace of its own: user, with itself as root; pid, where a child goes on; mounts; root, which is a
 *                  mount namespace's new root directory with the programs in it
 *   bound=MASK     keeps only these capabilities, in the bounding set too
 *   bound-leader=MASK  the same, while a second thread keeps all and goes on
 *   unbound=NUMBER drops that capability from the bounding set alone
 *   memfd          executes its program from memory; it goes on
 *   mounts=POWER   makes two to the power of that many mounts
 *   idle           a child does nothing for ever; the parent goes on
 *   seize=SECONDS  a child crashes; its delegate is traced that long, and nobody waits for it
 *   seize-exit=SECONDS  the same, and whatever ends the delegate, the tracer stops its end
 *   catch=SECONDS  makes children crash, traces each process that then appears, and looks at its control group of devices
 *   catch-pids=SECONDS  the same with children that may trace nobody, at the group that counts processes
 *   reports=SECONDS  the same, and writes to the pipe by which the process reports to the helper
 *   overlay-of-host  an overlay, made of a directory that does not answer where /out/pid leads to from the host; a child has
 *                  it as its root directory
 *   jail-mounts=COUNT  16,384 mounts below a directory that is no mount, which is the root directory of that many processes
 *   claim=PATH     an overlay as root directory, whose options name a directory of the host
 *   bind-root=PATH the same directory, mounted anew, as root directory
 *   cover=PATH     the same over the root directory that it has
 *   touch=FILE     makes an empty file
 *   fuse=KIND      a file system that never answers: serve starts it, map maps a page of its own, environ the one of its
 *                  environment; with exit, a child waits for it while it ends
 *   automount      an automounter over / which answers nobody; a child goes on, with /jail as its root directory
 *   silent=PATH    mounts a file system there that says of no name whether it exists
 *   groups=COUNT   so many supplementary groups, 65,536 at most
 *   aio            has asked that file system for a page, and does not wait for it: the end of its memory does
 *   descriptors=THREADS:FILES  a child with so many threads and open files does nothing for ever; the parent goes on
 *   kill-dumping=COUNT  that many children crash as "aio" does before, and are killed meanwhile
 *   seize-chain=SECONDS  as seize-exit, and another process stops the end of the tracer
 *   seize-thread=SECONDS  as seize-exit, and the tracer is not the first thread of its process
 *   seize-above=SECONDS  as seize-exit, and the process that crashes is in a pid namespace below that of the tracer
 *   hold-memory    a process that shares its memory waits for that file system, and keeps the list of mappings locked
 *   keys           makes keys, as many as its user may have, and takes what others give back; and so on for ever
 *   signals        sends itself signals that wait, as many as its user may have; and so on for ever
 *   catch-exit=SECONDS  stops the end of a process of the helper that has not become the delegate
 *   report=LINE    stops such processes of another user, which close all their files, and writes the line to the helper for them
 */
#include "../support/programs/facts.h"
#include "locks.h"
#include "syscalls.h"

#include <dirent.h>
#include <elf.h>
#include <sys/user.h>
#include <grp.h>
#include <linux/aio_abi.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/fuse.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <linux/xattr.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <time.h>

#define DELEGATE "/opt/bin/delegate"
/* Without CAP_SYS_PTRACE. */
#define CAPABILITIES_OF_DOCKER 0xa80425fb

static void must(int result, const char *what)
{
	if (result < 0)
		fail(what);
}

static void write_file(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0 || write(file, text, strlen(text)) < 0)
		fail(path);
	close(file);
}

static void set_capabilities(unsigned permitted, unsigned inheritable)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct sets[2] = {{permitted, permitted, inheritable}, {0, 0, 0}};
	must(syscall(SYS_capset, &header, sets), "capset");
}

static void become_user(void)
{
	gid_t groups[] = {2000, 3000};
	must(setgroups(2, groups), "setgroups");
	must(setresgid(1000, 1000, 1000), "setresgid");
	must(setresuid(1000, 1000, 1000), "setresuid");
	/* An ordinary program of that user: a change of ids alone would have the kernel dump for root only. */
	must(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl");
}

/* One thread alone: the C library has all of them change their ids. */
static void become_user_in_this_thread(void)
{
	must(syscall(SYS_setgroups, 0, NULL), "setgroups");
	must(syscall(SYS_setresgid, 1000, 1000, 1000), "setresgid");
	must(syscall(SYS_setresuid, 1000, 1000, 1000), "setresuid");
	must(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl");
}

static void become_user_with_ambient_capability(void)
{
	must(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl");
	become_user();
	set_capabilities(1 << CAP_CHOWN, 1 << CAP_CHOWN);
	must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0), "ambient");
	must(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl");
}

static void be_parent(const pid_t *children, int count, int seconds)
{
	for (int i = 0; i < count; i++)
		must(waitpid(children[i], NULL, 0), "waitpid");
	printf("%s ended\n", count == 1 ? "child" : "children");
	fflush(stdout);
	sleep(seconds);
	exit(0);
}

static void fork_children(int count, int seconds)
{
	pid_t children[count];
	for (int i = 0; i < count; i++) {
		children[i] = fork();
		must(children[i], "fork");
		if (children[i] == 0)
			return;
	}
	be_parent(children, count, seconds);
}

/* The user of this process may have so many bytes in keys, in all containers together: add_key(2). */
static void take_all_keys(void)
{
	static char bytes[32767];
	char name[32];
	unsigned made = 0;
	for (size_t size = sizeof bytes;;) {
		snprintf(name, sizeof name, "%x", made);
		if (syscall(SYS_add_key, "user", name, bytes, size, -2 /* KEY_SPEC_PROCESS_KEYRING */) >= 0) {
			made++;
		} else if (errno == EDQUOT && size > 1) {
			size /= 2;
		} else {
			must(errno == EDQUOT ? 0 : -1, "add_key");
			close(open("/out/full", O_CREAT | O_WRONLY, 0666));
		}
	}
}

/* A process that ends while nobody waits for it stays there, and can still be looked at. */
static void leave_child(int seconds)
{
	pid_t child = fork();
	must(child, "fork");
	if (child) {
		sleep(seconds);
		_exit(0);
	}
}

/* Attack 12: what the delegate sends, another process has open from then on. */

static void receive(int locks)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/out/socket"};
	char byte, space[CMSG_SPACE(sizeof(int))];
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
	int server = socket(AF_UNIX, SOCK_STREAM, 0);
	must(bind(server, (struct sockaddr *)&address, sizeof address), "bind");
	must(listen(server, 1), "listen");
	int connection = accept(server, NULL, NULL);
	must(connection, "accept");
	must(recvmsg(connection, &message, 0), "recvmsg");
	if (!CMSG_FIRSTHDR(&message))
		fail("no descriptor");
	close(open("/out/received", O_CREAT | O_WRONLY, 0666));
	if (locks)
		lock_by_reading(*(int *)CMSG_DATA(CMSG_FIRSTHDR(&message)));
	for (;;)
		pause();
}

static void start_receiver(int user, const char *does)
{
	pid_t child = fork();
	must(child, "fork");
	if (child)
		return;
	must(setresgid(user, user, user), "setresgid");
	must(setresuid(user, user, user), "setresuid");
	/* Under a name of its own, by which the test finds it. */
	execl("/usr/bin/crasher", "receiver", does, NULL);
	fail("receiver");
}

static void unshare_user_namespace(const char *kind)
{
	int ready[2], go[2];
	char byte, path[64];
	must(pipe(ready), "pipe");
	must(pipe(go), "pipe");
	pid_t child = fork();
	must(child, "fork");
	if (child) {
		close(ready[1]);
		must(read(ready[0], &byte, 1), "read");
		/* Only a privileged process can map groups and leave setgroups(2) allowed. */
		if (!strcmp(kind, "mapped")) {
			snprintf(path, sizeof path, "/proc/%d/uid_map", child);
			write_file(path, "0 1000 1\n");
			snprintf(path, sizeof path, "/proc/%d/gid_map", child);
			write_file(path, "0 1000 1\n");
		}
		must(write(go[1], "", 1), "write");
		be_parent(&child, 1, 0);
	}
	become_user();
	must(unshare(CLONE_NEWUSER), "unshare");
	must(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl");
	must(write(ready[1], "", 1), "write");
	must(read(go[0], &byte, 1), "read");
	if (!strcmp(kind, "denied")) {
		write_file("/proc/self/setgroups", "deny");
		write_file("/proc/self/uid_map", "0 1000 1\n");
		write_file("/proc/self/gid_map", "0 1000 1\n");
	}
	for (int i = 0; i < 2; i++) {
		close(ready[i]);
		close(go[i]);
	}
}

static void change_limits(void)
{
	struct rlimit files = {100, 200}, stack = {1 << 20, 2 << 20}, lock = {4096, 8192}, processes = {50, 100};
	must(setrlimit(RLIMIT_NOFILE, &files), "nofile");
	must(setrlimit(RLIMIT_STACK, &stack), "stack");
	must(setrlimit(RLIMIT_MEMLOCK, &lock), "memlock");
	must(setrlimit(RLIMIT_NPROC, &processes), "nproc");
	must(setpriority(PRIO_PROCESS, 0, 7), "setpriority");
	write_file("/proc/self/oom_score_adj", "321");
	umask(027);
}

static void join(const char *path)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	must(file, path);
	must(setns(file, 0), "setns");
	close(file);
}

static void change_root(const char *path)
{
	must(chroot(path), path);
	must(chdir("/"), "/");
}

static void reserve(size_t size)
{
	for (size_t step; size; size -= step) {
		step = size < 1ul << 40 ? size : 1ul << 40;
		int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
		char *memory = mmap(NULL, step, PROT_READ | PROT_WRITE, flags, -1, 0);
		if (memory == MAP_FAILED)
			fail("mmap");
		/* What was never written to is not dumped at all. */
		*memory = 1;
	}
}

static void be_modest(void)
{
	cpu_set_t first;
	CPU_ZERO(&first);
	CPU_SET(0, &first);
	must(sched_setaffinity(0, sizeof first, &first), "sched_setaffinity");
	must(sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0}), "sched_setscheduler");
}

static void fill_memory(size_t size)
{
	/* volatile: nobody reads it, and the compiler would leave it out. */
	volatile unsigned *words = malloc(size);
	for (size_t i = 0; i < size / sizeof *words; i++)
		words[i] = 0x9E3779B9u * (unsigned)(i + 1);
}

static void copy_program(const char *to)
{
	char buffer[1 << 16];
	ssize_t length;
	int from = open("/usr/bin/crasher", O_RDONLY | O_CLOEXEC), file = open(to, O_CREAT | O_WRONLY | O_CLOEXEC, 0755);
	must(file, to);
	while ((length = read(from, buffer, sizeof buffer)) > 0)
		must(write(file, buffer, length), to);
	close(file);
	close(from);
}

/* Longer than PATH_MAX works too: whoever goes there step by step never names all of it. */
static void take_long_path(int length, char **rest)
{
	char name[201];
	must(chdir("/tmp"), "/tmp");
	for (int left = length - (int)strlen("/tmp/crasher"); left > 0; left -= (int)strlen(name) + 1) {
		/* Of two what is left is no more than one of them, each with its slash. */
		int size = left > 400 ? 200 : left > 201 ? left / 2 - 1 : left - 1;
		memset(name, 'x', size);
		name[size] = 0;
		must(mkdir(name, 0755), "mkdir");
		must(chdir(name), "chdir");
	}
	copy_program("crasher");
	execv("./crasher", rest - 1);
	fail("crasher");
}

static void take_strange_names(char **rest)
{
	static const char path[] = "/tmp/a \"b\" \n0 0 0 %P \x1b[31m\xff\xfe";
	must(sethostname("h 0 0\n\"%s\x1b\xff", 11), "sethostname");
	must(link("/usr/bin/crasher", path), path);
	execv(path, rest - 1);
	fail(path);
}

static void change_environment(const char *kind, char **rest)
{
	static char space[15][130000];
	char *letters[27] = {0}, text[26][4], *large[16] = {0};
	static char *many[200001];
	char **environment = letters;
	for (int i = 0; i < 26; i++) {
		snprintf(text[i], sizeof text[i], "%c=1", 'a' + i);
		letters[i] = text[i];
	}
	if (!strcmp(kind, "large")) {
		for (int i = 0; i < 15; i++) {
			memset(space[i], 'x', sizeof space[i] - 1);
			snprintf(space[i], sizeof space[i], "V%02d=", i);
			space[i][4] = 'x';
			large[i] = space[i];
		}
		environment = large;
	} else if (!strcmp(kind, "many")) {
		for (int i = 0; i < 200000; i++)
			many[i] = "a=";
		environment = many;
	}
	execve("/usr/bin/crasher", rest - 1, environment);
	fail("execve");
}

static void overwrite_environment(void)
{
	char *first = environ[0], *end = first;
	for (char **variable = environ; *variable; variable++)
		end = *variable + strlen(*variable);
	memset(first, ' ', end - first);
	memcpy(first, "er: idle", 8);
}

/* The last byte of the environment's area is the NUL of the path that was executed; the one before ends a variable. */
static void unterminate_environment(void)
{
	char **last = environ;
	while (last[1])
		last++;
	/* Up to the end of the area there is only the path of the program: no NUL is left after this. */
	size_t length = strlen(*last);
	(*last)[length] = 'N';
}

static void plant(const char *kind)
{
	char path[64], what[16] = "";
	sscanf(kind, "%15[^.]", what);
	const char *end = kind + strlen(what);
	int target = open("/tmp/target", O_CREAT | O_RDWR, 0666);
	must(target, "target");
	for (int pid = 2; pid < 32768; pid++) {
		snprintf(path, sizeof path, "/tmp/core.%d.0.0%s", pid, end);
		if (!strcmp(what, "foreign")) {
			/* Of another user than the one who crashes; the sticky directory keeps that one from removing it. */
			snprintf(path, sizeof path, "/tmp/core.%d.1000.1000%s", pid, end);
			close(open(path, O_CREAT | O_WRONLY, 0666));
			must(chown(path, 1001, 1001), path);
		} else if (!strcmp(what, "symlink"))
			must(symlink("/tmp/target", path), path);
		else if (!strcmp(what, "hardlink"))
			must(link("/tmp/target", path), path);
		else if (!strcmp(what, "fifo"))
			must(mkfifo(path, 0666), path);
		else
			must(mkdir(path, 0777), path);
	}
}

static void replace_delegate(const char *kind)
{
	struct vfs_ns_cap_data everything = {
		.magic_etc = VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE,
		.data = {{0xffffffff, 0}, {0xffffffff, 0}},
	};
	if (!strcmp(kind, "set-id")) {
		must(chmod(DELEGATE, 06755), DELEGATE);
		return;
	}
	if (!strcmp(kind, "capable")) {
		must(setxattr(DELEGATE, "security.capability", &everything, XATTR_CAPS_SZ_2, 0), DELEGATE);
		return;
	}
	must(rename(DELEGATE, "/opt/kept"), DELEGATE);
	if (!strcmp(kind, "fifo"))
		must(mkfifo(DELEGATE, 0777), DELEGATE);
	else if (!strcmp(kind, "device"))
		must(mknod(DELEGATE, S_IFCHR | 0777, makedev(1, 3)), DELEGATE);
	else if (!strcmp(kind, "directory"))
		must(mkdir(DELEGATE, 0755), DELEGATE);
	else if (!strcmp(kind, "plain"))
		close(open(DELEGATE, O_CREAT | O_WRONLY, 0644));
	else if (!strcmp(kind, "garbage")) {
		close(open(DELEGATE, O_CREAT | O_WRONLY, 0755));
		write_file(DELEGATE, "no program of any kind\n");
	} else if (!strcmp(kind, "loop"))
		must(symlink(DELEGATE, DELEGATE), DELEGATE);
	else if (!strcmp(kind, "magic"))
		must(symlink("/proc/1/root/opt/kept", DELEGATE), DELEGATE);
	else if (!strcmp(kind, "self-exe"))
		must(symlink("/proc/self/exe", DELEGATE), DELEGATE);
	else if (!strcmp(kind, "directory-link")) {
		must(rmdir("/opt/bin"), "/opt/bin");
		must(symlink("../../../../../../opt/dots/../dots", "/opt/bin"), "/opt/bin");
		must(mkdir("/opt/dots", 0755), "/opt/dots");
		must(symlink("../../../../opt/kept", "/opt/dots/delegate"), DELEGATE);
	} else if (*kind == '/')
		must(symlink(kind, DELEGATE), DELEGATE);
	else if (!strncmp(kind, "#!", 2)) {
		FILE *script = fopen(DELEGATE, "w");
		fprintf(script, "%s\n", kind);
		fclose(script);
		must(chmod(DELEGATE, 0755), DELEGATE);
	} else if (strcmp(kind, "none"))
		fail(kind);
}

static void cover_proc(void)
{
	must(mount("fake", "/proc", "tmpfs", 0, "mode=0755"), "mount");
	/* What leads astray whoever believes in it. */
	must(mkdir("/proc/self", 0755), "mkdir");
	must(mkdir("/proc/self/fd", 0755), "mkdir");
	must(symlink("self", "/proc/thread-self"), "symlink");
	for (int fd = 0; fd < 64; fd++) {
		char path[64];
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		must(mkfifo(path, 0666), path);
	}
}

/* A program with a capability that its user has not. */
static void make_capable(const char *path)
{
	struct vfs_ns_cap_data one = {
		.magic_etc = VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE,
		.data = {{1 << CAP_CHOWN, 0}},
	};
	must(setxattr(path, "security.capability", &one, XATTR_CAPS_SZ_2, 0), path);
}

static void install_filter(void)
{
	struct sock_filter instructions[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
	struct sock_fprog program = {1, instructions};
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
	must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "seccomp");
}

/* Attack 2: who comes after the crashed child is the helper's, until it executes the delegate. */

static long hidden, seen;

static int exe_of(pid_t pid, char *target, size_t size)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	ssize_t length = readlink(path, target, size - 1);
	if (length < 0)
		return errno;
	target[length] = 0;
	return 0;
}

/* Whether the process is one of ours: it is of the container once it has executed something of the container. */
static int is_ours(pid_t pid)
{
	char target[PATH_MAX];
	int error = exe_of(pid, target, sizeof target);
	return error == EACCES || error == EPERM || (!error && strcmp(target, DELEGATE) && strcmp(target, "/usr/bin/crasher"));
}

/* What was got counts only if the process had not executed the delegate yet: there is no way back from that. */
static void got(pid_t pid, const char *what)
{
	if (is_ours(pid))
		printf("GOT %s\n", what);
}

static void try_all(pid_t pid)
{
	char path[64];
	static const char *const names[] = {"mem", "root/", "environ", "cwd/", "fd/0", "ns/mnt"};
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		snprintf(path, sizeof path, "/proc/%d/%s", pid, names[i]);
		int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		if (file >= 0) {
			got(pid, names[i]);
			close(file);
		}
	}
	int pidfd = syscall(SYS_pidfd_open, pid, 0);
	int copy = syscall(SYS_pidfd_getfd, pidfd, 0, 0);
	if (copy >= 0) {
		got(pid, "pidfd_getfd");
		close(copy);
	}
	close(pidfd);
	if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) == 0)
		got(pid, "ptrace");
}

static void list_descriptors(pid_t pid)
{
	char path[64], entry[PATH_MAX];
	struct dirent *found;
	struct stat facts;
	struct statfs system;
	kill(pid, SIGSTOP);
	if (!is_ours(pid)) {
		kill(pid, SIGCONT);
		return;
	}
	seen++;
	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	DIR *descriptors = opendir(path);
	while (descriptors && (found = readdir(descriptors))) {
		snprintf(entry, sizeof entry, "%s/%s", path, found->d_name);
		/* After is_ours, stopped: these are still those of before the exec. */
		if (*found->d_name == '.' || stat(entry, &facts))
			continue;
		if (S_ISDIR(facts.st_mode) || S_ISCHR(facts.st_mode) || S_ISBLK(facts.st_mode))
			printf("GOT %s %s\n", S_ISDIR(facts.st_mode) ? "directory" : "device", found->d_name);
		if (!statfs(entry, &system) && (system.f_type == CGROUP_SUPER_MAGIC || system.f_type == CGROUP2_SUPER_MAGIC))
			printf("GOT control group %s\n", found->d_name);
	}
	if (descriptors)
		closedir(descriptors);
	kill(pid, SIGCONT);
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* Attack 21: what was opened while it was executed can be opened for writing when it is not, unless its mount is read-only. */

static int hold_interpreter(pid_t pid)
{
	char path[64], target[PATH_MAX];
	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	int file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return -1;
	snprintf(path, sizeof path, "/proc/self/fd/%d", file);
	ssize_t length = readlink(path, target, sizeof target - 1);
	target[length < 0 ? 0 : length] = 0;
	if (!strcmp(target, DELEGATE) || !strcmp(target, "/usr/bin/crasher")) {
		close(file);
		return -1;
	}
	return file;
}

static int held_program(double seconds, int flags)
{
	int held = -1;
	for (double end = now() + seconds; held < 0 && now() < end;) {
		pid_t child = fork();
		if (child == 0) {
			if (flags)
				must(unshare(flags), "unshare");
			raise(SIGSEGV);
		}
		for (double limit = now() + 0.1; held < 0 && now() < limit;)
			held = hold_interpreter(child + 1);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
	printf("held %d\n", held >= 0);
	return held;
}

static void hold(double seconds, int flags)
{
	char path[64];
	int held = held_program(seconds, flags);
	snprintf(path, sizeof path, "/proc/self/fd/%d", held);
	int file = -1;
	for (double end = now() + 5; held >= 0 && file < 0 && now() < end; usleep(1000)) {
		file = open(path, O_WRONLY | O_CLOEXEC);
		if (file < 0 && errno != ETXTBSY)
			break;
	}
	printf("write: %s\n", file < 0 ? strerror(errno) : "it worked");
	fflush(stdout);
	_exit(0);
}

/* Whoever else opens a file that has a lease waits, as long as fs.lease-break-time says. */
static void lease(double seconds)
{
	int held = held_program(seconds, 0), result = -1;
	signal(SIGIO, SIG_IGN);
	for (double end = now() + 10; held >= 0 && result < 0 && now() < end; usleep(1000))
		result = fcntl(held, F_SETLEASE, F_WRLCK);
	printf("lease: %s\n", result < 0 ? strerror(errno) : "granted");
	fflush(stdout);
	sleep(5);
	_exit(0);
}

/* Whoever can read a file can lock it for reading; who would lock it for writing waits. */
static void read_lock(const char *path)
{
	struct flock all = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
	int file = open(path, O_RDONLY | O_CLOEXEC);
	must(file, path);
	must(flock(file, LOCK_EX), "flock");
	must(fcntl(file, F_SETLKW, &all), "F_SETLKW");
	printf("locked\n");
	fflush(stdout);
	sleep(60);
	_exit(0);
}

static void storm(int count)
{
	for (int i = 0; i < count; i++)
		if (fork() == 0)
			for (;;) {
				if (fork() == 0) {
					write_file("/proc/self/coredump_filter", "0");
					raise(SIGSEGV);
				}
				wait(NULL);
			}
	for (;;)
		pause();
}

/* Each has one child after the other crash, kills it while the kernel dumps it, and leaves the last ones unreaped. */
static void kill_crashes(int count)
{
	enum { KEPT = 20 };
	for (int i = 0; i < count; i++)
		if (fork() == 0) {
			pid_t kept[KEPT] = {0};
			for (int turn = 0;; turn = (turn + 1) % KEPT) {
				if (kept[turn])
					waitpid(kept[turn], NULL, 0);
				pid_t child = fork();
				if (child < 0) {
					usleep(1000);
					kept[turn] = 0;
					continue;
				}
				if (child == 0) {
					write_file("/proc/self/coredump_filter", "0");
					raise(SIGSEGV);
				}
				usleep(3000);
				kill(child, SIGKILL);
				kept[turn] = child;
			}
		}
	for (;;)
		pause();
}

static void series(int count, int waits)
{
	for (int i = 0; i < count; i++) {
		pid_t child = fork();
		must(child, "fork");
		if (child == 0)
			return;
		if (waits)
			must(waitpid(child, NULL, 0), "waitpid");
		else
			usleep(200000);
	}
	while (wait(NULL) > 0)
		;
	printf("children ended\n");
	fflush(stdout);
	exit(0);
}

static void limit(const char *text)
{
	static const struct {
		const char *name;
		int resource;
	} all[] = {
		{"fsize", RLIMIT_FSIZE}, {"data", RLIMIT_DATA}, {"stack", RLIMIT_STACK}, {"files", RLIMIT_NOFILE}, {"memory", RLIMIT_AS},
	};
	const char *value = strchr(text, ':');
	struct rlimit both = {strtoul(value + 1, NULL, 10), strtoul(value + 1, NULL, 10)};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		if (!strncmp(text, all[i].name, value - text))
			must(setrlimit(all[i].resource, &both), text);
}

static void map_file(size_t size)
{
	char *content = malloc(size);
	memset(content, 'x', size);
	int file = open("/mapped", O_CREAT | O_RDWR, 0666);
	if (!content || file < 0 || write(file, content, size) != (ssize_t)size)
		fail("/mapped");
	free(content);
	if (mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0) == MAP_FAILED)
		fail("mmap");
	write_file("/proc/self/coredump_filter", "0x37");
}

/* What a core says of them, the host notes beside it; as JSON, each byte of these names takes six. */
static void map_programs_of_long_names(int count)
{
	static const struct {
		Elf64_Ehdr header;
		Elf64_Phdr segment;
		Elf64_Nhdr note;
		char name[4], id[20];
	} program = {
		{.e_ident = ELFMAG "\2\1\1", .e_type = ET_DYN, .e_phoff = sizeof(Elf64_Ehdr), .e_phentsize = sizeof(Elf64_Phdr),
		 .e_phnum = 1},
		{.p_type = PT_NOTE, .p_offset = sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr), .p_filesz = 12 + 4 + 20},
		{4, 20, NT_GNU_BUILD_ID}, "GNU", "12345678901234567890"};
	char name[256];
	memset(name, 1, 255);
	name[255] = 0;
	for (int depth = 0; depth < 15; depth++) {
		must(mkdir(name, 0755), "mkdir");
		must(chdir(name), "chdir");
	}
	for (int number = 0; number < count; number++) {
		snprintf(name, sizeof name, "%d", number);
		int opened = open(name, O_CREAT | O_RDWR, 0755);
		if (write(opened, &program, sizeof program) != sizeof program)
			fail(name);
		volatile char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, opened, 0);
		if (page == MAP_FAILED)
			fail(name);
		page[sizeof program] = 1;
		close(opened);
	}
	must(chdir("/"), "chdir");
}

/* It costs one MiB of the container's memory, and counts in full for what the process has in memory. */
static void inflate(size_t mebibytes)
{
	int file = memfd_create("inflate", 0);
	must(file, "memfd_create");
	must(ftruncate(file, 1 << 20), "ftruncate");
	for (size_t i = 0; i < mebibytes; i++) {
		char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, 0);
		if (memory == MAP_FAILED)
			fail("mmap");
		must(madvise(memory, 1 << 20, MADV_DONTDUMP), "madvise");
	}
}

static __attribute__((noreturn)) void *tell_and_wait(void *pipe)
{
	pid_t own = syscall(SYS_gettid);
	if (write(*(int *)pipe, &own, sizeof own) != sizeof own)
		fail("write");
	for (;;)
		pause();
}

/* The thread that crashes goes, and the process stays. */
static void trace_second_threads(int count)
{
	for (int i = 0; i < count; i++) {
		int told[2], go[2];
		pid_t second;
		char byte = 0;
		must(pipe(told) | pipe(go), "pipe");
		pid_t child = fork();
		must(child, "fork");
		if (child == 0) {
			pthread_t thread;
			if (pthread_create(&thread, NULL, tell_and_wait, &told[1]) || read(go[0], &byte, 1) != 1)
				fail("thread");
			return;
		}
		if (read(told[0], &second, sizeof second) != sizeof second)
			fail("read");
		must(ptrace(PTRACE_SEIZE, second, NULL, PTRACE_O_TRACEEXIT), "seize");
		if (write(go[1], &byte, 1) != 1)
			fail("write");
		for (int end = 0; end < 2; end++) {
			close(told[end]);
			close(go[end]);
		}
		usleep(50000);
	}
	for (;;)
		pause();
}

/* Each child is traced from before it crashes, and told to stop before it ends. */
static void trace_children(int count)
{
	int status;
	for (int i = 0; i < count; i++) {
		pid_t child = fork();
		must(child, "fork");
		if (child == 0) {
			raise(SIGSTOP);
			return;
		}
		must(waitpid(child, &status, WUNTRACED), "waitpid");
		must(ptrace(PTRACE_SEIZE, child, NULL, PTRACE_O_TRACEEXIT), "seize");
		kill(child, SIGCONT);
	}
	for (pid_t child; (child = waitpid(-1, &status, __WALL)) > 0;) {
		if (!WIFSTOPPED(status))
			continue;
		if (status >> 16 == PTRACE_EVENT_EXIT)
			continue;
		int number = WSTOPSIG(status);
		ptrace(PTRACE_CONT, child, NULL, status >> 16 || number == SIGCONT || number == SIGSTOP ? 0 : number);
	}
	for (;;)
		pause();
}

/* A file system with one file, with a page for each pid, whose content never comes; or with names that are never answered. */
static void serve_fuse(int device, int silent)
{
	static char request[1 << 17];
	for (;;) {
		struct fuse_in_header *in = (void *)request;
		struct {
			struct fuse_out_header header;
			union {
				struct fuse_init_out init;
				struct fuse_entry_out entry;
				struct fuse_attr_out attr;
				struct fuse_open_out open;
			};
		} out = {0};
		size_t size = 0;
		struct fuse_attr file = {.ino = 2, .size = 1 << 28, .mode = S_IFREG | 0644, .nlink = 1};
		struct fuse_attr root = {.ino = 1, .mode = S_IFDIR | 0755, .nlink = 1};
		if (read(device, request, sizeof request) < 0)
			_exit(0);
		switch (in->opcode) {
		case FUSE_INIT:
			out.init = (struct fuse_init_out){
				.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION, .max_write = 4096, .max_background = 1000, .flags = FUSE_ASYNC_DIO};
			size = sizeof out.init;
			break;
		case FUSE_LOOKUP:
			if (silent)
				continue;
			file.ino = strcmp(request + sizeof *in, "stuck") ? 2 : 3;
			out.entry = (struct fuse_entry_out){.nodeid = file.ino, .attr_valid = 1000, .entry_valid = 1000, .attr = file};
			size = sizeof out.entry;
			break;
		case FUSE_GETATTR:
			out.attr = (struct fuse_attr_out){.attr_valid = 1000, .attr = in->nodeid == 1 ? root : file};
			size = sizeof out.attr;
			break;
		case FUSE_OPEN:
			/* To map such a file, the kernel waits for all that is read of it at the same time. */
			out.open.open_flags = access("/tmp/direct", F_OK) ? 0 : FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE;
			/* fall through */
		case FUSE_OPENDIR:
			size = sizeof out.open;
			break;
		case FUSE_FLUSH:
			if (in->nodeid == 3)
				continue;
			out.header.error = -ENOSYS;
			break;
		case FUSE_READ:
		case FUSE_FORGET:
		case FUSE_INTERRUPT:
			continue;
		default:
			out.header.error = -ENOSYS;
		}
		out.header.len = sizeof out.header + size;
		out.header.unique = in->unique;
		if (write(device, &out, out.header.len) < 0 && errno != ENOENT)
			fail("fuse");
	}
}

static void mount_fuse(const char *path, int silent)
{
	char options[128];
	int device = open("/dev/fuse", O_RDWR);
	must(device, "/dev/fuse");
	snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
	must(mount("fuse", path, "fuse", 0, options), "mount");
	if (fork() == 0)
		serve_fuse(device, silent);
	close(device);
}

/* One server for all children: the first one who comes here starts it. */
static void map_fuse(const char *kind)
{
	if (access("/tmp/fuse/file", F_OK)) {
		mkdir("/tmp/fuse", 0755);
		mount_fuse("/tmp/fuse", 0);
	}
	if (!strcmp(kind, "serve"))
		return;
	if (!strcmp(kind, "exit")) {
		pid_t child = fork();
		must(child, "fork");
		if (child == 0)
			_exit(open("/tmp/fuse/stuck", O_RDONLY) < 0);
		/* It closes the file when it ends, and the server does not answer to that. */
		usleep(300000);
		if (waitpid(child, NULL, WNOHANG))
			fail("exit");
		return;
	}
	int file = open("/tmp/fuse/file", O_RDONLY | O_CLOEXEC);
	must(file, "/tmp/fuse/file");
	if (!strcmp(kind, "environ")) {
		/* A page of nothing but a long variable: what the program itself needs of its stack lies elsewhere. */
		char *page = (char *)(((unsigned long)getenv("LONG") + 4095) & ~4095ul);
		if (mmap(page, 4096, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 0) == MAP_FAILED)
			fail("mmap");
		/* The kernel itself would wait for the file, to see whether it is a program. */
		write_file("/proc/self/coredump_filter", "0x1");
		raise(SIGSEGV);
	}
	/* A page of its own: who waits for one that another process has asked for can be killed. */
	if (mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, (off_t)getpid() * 4096) == MAP_FAILED)
		fail("mmap");
	/* Private mappings of files are dumped. */
	write_file("/proc/self/coredump_filter", "0x4");
}

static int map_directly(void *file)
{
	mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, (int)(long)file, 0);
	_exit(1);
}

static void hold_memory(void)
{
	static char stack[1 << 16] __attribute__((aligned(16)));
	char byte;
	map_fuse("serve");
	int file = open("/tmp/fuse/file", O_RDONLY);
	must(file, "/tmp/fuse/file");
	if (fork() == 0)
		_exit(read(file, &byte, 1) != 1);
	usleep(300000);
	close(open("/tmp/direct", O_CREAT | O_WRONLY, 0666));
	long direct = open("/tmp/fuse/file", O_RDONLY);
	must(direct, "/tmp/fuse/file");
	must(clone(map_directly, stack + sizeof stack, CLONE_VM | SIGCHLD, (void *)direct), "clone");
	usleep(500000);
	kill(getpid(), SIGSEGV);
	for (;;)
		;
}

static void have_many_groups(size_t count)
{
	static gid_t groups[65536];
	for (size_t i = 0; i < count; i++)
		groups[i] = 4000000000u + i;
	must(setgroups(count, groups), "setgroups");
}

static void ask_and_go_on(void)
{
	aio_context_t context = 0;
	int file = open("/tmp/fuse/file", O_RDONLY | O_CLOEXEC | O_DIRECT);
	must(file, "/tmp/fuse/file");
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct iocb one = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = file, .aio_buf = (unsigned long)page, .aio_nbytes = 4096}, *all[] = {&one};
	must(syscall(SYS_io_setup, 1, &context), "io_setup");
	must(syscall(SYS_io_submit, context, 1, all), "io_submit");
}

static void *wait_for_ever(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void have_many_descriptors(const char *value)
{
	int threads = atoi(value), files = atoi(strchr(value, ':') + 1);
	pid_t child = fork();
	must(child, "fork");
	if (child)
		return;
	setsid();
	int file = open("/dev/null", O_RDONLY);
	for (int i = 0; i < files; i++)
		if (dup(file) < 0)
			break;
	pthread_attr_t small;
	pthread_t thread;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 1 << 16);
	for (int i = 0; i < threads; i++)
		if (pthread_create(&thread, &small, wait_for_ever, NULL))
			fail("pthread_create");
	wait_for_ever(NULL);
}

static void kill_while_dumping(int count)
{
	for (int i = 0; i < count; i++) {
		pid_t child = fork();
		must(child, "fork");
		if (child == 0) {
			ask_and_go_on();
			raise(SIGSEGV);
		}
		usleep(30000 + i * 37 % 200 * 1000);
		kill(child, SIGKILL);
		waitpid(child, NULL, WNOHANG);
	}
	close(open("/out/killed", O_CREAT | O_WRONLY, 0666));
	wait_for_ever(NULL);
}

static void hoard_signals(void)
{
	sigset_t all;
	sigfillset(&all);
	must(sigprocmask(SIG_BLOCK, &all, NULL), "sigprocmask");
	for (;;) {
		while (sigqueue(getpid(), SIGRTMIN, (union sigval){0}) == 0)
			;
		close(open("/out/full", O_CREAT | O_WRONLY, 0666));
		usleep(1000);
	}
}

static void watch(double seconds)
{
	char target[PATH_MAX];
	for (double end = now() + seconds; now() < end;) {
		pid_t child = fork();
		if (child == 0)
			raise(SIGSEGV);
		int looked = 0;
		for (double limit = now() + 0.1; now() < limit;) {
			int error = exe_of(child + 1, target, sizeof target);
			if (error == EACCES || error == EPERM) {
				hidden++;
				try_all(child + 1);
			} else if (!error && !looked && is_ours(child + 1)) {
				looked = 1;
				printf("EXE %s\n", target);
				list_descriptors(child + 1);
			}
		}
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
	printf("hidden %ld\nseen %ld\n", hidden, seen);
	fflush(stdout);
	_exit(0);
}

/* Attacks 21 and 23: whoever traces a process of ours. */

static void seize(double seconds, long options)
{
	char target[PATH_MAX];
	pid_t child = fork();
	must(child, "fork");
	if (child == 0)
		raise(SIGSEGV);
	for (double end = now() + 10; now() < end;)
		if (!exe_of(child + 1, target, sizeof target) && !strcmp(target, DELEGATE) &&
		    !ptrace(PTRACE_SEIZE, child + 1, NULL, options)) {
			close(open("/out/go", O_CREAT | O_WRONLY, 0666));
			break;
		}
	/* A process that was traced and has ended is its parent's only when the tracer has waited for it. */
	usleep(seconds * 1e6);
	_exit(0);
}

/* Makes a child crash and stops the process that then appears; -1 where that was missed. */
static pid_t stop_next(void)
{
	int status;
	pid_t child = fork();
	must(child, "fork");
	if (child == 0)
		raise(SIGSEGV);
	for (double limit = now() + 0.5; now() < limit;)
		if (!ptrace(PTRACE_SEIZE, child + 1, NULL, NULL)) {
			ptrace(PTRACE_INTERRUPT, child + 1, NULL, NULL);
			if (waitpid(child + 1, &status, __WALL) == child + 1 && WIFSTOPPED(status))
				return child + 1;
			break;
		}
	return -1;
}

static void unshare_user(void);

static void *seize_on(void *seconds)
{
	seize(*(double *)seconds, PTRACE_O_TRACEEXIT);
	return NULL;
}

static void seize_in_thread(double seconds)
{
	pthread_t second;
	errno = pthread_create(&second, NULL, seize_on, &seconds);
	must(-!!errno, "pthread_create");
	pthread_join(second, NULL);
}

/* The delegate has the number 3 below: the first process there waits for the second one, which crashes. */
static void seize_from_above(double seconds)
{
	char target[PATH_MAX];
	pid_t child = fork();
	must(child, "fork");
	if (child == 0) {
		unshare_user();
		must(unshare(CLONE_NEWPID), "unshare");
		pid_t first = fork();
		must(first, "fork");
		if (first == 0 && fork() == 0)
			raise(SIGSEGV);
		for (;;)
			pause();
	}
	for (double end = now() + 10; now() < end;)
		for (pid_t pid = child + 3; pid < child + 6; pid++)
			if (!exe_of(pid, target, sizeof target) && !strcmp(target, DELEGATE) &&
			    !ptrace(PTRACE_SEIZE, pid, NULL, PTRACE_O_TRACEEXIT)) {
				close(open("/out/go", O_CREAT | O_WRONLY, 0666));
				usleep(seconds * 1e6);
				_exit(0);
			}
	fail("seize from above");
}

/* Another process traces the tracer, and has it go on whatever it is told, except that it ends. */
static void seize_in_chain(double seconds)
{
	pid_t self = getpid();
	pid_t second = fork();
	must(second, "fork");
	if (second == 0) {
		int status;
		must(ptrace(PTRACE_SEIZE, self, NULL, PTRACE_O_TRACEEXIT), "seize");
		close(open("/out/chained", O_CREAT | O_WRONLY, 0666));
		while (waitpid(-1, &status, __WALL) == self && WIFSTOPPED(status)) {
			if (status >> 16 == PTRACE_EVENT_EXIT)
				for (;;)
					pause();
			ptrace(PTRACE_CONT, self, NULL, status >> 16 ? 0 : WSTOPSIG(status));
		}
		_exit(0);
	}
	while (access("/out/chained", F_OK))
		usleep(1000);
	seize(seconds, PTRACE_O_TRACEEXIT);
}

/* Needs CAP_SYS_PTRACE. */
static void catch_exit(double seconds)
{
	for (double end = now() + 20; now() < end;) {
		pid_t pid = stop_next();
		if (pid > 0 && is_ours(pid) && !ptrace(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_TRACEEXIT)) {
			close(open("/out/go", O_CREAT | O_WRONLY, 0666));
			break;
		}
		if (pid > 0) {
			kill(pid, SIGKILL);
			ptrace(PTRACE_DETACH, pid, NULL, NULL);
		}
		while (waitpid(-1, NULL, WNOHANG | __WALL) > 0)
			;
	}
	usleep(seconds * 1e6);
	_exit(0);
}

static void bound_capabilities(unsigned mask);

/* The same where the group that counts processes may have forbidden a fork or two, each of which has used a number up. */
static pid_t stop_next_at_the_limit(void)
{
	int status;
	pid_t child = fork();
	must(child, "fork");
	if (child == 0) {
		bound_capabilities(CAPABILITIES_OF_DOCKER);
		raise(SIGSEGV);
	}
	for (double limit = now() + 0.5; now() < limit;)
		for (pid_t pid = child + 1; pid < child + 4; pid++)
			if (!ptrace(PTRACE_SEIZE, pid, NULL, NULL)) {
				ptrace(PTRACE_INTERRUPT, pid, NULL, NULL);
				if (waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status))
					return pid;
			}
	return -1;
}

static void end_stopped(pid_t pid)
{
	if (pid > 0) {
		kill(pid, SIGKILL);
		ptrace(PTRACE_DETACH, pid, NULL, NULL);
	}
	while (waitpid(-1, NULL, WNOHANG | __WALL) > 0)
		;
}

static void read_group(pid_t pid, const char *controller, char *group, size_t size)
{
	char path[64], line[PATH_MAX];
	snprintf(path, sizeof path, "/proc/%d/cgroup", pid);
	FILE *from = fopen(path, "re");
	*group = 0;
	while (from && fgets(line, sizeof line, from))
		if (strstr(line, controller))
			snprintf(group, size, "%s", strrchr(line, ':') + 1);
	if (from)
		fclose(from);
}

static void catch_groups(double seconds, const char *controller, pid_t (*stop)(void))
{
	char own[PATH_MAX], group[PATH_MAX];
	int caught = 0;
	read_group(getpid(), controller, own, sizeof own);
	for (double end = now() + seconds; now() < end;) {
		pid_t pid = stop();
		if (pid > 0) {
			read_group(pid, controller, group, sizeof group);
			caught += *group != 0;
			if (*group && strcmp(group, own))
				printf("GOT %s", group);
		}
		end_stopped(pid);
	}
	printf("caught %d\n", caught);
	fflush(stdout);
	_exit(0);
}

static int is_pipe(int file)
{
	struct stat facts;
	return file >= 0 && !fstat(file, &facts) && S_ISFIFO(facts.st_mode);
}

static void flood_reports(double seconds)
{
	static char lines[1 << 16];
	size_t written = 0;
	memset(lines, 'x', sizeof lines);
	for (size_t i = 0; i < sizeof lines; i += 256) {
		memcpy(lines + i, "note ", 5);
		lines[i + 255] = '\n';
	}
	signal(SIGPIPE, SIG_IGN);
	for (int attempt = 0; attempt < 20 && !written; attempt++) {
		pid_t pid = stop_next();
		int pidfd = pid > 0 ? syscall(SYS_pidfd_open, pid, 0) : -1;
		/* The first three are the delegate's. */
		for (int number = 3; pidfd >= 0 && number < 64 && !written; number++) {
			int file = syscall(SYS_pidfd_getfd, pidfd, number, 0);
			if (is_pipe(file))
				for (double end = now() + seconds; now() < end && write(file, lines, sizeof lines) > 0;)
					written += sizeof lines;
			if (file >= 0)
				close(file);
		}
		close(pidfd);
		end_stopped(pid);
	}
	printf("flooded %zu MiB\n", written >> 20);
	fflush(stdout);
	_exit(0);
}

#ifdef __x86_64__
/* In place of the first system call that the stopped process makes. */
static int have_it_close_all(pid_t pid)
{
	struct user_regs_struct registers;
	int status;
	while (!ptrace(PTRACE_SYSCALL, pid, NULL, NULL) && waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status)) {
		if (ptrace(PTRACE_GETREGS, pid, NULL, &registers) || (long)registers.rax != -ENOSYS)
			continue;
		registers.orig_rax = SYS_close_range;
		registers.rdi = registers.rdx = 0;
		registers.rsi = ~0u;
		return !ptrace(PTRACE_SETREGS, pid, NULL, &registers) && !ptrace(PTRACE_SYSCALL, pid, NULL, NULL) &&
		       waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status);
	}
	return 0;
}
#else
static int have_it_close_all(pid_t pid)
{
	(void)pid;
	fail("this takes x86_64");
}
#endif

/* Needs CAP_SYS_PTRACE. Who is of another user is no process that the helper ends with the delegate. */
static void report(const char *line)
{
	int told = 0, status;
	signal(SIGPIPE, SIG_IGN);
	for (double end = now() + 20; told < 3 && now() < end;) {
		pid_t child = fork(), pid = -1;
		must(child, "fork");
		if (child == 0) {
			become_user();
			must(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl");
			raise(SIGSEGV);
		}
		for (double limit = now() + 0.5; pid < 0 && now() < limit;)
			if (!ptrace(PTRACE_SEIZE, child + 1, NULL, NULL)) {
				pid = child + 1;
				ptrace(PTRACE_INTERRUPT, pid, NULL, NULL);
				waitpid(pid, &status, __WALL);
			}
		int pidfd = pid > 0 && is_ours(pid) ? syscall(SYS_pidfd_open, pid, 0) : -1, pipe = -1;
		/* The first three are the delegate's. */
		for (int number = 3; pidfd >= 0 && number < 64 && !is_pipe(pipe); number++)
			pipe = syscall(SYS_pidfd_getfd, pidfd, number, 0);
		if (is_pipe(pipe) && have_it_close_all(pid))
			told += dprintf(pipe, "%s\n", line) > 0;
		else
			end_stopped(pid);
		close(pipe);
		close(pidfd);
	}
	printf("told %d\n", told);
	fflush(stdout);
	sleep(90);
	_exit(0);
}

static void become_other_user(void)
{
	int user = 100000 + getpid();
	must(setgroups(0, NULL), "setgroups");
	must(setresgid(user, user, user), "setresgid");
	must(setresuid(user, user, user), "setresuid");
	must(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl");
}

static void unshare_user(void)
{
	char line[64];
	int user = getuid(), group = getgid();
	must(unshare(CLONE_NEWUSER), "unshare");
	must(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl");
	write_file("/proc/self/setgroups", "deny");
	snprintf(line, sizeof line, "0 %d 1\n", user);
	write_file("/proc/self/uid_map", line);
	snprintf(line, sizeof line, "0 %d 1\n", group);
	write_file("/proc/self/gid_map", line);
}

static void unshare_mounts(void)
{
	must(unshare(CLONE_NEWNS), "unshare");
	must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
}

static void pivot_to(const char *path)
{
	must(chdir(path), path);
	must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	must(umount2(".", MNT_DETACH), "umount");
	must(chdir("/"), "/");
}

/* As bwrap and runc do it. */
static void take_new_root(void)
{
	static const char *const shared[] = {"/usr", "/opt", "/out", "/proc"};
	char path[64];
	unshare_mounts();
	must(mount("root", "/tmp", "tmpfs", 0, NULL), "tmpfs");
	for (size_t i = 0; i < sizeof shared / sizeof *shared; i++) {
		snprintf(path, sizeof path, "/tmp%s", shared[i]);
		must(mkdir(path, 0755), path);
		must(mount(shared[i], path, NULL, MS_BIND | MS_REC, NULL), path);
	}
	pivot_to("/tmp");
}

static void enter_sandbox(const char *kind)
{
	if (!strcmp(kind, "user"))
		unshare_user();
	else if (!strcmp(kind, "mounts"))
		unshare_mounts();
	else if (!strcmp(kind, "root"))
		take_new_root();
	else {
		must(unshare(CLONE_NEWPID), kind);
		fork_children(1, 0);
	}
}

static void bound_capabilities(unsigned mask)
{
	for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
		if (capability > 31 || !(mask >> capability & 1))
			must(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "bounding set");
	set_capabilities(mask, 0);
	must(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl");
}

static void execute_from_memory(char **rest)
{
	char path[64];
	int file = memfd_create("crasher", 0);
	must(file, "memfd_create");
	snprintf(path, sizeof path, "/proc/self/fd/%d", file);
	copy_program(path);
	execv(path, rest - 1);
	fail(path);
}

/* Two to the power of that many mounts, below a new one. Each step doubles them: a mount with all below it is mounted once more
 * below itself, under the name and the number of the step. */
static void make_mounts(const char *where, const char *name, int power)
{
	char path[64];
	must(mount("mounts", where, "tmpfs", 0, NULL), "tmpfs");
	must(mount(NULL, where, NULL, MS_PRIVATE, NULL), "private");
	for (int i = 0; i < power; i++) {
		snprintf(path, sizeof path, "%s/%s-%02d", where, name, i);
		must(mkdir(path, 0755), path);
	}
	for (int i = 0; i < power; i++) {
		snprintf(path, sizeof path, "%s/%s-%02d", where, name, i);
		must(mount(where, path, NULL, MS_BIND | MS_REC, NULL), path);
	}
}

static void leave_idle_child(void)
{
	pid_t child = fork();
	must(child, "fork");
	while (child == 0)
		pause();
}

static void make_directories(const char *path)
{
	char part[PATH_MAX];
	for (const char *at = strchr(path + 1, '/');; at = strchr(at + 1, '/')) {
		snprintf(part, sizeof part, "%.*s", at ? (int)(at - path) : (int)strlen(path), path);
		mkdir(part, 0755);
		if (!at)
			return;
	}
}

/* The helper opens on the host what the options of an overlay name. */
static void overlay_with_path_of_the_host(void)
{
	char pid[32] = "", one[128], two[128], options[512];
	while (access("/out/pid", F_OK))
		usleep(10000);
	int file = open("/out/pid", O_RDONLY);
	must(read(file, pid, sizeof pid - 1), "pid");
	pid[strcspn(pid, "\n")] = 0;
	mkdir("/tmp/fuse", 0755);
	mount_fuse("/tmp/fuse", 1);
	if (fork() == 0) {
		unshare_mounts();
		must(mount("fake", "/proc", "tmpfs", 0, "mode=0755"), "tmpfs");
		snprintf(one, sizeof one, "/proc/%s/root/tmp/fuse/hang", pid);
		snprintf(two, sizeof two, "/proc/%s/root/two", pid);
		make_directories(one);
		make_directories(two);
		mkdir("/tmp/overlay", 0755);
		snprintf(options, sizeof options, "lowerdir=%s:%s", one, two);
		must(mount("overlay", "/tmp/overlay", "overlay", 0, options), "overlay");
		change_root("/tmp/overlay");
		for (;;)
			pause();
	}
	sleep(1);
	close(open("/out/ready", O_CREAT | O_WRONLY, 0666));
}

/* Many mounts below a directory that is no mount, which is the root directory of many processes. */
static void jail_with_mounts(const char *value)
{
	int count = atoi(value);
	unshare_mounts();
	make_mounts("/jail/out", "a-mount-number-which-is-long", 14);
	int ready = open("/out", O_PATH | O_DIRECTORY);
	change_root("/jail");
	for (int i = 0; i < count; i++)
		if (fork() == 0)
			for (;;)
				pause();
	close(openat(ready, "ready", O_CREAT | O_WRONLY, 0666));
	for (;;)
		pause();
}

static void claim_root(const char *path)
{
	change_root(path);
	printf("claimed\n");
	fflush(stdout);
}

/* Whoever reads the options of this overlay takes a directory of the host for one of ours. */
static void claim(const char *path)
{
	char options[1024];
	unshare_mounts();
	must(mount("mine", "/var", "tmpfs", 0, "mode=0755"), "tmpfs");
	make_directories(path);
	must(mkdir("/var/two", 0755), "two");
	must(mkdir("/var/overlay", 0755), "overlay");
	snprintf(options, sizeof options, "lowerdir=%s:/var/two", path);
	must(mount("overlay", "/var/overlay", "overlay", 0, options), "mount overlay");
	claim_root("/var/overlay");
}

static void bind_root(const char *path)
{
	unshare_mounts();
	must(mount(path, "/mnt", NULL, MS_BIND | MS_REC, NULL), "bind");
	/* Of all of these mounts, as that of a container is. */
	pivot_to("/mnt");
	claim_root("/");
}

/* Whoever enters these mounts waits for the automounter. */
static void cover_with_automount(void)
{
	char options[128], request[512];
	int ends[2];
	must(pipe(ends), "pipe");
	mkdir("/jail", 0755);
	/* The automounter is a group of processes; the leader of a session has one. */
	setpgid(0, 0);
	snprintf(options, sizeof options, "fd=%d,pgrp=%d,minproto=5,maxproto=5,direct", ends[1], getpid());
	must(mount("automount", "/", "autofs", 0, options), "autofs");
	if (fork() == 0) {
		setpgid(0, 0);
		_exit(chdir("/.."));
	}
	must(read(ends[0], request, sizeof request), "request");
	change_root("/jail");
	if (fork() == 0) {
		setpgid(0, 0);
		return;
	}
	for (;;)
		pause();
}

static void act(char **actions);

static void *in_thread(void *actions)
{
	must(unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWIPC), "unshare");
	act(actions);
	return NULL;
}

static void *in_second_thread(void *actions)
{
	act(actions);
	return NULL;
}

static void go_on_in_second_thread(char **actions)
{
	pthread_t thread;
	if (pthread_create(&thread, NULL, in_second_thread, actions))
		fail("pthread_create");
	pthread_exit(NULL);
}

static void bound_leader(unsigned mask, char **actions)
{
	pthread_t thread;
	if (pthread_create(&thread, NULL, in_second_thread, actions))
		fail("pthread_create");
	bound_capabilities(mask);
	pthread_join(thread, NULL);
}

static void *in_thread_of_user(void *actions)
{
	become_user_in_this_thread();
	act(actions);
	return NULL;
}

static void go_on_in_thread(char **actions, void *(*begin)(void *))
{
	pthread_t thread;
	if (pthread_create(&thread, NULL, begin, actions))
		fail("pthread_create");
	pthread_join(thread, NULL);
}

static void record(void)
{
	char directory[PATH_MAX];
	snprintf(directory, sizeof directory, "%s/process.%d", record_directory(), getpid());
	write_facts(directory);
	copy_proc(directory, "stat");
}

static void act(char **actions)
{
	for (; *actions; actions++) {
		char *value = strchr(*actions, '=');
		char *action = strndup(*actions, value ? (size_t)(value - *actions) : strlen(*actions));
		value = value ? value + 1 : NULL;
#define IS(name) (!strcmp(action, name))
		if (IS("fork"))
			fork_children(atoi(value), 0);
		else if (IS("keep"))
			fork_children(1, atoi(value));
		else if (IS("leave"))
			leave_child(atoi(value));
		else if (IS("sleep"))
			usleep(atof(value) * 1e6);
		else if (IS("second"))
			go_on_in_second_thread(actions + 1);
		else if (IS("join"))
			join(value);
		else if (IS("execute")) {
			execv(value, actions);
			fail(value);
		} else if (IS("root"))
			change_root(value);
		else if (IS("own-network"))
			must(unshare(CLONE_NEWNET), "unshare");
		else if (IS("own-mounts")) {
			must(unshare(CLONE_NEWNS), "unshare");
			if (value)
				change_root("/jail");
		} else if (IS("reserve"))
			reserve(strtoul(value, NULL, 10) << 40);
		else if (IS("untouched"))
			reserve(strtoul(value, NULL, 10) << 20);
		else if (IS("modest"))
			be_modest();
		else if (IS("receiver"))
			start_receiver(atoi(value), "receive");
		else if (IS("locker"))
			start_receiver(atoi(value), "lock");
		else if (IS("receive") || IS("lock"))
			receive(IS("lock"));
		else if (IS("record"))
			record();
		else if (IS("wait"))
			while (access(value, F_OK))
				usleep(10000);
		else if (IS("user"))
			become_user();
		else if (IS("ambient"))
			become_user_with_ambient_capability();
		else if (IS("give"))
			set_capabilities(0, 0);
		else if (IS("userns"))
			unshare_user_namespace(value);
		else if (IS("thread"))
			go_on_in_thread(actions + 1, in_thread);
		else if (IS("thread-user"))
			go_on_in_thread(actions + 1, in_thread_of_user);
		else if (IS("limits"))
			change_limits();
		else if (IS("memory"))
			fill_memory(strtoul(value, NULL, 10) << 20);
		else if (IS("mapped"))
			map_file(strtoul(value, NULL, 10) << 20);
		else if (IS("thread-traced"))
			trace_second_threads(atoi(value));
		else if (IS("compressible")) {
			size_t size = strtoul(value, NULL, 10) << 20;
			memset(malloc(size), 7, size);
		} else if (IS("build-ids"))
			map_programs_of_long_names(atoi(value));
		else if (IS("inflate"))
			inflate(strtoul(value, NULL, 10));
		else if (IS("traced"))
			trace_children(atoi(value));
		else if (IS("tiny"))
			write_file("/proc/self/coredump_filter", "0");
		else if (IS("path"))
			take_long_path(atoi(value), actions + 1);
		else if (IS("name"))
			take_strange_names(actions + 1);
		else if (IS("thread-name"))
			must(prctl(PR_SET_NAME, "a\nb) \"%P\x1b\xff", 0, 0, 0), "prctl");
		else if (IS("title"))
			overwrite_environment();
		else if (IS("environ") && !strcmp(value, "unterminated"))
			unterminate_environment();
		else if (IS("environ"))
			change_environment(value, actions + 1);
		else if (IS("setid")) {
			must(chmod("/usr/bin/setid", 04755), "chmod");
			become_user();
			execv("/usr/bin/setid", actions);
			fail("setid");
		} else if (IS("capable")) {
			make_capable("/usr/bin/setid");
			become_user();
			execv("/usr/bin/setid", actions);
			fail("capable");
		} else if (IS("become"))
			must(setresgid(0, 0, 0) | setresuid(0, 0, 0), "setresuid");
		else if (IS("delegate"))
			replace_delegate(value);
		else if (IS("plant"))
			plant(value);
		else if (IS("fake-proc"))
			cover_proc();
		else if (IS("syscalls"))
			ask_for_system_calls("process");
		else if (IS("seccomp") && !strcmp(value, "strict"))
			must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT), "seccomp");
		else if (IS("seccomp"))
			install_filter();
		else if (IS("watch"))
			watch(atof(value));
		else if (IS("hold"))
			hold(atof(value), 0);
		else if (IS("read-lock"))
			read_lock(value);
		else if (IS("lease"))
			lease(atof(value));
		else if (IS("hold-userns"))
			hold(atof(value), CLONE_NEWUSER);
		else if (IS("storm"))
			storm(atoi(value));
		else if (IS("report"))
			report(value);
		else if (IS("kill-crashes"))
			kill_crashes(atoi(value));
		else if (IS("series"))
			series(atoi(value), 0);
		else if (IS("loop"))
			series(atoi(value), 1);
		else if (IS("limit"))
			limit(value);
		else if (IS("other-user"))
			become_other_user();
		else if (IS("sandbox"))
			enter_sandbox(value);
		else if (IS("bound"))
			bound_capabilities(strtoul(value, NULL, 16));
		else if (IS("bound-leader"))
			bound_leader(strtoul(value, NULL, 16), actions + 1);
		else if (IS("unbound"))
			must(prctl(PR_CAPBSET_DROP, atoi(value), 0, 0, 0), "bounding set");
		else if (IS("memfd"))
			execute_from_memory(actions + 1);
		else if (IS("mounts"))
			make_mounts("/tmp", "a-mount-number", atoi(value));
		else if (IS("idle"))
			leave_idle_child();
		else if (IS("seize"))
			seize(atof(value), 0);
		else if (IS("seize-exit"))
			seize(atof(value), PTRACE_O_TRACEEXIT);
		else if (IS("catch"))
			catch_groups(atof(value), "devices", stop_next);
		else if (IS("catch-pids"))
			catch_groups(atof(value), ":pids:", stop_next_at_the_limit);
		else if (IS("reports"))
			flood_reports(atof(value));
		else if (IS("fuse"))
			map_fuse(value);
		else if (IS("overlay-of-host"))
			overlay_with_path_of_the_host();
		else if (IS("jail-mounts"))
			jail_with_mounts(value);
		else if (IS("claim"))
			claim(value);
		else if (IS("cover")) {
			must(mount(value, "/", NULL, MS_BIND, NULL), "bind");
			must(chdir("/.."), "/..");
			must(chroot("."), "chroot");
		} else if (IS("bind-root"))
			bind_root(value);
		else if (IS("touch"))
			close(open(value, O_CREAT | O_WRONLY, 0666));
		else if (IS("automount"))
			cover_with_automount();
		else if (IS("silent"))
			mount_fuse(value, 1);
		else if (IS("groups"))
			have_many_groups(atoi(value));
		else if (IS("aio"))
			ask_and_go_on();
		else if (IS("descriptors"))
			have_many_descriptors(value);
		else if (IS("kill-dumping"))
			kill_while_dumping(atoi(value));
		else if (IS("keys"))
			take_all_keys();
		else if (IS("seize-thread"))
			seize_in_thread(atof(value));
		else if (IS("seize-above"))
			seize_from_above(atof(value));
		else if (IS("seize-chain"))
			seize_in_chain(atof(value));
		else if (IS("hold-memory"))
			hold_memory();
		else if (IS("signals"))
			hoard_signals();
		else if (IS("catch-exit"))
			catch_exit(atof(value));
		else
			fail(*actions);
	}
	*(volatile int *)16 = 1;
}

int main(int argc, char **argv)
{
	(void)argc;
	umask(0);
	act(argv + 1);
}

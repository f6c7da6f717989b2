"""System calls that the standard library of Python 3.8 does not offer, or not with a limit of time, and nothing else.

Each wrapper raises ``OSError`` with the number, the text and the name of the call. Constants are named as in the
kernel's headers.

The module ``ctypes`` is made of ``_ctypes`` and ``os``. To import it takes a third of the time that the interpreter needs to
start. So the helper uses the primitives of ``_ctypes``, which are the same from Python 3.8 to 3.14, and ``posix``. The tests
run on each of these Pythons.
"""

import _ctypes
import _struct
import fcntl
import posix
import time
from _signal import SIGKILL

AT_EMPTY_PATH = 0x1000
AT_FDCWD = -100
CAP_LAST_POSSIBLE = 63
CLOCK_MONOTONIC = 1
CLONE_INTO_CGROUP = 0x200000000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000
CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWTIME = 0x00000080
CLONE_NEWUSER = 0x10000000
CLONE_NEWUTS = 0x04000000
E2BIG = 7
ENOSYS = 38
ENOENT = 2
EINVAL = 22
EDQUOT = 122
ENAMETOOLONG = 36
FIONREAD = 0x541B
F_ADD_SEALS = 1033
F_SEAL_SEAL = 1
F_SEAL_SHRINK = 2
F_SEAL_GROW = 4
F_SEAL_WRITE = 8
F_SETPIPE_SZ = 1031
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSMOUNT_CLOEXEC = 1
FSOPEN_CLOEXEC = 1
INFINITY = (1 << 64) - 1  # RLIM_INFINITY; any number below it is a limit.
MFD_CLOEXEC = 1
MFD_ALLOW_SEALING = 2
MFD_EXEC = 0x10
MOUNT_ATTR_RDONLY = 1
OPEN_TREE_CLONE = 1
IOPRIO_WHO_PROCESS = 1
KEYCTL_JOIN_SESSION_KEYRING, KEYCTL_SETPERM = 1, 5
KEY_SPEC_SESSION_KEYRING = -3
LINUX_CAPABILITY_VERSION_3 = 0x20080522
PIDFD_COREDUMPED = 1
PIDFD_COREDUMP_ROOT = 8
PIDFD_COREDUMP_USER = 4
PIDFD_GET_INFO = 0xC048FF0B
PIDFD_INFO_COREDUMP = 0x10
PIDFD_INFO_COREDUMP_SIGNAL = 0x40
PR_CAPBSET_DROP = 24
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
PR_CAP_AMBIENT_RAISE = 2
PR_SET_CHILD_SUBREAPER = 36
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NO_NEW_PRIVS = 38
PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_SET_TIMERSLACK = 29
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
SECCOMP_MODE_FILTER = 2
SIGCHLD = 17
PF_DUMPCORE = 0x200
RLIMIT_FSIZE = 1
RLIMIT_CORE = 4
RLIMIT_NOFILE = 7
RLIMIT_SIGPENDING = 11
S_IFDIR = 0o040000
S_IFMT = 0o170000
S_IFREG = 0o100000
S_ISVTX = 0o1000
SEEK_SET = 0
SIGEV_SIGNAL = 0
SPLICE_F_MOVE = 1
SPLICE_F_NONBLOCK = 2
RTLD_NOW = 2

# The capacity of the pipes that a core moves through; pipe(7).
PIPE_SIZE = 1 << 20

# The numbers of system calls added since Linux 5.0 are the same on every architecture.
NR_PIDFD_SEND_SIGNAL = 424
NR_OPEN_TREE = 428
NR_FSOPEN = 430
NR_FSCONFIG = 431
NR_FSMOUNT = 432
NR_PIDFD_OPEN = 434
NR_CLONE3 = 435
NR_CLOSE_RANGE = 436
NR_OPENAT2 = 437
NR_MOUNT_SETATTR = 442
# Those of timer_create, timer_settime, keyctl and ioprio_set are not; both machines have 64 bits.
NR_TIMER = {"x86_64": (222, 223), "aarch64": (107, 110)}
NR_KEYCTL = {"x86_64": 250, "aarch64": 219}
NR_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class _Memory(_ctypes.Array):  # type: ignore[type-arg]
    """A page at a fixed address, for what the kernel reads and writes through pointers."""

    _type_ = _Long
    _length_ = 4096 // _struct.calcsize("l")


class _Byte(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "c"


def _in_memory(content: bytes) -> "_ctypes.Array[_Byte]":
    """Return ``content`` at a fixed address."""
    memory: _ctypes.Array[_Byte] = type("_Bytes", (_ctypes.Array,), {"_type_": _Byte, "_length_": len(content)})()
    _struct.pack_into(f"{len(content)}s", memory, 0, content)
    return memory


class _ReturnsInt(_ctypes.CFuncPtr):
    """A function of the C library that takes byte strings and longs, and returns an int, -1 with errno for an error."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO  # No _restype_ means int.


class _ReturnsLong(_ctypes.CFuncPtr):
    """The same for one that returns a long."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Long


# The handle of None is the running program with its libraries; dlopen(3).
_program = _ctypes.dlopen(None, RTLD_NOW)  # type: ignore[arg-type]
_capget = _ReturnsInt(_ctypes.dlsym(_program, "capget"))
_capset = _ReturnsInt(_ctypes.dlsym(_program, "capset"))
_fexecve = _ReturnsInt(_ctypes.dlsym(_program, "fexecve"))
_getrlimit = _ReturnsInt(_ctypes.dlsym(_program, "getrlimit"))
_prctl = _ReturnsInt(_ctypes.dlsym(_program, "prctl"))
_setrlimit = _ReturnsInt(_ctypes.dlsym(_program, "setrlimit"))
_setns = _ReturnsInt(_ctypes.dlsym(_program, "setns"))
_splice = _ReturnsLong(_ctypes.dlsym(_program, "splice"))
_syscall = _ReturnsLong(_ctypes.dlsym(_program, "syscall"))
_tee = _ReturnsLong(_ctypes.dlsym(_program, "tee"))
_zero = _Long(0)


def _checked(result: int, call: str) -> int:
    if result == -1:
        number = _ctypes.get_errno()
        raise OSError(number, posix.strerror(number), call)
    return result


def prctl(option: int, argument: int = 0, third: int = 0) -> None:
    """Change an attribute of this process; prctl(2)."""
    _checked(_prctl(_Long(option), _Long(argument), _Long(third), _zero, _zero), "prctl")


def setns(descriptor: int, kind: int) -> None:
    """Join the namespace that ``descriptor`` refers to, of the one ``kind`` (CLONE_NEW*); setns(2)."""
    _checked(_setns(_Long(descriptor), _Long(kind)), "setns")


def openat2(path: bytes, flags: int, mode: int = 0, resolve: int = RESOLVE_NO_MAGICLINKS) -> int:
    """Open ``path`` like open(2), refusing what ``resolve`` forbids (ELOOP); openat2(2), Linux 5.6."""
    how = _struct.pack("=QQQ", flags | posix.O_CLOEXEC, mode, resolve)
    return _checked(_syscall(_Long(NR_OPENAT2), _Long(AT_FDCWD), path, how, _Long(len(how))), "openat2")


def clone_read_only(path: bytes) -> int:
    """Return an O_PATH descriptor of ``path`` on a mount of its own, which is read-only and in nobody's mount namespace.

    open_tree(2), mount_setattr(2), Linux 5.12.
    """
    flags = OPEN_TREE_CLONE | posix.O_CLOEXEC
    tree = _checked(_syscall(_Long(NR_OPEN_TREE), _Long(AT_FDCWD), path, _Long(flags)), "open_tree")
    attributes = _struct.pack("=4Q", MOUNT_ATTR_RDONLY, 0, 0, 0)
    result = _syscall(
        _Long(NR_MOUNT_SETATTR), _Long(tree), b"", _Long(AT_EMPTY_PATH), attributes, _Long(len(attributes))
    )
    try:
        _checked(result, "mount_setattr")
    except OSError:
        posix.close(tree)
        raise
    return tree


def memory_file(name: str) -> int:
    """Return a new file in memory, which may be executed and sealed; memfd_create(2)."""
    flags = MFD_CLOEXEC | MFD_ALLOW_SEALING
    try:
        return posix.memfd_create(name, flags | MFD_EXEC)
    except OSError as error:
        if error.errno != EINVAL:
            raise
        return posix.memfd_create(name, flags)  # Before Linux 6.3, which can execute any.


def seal(file: int) -> None:
    """Have nobody ever change the file in memory any more; F_ADD_SEALS, fcntl(2)."""
    fcntl.fcntl(file, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)


def overlay_of(directories: bytes) -> int:
    """Return the root directory of an overlay file system of its own, read-only and in nobody's mount namespace.

    ``directories`` are two or more, separated by colons; whatever one of them has is there. A file has another inode there than
    in its directory. fsopen(2), Linux 5.2.
    """
    system = _checked(_syscall(_Long(NR_FSOPEN), b"overlay", _Long(FSOPEN_CLOEXEC)), "fsopen")
    try:
        configure = (_Long(NR_FSCONFIG), _Long(system))
        _checked(_syscall(*configure, _Long(FSCONFIG_SET_STRING), b"lowerdir", directories, _zero), "fsconfig")
        _checked(_syscall(*configure, _Long(FSCONFIG_CMD_CREATE), None, None, _zero), "fsconfig")
        flags = (_Long(FSMOUNT_CLOEXEC), _Long(MOUNT_ATTR_RDONLY))
        return _checked(_syscall(_Long(NR_FSMOUNT), _Long(system), *flags), "fsmount")
    finally:
        posix.close(system)


class Execution:
    """An execve(2) with all that it needs in memory, so that ``run`` allocates nothing; fexecve(3)."""

    def __init__(self, descriptor: int, arguments: "list[bytes]", environment: "dict[bytes, bytes]") -> None:
        """Take the opened program, its arguments, and its environment."""
        self.descriptor = _Long(descriptor)
        strings = [*arguments, *(name + b"=" + value for name, value in environment.items())]
        # Two lists of pointers that end in NULL, and then the strings. One piece: each costs a type of its own.
        lists = _struct.Struct(f"@{len(strings) + 2}P")
        self.memory = _in_memory(bytes(lists.size) + b"\0".join(strings) + b"\0")
        begin = _ctypes.addressof(self.memory)
        addresses, address = [], begin + lists.size
        for string in strings:
            addresses.append(address)
            address += len(string) + 1
        number = len(arguments)
        lists.pack_into(self.memory, 0, *addresses[:number], 0, *addresses[number:], 0)
        self.arguments = _Long(begin)
        self.environment = _Long(begin + (number + 1) * _struct.calcsize("P"))

    def run(self) -> None:
        """Become the program. Raises OSError where the kernel refuses."""
        _checked(_fexecve(self.descriptor, self.arguments, self.environment), "execve")


# The number of the timer, once there is one.
_timer: "list[int]" = []


def kill_after(seconds: int) -> None:
    """Have the kernel end this process by SIGKILL after that time, unless it executes a program before; timer_create(2).

    Called again, it begins anew. A timer of its own, beside that of alarm(2). SIGALRM is handled, and so it does not end a wait
    that only a fatal signal ends, such as one for NFS. On other machines than those in NR_TIMER there is no such timer.
    """
    numbers = NR_TIMER.get(posix.uname().machine)
    if numbers is None or _struct.calcsize("P") < 8:
        return
    event = _struct.pack("=qii48x", 0, SIGKILL, SIGEV_SIGNAL)
    timer = _Memory()
    if not _timer:
        create = (_Long(numbers[0]), _Long(CLOCK_MONOTONIC), event, timer)
        if _syscall(*create) == -1:
            # The kernel counts a timer among the signals that wait for processes of root, also for those in containers.
            limits = getrlimit(RLIMIT_SIGPENDING)
            setrlimit(RLIMIT_SIGPENDING, -1, -1)
            try:
                _checked(_syscall(*create), "timer_create")
            finally:
                setrlimit(RLIMIT_SIGPENDING, *limits)
        _timer.append(_struct.unpack_from("=i", timer)[0])
    expiry = _struct.pack("=4q", 0, 0, seconds, 0)
    _checked(_syscall(_Long(numbers[1]), _Long(_timer[0]), _zero, expiry, _zero), "timer_settime")


def reset_io_priority() -> None:
    """Have the nice value decide the I/O priority of this process again; ioprio_set(2).

    Nothing is to be done where the kernel has no block devices, nor on a machine not in NR_IOPRIO_SET. Raises OSError.
    """
    number = NR_IOPRIO_SET.get(posix.uname().machine)
    if number is None:
        return
    try:
        _checked(_syscall(_Long(number), _Long(IOPRIO_WHO_PROCESS), _zero, _zero), "ioprio_set")
    except OSError as error:
        if error.errno != ENOSYS:
            raise


def new_session_keyring() -> bool:
    """Give this process a session keyring of its own, without a name and empty, in place of the one that it has inherited.

    keyctl(2). Returns False where the user has as many keys as kernel.keys allows: containers with the same user share that
    number. Nothing is to be done where the kernel has no keys. Raises OSError, also on a machine not in NR_KEYCTL.
    """
    try:
        _keyctl(KEYCTL_JOIN_SESSION_KEYRING, None)
    except OSError as error:
        if error.errno != EDQUOT:
            raise
        return False
    return True


def seal_session_keyring() -> None:
    """Take all rights to the session keyring of this process from everybody, those who inherit it too; keyctl_setperm(3).

    Raises OSError as ``new_session_keyring`` does.
    """
    _keyctl(KEYCTL_SETPERM, _Long(KEY_SPEC_SESSION_KEYRING), _zero)


def _keyctl(operation: int, *arguments: "_Long | None") -> None:
    number = NR_KEYCTL.get(posix.uname().machine)
    try:
        if number is None:
            raise OSError(EINVAL, "no number of keyctl(2) is known for this machine", "keyctl")
        _checked(_syscall(_Long(number), _Long(operation), *arguments), "keyctl")
    except OSError as error:
        if error.errno != ENOSYS:
            raise


def wait_for_end(pid: int, patience: float, option: int = 0) -> bool:
    """Wait for the end of our child ``pid``, at most ``patience`` seconds, and tell whether it has ended; waitid(2).

    WNOWAIT leaves it to be waited for again. 0 is no child, and has ended.
    """
    limit = time.monotonic() + patience
    while pid:
        try:
            if posix.waitid(posix.P_PID, pid, posix.WEXITED | posix.WNOHANG | option) is not None:
                break
        except ChildProcessError:
            break
        if time.monotonic() > limit:
            return False
        time.sleep(0.001)
    return True


def pidfd_open(pid: int) -> int:
    """Return a descriptor that becomes readable when the child ``pid`` ends; pidfd_open(2), Linux 5.3."""
    return _checked(_syscall(_Long(NR_PIDFD_OPEN), _Long(pid), _Long(0)), "pidfd_open")


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """Send a signal to the process of ``pidfd``, if it is still there; pidfd_send_signal(2), Linux 5.1."""
    _syscall(_Long(NR_PIDFD_SEND_SIGNAL), _Long(pidfd), _Long(number), _Long(0), _Long(0))


class ProcessInfo:
    """What the kernel says of the process of a pidfd; include/uapi/linux/pidfd.h, Linux 6.13.

    ``uid`` and ``gid`` are the real ones. ``coredump`` has PIDFD_COREDUMP* bits, and is None if the process is not dumped, or
    the kernel does not say it (before 6.16). ``signal`` is None where the kernel does not say it (before 6.19).
    """

    def __init__(self, buffer: bytearray) -> None:
        """Take a struct pidfd_info: the mask that was answered stands at 0, that of the core dump at byte 64."""
        (answered,) = _struct.unpack_from("=Q", buffer, 0)
        self.pid, self.uid, self.gid = _struct.unpack_from("=I4xII", buffer, 20)
        mask, number = _struct.unpack_from("=II", buffer, 64)
        crashed = answered & PIDFD_INFO_COREDUMP and mask & PIDFD_COREDUMPED
        self.coredump: int | None = mask if crashed else None
        self.signal: int | None = number if crashed and answered & PIDFD_INFO_COREDUMP_SIGNAL else None


def pidfd_info(pidfd: int) -> "ProcessInfo | None":
    """Return what the kernel says of the process of ``pidfd``, None if it does not, or the process is gone."""
    buffer = bytearray(72)
    _struct.pack_into("=Q", buffer, 0, PIDFD_INFO_COREDUMP | PIDFD_INFO_COREDUMP_SIGNAL)
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, buffer, True)
    except OSError:
        return None
    return ProcessInfo(buffer)


def pidfd_coredump_mask(pidfd: int) -> "int | None":
    """Return what the kernel says of the core dump of ``pidfd``'s process, PIDFD_COREDUMP* bits, None if it does not."""
    info = pidfd_info(pidfd)
    return None if info is None else info.coredump


def fork_into_cgroup(directory: int) -> int:
    """Fork like fork(2), the child a member of the unified control group ``directory``; clone3(2), Linux 5.7.

    Moving a process afterwards waits for every other fork of the machine, some 10 ms; this does not. Python's bookkeeping for a
    fork is left out, which is safe with a single thread. Raises OSError, EAGAIN where the group's pids.max is reached.
    """
    arguments = _struct.pack("=11Q", CLONE_INTO_CGROUP, 0, 0, 0, SIGCHLD, 0, 0, 0, 0, 0, directory)
    return _checked(_syscall(_Long(NR_CLONE3), arguments, _Long(len(arguments))), "clone3")


def splice(source: int, sink: int, count: int) -> int:
    """Move at most ``count`` bytes from the pipe ``source`` to the pipe ``sink``, never waiting; splice(2).

    Returns the number of bytes, 0 at the end. Raises BlockingIOError where either pipe would wait.
    """
    flags = SPLICE_F_MOVE | SPLICE_F_NONBLOCK
    moved = _splice(_Long(source), None, _Long(sink), None, _Long(count), _Long(flags))
    return _checked(moved, "splice")


def set_pipe_size(pipe: int, size: int) -> None:
    """Raise the capacity of ``pipe`` to ``size`` bytes where the kernel allows it; fcntl(2), F_SETPIPE_SZ."""
    try:
        fcntl.fcntl(pipe, F_SETPIPE_SZ, size)
    except OSError:
        pass  # Only slower: fs.pipe-user-pages-soft may forbid it.


def tee(source: int, sink: int, count: int) -> int:
    """Copy at most ``count`` bytes from the pipe ``source`` to the pipe ``sink`` and leave them there, never waiting; tee(2).

    Returns the number of bytes, 0 at the end. Raises BlockingIOError where either pipe would wait, EINVAL where one is no pipe.
    """
    return _checked(_tee(_Long(source), _Long(sink), _Long(count), _Long(SPLICE_F_NONBLOCK)), "tee")


def bytes_in_pipe(pipe: int) -> int:
    """Return the number of bytes that were written to ``pipe`` and not read yet; ioctl_pipe(2), FIONREAD."""
    buffer = bytearray(4)
    fcntl.ioctl(pipe, FIONREAD, buffer, True)
    return int(_struct.unpack("=i", buffer)[0])


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set three capability sets of this thread, each a mask of 64 bits; capset(2)."""
    header = _struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0)
    low = (1 << 32) - 1
    sets = (effective, permitted, inheritable)
    data = _struct.pack("=6I", *(value & low for value in sets), *(value >> 32 for value in sets))
    _checked(_capset(header, data), "capset")


def permitted_capabilities() -> int:
    """Return the permitted set of this thread, a mask of 64 bits; capget(2)."""
    header = _struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0)
    data = _Memory()
    _checked(_capget(header, data), "capget")
    words = _struct.unpack_from("=6I", data)
    return int(words[1] | words[4] << 32)


def drop_from_bounding_set(keep: int) -> None:
    """Drop every capability from the bounding set that is not in the mask ``keep``; capabilities(7)."""
    for capability in range(CAP_LAST_POSSIBLE + 1):
        if keep >> capability & 1:
            continue
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno != EINVAL:
                raise
            return  # The kernel knows no capability of this number or above.


def set_ambient(mask: int) -> None:
    """Make ``mask`` the ambient set; it must be permitted and inheritable; capabilities(7)."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(mask.bit_length()):
        if mask >> capability & 1:
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


def getrlimit(resource: int) -> "tuple[int, int]":
    """Return soft and hard limit of ``resource`` (RLIMIT_*), -1 for unlimited; getrlimit(2)."""
    limits = _Memory()
    _checked(_getrlimit(_Long(resource), limits), "getrlimit")
    soft, hard = _struct.unpack_from("@LL", limits)
    return (-1 if soft == INFINITY else soft), (-1 if hard == INFINITY else hard)


def setrlimit(resource: int, soft: int, hard: int) -> None:
    """Set both limits of ``resource`` (RLIMIT_*), -1 for unlimited; setrlimit(2)."""
    limits = _struct.pack("@LL", soft & INFINITY, hard & INFINITY)
    _checked(_setrlimit(_Long(resource), limits), "setrlimit")


def set_seccomp_filter(program: bytes) -> None:
    """Install ``program``, an array of struct sock_filter; seccomp(2). no_new_privs must be set."""
    instructions, fprog = _Memory(), _Memory()
    _struct.pack_into(f"{len(program)}s", instructions, 0, program)
    # struct sock_fprog: an unsigned short, and a pointer at its natural alignment.
    _struct.pack_into("@HP", fprog, 0, len(program) // 8, _ctypes.addressof(instructions))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, _ctypes.addressof(fprog))


def close_all_but(keep: "set[int]") -> None:
    """Close every descriptor above 2 that is not in ``keep``."""
    lowest = 3
    for descriptor in sorted(descriptor for descriptor in keep if descriptor > 2):
        posix.closerange(lowest, descriptor)
        lowest = descriptor + 1
    _close_from(lowest)


def _close_from(lowest: int) -> None:
    """Close every descriptor from ``lowest`` on; close_range(2), Linux 5.9, else one by one."""
    if _syscall(_Long(NR_CLOSE_RANGE), _Long(lowest), _Long(0xFFFFFFFF), _Long(0)) == -1:
        posix.closerange(lowest, posix.sysconf("SC_OPEN_MAX"))

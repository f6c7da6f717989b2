"""The faulting process: described. Nothing is changed here.

A process is an opened directory of the host's /proc, never a number. Once ``/proc/PID/task/TID`` is open, it never shows the
facts of another process: if another one gets the number, the directory is empty (ESRCH). See proc(5) for every file that is
read.
"""

import posix

import core_helper
from core_helper import apart, linux, mount_table, namespaces, procfs, runtime
from core_helper.crash import Refused

# What the engine may have written about a container: the facts, by the names that the delegate knows them by.
CONTAINER_NAME, IMAGE = b"CORE_CONTAINER_NAME", b"CORE_IMAGE"
POD_NAME, POD_NAMESPACE, POD_UID = b"CORE_POD_NAME", b"CORE_POD_NAMESPACE", b"CORE_POD_UID"
FACTS = (CONTAINER_NAME, IMAGE, POD_NAME, POD_NAMESPACE, POD_UID)


class Record:
    """What an engine says of a container: the facts, and the variables that the first program was started with.

    ``shared`` says whether the process that crashed has all namespaces of the first process, and so no container of its own.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.facts: dict[bytes, bytes] = {}
        self.shared = False
        self.environment: dict[bytes, bytes] = {}


class Withheld(Refused):
    """The core must go to no delegate. ``process`` is the one that crashed: the previous handler may get its core."""

    def __init__(self, text: str, process: "FaultingProcess", of_the_host: bool = False) -> None:
        """Take the text for the log, the verified process, and whether it is the host's, even if it does not look so."""
        super().__init__(text)
        self.process = process
        self.of_the_host = of_the_host


class FaultingProcess:
    """What the helper knows of the process whose core it holds. Descriptors are close-on-exec."""

    def __init__(
        self,
        task: int,
        root: int,
        foreign: "list[tuple[str, int, int]]",
        joined: "list[tuple[str, int, int]]",
        status: "dict[str, str]",
    ) -> None:
        """Take the opened ``/proc/PID/task/TID``, the opened root directory, and the status.

        ``foreign`` are (name, kind, descriptor) of the namespaces that are not the host's, ``joined`` of those that are not the
        helper's, and have to be joined.
        """
        stat = procfs.stat_fields(procfs.read(task, "stat"))
        self.task = task
        self.root = root
        self.namespaces = [namespace for namespace in foreign if namespace[0] != "user"]
        self.user_namespace = next((namespace[2] for namespace in foreign if namespace[0] == "user"), None)
        self.joined = [namespace for namespace in joined if namespace[0] != "user"]
        self.joined_user_namespace = next((namespace[2] for namespace in joined if namespace[0] == "user"), None)
        self.uid = ids_of(status, "Uid")[0]
        self.gid = ids_of(status, "Gid")[0]
        self.groups = [int(group) for group in status["Groups"].split()]
        self.pid = int(status.get("NStgid", status["Tgid"]).split()[-1])
        self.host_pid = int(status["Tgid"])
        self.host_tid = int(status["Pid"])
        self.depth = len(status.get("NSpid", status["Pid"]).split())
        self.tid = int(status.get("NSpid", status["Pid"]).split()[-1])
        self.inheritable = int(status["CapInh"], 16)
        self.permitted = int(status["CapPrm"], 16)
        self.effective = int(status["CapEff"], 16)
        self.bounding = int(status["CapBnd"], 16)
        self.ambient = int(status.get("CapAmb", "0"), 16)
        self.seccomp = int(status.get("Seccomp", "0"))
        self.seccomp_filters = int(status.get("Seccomp_filters", "0"))
        # Whether it is a process of 32 bits, asked where the delegate has a filter.
        self.narrow = self.seccomp == 2 and _word_size(task) == 4
        # The bytes that it has in memory. Its core has about as many, and holes.
        self.memory = 1024 * sum(int(status.get(name, "0").split()[0]) for name in ("VmRSS", "VmSwap"))
        self.umask = int(status.get("Umask", "0022"), 8)
        self.comm = procfs.read(task, "comm")[:-1]  # The name may end in newlines of its own.
        self.exe = link_of(task, "exe")
        self.nice = int(stat[16])
        self.cpu = int(stat[36])
        self.policy = int(stat[38])
        self.processors = procfs.parse_processors(status.get("Cpus_allowed_list", ""))
        self.limits = procfs.parse_limits(procfs.read(task, "limits"))
        self.cgroups = procfs.parse_cgroup(procfs.read(task, "cgroup"))
        self.notes: list[str] = []
        self.left_out = 0  # How many cores of this program were left out before this one; see bounds.py.
        self.visits = mount_table.Visits()
        # Opened here and read later: a read needs the memory of the process, which may lie in a file system that does not
        # answer.
        self.environ_file: int | None = procfs.open_file(task, "environ")
        self.variables: dict[bytes, bytes] | None = None
        self.label_kind, self.label = security_label(task)
        self.container_id = runtime.container_id(self.cgroups)
        self.container_name = runtime.name_for_log(self.cgroups)
        self.hostname = b""  # deliver.py asks, when the process is verified.
        self._record: Record | None = None
        # A guess, until membership.check has compared it with the container's first process.
        self.confined = self.seccomp_filters > (1 if self.in_container() else 0)

    @property
    def record(self) -> Record:
        """What the engine has written about the container, read where it is asked for first; the process must be verified."""
        if self._record is None:
            self._record = Record()
            if self.container_id:
                core_helper.load("record")
                from core_helper import record  # The host's processes do not pay for it.

                self._record = record.record_of(self)
        return self._record

    def exit_signal(self) -> "int | None":
        """Return the signal that ends the process, None on kernels that show it only later; for a core pattern without %s."""
        try:
            # Of the process, which lies two directories up: that of a thread does not show it.
            return int(procfs.stat_fields(procfs.read(self.task, "../../stat"))[49]) & 0x7F or None
        except (OSError, IndexError):
            return None

    def close_task(self) -> None:
        """Close the directory in the host's /proc: nobody in the container must find it open in one of our processes."""
        posix.close(self.task)

    def keep_environ(self, limit: float) -> int:
        """Read the variables now, until the monotonic time ``limit``: the process will be gone when a child asks for them.

        Another child reads them here: this process must not wait for the memory of the faulting one. Returns the pid of that
        child if it hangs, 0 if it does not.
        """
        file, hanging = self.environ_file, 0
        if self.variables is None and file is not None and not self.confined:
            text, hanging = apart.read(lambda pipe: _pass_on(file, pipe), limit)
            if text is None:
                self.environ_file = None
            else:
                self.variables = self._variables_of(text)
        return hanging

    def read_environ(self) -> "dict[bytes, bytes]":
        """Return the variables of the process that the delegate gets; ``notes`` tell what was left out.

        Called in the joining process: the supervisor must not wait for the memory of the process. If the process was confined
        more than its container is, the delegate gets none of its variables. The delegate is confined less than such a process:
        nobody can take the filters over, or even see Landlock. With its variables, such as LD_PRELOAD, the process would choose
        what the delegate does.
        """
        if self.variables is not None:
            return self.variables
        if self.environ_file is None:
            self.notes.append("its environment could not be read in time: none of its variables was passed on")
            return {}
        if self.confined:
            self.notes.append("it had a seccomp filter of its own: none of its variables was passed on")
            return {}
        return self._variables_of(_text_of(self.environ_file))

    def _variables_of(self, text: bytes) -> "dict[bytes, bytes]":
        variables, cut = procfs.parse_environ(text)
        if procfs.was_overwritten(text):
            self.notes.append(
                f"it has overwritten its environment, of which {len(variables)} variables are left: the delegate may lack some"
            )
        if cut:
            self.notes.append(
                f"its environment has more than {procfs.MOST_VARIABLES} variables or 1 MiB, or a variable of 128 KiB:"
                " the rest was left out"
            )
        return variables

    def descriptor(self, kind: str) -> "int | None":
        """Return the opened namespace of that ``kind``, None where the process has the host's."""
        return next((descriptor for name, _kind, descriptor in self.namespaces if name == kind), None)

    def inode(self, kind: str) -> int:
        """Return the inode of the process's namespace of that ``kind``."""
        descriptor = self.user_namespace if kind == "user" else self.descriptor(kind)
        return namespaces.of_host(kind) if descriptor is None else posix.fstat(descriptor).st_ino

    def in_container(self) -> bool:
        """Tell whether the process has a mount namespace other than the host's."""
        return self.descriptor("mnt") is not None

    def in_pid_namespace(self) -> bool:
        """Tell whether the process has a pid namespace other than the host's."""
        return self.descriptor("pid") is not None

    def shows_no_container(self) -> bool:
        """Tell whether neither a pid namespace nor an engine's name on its control group says that it is in a container."""
        return not self.in_pid_namespace() and not self.container_id


def withheld(process: FaultingProcess, reason: str) -> Withheld:
    """Return why the core of ``process`` is withheld, and whether it is the host's own."""
    # A process in the pid and user namespace of the host, whose control group has no engine's id, belongs to no container.
    of_the_host = process.user_namespace is None and process.shows_no_container()
    return Withheld(f"{reason}: its core is not for a program of that container's image", process, of_the_host)


def ids_of(status: "dict[str, str]", field: str) -> "list[int]":
    return [int(value) for value in status[field].split()]


def _word_size(task: int) -> int:
    """Return the bytes of a word of the process, 0 where its auxiliary vector cannot be read."""
    try:
        return procfs.parse_auxv(procfs.read(task, "auxv"))[0]
    except (OSError, ValueError):
        return 0


def link_of(directory: int, name: str) -> bytes:
    try:
        return posix.readlink(name.encode(), dir_fd=directory)
    except OSError:
        return b""


def security_label(task: int) -> "tuple[str, bytes]":
    """Return the kind of LSM ("apparmor", "other", "" for none) and the label in attr/; apparmor(7), selinux(8).

    Raises OSError where the label cannot be read.
    """
    for kind, name in (("apparmor", "attr/apparmor/current"), ("other", "attr/current")):
        try:
            label = procfs.read(task, name).rstrip(b"\n\0")
        except OSError as error:
            if error.errno not in (linux.ENOENT, linux.EINVAL):
                raise  # As of a lease: the delegate must not start without the label.
            continue  # No such LSM: ENOENT, or EINVAL for attr/current without any.
        if label:
            return kind, label
    return "", b""


def _text_of(environ_file: int) -> bytes:
    # An earlier child may have read the same open file to its end.
    posix.lseek(environ_file, 0, linux.SEEK_SET)
    return procfs.read_all(environ_file, procfs.ENVIRON_LIMIT + 1)


def _pass_on(environ_file: int, pipe: int) -> None:
    """In a child: write the environment to the ``pipe``, holding nothing that keeps the faulting process."""
    linux.close_all_but({environ_file, pipe})
    apart.write(pipe, _text_of(environ_file))

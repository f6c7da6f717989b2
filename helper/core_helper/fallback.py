"""The core file /tmp/core.PID.UID.GID, written in the process's view of the file system and at its privilege."""

import posix

from core_helper import joining, linux, privileges
from core_helper.configuration import FALLBACK_VARIABLE
from core_helper.program import Absent, Stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from core_helper.child import Child

BLOCK = 1 << 18
MODE = 0o600


def path_of(pid: int, uid: int, gid: int) -> bytes:
    """Return the path of the core file; the ids are those of the initial namespaces, as in %P, %u and %g."""
    return f"/tmp/core.{pid}.{uid}.{gid}".encode()


def write(plan: joining.Plan, path: bytes, asked: bool, child: "Child") -> "NoReturn":
    """In a child: enter the container as the delegate would, create ``path`` and copy the core into it; never returns.

    Nothing is executed and nothing appears in the container's pid namespace. Unless the core file was ``asked`` for already,
    the environment of the process must ask for it.
    """
    reporter = joining.Reporter(child.error_out)
    files: list[int] = []

    def ask() -> None:
        if asked:
            reporter.send("environ", "")
        elif FALLBACK_VARIABLE not in joining.read_environ(plan.process, reporter):
            raise Absent("no delegate is configured")

    def join_control_groups() -> None:
        for failure in plan.groups.join():
            reporter.send("note", failure)
        for failure in privileges.take_over_processors(plan.process):
            reporter.send("note", failure)

    def create() -> None:
        privileges.limit_file_size(plan.process)
        # O_EXCL follows no symbolic link and takes no file, FIFO or hard link that somebody has put there.
        posix.umask(0o077)
        try:
            files.append(linux.openat2(path, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW, MODE))
        except OSError as error:
            raise Stopped(f"{path.decode()}: {error.strerror}") from None

    def copy() -> None:
        reporter.send("ready", "")
        written = 0
        try:
            while True:
                block = posix.read(child.core_in, BLOCK)
                if not block:
                    break
                while block:
                    count = posix.write(files[0], block)
                    written += count
                    block = block[count:]
            posix.fsync(files[0])
        except OSError as error:
            raise Stopped(f"{error.strerror} after {written} bytes") from None
        posix._exit(0)

    steps: list[tuple[str, object]] = [("read environment", ask), ("join control groups", join_control_groups)]
    steps += [*joining.entry_steps(plan, reporter)]
    steps += [("take over label", plan.label.at_once), ("create core file", create), ("write core file", copy)]
    joining.run_child(reporter, steps)

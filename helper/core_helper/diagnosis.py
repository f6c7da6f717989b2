"""Says for the log what is wrong with a crash, or with the settings of the kernel; imported only then."""

from core_helper import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.crash import Crash

PATTERN = "/proc/sys/kernel/core_pattern"
LIMIT = "/proc/sys/kernel/core_pipe_limit"
NO_LIMIT = (
    "kernel.core_pipe_limit is 0, so the kernel does not keep a process until its core is read;"
    " sysctl -w kernel.core_pipe_limit=512"
)


def of_missing(crash: "Crash") -> str:
    """Return why the process is not there, or does not dump core, as far as can be told."""
    words = _read(PATTERN).split(b" ")
    # The pattern may start the helper through another program, such as env.
    own = max((number for number, word in enumerate(words) if word.endswith(b"docker_core_helper")), default=0)
    positional = [word for word in words[own + 1 :] if not word.startswith(b"-")]
    if positional[:1] == [b"%p"] or _pid_of_kernel(crash) not in (None, crash.pid):
        return "its pid is the one in its container: kernel.core_pattern must hold %P in place of %p"
    if b"-I%i" in words:
        return "its thread id is the one in its container: kernel.core_pattern must hold -I%I in place of -I%i"
    if _read(LIMIT).strip() == b"0" and not words[0].startswith(b"@"):  # A socket has no such limit.
        return NO_LIMIT
    return "it was killed or frozen, or its pid was reused"


def _pid_of_kernel(crash: "Crash") -> "int | None":
    """Return the pid that the kernel's own pidfd (%F) stands for, None where there is none or its process is gone."""
    if crash.pidfd is None:
        return None
    pid = int(procfs.parse_status(_read(f"/proc/self/fdinfo/{crash.pidfd}")).get("Pid", "-1"))
    return pid if pid > 0 else None


def _read(path: str) -> bytes:
    try:
        return procfs.read_path(path)
    except OSError:
        return b""

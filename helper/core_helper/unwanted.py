"""Which cores nobody wants: of programs and signals that the administrator leaves out, and of processes that may leave none."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.configuration import Configuration
    from core_helper.crash import Crash
    from core_helper.process import FaultingProcess

CORE_LIMIT = "Max core file size"  # Its row in /proc/PID/limits; proc_pid_limits(5).
DELETED = b" (deleted)"  # The kernel adds it to the path of a program whose file is gone; proc_pid_exe(5).


def reason_of(crash: "Crash", process: "FaultingProcess", configuration: "Configuration") -> str:
    """Return why nobody wants the core of ``process``, for the log; "" where it is wanted.

    The kernel applies RLIMIT_CORE to no pipe; core(5). A soft limit of 0 is what most distributions begin with, and says
    nothing. A hard limit of 0 is somebody's will: ``docker run --ulimit core=0``, or a program that keeps secrets in memory.
    """
    if configuration.obey_core_limit and process.limits.get(CORE_LIMIT, (-1, -1))[1] == 0:
        return "not wanted: its hard limit for core files is 0"
    if crash.signal in configuration.ignore_signals:
        return f"not wanted: DOCKERCOREHELPER_IGNORE_SIGNALS names {crash.signal_name()}"
    exe = process.exe[: -len(DELETED)] if process.exe.endswith(DELETED) else process.exe
    for pattern in configuration.ignore_programs:
        if matches(exe, pattern):
            return f"not wanted: DOCKERCOREHELPER_IGNORE_PROGRAMS names {pattern.decode('utf-8', 'backslashreplace')}"
    return ""


def matches(text: bytes, pattern: bytes) -> bool:
    """Tell whether ``text`` is what ``pattern`` means; ``*`` stands for any bytes, also ``/``, and ``?`` for one byte.

    Takes at most the product of both lengths of steps. The library's fnmatch would cost each crash more than the rest of this.
    """
    at = place = 0
    star, resume = -1, 0  # The last * in the pattern, and where in the text what follows that * was tried last.
    while place < len(text):
        if at < len(pattern) and pattern[at] == ord("*"):
            star, resume = at, place
            at += 1
        elif at < len(pattern) and pattern[at] in (ord("?"), text[place]):
            at, place = at + 1, place + 1
        elif star >= 0:
            resume += 1
            at, place = star + 1, resume
        else:
            return False
    return not pattern[at:].strip(b"*")

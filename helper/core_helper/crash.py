"""One crash, as the kernel announced it."""

import time

# The signals whose default action is to dump core; the library's module for names costs as much as the whole helper.
SIGNALS = {
    3: "SIGQUIT",
    4: "SIGILL",
    5: "SIGTRAP",
    6: "SIGABRT",
    7: "SIGBUS",
    8: "SIGFPE",
    11: "SIGSEGV",
    24: "SIGXCPU",
    25: "SIGXFSZ",
    31: "SIGSYS",
}


class Refused(Exception):
    """The delegation is refused. The text, for the log, says what was found and what to do."""


class Crash:
    """One crash as the kernel announced it: plain values, however the helper received them. None: the kernel did not say."""

    def __init__(self, pid: int, uid: int, gid: int) -> None:
        """Take process id, user and group as the initial namespaces see them."""
        self.pid = pid
        self.uid = uid
        self.gid = gid
        self.tid: int | None = None
        self.signal: int | None = None
        self.time = int(time.time())
        self.dumpable: int | None = None
        self.limit: int | None = None
        self.pidfd: int | None = None
        self.delegate: list[bytes] = []
        # What the kernel does not say: a pidfd, the kernel's or else one that the helper has opened; why a container could
        # overwrite the helper's interpreter, "" where none could; device and inode of that, None if it lies at its path.
        self.handle: int | None = None
        self.unprotected = ""
        self.interpreter: tuple[int, int] | None = None
        self.key = ""  # The name of the core, as soon as key.py has made it.

    def signal_name(self) -> str:
        """Return the name of the signal, "" if the kernel did not say it; signal(7)."""
        if self.signal is None:
            return ""
        return SIGNALS.get(self.signal, f"SIG{self.signal}")

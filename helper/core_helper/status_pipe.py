"""The status pipe: a child reports to the supervisor how far it got, before there is a delegate that could say anything.

Lines: ``environ`` when the variables of the process were read, ``environ fallback`` where they ask for the fallback file;
``pid N``, ``note TEXT``, ``ready``, ``absent TEXT``, ``crowded TEXT``, ``failed TEXT``, ``refused TEXT``.
"""

import posix
import sys

from core_helper.crash import Refused
from core_helper.program import Absent, Stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


class Crowded(Stopped):
    """The container has reached its pids.max, and the way in needs one more process."""


class StatusPipe:
    """The end of the pipe that a child has; ``step`` names what the child is doing.

    As a context manager it ends the process, whatever happens in it, and reports the exception that ended the steps. No
    exception leaves it: to print a traceback, Python would open source files, and by now these are the container's.
    """

    def __init__(self, descriptor: int) -> None:
        """Take the writing end, close-on-exec: if it closes and no failure was reported, the delegate was executed."""
        self.descriptor = descriptor
        self.step = "start"

    def send(self, kind: str, text: str) -> None:
        """Write one line, of at most PIPE_BUF bytes so that lines of two processes do not mix; pipe(7)."""
        line = f"{kind} {text}".encode("utf-8", "backslashreplace").replace(b"\n", b"\\n")[:4000]
        posix.write(self.descriptor, line + b"\n")

    def note(self, lines: "list[str]") -> None:
        """Send a line for the log for each of ``lines``: what could not be taken over and is no reason to stop."""
        for line in lines:
            self.send("note", line)

    def __enter__(self) -> "StatusPipe":
        """Begin: from here on Python can load no code and open no file on its own."""
        lock_interpreter()
        return self

    def __exit__(self, kind: object, error: "BaseException | None", traceback: object) -> "NoReturn":
        """Report the ``error``, if there was one, and end this process."""
        try:
            if isinstance(error, Absent):
                self.send("absent", str(error))
            elif isinstance(error, Crowded):
                self.send("crowded", f"{self.step}: {error}")
            elif isinstance(error, Refused):
                self.send("refused", str(error))
            elif isinstance(error, Stopped):
                self.send("failed", f"{self.step}: {error}")
            elif isinstance(error, OSError):
                self.send("failed", f"{self.step}: {error.strerror}")
            elif error is not None:
                self.send("failed", f"{self.step}: {type(error).__name__}: {error}")
        finally:
            posix._exit(1)


def lock_interpreter() -> None:
    """Keep Python from loading code or opening files on its own: all paths will be the container's."""
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()
    # sys.path_importer_cache stays: without finders nothing uses it, and to free it takes as long as a fork.

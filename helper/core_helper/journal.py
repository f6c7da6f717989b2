"""What operators read: lines in the host's log, identifier docker_core_helper; syslog(3), kmsg(4)."""

import _socket
import posix
import time

from core_helper import quota, table
from core_helper.process import CONTAINER_NAME, POD_NAME, POD_NAMESPACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from core_helper.child import Result
    from core_helper.crash import Crash
    from core_helper.custody import Custody
    from core_helper.log import Log
    from core_helper.process import FaultingProcess

IDENTIFIER = "docker_core_helper"
SOCKET = "/dev/log"
KERNEL_LOG = "/dev/kmsg"
LOG_DAEMON = 3 << 3
LOG_ERR, LOG_WARNING, LOG_INFO = 3, 4, 6
LINE_LIMIT = 2000
NAME_LIMIT = 256
LONGEST_WORD = 80
KERNEL_LINE_LIMIT = 900  # The kernel's record holds about 1,000 bytes.
KERNEL_NAME_LIMIT = 48  # There are five names in a line. Half of it is left for what became of the core.
LONGEST_ESCAPES = {"x": 4, "u": 6, "U": 10}


class Journal:
    """Writes the lines of one crash. If the helper is started by hand, it also prints them to standard error."""

    def __init__(self, log: "Log") -> None:
        """Take the log of the crash, which knows the terminal and the holder."""
        self.log = log
        self.patience = 1.0  # Seconds for the log to take a line.
        self.table_patience = table.PATIENCE  # Seconds for the table of lines.
        self.unreachable: set[str] = set()

    def error(self, text: str) -> None:
        """Tell that a core was lost, or a part of it."""
        self._write(LOG_ERR, text)

    def refuse(self, crash: "Crash", whereabouts: "tuple[bytes, str]", reason: str) -> None:
        """Tell that a core is not delegated; ``whereabouts`` are name and container of the process as far as is known."""
        comm, container = whereabouts
        who = f'pid={crash.pid} uid={crash.uid} gid={crash.gid} comm="{escape(comm)}" container={container}'
        self.error(f"{who}: core not delivered, 0 bytes: {reason}")

    def info(self, text: str) -> None:
        """Tell what is as it should be."""
        self._write(LOG_INFO, text)

    def warning(self, text: str) -> None:
        """Tell what the administrator should correct."""
        self._write(LOG_WARNING, text)

    def output(self, crash: "Crash", process: "FaultingProcess", line: bytes) -> None:
        """Pass on a line that the delegate wrote to its standard error."""
        self._write(LOG_INFO, f"pid={crash.pid} container={process.container_name}: delegate: {escape(line)}")

    def conclude(
        self,
        crash: "Crash",
        process: "FaultingProcess",
        target: bytes,
        result: "Result",
        began: float,
        reason: str = "",
    ) -> bool:
        """Tell how the delivery to ``target`` ended, and return whether all of the core arrived there.

        ``reason`` says why no delegate has taken the core before. It stands last: see ``drop``.
        """
        who = crash, process
        notes = "".join(f"; {note}" for note in result.notes) + (f"; no delegate took it: {reason}" if reason else "")
        amount = f"{result.delivered} bytes to {escape(target)} in {time.monotonic() - began:.3f} s"
        if result.untouched and result.failure is None:
            text = f"not wanted by {escape(target)}: it read nothing and ended with exit code 0{notes}"
            self._write(LOG_INFO, text, who)
            return True
        if result.failure is None and result.complete and not result.cut:
            self._write(LOG_INFO, f"delivered {amount}{notes}", who)
            return True
        if result.cut:
            # A dump of which not even the header arrived does not say how long it was to be.
            whole = "an unknown number of" if result.length is None else result.length
            amount += f", truncated: of {whole} bytes; the process was killed or frozen while it dumped core"
        elif not result.complete and result.delivered:
            amount += ", truncated"
        failure = result.failure or ("the core was cut off" if result.complete else "it stopped reading")
        self._write(LOG_ERR, f"not delivered: {failure}: {amount}{notes}", who)
        return False

    def pass_to_handler(self, crash: "Crash", process: "FaultingProcess", handler: bytes) -> None:
        """Tell that a core goes to the previous handler, whose own log says what becomes of it."""
        self._write(LOG_INFO, f"passed to the previous handler {escape(handler)}", (crash, process))

    def keep(self, crash: "Crash", process: "FaultingProcess", kept: "Custody", reason: str) -> None:
        """Tell that the core stays on the host, and why no destination has taken it."""
        size = f"{kept.size} bytes"
        if kept.truncated():
            size += f", truncated: {kept.stopped or f'of {kept.length} bytes; the process was killed or frozen'}"
        text = f"kept on this host, {size}: docker_core_helper cores get {kept.key} FILE: {reason}"
        self._write(LOG_WARNING if kept.truncated() else LOG_INFO, text, (crash, process))

    def drop(self, crash: "Crash", process: "FaultingProcess", reason: str, absent: bool) -> None:
        """Tell that the core was dropped: because there is no delegate, or because of a failure."""
        # The reason comes last: a container may have chosen a part of it, and must not push the rest out of the line.
        severity, what = (LOG_INFO, "core dropped") if absent else (LOG_ERR, "core dropped, 0 bytes delivered")
        self._write(severity, f"{what}: {reason}", (crash, process))

    def _write(self, severity: int, text: str, who: "tuple[Crash, FaultingProcess] | None" = None) -> None:
        """Write one line, if the container has not written too many already. It begins with ``who`` has crashed."""
        admitted, notice = True, ""
        if self.log.holder:
            admitted, notice = quota.admit(self.log.holder, patience=self.table_patience)
        if notice:
            # Without the number of the owner, with which holders.log_name begins.
            self._put(LOG_WARNING, f"{self.log.holder.partition(' ')[2]}: {notice}")
        if not admitted:
            return
        if who is None:
            self._put(severity, text)
        else:
            self._put(severity, f"{describe(*who)}: {text}", f"{describe(*who, KERNEL_NAME_LIMIT)}: {text}")

    def _put(self, severity: int, text: str, short: str = "") -> None:
        """Write one line. A log that cannot be reached is no reason to lose a core: then the line is lost.

        The ``short`` text, if there is one, takes the place of a ``text`` that is too long for the kernel's log.
        """
        line = cut(_printable(text), LINE_LIMIT)
        if self.log.terminal is not None:
            try:
                posix.write(self.log.terminal, f"{IDENTIFIER}: {line}\n".encode())
            except OSError:
                pass
        head = f"<{LOG_DAEMON | severity}>"
        tag = f"{IDENTIFIER}[{posix.getpid()}]: "
        # As the C library's syslog does: /dev/log takes a time stamp between the two.
        stamp = time.strftime("%b %e %H:%M:%S ")
        if self._send(SOCKET, (head + stamp + tag + line).encode()):
            return
        try:
            descriptor = posix.open(KERNEL_LOG, posix.O_WRONLY | posix.O_CLOEXEC | posix.O_NOCTTY)
            if short and len(head + tag + line) > KERNEL_LINE_LIMIT:
                line = _printable(short)
            posix.write(descriptor, cut(head + tag + line, KERNEL_LINE_LIMIT).encode() + b"\n")
            posix.close(descriptor)
        except OSError:
            pass

    def _send(self, path: str, message: bytes) -> bool:
        """Send ``message`` to the socket ``path``, if that takes it in time; one that did not is not tried again."""
        if path in self.unreachable:
            return False
        try:
            connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
            connection.settimeout(self.patience)
            connection.connect(path)
            connection.send(message)
            connection.close()
        except OSError:
            self.unreachable.add(path)
            return False
        return True


def escape(text: bytes) -> str:
    """Return ``text``, which a container chose, as printable ASCII that cannot be mistaken for ours: all else is \\xNN."""
    return "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in text)


def cut(text: str, limit: int) -> str:
    """Return the beginning of ``text``, printable ASCII, with at most so many characters: none is a part of an escape."""
    if len(text) <= limit:
        return text
    escaped = text.rfind("\\", 0, limit)
    if escaped >= 0 and escaped + LONGEST_ESCAPES.get(text[escaped + 1], 2) > limit:
        limit = escaped
    return text[:limit]


def _printable(text: str) -> str:
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)


def describe(crash: "Crash", process: "FaultingProcess", longest: int = NAME_LIMIT) -> str:
    """Return who crashed, where and by which signal; no name is longer than ``longest`` characters, and "..." if it is cut."""

    def name(text: bytes) -> str:
        # Otherwise a container could push out of the line what became of the core.
        escaped = escape(text)
        return escaped if len(escaped) <= longest else cut(escaped, longest) + "..."

    signal = "?" if crash.signal is None else f"{crash.signal} ({crash.signal_name()})"
    return (
        f"pid={crash.pid} ({process.pid} in its namespace) uid={crash.uid} gid={crash.gid} signal={signal}"
        f' comm="{name(process.comm)}" exe="{name(process.exe)}"'
        f' container={process.container_name}{_names_of(process, name)} host="{name(process.hostname)}"'
        + (f" left_out={process.left_out}" if process.left_out else "")
    )


def _names_of(process: "FaultingProcess", shown: "Callable[[bytes], str]") -> str:
    """Return what the engine's record adds to the id of the container; whoever started that has chosen the names."""
    known = process.record.facts
    pod = b"/".join(filter(None, (known.get(POD_NAMESPACE), known.get(POD_NAME))))
    names = (("name", known.get(CONTAINER_NAME, b"")), ("pod", pod))
    return "".join(f' {word}="{shown(name[:LONGEST_WORD])}"' for word, name in names if name)

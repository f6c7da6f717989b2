"""What operators read: lines in the host's log, identifier docker_core_helper; syslog(3), kmsg(4)."""

from __future__ import annotations

import posix
import time

IDENTIFIER = "docker_core_helper"
SOCKET = "/dev/log"
KERNEL_LOG = "/dev/kmsg"
LOG_DAEMON = 3 << 3
LOG_ERR, LOG_WARNING, LOG_INFO = 3, 4, 6
LINE_LIMIT = 2000
KERNEL_LINE_LIMIT = 900  # The kernel's record holds about 1,000 bytes.


class Journal:
    """Where the lines go. By hand, when standard error is open, they are printed there as well."""

    def __init__(self, terminal: int | None) -> None:
        """Take a descriptor of the terminal, or None."""
        self.terminal = terminal

    def write(self, severity: int, text: str) -> None:
        """Write one line. A log that cannot be reached is no reason to lose a core: then nothing happens."""
        line = "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)[:LINE_LIMIT]
        if self.terminal is not None:
            posix.write(self.terminal, f"{IDENTIFIER}: {line}\n".encode())
        head = f"<{LOG_DAEMON | severity}>"
        tag = f"{IDENTIFIER}[{posix.getpid()}]: "
        # As the C library's syslog does: /dev/log takes a time stamp between the two.
        stamp = time.strftime("%b %e %H:%M:%S ")
        if _send(SOCKET, (head + stamp + tag + line).encode()):
            return
        try:
            descriptor = posix.open(KERNEL_LOG, posix.O_WRONLY | posix.O_CLOEXEC | posix.O_NOCTTY)
            posix.write(descriptor, (head + tag + line).encode()[:KERNEL_LINE_LIMIT] + b"\n")
            posix.close(descriptor)
        except OSError:
            pass


def _send(path: str, message: bytes) -> bool:
    # Imported only now, when the delegate is on its way already: on the host that is safe.
    import _socket

    try:
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        connection.settimeout(1.0)
        connection.connect(path)
        connection.send(message)
        connection.close()
    except OSError:
        return False
    return True


def escape(text: bytes) -> str:
    """Return ``text``, which a container chose, as printable ASCII that cannot be mistaken for ours: all else is \\xNN."""
    return "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in text)

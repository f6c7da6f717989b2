"""What the server reports to systemd."""

import _socket
import posix
import time


class Notifier:
    """Tells systemd that the server is ready, and that it goes on; sd_notify(3)."""

    def __init__(self) -> None:
        """Take what the service manager asks for."""
        path = posix.environ.pop(b"NOTIFY_SOCKET", b"")
        self.path = b"\0" + path[1:] if path[:1] == b"@" else path
        microseconds = posix.environ.pop(b"WATCHDOG_USEC", b"")
        pid = posix.environ.pop(b"WATCHDOG_PID", b"%d" % posix.getpid())
        asked = microseconds.isdigit() and pid == b"%d" % posix.getpid()
        self.interval = int(microseconds) / 2e6 if asked else 3600.0
        self.last = time.monotonic() if asked else float("inf")

    def watch(self) -> None:
        """Tell that the server goes on, if it is time to."""
        now = time.monotonic()
        if now - self.last > self.interval / 2:
            self.last = now
            self.send(b"WATCHDOG=1")

    def send(self, text: bytes) -> None:
        """Send a message, if anybody wants one."""
        if not self.path:
            return
        try:
            connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
            connection.sendto(text, _socket.MSG_DONTWAIT, self.path)
            connection.close()
        except OSError:
            pass

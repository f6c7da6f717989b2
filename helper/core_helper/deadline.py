"""The deadline of a delivery. It moves on while the core does, and with it the timers that end a helper which misses it.

The timeout counts while nothing is read. A delegate that goes on reading gets a second more for each RATE bytes, as long as it
has read something within the timeout, but never beyond the longest time, nor while slots are short.

A signal that tells the helper to end, as the last SIGTERM of a shutdown does, is a deadline that passes now.
"""

import _signal
import posix
import time

from core_helper import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

RATE = 4 << 20  # Bytes: slower than any compressor that has a tenth of a processor.
STEP = 5.0  # Seconds, the most that is given at once: slots may become short meanwhile.
AHEAD = 1.0  # Seconds before the deadline at which more is asked for.
LAST_RESORT = 60  # Seconds after the deadline.
BACKSTOP = 30  # Seconds after that.
PASSED = "deadline passed"  # Why a child was ended, for the log.
EINTR = 4
NAMES = {_signal.SIGTERM: "SIGTERM", _signal.SIGINT: "SIGINT", _signal.SIGHUP: "SIGHUP"}


class Told(OSError):
    """The helper was told to end, and gives up what it does."""

    def __init__(self, number: int) -> None:
        """Take the number of the signal."""
        super().__init__(EINTR, f"the helper was told to end by {NAMES.get(number, number)}")

    def __str__(self) -> str:
        """Return the text for the log."""
        return str(self.strerror)


class Signals:
    """The signals that tell this process to end: the first one counts, and ends it in the order of a deadline.

    Until the first child is made, it raises Told wherever this process is. After that nothing is raised, or a core might be
    deleted that is being sealed: the supervisor is told by ``wake``, and no other child is made.
    """

    def __init__(self) -> None:
        """Start with no signal."""
        self.number = 0
        self.pid = 0
        self.wake: Callable[[], object] | None = None

    def heed(self) -> None:
        """Handle them from here on. A child has the handlers until it executes something, and ends by them at once."""
        self.number, self.pid, self.wake = 0, posix.getpid(), None
        for number in NAMES:
            _signal.signal(number, self._handle)

    def check(self) -> None:
        """Have no signal raise anything after this. Raises Told where one has come."""
        self.wake = _go_on
        if self.number:
            raise Told(self.number)

    def _handle(self, number: int, frame: object) -> None:
        if posix.getpid() != self.pid:
            posix._exit(1)
        if self.number:
            return
        self.number = number
        if self.wake is None:
            raise Told(number)
        self.wake()


def _go_on() -> None:
    """Leave it to whoever looks next whether a signal has come."""


signals = Signals()


class Deadline:
    """``at`` is the time of the monotonic clock at which a child is ended."""

    def __init__(
        self,
        began: float,
        timeout: float,
        longest: float = 0.0,
        are_slots_short: "Callable[[], bool] | None" = None,
        after: float = 0.0,
    ) -> None:
        """Take the time of the start, the seconds that a child has at first, and the seconds that it may have at most.

        ``after`` are the seconds that the helper itself may go on after that.
        """
        self.began = began
        self.timeout = timeout
        self.longest = longest
        self.are_slots_short = are_slots_short
        self.after = after
        self.at = began + timeout
        self.asked = began
        self.closed = False

    def again(self) -> "Deadline":
        """Return a deadline for another child, which begins now."""
        return Deadline(time.monotonic(), self.timeout, self.longest, self.are_slots_short, self.after)

    def left(self, late: float = 0.0) -> float:
        """Return how many seconds are left until that many seconds after the deadline, 0 where none are."""
        return max(0.0, self.at + late - time.monotonic())

    def close(self, late: float) -> bool:
        """Stop moving the deadline if it passed ``late`` seconds ago or more, and tell whether it did."""
        self.closed = not self.left(late)
        return self.closed

    def wait(self, delivered: int, moved: float) -> float:
        """Return how many seconds to wait until this is to be asked again; 0 where the deadline has passed.

        ``delivered`` counts the bytes that were read, the last of them at the time ``moved``.
        """
        left = self.left()
        if left <= AHEAD and self._extend(delivered, moved):
            left = self.left()
        return left - AHEAD if left > AHEAD else left

    def _extend(self, delivered: int, moved: float) -> bool:
        now = time.monotonic()
        limit = min(self.began + self.longest, self.at_first + delivered / RATE, moved + self.timeout)
        if self.closed or limit <= self.at or now < self.asked + AHEAD / 4:
            return False
        self.asked = now
        if self.are_slots_short is not None and self.are_slots_short():
            return False
        self.at = min(limit, now + STEP)
        arm(int(self.left() + self.after) + 1)
        return True

    @property
    def at_first(self) -> float:
        """The deadline of a child that reads nothing."""
        return self.began + self.timeout


def arm(seconds: int) -> None:
    """Have this process end LAST_RESORT after so many ``seconds``, or BACKSTOP after that, whatever it waits for."""
    _signal.alarm(seconds + LAST_RESORT)
    try:
        linux.kill_after(seconds + LAST_RESORT + BACKSTOP)
    except OSError:
        pass  # Then a wait that does not return to Python ends only with what it waits for.

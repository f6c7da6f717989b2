"""Custody: a core is written to the host before any destination gets it, and stays there if none takes it.

While the kernel dumps, nothing runs in the container that could make the kernel stop, such as a delegate that uses up the
memory of the container. Imported only where the administrator wants cores to be kept.
"""

import fcntl
import posix
import select
import time

from core_helper import corefile, holes, linux, runtime, store
from core_helper.key import key_of
from core_helper.room import room_for
from core_helper.source import KeptFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.configuration import Configuration
    from core_helper.crash import Crash
    from core_helper.process import FaultingProcess
    from core_helper.source import KernelPipe

STEP = 1 << 26  # By so many bytes a core may take more than was expected, at a time.
# Beside its memory, a core has headers, and notes about each thread and each mapped file; fs/binfmt_elf.c.
NOTES = 1 << 22
ENOSPC = 28
LOST = "neither the disk nor a pipe takes more"
LATE = "the deadline has passed while the kernel dumped it"
PATIENCE = 10  # Seconds.


def begin(crash: "Crash", process: "FaultingProcess", configuration: "Configuration") -> "Custody":
    """Return a place in the store for the core of ``process``. Raises store.Unusable where there is none."""
    path = configuration.keep_directory
    try:
        group, key = runtime.group_of(process.cgroups), key_of(crash, process)
        return Custody(store.Store(path), group, key, process.memory + NOTES, configuration)
    except OSError as error:
        raise store.Unusable(f"{path}: {error.strerror}: not kept") from None


class Custody:
    """One core in the store, from its first byte on.

    ``size`` are the bytes that the core has so far, holes included. ``length`` says how many its header announces, None if
    that is not known. ``stopped`` says why not all of the core was written, "" if it was.
    """

    def __init__(self, kept_in: store.Store, group: str, key: str, need: int, configuration: "Configuration") -> None:
        """Make room and create the file. Raises store.Unusable with the reason, or OSError."""
        self.store = kept_in
        self.key = key
        self.group_name = group
        self.size = 0
        self.length: int | None = None
        self.stopped = ""
        self.late = False
        self.configuration = configuration
        # So many bytes are reserved for this core: others count them as used, and no more than these.
        self.room = need
        with kept_in.lock:
            room = room_for(kept_in, group, need, configuration)
            if room < need:
                raise store.Unusable(
                    f"{kept_in.path} has room for {max(0, room)} bytes, and the core may take {need}: not kept; raise"
                    " docker_core_helper_keep_max, or make room"
                )
            self.part = f".{key}.{need}{store.PART}"
            while True:
                self.group = kept_in.group(group)
                try:
                    self.file = store.create_file(self.group, self.part)
                    break
                except FileNotFoundError:
                    # A helper whose core was taken has just deleted the empty group; it does that without the lock.
                    posix.close(self.group)

    def write(self, source: "KernelPipe", deadline: float) -> None:
        """Write what the kernel dumps, until its end or ``deadline``. From then on ``source`` is where destinations read it.

        Zeros are not stored. If the disk or the bound is full, the rest stays with the kernel. ``stopped`` says so.
        """
        leftover = None
        try:
            _enlarge(source.descriptor)
            leftover = self._copy(source, deadline)
            posix.ftruncate(self.file, self.size)
        except OSError as error:
            # No byte was read and not written: _copy has seen to that.
            self.stopped = str(error.strerror)
        try:
            # What it has not taken is for others.
            with self.store.lock:
                self._claim(0)
        except OSError:
            pass  # It counts for more than it takes until it is sealed.
        self.late = self.stopped in (LATE, LOST)
        rest = [] if leftover is None else [leftover]
        if not source.drained and not self.late:
            rest.append(source.descriptor)
        self.source = KeptFile(source, self.file, rest)

    def _copy(self, source: "KernelPipe", deadline: float) -> "int | None":
        """Do what ``write`` says; return a pipe with the bytes that were read and could not be written, None if all were."""
        header = corefile.Header()
        buffer = bytearray(holes.BLOCK)
        view = memoryview(buffer)
        poll = select.poll()
        poll.register(source.descriptor, select.POLLIN)
        stored, ended = 0, False
        while not ended:
            filled = 0
            while filled < holes.BLOCK and not ended:
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    self.stopped = LATE
                    ended = True
                    break
                count = posix.readv(source.descriptor, [view[filled:]])
                ended = source.drained = count == 0
                filled += count
            if header.wanted:
                header.add(bytes(view[:filled]))
                self.length = header.length
            try:
                for begin, end in holes.runs(buffer, filled):
                    if stored + end - begin > self.room:
                        self._claim_more(stored + end - begin - self.room)
                    _pwrite(self.file, view[begin:end], self.size + begin)
                    stored += end - begin
            except OSError as error:
                self.stopped = str(error.strerror)
                try:
                    return _pipe_with(view[:filled])
                except OSError:
                    # What comes after a gap is of no use.
                    self.stopped = LOST
                    return None
            self.size += filled
        return None

    def _claim_more(self, missing: int) -> None:
        """Have room for ``missing`` bytes more than was expected, or for a step. Raises OSError where there is none.

        What a process has in memory is not all that is dumped: files that it has mapped, and huge pages.
        """
        with self.store.lock:
            room = room_for(self.store, self.group_name, missing, self.configuration, begun=True)
            if room < missing:
                raise OSError(ENOSPC, f"{self.store.path} has no room for more")
            self.room += min(room, max(missing, STEP))
            self._claim(self.room)

    def _claim(self, expected: int) -> None:
        """Have the name of the file say how many bytes the core may take. Raises OSError."""
        part = f".{self.key}.{expected}{store.PART}"
        self._rename(self.part, part)
        self.part = part

    def announce(self, facts: "dict[str, object]") -> None:
        """Have the core stay with these ``facts`` if this helper is killed. Raises OSError."""
        store.announce(self.group, self.key, facts)

    def seal(self, facts: "dict[str, object]") -> None:
        """Have the core stay: on the disk, and listed with its ``facts``, which another call replaces. Raises OSError."""
        if self.part != self.key + store.CORE:
            posix.fsync(self.file)
            self._rename(self.part, self.key + store.CORE)
            self.part = self.key + store.CORE
        self._describe({**facts, "file": self.part})

    def finish_later(self, source: "KernelPipe", crash: "Crash") -> None:
        """Have another process finish what is kept, when the faulting process is gone: nobody waits for that. Raises OSError.

        It does not wait for long: a process that another one traces may stay for ever. Only one process waits, and looks at the
        cores of all after that.
        """
        if posix.fork():
            return
        try:
            posix.setsid()
            source.close()
            # All that will be written of it is there. Whoever waits already looks at it after that.
            fcntl.flock(self.file, fcntl.LOCK_UN)
            turn = self.store.turn(store.WAITING)
            if turn is None:
                return
            if crash.handle is not None:
                poll = select.poll()
                poll.register(crash.handle, select.POLLIN)
                poll.poll(PATIENCE * 1000)
            posix.close(turn)
            from core_helper import finishing

            finishing.finish_all(self.store, self.configuration)
        finally:
            posix._exit(0)

    def _describe(self, facts: "dict[str, object]") -> None:
        """Write the JSON file of the core, or replace it. Raises OSError."""
        with self.store.lock:
            # Where somebody has deleted it meanwhile, a note alone would be listed.
            posix.stat(self.part, dir_fd=self.group, follow_symlinks=False)
            store.describe(self.group, self.key, facts)

    def _rename(self, old: str, new: str) -> None:
        posix.rename(old, new, src_dir_fd=self.group, dst_dir_fd=self.group)

    def is_there(self) -> bool:
        """Tell whether the file of the core is still in the store."""
        try:
            posix.stat(self.part, dir_fd=self.group, follow_symlinks=False)
        except OSError:
            return False
        return True

    def is_all(self) -> bool:
        """Tell whether all that there will ever be of the core is in the file."""
        return not self.stopped or self.late

    def truncated(self) -> bool:
        """Tell whether a part is missing: because the process was killed while the kernel dumped it, or for want of room."""
        return bool(self.stopped) or self.size < (self.length or 1)

    def facts(self) -> "dict[bytes, bytes]":
        """Return the variables that the delegate gets beside the facts of the crash."""
        if not self.is_all():
            return {}
        return {b"CORE_SIZE": b"%d" % self.size, b"CORE_TRUNCATED": b"1" if self.truncated() else b"0"}

    def drop(self) -> None:
        """Delete the core: a destination has it."""
        entry = store.Entry(self.group_name, self.key)
        entry.files = [self.part, self.key + store.JSON, self.key + store.PENDING]
        self.store.delete(entry)


def _enlarge(pipe: int) -> None:
    linux.set_pipe_size(pipe, linux.PIPE_SIZE)


def _pwrite(file: int, view: memoryview, offset: int) -> None:
    while view:
        count = posix.pwrite(file, view, offset)
        view, offset = view[count:], offset + count


def _pipe_with(content: memoryview) -> int:
    """Return the reading end of a pipe that has this ``content``, of holes.BLOCK bytes at most. Raises OSError."""
    reading, writing = posix.pipe()
    posix.set_blocking(writing, False)
    try:
        _enlarge(writing)
        while content:
            content = content[posix.write(writing, content) :]
    except OSError:
        posix.close(reading)
        raise
    finally:
        posix.close(writing)
    return reading

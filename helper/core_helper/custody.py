"""Custody: a core is written to the host before any destination gets it, and stays there if none takes it.

While the kernel dumps, nothing runs in the container that could make the kernel stop, such as a delegate that uses up the
memory of the container. Imported only where the administrator wants cores to be kept.
"""

import fcntl
import posix
import select
import time
from _signal import SIGPIPE, SIGXFSZ

from core_helper import corefile, linux, procfs, runtime, store
from core_helper.key import key_of
from core_helper.source import KeptFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.configuration import Configuration
    from core_helper.crash import Crash
    from core_helper.process import FaultingProcess
    from core_helper.source import KernelPipe

BLOCK = 1 << 18
PAGE = 1 << 12
STEP = 1 << 26  # By so many bytes a core may take more than was expected, at a time.
ZEROS, ZERO_PAGE = bytes(BLOCK), bytes(PAGE)
# Beside its memory, a core has headers, and notes about each thread and each mapped file; fs/binfmt_elf.c.
NOTES = 1 << 22
MODE = 0o600
ENOSPC = 28
LATE = "the deadline has passed while the kernel dumped it"
HASHED = 1 << 20
COMPRESSORS = ("/usr/bin/zstd", "/bin/zstd", "/usr/local/bin/zstd")
IDLE = 19  # nice(2)
PATIENCE = 10  # Seconds.
SPARE = 1 << 16  # For JSON files.


def take(crash: "Crash", process: "FaultingProcess", configuration: "Configuration") -> "Custody":
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
        # What others leave to this core: they count it, and not what is free besides.
        self.room = need
        kept_in.lock()
        try:
            room = kept_in.room_for(group, need, configuration)
            if room < need:
                raise store.Unusable(
                    f"{kept_in.path} has room for {max(0, room)} bytes, and the core may take {need}: not kept; raise"
                    " docker_core_helper_keep_max, or make room"
                )
            self.group = kept_in.group(group)
            self.part = f".{key}.{need}{store.PART}"
            self.file = _create(self.group, self.part)
        finally:
            kept_in.unlock()

    def write(self, source: "KernelPipe", deadline: float) -> None:
        """Write what the kernel dumps, until its end or ``deadline``. From then on ``source`` is where destinations read it.

        Zeros are not stored. If the disk or the bound is full, the rest stays with the kernel. ``stopped`` says so.
        """
        leftover = None
        try:
            _enlarge(source.descriptor)
            leftover = self._copy(source, deadline)
            posix.ftruncate(self.file, self.size)
            # What it has not taken is for others.
            self.store.lock()
            try:
                self._claim(0)
            finally:
                self.store.unlock()
        except OSError as error:
            # No byte was read and not written: _copy has seen to that.
            self.stopped = str(error.strerror)
        self.late = self.stopped == LATE
        rest = [] if leftover is None else [leftover]
        if not source.drained and not self.late:
            rest.append(source.descriptor)
        self.source = KeptFile(source, self.file, rest)

    def _copy(self, source: "KernelPipe", deadline: float) -> "int | None":
        """Do what ``write`` says; return a pipe with the bytes that were read and could not be written, None if all were."""
        header = corefile.Header()
        buffer = bytearray(BLOCK)
        view = memoryview(buffer)
        poll = select.poll()
        poll.register(source.descriptor, select.POLLIN)
        stored, ended = 0, False
        while not ended:
            filled = 0
            while filled < BLOCK and not ended:
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
                for begin, end in runs(buffer, filled):
                    if stored + end - begin > self.room:
                        self._claim_more(stored + end - begin - self.room)
                    _pwrite(self.file, view[begin:end], self.size + begin)
                    stored += end - begin
            except OSError as error:
                self.stopped = str(error.strerror)
                return _pipe_with(view[:filled])
            self.size += filled
        return None

    def _claim_more(self, missing: int) -> None:
        """Have room for ``missing`` bytes more than was expected, or for a step. Raises OSError where there is none.

        What a process has in memory is not all that is dumped: files that it has mapped, and huge pages.
        """
        self.store.lock()
        try:
            room = self.store.room_for(self.group_name, missing, self.configuration)
            if room < missing:
                raise OSError(ENOSPC, f"{self.store.path} has no room for more")
            self.room += min(room, max(missing, STEP))
            self._claim(self.room)
        finally:
            self.store.unlock()

    def _claim(self, expected: int) -> None:
        """Have the name of the file say how many bytes the core may take. Raises OSError."""
        part = f".{self.key}.{expected}{store.PART}"
        self._rename(self.part, part)
        self.part = part

    def seal(self, facts: "dict[str, object]") -> None:
        """Have the core stay: on the disk, and listed with its ``facts``, which another call replaces. Raises OSError."""
        if self.part != self.key + store.CORE:
            posix.fsync(self.file)
            self._rename(self.part, self.key + store.CORE)
            self.part = self.key + store.CORE
        self._describe({**facts, "file": self.part})

    def finish_later(self, source: "KernelPipe", crash: "Crash") -> None:
        """Have another process finish what is kept, when the faulting process is gone: nobody waits for that. Raises OSError.

        It does not wait for long: a process that another one traces may stay for ever.
        """
        if posix.fork():
            return
        try:
            posix.setsid()
            posix.nice(IDLE)
            source.close()
            if crash.handle is not None:
                poll = select.poll()
                poll.register(crash.handle, select.POLLIN)
                poll.poll(PATIENCE * 1000)
            # All that will be written of it is there.
            fcntl.flock(self.file, fcntl.LOCK_UN)
            finish_all(self.store, self.configuration)
        finally:
            posix._exit(0)

    def _describe(self, facts: "dict[str, object]") -> None:
        """Write the JSON file of the core, or replace it. Raises OSError."""
        self.store.lock()
        try:
            _describe(self.group, self.key, facts)
        finally:
            self.store.unlock()

    def _rename(self, old: str, new: str) -> None:
        posix.rename(old, new, src_dir_fd=self.group, dst_dir_fd=self.group)

    def is_all(self) -> bool:
        """Tell whether all that there will ever be of the core is in the file."""
        return not self.stopped or self.late

    def truncated(self) -> bool:
        """Tell whether a part is missing: because the process was killed while the kernel dumped it, or for want of room."""
        return bool(self.stopped) or self.size < (self.length or 1)

    def facts(self) -> "dict[bytes, bytes]":
        """Return what the delegate is told beside the facts of the crash."""
        if not self.is_all():
            return {}
        return {b"CORE_SIZE": b"%d" % self.size, b"CORE_TRUNCATED": b"1" if self.truncated() else b"0"}

    def drop(self) -> None:
        """Delete the core: a destination has it."""
        entry = store.Entry(self.group_name, self.key)
        entry.files = [self.part, self.key + store.JSON]
        self.store.delete(entry)


def finish_all(kept_in: store.Store, configuration: "Configuration") -> None:
    """Finish each core that nobody has finished yet: one process at a time, whatever the number of crashes. Raises OSError."""
    tried: set[str] = set()
    while unfinished := [entry for entry in _unfinished(kept_in) if entry.key not in tried]:
        turn = kept_in.turn()
        if turn is None:
            return  # Whoever has the turn looks once more when it has given that up.
        try:
            for entry in unfinished:
                tried.add(entry.key)
                try:
                    _finish(kept_in, entry, configuration)
                except OSError:
                    # Deleted meanwhile. Or it stays as it is.
                    kept_in.forget_group(entry.group)
        finally:
            posix.close(turn)


def _unfinished(kept_in: store.Store) -> "list[store.Entry]":
    """Return the listed cores that are neither compressed nor have a checksum, and that no helper holds any more."""
    kept_in.lock()
    try:
        return [
            entry
            for entry in kept_in.entries()
            if entry.whole
            and entry.key + store.COMPRESSED not in entry.files
            and not _has_checksum(kept_in, entry)
            and not kept_in.is_held(entry)
        ]
    finally:
        kept_in.unlock()


def _has_checksum(kept_in: store.Store, entry: store.Entry) -> bool:
    try:
        return "sha256" in _known_of(kept_in, entry)
    except (OSError, ValueError):
        return True  # Nothing can be done about it.


def _known_of(kept_in: store.Store, entry: store.Entry) -> "dict[str, object]":
    """Return what the JSON file of a core says. Raises OSError where it is gone."""
    import json

    group = kept_in.group(entry.group)
    try:
        file = posix.open(entry.key + store.JSON, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=group)
        try:
            known: dict[str, object] = json.loads(procfs.read_all(file))
        finally:
            posix.close(file)
    finally:
        posix.close(group)
    return known


def _finish(kept_in: store.Store, entry: store.Entry, configuration: "Configuration") -> None:
    """Compress a core, and add its checksum and build ids to what is known of it. Raises OSError."""
    from core_helper import build_ids

    group = kept_in.group(entry.group)
    plain, compressed = entry.key + store.CORE, entry.key + store.COMPRESSED
    part, file, result = "", -1, -1
    try:
        file = posix.open(plain, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=group)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # Its helper has ended.
        identified = build_ids.of_core(file)
        posix.lseek(file, 0, linux.SEEK_SET)
        program = next((path for path in COMPRESSORS if posix.access(path, posix.X_OK)), None)
        if program is not None:
            kept_in.lock()
            try:
                # While both are there, they take room. What does not become smaller stays plain.
                limit = min(kept_in.room(configuration) - SPARE, posix.fstat(file).st_blocks * store.BLOCK)
                if limit > PAGE:
                    part = f".{compressed}.{limit}{store.PART}"
                    result = _create(group, part)
            finally:
                kept_in.unlock()
        if program is None or result < 0:
            checksum, done = _checksum(file), False
        else:
            checksum, done = _compress(file, result, program, limit)
        kept_in.lock()
        try:
            known = {**_known_of(kept_in, entry), "sha256": checksum, "build_ids": identified}
            if done:
                posix.rename(part, compressed, src_dir_fd=group, dst_dir_fd=group)
                part = ""
                known["file"] = compressed
            _describe(group, entry.key, known)
            if done:
                posix.unlink(plain, dir_fd=group)
        finally:
            kept_in.unlock()
    finally:
        if part:
            posix.unlink(part, dir_fd=group)
        for descriptor in (group, file, result):
            if descriptor >= 0:
                posix.close(descriptor)


def _checksum(file: int) -> str:
    import hashlib

    digest = hashlib.sha256()
    while block := posix.read(file, HASHED):
        digest.update(block)
    return digest.hexdigest()


def _compress(file: int, result: int, program: str, limit: int) -> "tuple[str, bool]":
    """Have the ``program`` compress ``file`` to at most ``limit`` bytes; return the checksum and whether it did."""
    import hashlib

    digest = hashlib.sha256()
    reading, writing = posix.pipe()
    actions = [(posix.POSIX_SPAWN_DUP2, reading, 0), (posix.POSIX_SPAWN_DUP2, result, 1)]
    soft, hard = linux.getrlimit(linux.RLIMIT_FSIZE)
    linux.setrlimit(linux.RLIMIT_FSIZE, limit, hard)
    pid = posix.posix_spawn(
        program, [program, "-q", "-c", "-1"], {}, file_actions=actions, setsigdef=[SIGPIPE, SIGXFSZ]
    )
    linux.setrlimit(linux.RLIMIT_FSIZE, soft, hard)
    posix.close(reading)
    takes = True
    try:
        while block := posix.read(file, HASHED):
            digest.update(block)
            while takes and block:
                try:
                    block = block[posix.write(writing, block) :]
                except BrokenPipeError:
                    takes = False
    finally:
        posix.close(writing)
    done = posix.waitpid(pid, 0)[1] == 0
    if done:
        posix.fsync(result)
    return digest.hexdigest(), done


def _create(group: int, name: str) -> int:
    """Create the file ``name`` in the opened directory ``group``, and lock it. Raises OSError."""
    file = posix.open(
        name, posix.O_RDWR | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC, MODE, dir_fd=group
    )
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _describe(group: int, key: str, facts: "dict[str, object]") -> None:
    """Write the JSON file of a core, or replace it, while the store is locked. Raises OSError."""
    import json

    name = f".{key}{store.JSON}{store.PART}"
    file = _create(group, name)
    try:
        posix.write(file, json.dumps(facts, indent=1, sort_keys=True).encode() + b"\n")
        posix.fsync(file)
        posix.rename(name, key + store.JSON, src_dir_fd=group, dst_dir_fd=group)
        posix.fsync(group)
    finally:
        posix.close(file)


def runs(buffer: bytearray, length: int) -> "list[tuple[int, int]]":
    """Return begin and end of each run of pages in the first ``length`` bytes that are not all zero."""
    if buffer == ZEROS:
        return []
    found: list[tuple[int, int]] = []
    begin = None
    # A page whose first byte is not zero need not be looked at.
    for number, first in enumerate(buffer[:length:PAGE]):
        page = number * PAGE
        if first or not ZERO_PAGE.startswith(buffer[page : min(page + PAGE, length)]):
            if begin is None:
                begin = page
        elif begin is not None:
            found.append((begin, page))
            begin = None
    if begin is not None:
        found.append((begin, length))
    return found


def _enlarge(pipe: int) -> None:
    linux.set_pipe_size(pipe, linux.PIPE_SIZE)


def _pwrite(file: int, view: memoryview, offset: int) -> None:
    while view:
        count = posix.pwrite(file, view, offset)
        view, offset = view[count:], offset + count


def _pipe_with(content: memoryview) -> int:
    """Return the reading end of a pipe that has this ``content``, of BLOCK bytes at most. Raises OSError."""
    reading, writing = posix.pipe()
    _enlarge(writing)
    posix.set_blocking(writing, False)
    posix.write(writing, content)
    posix.close(writing)
    return reading

"""Finishes the cores that stay on the host: compresses each, and notes its checksum and its build ids; flock(2), zstd(1).

One process does that for all, when the faulting processes are gone: nobody waits for it. Imported only in that process. It
takes the lock of the store, for which helpers wait, so it has the ordinary priority. The work has the lowest, in a child.
"""

import fcntl
import posix
from _signal import SIGPIPE, SIGXFSZ

from core_helper import build_ids, holes, linux, privileges, procfs, store
from core_helper.room import room_left

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from core_helper.configuration import Configuration

HASHED = 1 << 20
COMPRESSORS = ("/usr/bin/zstd", "/bin/zstd", "/usr/local/bin/zstd")
EIO = 5
SPARE = 1 << 16  # For JSON files.
COST = 1 << 24  # To finish the smallest core takes as long as to read so many bytes.


def finish_all(kept_in: store.Store, configuration: "Configuration") -> None:
    """Finish each core that nobody has finished yet: one process at a time, whatever the number of crashes. Raises OSError."""
    tried: set[str] = set()
    read: dict[str, int] = {}
    while unfinished := [entry for entry in _unfinished(kept_in) if entry.key not in tried]:
        turn = kept_in.turn(store.FINISHING)
        if turn is None:
            return  # Whoever has the turn looks once more when it has given that up.
        # The smallest one: a core of nothing but holes may have terabytes, all of which are read. What was read for a group
        # counts, too: one that crashes in a loop must not keep others waiting.
        entry = min(unfinished, key=lambda entry: read.get(entry.group, 0) + entry.size)
        read[entry.group] = read.get(entry.group, 0) + entry.size + COST
        tried.add(entry.key)
        try:
            _finish(kept_in, entry, configuration)
        except (OSError, ValueError):
            # Deleted meanwhile. Or nobody can read what is known of it. Or it stays as it is.
            kept_in.forget_group(entry.group)
        finally:
            posix.close(turn)


def _unfinished(kept_in: store.Store) -> "list[store.Entry]":
    """Return the listed cores that nobody has finished, and that no helper holds any more."""
    with kept_in.lock:
        return [
            entry for entry in kept_in.entries() if entry.whole and not entry.finished and not kept_in.is_held(entry)
        ]


def _finish(kept_in: store.Store, entry: store.Entry, configuration: "Configuration") -> None:
    """Compress a core, and add its checksum and build ids to what is known of it. Raises OSError, or ValueError.

    Those say that the core stays as it is, and nothing about others.
    """
    group = kept_in.group(entry.group)
    plain, compressed = entry.key + store.CORE, entry.key + store.COMPRESSED
    part, file, result = "", -1, -1
    try:
        file = posix.open(plain, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=group)
        # Its helper has ended. This lock keeps senders away, and lets the core make room for others.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        program = next((path for path in COMPRESSORS if posix.access(path, posix.X_OK)), None)
        if program is not None:
            with kept_in.lock:
                # While both are there, they take room. What does not become smaller stays plain.
                limit = min(room_left(kept_in, configuration) - SPARE, posix.fstat(file).st_blocks * store.BLOCK)
                if limit > holes.PAGE:
                    part = f".{compressed}.{limit}{store.PART}"
                    result = store.create_file(group, part)
        if program is None or result < 0:
            found, done = _apart(lambda: _look(file)), False
        else:
            compressor = program
            found = _apart(lambda: _look(file, lambda: _compress(file, result, compressor, limit)))
            done = bool(found.pop("done"))
        with kept_in.lock:
            known = {**kept_in.known_of(entry), **found}
            if done:
                posix.rename(part, compressed, src_dir_fd=group, dst_dir_fd=group)
                part = ""
                known["file"] = compressed
            store.describe(group, entry.key, known)
            posix.fchmod(result if done else file, store.MODE_WHEN_FINISHED)
            if done:
                posix.unlink(plain, dir_fd=group)
    finally:
        if part:
            posix.unlink(part, dir_fd=group)
        for descriptor in (group, file, result):
            if descriptor >= 0:
                posix.close(descriptor)


def _look(file: int, compress: "Callable[[], tuple[str, bool]] | None" = None) -> "dict[str, object]":
    """Return build ids and checksum of the core, and, where there is something to ``compress``, whether that was done."""
    found: dict[str, object] = {"build_ids": build_ids.of_core(file)}
    posix.lseek(file, 0, linux.SEEK_SET)
    if compress is None:
        return {**found, "sha256": _checksum(file)}
    checksum, done = compress()
    return {**found, "sha256": checksum, "done": done}


def _apart(work: "Callable[[], dict[str, object]]") -> "dict[str, object]":
    """Return what the ``work`` returns in a child of the lowest priority. Raises OSError or ValueError if the child fails."""
    import json

    reading, writing = posix.pipe()
    pid = posix.fork()
    if pid == 0:
        status = 1
        try:
            posix.close(reading)
            posix.setsid()
            privileges.step_back()
            store._write_all(writing, json.dumps(work()).encode())
            status = 0
        finally:
            posix._exit(status)
    try:
        posix.close(writing)
        answer = procfs.read_all(reading, store.LONGEST_JSON)
    finally:
        posix.close(reading)
        status = posix.waitpid(pid, 0)[1]
    if status:
        raise OSError(EIO, "the process that reads the core has failed")
    found: dict[str, object] = json.loads(answer)
    return found


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

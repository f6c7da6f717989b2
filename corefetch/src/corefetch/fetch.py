"""Brings a core from its store to a file: in parts that a later run goes on with, compared with its checksum, with holes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from corefetch import packing
from corefetch.errors import Exit, Failure, Interrupted
from corefetch.facts import Core
from corefetch.stores import Directory, Store
from corefetch.text import encoded, plain

BLOCK = 1 << 20
MODE = 0o600
NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
# Left free on a disk, or a twentieth of it where that is less: a core may unpack to any size.
FREE, PART_FREE = 1 << 30, 20
BY_OUTPUT = "say another place by --output"
# Tells how many bytes have come, and of how many.
Progress = Callable[[str, int, int], None]


@dataclass
class Fetched:
    """A core that is here."""

    path: Path
    size: int
    sha256: str
    verified: bool
    damaged: bool = False


def fetch(
    store: Store, core: Core, path: Path, progress: Progress, unpack: bool = True, elsewhere: str = BY_OUTPUT
) -> Fetched:
    """Bring a core to ``path``. What has come stays in a hidden file beside it until all is here.

    A file of this machine is read again in place of that. ``elsewhere`` says how the user names another place. Raises
    Failure, and Interrupted, which says what stays.
    """
    local = store.local(core.path)
    part = _part_of(core, path)
    try:
        if isinstance(store, Directory):
            with store.opened(core.path) as source:
                return _finish(source.fileno(), core, path, progress, unpack)
        file = os.open(part, NEW_FILE, MODE)
        try:
            _lock(file, part, elsewhere)
            _complete(store, core, file, progress)
            try:
                done = _finish(file, core, path, progress, unpack)
            except Failure as failure:
                if failure.code == Exit.DAMAGED:
                    part.unlink(missing_ok=True)
                raise
            part.unlink(missing_ok=True)
            return done
        finally:
            os.close(file)
    except OSError as error:
        stays = "" if local else ": what has come stays"
        remedy = f"make room, and run again{stays}" if error.errno == errno.ENOSPC else elsewhere
        raise Failure(f"{plain(str(error.filename or path))}: {error.strerror}", remedy) from None
    except KeyboardInterrupt:
        raise Interrupted(_what_stays(part, core, local)) from None


def pour(store: Store, core: Core, target: BinaryIO, progress: Progress, unpack: bool = True) -> Fetched:
    """Write a core to where nothing can be taken back, and compare its checksum at the end. Raises Failure or OSError."""
    digest, size, read, damaged = hashlib.sha256(), 0, 0, False

    def counted(blocks: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal read
        for block in blocks:
            read += len(block)
            progress("fetching", read, core.stored)
            yield block

    with closing(store.blocks(core.path)) as blocks:  # type: ignore[type-var]
        try:
            for block in packing.unpack(core.name.packed if unpack else "", counted(blocks)):
                target.write(block)
                digest.update(block)
                size += len(block)
        except packing.Damaged:
            damaged = not core.truncated
    target.flush()
    verified = bool(core.sha256) and unpack and not core.truncated and not damaged
    if verified and digest.hexdigest() != core.sha256:
        raise _wrong(core, digest.hexdigest())
    return Fetched(Path("-"), size, digest.hexdigest(), verified, damaged)


def _wrong(core: Core, found: str) -> Failure:
    """Return the failure of a core with another checksum."""
    return Failure(
        f"{plain(core.path)}: its checksum is wrong: {found} in place of {core.sha256}",
        "run again; if it is wrong again, the store has another core than the host had",
        Exit.DAMAGED,
    )


def _what_stays(part: Path, core: Core, local: Path | None) -> str:
    """Return what a later run has of one that was interrupted."""
    if local is not None:
        return f"{local} was read, and nothing is written: the next run reads it again"
    done = part.stat().st_size if part.exists() else 0
    if not done:
        return "nothing of the core has come yet"
    return f"{done} of {core.stored} bytes are in {part}: the same command goes on there"


def _part_of(core: Core, path: Path) -> Path:
    """Return the name of what has come: another one for another object, or for another content of the same."""
    return path.with_name(f".{path.name[-200:]}.{hashlib.sha256(encoded(core.version)).hexdigest()[:12]}.part")


def _lock(file: int, part: Path, elsewhere: str) -> None:
    """Make sure that the file is the user's own, and that nobody else brings the same core. Raises Failure."""
    found = os.fstat(file)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        # Whoever has created it, in a directory for all, could read there what a core holds.
        raise Failure(f"{part}: not the user's alone", f"delete it, or {elsewhere}")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failure(f"{part}: another corefetch is bringing this core", "wait for it") from None


def _complete(store: Store, core: Core, file: int, progress: Progress) -> None:
    """Append what is missing. Raises Failure or OSError."""
    done = os.fstat(file).st_size
    if done > core.stored:
        os.ftruncate(file, 0)
        done = 0
    progress("fetching", done, core.stored)
    if done < core.stored:
        with closing(store.blocks(core.path, done)) as blocks:  # type: ignore[type-var]
            for block in blocks:
                _put(file, block, done)
                done += len(block)
                progress("fetching", done, core.stored)
    if done != core.stored:
        raise Failure(
            f"{plain(core.path)}: {done} of {core.stored} bytes have come",
            "run again: it goes on there",
            Exit.UNREACHABLE,
        )


def _put(file: int, block: bytes, offset: int) -> None:
    """Write ``block`` at the end of a file, unless that leaves too little room to others. Raises OSError."""
    disk = os.fstatvfs(file)
    least = min(FREE, disk.f_blocks * disk.f_frsize // PART_FREE)
    if disk.f_bavail * disk.f_frsize < least + len(block):
        raise OSError(errno.ENOSPC, f"no more than {least >> 20} MiB of the disk are left, which others may need")
    packing.put(file, block, offset)


def _blocks(file: int) -> Iterator[bytes]:
    """Yield the content of a file."""
    offset = 0
    while block := os.pread(file, BLOCK, offset):
        yield block
        offset += len(block)


def _finish(source: int, core: Core, path: Path, progress: Progress, unpack: bool) -> Fetched:
    """Unpack the core, compare its checksum, and give it its name. Raises Failure or OSError."""
    new = path.with_name(f".{path.name[-200:]}.{os.getpid()}.new")
    file = os.open(new, NEW_FILE | os.O_EXCL, MODE)
    try:
        digest, size, read, damaged = hashlib.sha256(), 0, 0, False

        def counted() -> Iterator[bytes]:
            nonlocal read
            for block in _blocks(source):
                read += len(block)
                progress("unpacking" if core.name.packed and unpack else "comparing", read, core.stored)
                yield block

        try:
            for block in packing.unpack(core.name.packed if unpack else "", counted()):
                _put(file, block, size)
                digest.update(block)
                size += len(block)
        except packing.Damaged as error:
            # The part of a core that was cut off may be of use, the rest of what is damaged is not.
            damaged = True
            if not size:
                raise Failure(
                    f"{plain(core.path)}: {plain(str(error))}",
                    "corefetch get --packed fetches it as it is",
                    Exit.DAMAGED,
                ) from None
        verified = bool(core.sha256) and unpack and not core.truncated and not damaged
        if verified and digest.hexdigest() != core.sha256:
            raise _wrong(core, digest.hexdigest())
        os.fsync(file)
        damaged = damaged and not core.truncated
        final = path.with_name(f"{path.name}.truncated") if damaged else path
        os.replace(new, final)
        return Fetched(final, size, digest.hexdigest(), verified, damaged)
    finally:
        os.close(file)
        new.unlink(missing_ok=True)

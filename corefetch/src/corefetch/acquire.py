"""From the words of the command line to a core, and from a core to a file on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from corefetch import keys, ui
from corefetch.cache import Cache
from corefetch.clients import open_store
from corefetch.config import Settings
from corefetch.errors import Exit, Failure, NoSuchCore
from corefetch.facts import Core, of_entry
from corefetch.fetch import Fetched, fetch
from corefetch.learn import Student
from corefetch.listing import find
from corefetch.stores import Directory, Store
from corefetch.text import harmless, plain

BY_CACHE = "name another cache by COREFETCH_CACHE"
MAGIC = {b"\x28\xb5\x2f\xfd": ".zst", b"\x1f\x8b": ".gz"}


def resolve(
    settings: Settings, cache: Cache, source: str | None, words: str, delete: bool = False
) -> tuple[Student, Core]:
    """Return the core that is meant, and the student of its store. With ``delete``, nothing is guessed. Raises Failure."""
    if "://" in words:
        url, _, name = words.rpartition("/")
        bucket = open_store(url, settings.options)
        entry = bucket.stat(name)
        core = of_entry(entry) if entry else None
        if core is None:
            raise Failure(f"{plain(words)}: no core", "see corefetch list", Exit.NOT_FOUND)
        return Student(bucket, cache), core
    file = Path(words)
    # Of any other word, such as one that is too long for a name, Path.is_file raises OSError.
    here = os.path.isfile(file)
    # A file with the name of a core is what get has brought: it need not come again.
    plainly = "/" in words or not settings.named(source) or (keys.name_of(words) is not None and not delete)
    if here and plainly:
        return local(file, cache)
    student = Student(settings.store(source), cache)
    other = f"./{plain(words)} is the file of that name here"
    try:
        core = find(student, words)
    except Failure as failure:
        if not here:
            raise
        if isinstance(failure, NoSuchCore) and not delete:
            return local(file, cache)
        raise Failure(f"{failure}; {other}", "", failure.code) from None
    finally:
        if student.store.problem:
            ui.say(str(student.store.problem))
    if here:
        ui.say(f"{plain(core.path)} of the store is meant; {other}")
    return student, core


def local(path: Path, cache: Cache) -> tuple[Student, Core]:
    """Return the core in a file of any name. Raises Failure."""
    store = Directory(path.absolute().parent, named=path.name)
    entry = store.stat(path.name)
    if entry is None:
        raise Failure(f"{path}: no file", "", Exit.NOT_FOUND)
    core = of_entry(entry)
    if core is None:
        try:
            with open(path, "rb") as file:
                begin = file.read(4)
        except OSError as error:
            raise Failure(f"{path}: {error.strerror}", "ask its owner, or become root", Exit.DENIED) from None
        packed = next((ending for magic, ending in MAGIC.items() if begin.startswith(magic)), "")
        size = None if packed else entry.size
        core = Core(path.name, keys.Name(path.name, path.name, packed, False), entry.size, entry.modified, size=size)
    return Student(store, cache), core


def obtain(
    store: Store, core: Core, cache: Cache, settings: Settings, progress: Callable[[str, int, int], None]
) -> Path:
    """Return an unpacked file of the core: itself if it is one, else one in the cache. Raises Failure."""
    here = store.local(core.path)
    if here is not None and not core.name.packed:
        return here
    path = cache.of_core(store.url, core.version, f"{harmless(core.key)}.core")
    cut = path.with_name(f"{path.name}.truncated")
    for kept in (path, cut):
        if kept.is_file():
            with suppress(OSError):
                # What was used last is kept longest, unless the cache can only be read.
                os.utime(kept)
            return kept
    cache.directory(*path.parent.relative_to(cache.path).parts)
    fetched = fetch(store, core, path, progress, elsewhere=BY_CACHE)
    cache.make_room(settings.cache_max, fetched.path)
    if fetched.damaged:
        ui.say(f"{plain(core.path)}: its end is missing, what is there is shown")
    return fetched.path


def place_for(output: str | None, core: Core, unpack: bool) -> Path:
    """Return the file that ``get`` writes."""
    name = f"{core.key}.core{'.truncated' if core.truncated else ''}" if unpack else core.path.rpartition("/")[2]
    name = harmless(name)
    if not output:
        return Path(name)
    path = Path(output).expanduser()
    return path / name if output.endswith("/") or os.path.isdir(path) else path


__all__ = ["Fetched", "local", "obtain", "place_for", "resolve"]

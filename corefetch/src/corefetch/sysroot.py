"""Gathers the program and the libraries of a core, each compared with the core by its build id.

The debugger gets a directory that looks like the root of the container, as far as the process had mapped it. Its files are
links into the cache, where each file lies by its build id. Nothing that a core says becomes a path outside of that directory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from corefetch import engine, paths, symbols
from corefetch.cache import Cache
from corefetch.debuginfod import Servers
from corefetch.elfcore import CoreFacts
from corefetch.errors import Failure
from corefetch.text import plain

BLOCK = 1 << 20
LARGEST = 8 << 30
AT_ONCE = 8
DEBUG = "usr/lib/debug"


@dataclass
class Mapped:
    """A file that the process had mapped."""

    path: str
    build_id: str
    file: Path | None = None
    source: str = ""
    debug: Path | None = None
    debug_source: str = ""
    contents: symbols.Contents = field(default_factory=symbols.Contents)
    others: dict[str, str] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """What the debugger can make of it: ``lines``, ``functions``, ``stripped``, ``mismatch`` or ``missing``."""
        if self.file is None:
            return "mismatch" if self.others else "missing"
        if self.debug or self.contents.lines:
            return "lines"
        return "functions" if self.contents.symbols else "stripped"

    def use(self, file: Path, source: str) -> None:
        """Have ``file``, from that ``source``, stand for this one."""
        self.file, self.source, self.contents = file, source, symbols.read(file)

    def row(self) -> dict[str, str | None]:
        """Return what ``--json`` shows of it."""
        return {
            "path": self.path,
            "build_id": self.build_id or None,
            "state": self.state,
            "source": self.source or None,
            "debug_source": self.debug_source or None,
        }


@dataclass
class Sources:
    """Where files may come from."""

    sysroot: Path | None = None
    image: str = ""
    # Whether the user has named the image, and not the facts.
    named: bool = False
    engine: str = ""
    servers: Servers | None = None
    symbols: list[Path] = field(default_factory=list)
    here: bool = True


@dataclass
class Gathered:
    """What was found, and why the rest was not."""

    root: Path
    files: list[Mapped]
    problems: list[str]
    keep: bool = False

    @property
    def program(self) -> Mapped | None:
        """The program, which is the first file."""
        return self.files[0] if self.files else None

    def inside(self, path: str) -> Path:
        """Return the place of a file of the container."""
        return self.root / paths.safe(path)


@contextmanager
def gathered(
    said: CoreFacts, sources: Sources, cache: Cache, progress: Callable[[str], None] = lambda text: None
) -> Iterator[Gathered]:
    """Gather all files that the core maps, and remove the directory of links at the end. Raises Failure."""
    roots = cache.directory("roots")
    with cache.writing():
        root = Path(tempfile.mkdtemp(dir=roots, prefix="root."))
    found = Gathered(root, [Mapped(path, said.build_ids.get(path, "")) for path in said.files], [])
    try:
        _Gathering(found, sources, cache, progress).run()
        _link(found, said)
        yield found
    finally:
        if not found.keep:
            shutil.rmtree(root, ignore_errors=True)


class _Gathering:
    """One run through the sources, the nearest first."""

    def __init__(self, found: Gathered, sources: Sources, cache: Cache, progress: Callable[[str], None]) -> None:
        self.found = found
        self.sources = sources
        self.cache = cache
        self.progress = progress

    @property
    def lacking(self) -> list[Mapped]:
        """The files that are not found yet."""
        return [one for one in self.found.files if one.file is None]

    @property
    def poor(self) -> list[Mapped]:
        """The files of the cache that lack what another copy may have: strip(1) leaves the build id as it is."""
        return [
            one
            for one in self.found.files
            if one.source == "cache" and one.state in ("stripped", "functions") and not self.cached(one, "debuginfo")
        ]

    def cached(self, one: Mapped, kind: str) -> Path | None:
        """Return what the cache has of a file: from a debuginfod server, or from the image of this very core."""
        if not one.build_id:
            return None
        places = [
            self.cache.of_build_id(one.build_id, kind, image) for image in dict.fromkeys(("", self.sources.image))
        ]
        return next((place for place in places if symbols.is_of(place, one.build_id)), None)

    def run(self) -> None:
        """Ask all sources."""
        for one in self.lacking:
            if cached := self.cached(one, "executable"):
                one.use(cached, "cache")
        if self.sources.sysroot:
            self.from_sysroot(self.sources.sysroot)
        if self.sources.here:
            self.from_here()
        if self.sources.image:
            try:
                self.from_image(self.sources.image)
            except Failure as failure:
                self.found.problems.append(str(failure))
        if self.sources.servers:
            self.from_servers(self.sources.servers)
        self.find_debug()
        if self.sources.servers:
            for url, problem in self.sources.servers.problems.items():
                self.found.problems.append(f"{plain(url)}: {problem}: see DEBUGINFOD_URLS and the network")
            for url, ids in self.sources.servers.others.items():
                more = f" and of {len(ids) - 1} more" if len(ids) > 1 else ""
                self.found.problems.append(
                    f"{plain(url)}: what it sends is not of build id {ids[0][:12]}{more}: see whether DEBUGINFOD_URLS leads "
                    "to a debuginfod server, and whether the network wants a login"
                )

    def from_sysroot(self, root: Path) -> None:
        """Take files of a directory that has the container's files."""
        if not root.is_dir():
            self.found.problems.append(f"{root}: no such directory: correct --sysroot")
            return
        for one in self.lacking + self.poor:
            path = paths.resolve(root, one.path)
            if path:
                self.accept(one, path, "sysroot")

    def from_here(self) -> None:
        """Take files of this machine, if they are the very ones."""
        for one in self.lacking + self.poor:
            path = Path(one.path)
            if symbols.is_of(path, one.build_id):
                self.accept(one, path, "this machine")

    def accept(self, one: Mapped, path: Path, source: str) -> None:
        """Take a file if it is the right one, and says more than what is here."""
        known = symbols.read(path)
        if one.build_id and known.build_id != one.build_id:
            if one.file is None:
                one.others[source] = known.build_id or "none"
        elif one.file is None or known.says > one.contents.says:
            one.use(path, source)

    def from_image(self, name: str) -> None:
        """Copy files out of the image. Raises Failure."""
        # What an image did not have, it need not be asked for once more.
        wanted = self.lacking + [
            one for one in self.poor if self.sources.named or name not in self.cache.asked(one.build_id)
        ]
        if not wanted:
            return
        program = engine.choose(self.sources.engine)
        self.progress(f"copies files of image {name}")
        with engine.opened(program, name) as image:
            for one in wanted:
                path = self.copy(image, one.path, one.build_id or "unknown", "executable", one.build_id)
                if path:
                    self.accept(one, path, "image")
                if one.build_id and one.file and not one.contents.lines and not self.cached(one, "debuginfo"):
                    # An image may have its debug information where Debian's packages put it.
                    inside = f"/{DEBUG}/.build-id/{one.build_id[:2]}/{one.build_id[2:]}.debug"
                    self.copy(image, inside, one.build_id, "debuginfo", one.build_id)
                if one.build_id and one.file:
                    self.cache.note_asked(one.build_id, name)

    def copy(self, image: engine.Image, path: str, place: str, kind: str, build_id: str) -> Path | None:
        """Copy a file of the image into the cache if it is the right one, else beside the links; None if it is not there."""
        with image.open(path) as stream:
            if stream is None:
                return None
            with (
                self.cache.writing(),
                tempfile.NamedTemporaryFile(dir=self.found.root, prefix=".copied.", delete=False) as file,
            ):
                _copy(stream, file)
        copied = Path(file.name)
        known = symbols.read(copied)
        if not build_id or known.build_id != build_id:
            return copied
        kept = self.cache.of_build_id(place, kind, self.sources.image)
        if kept.is_file() and symbols.read(kept).says >= known.says:
            return copied
        self.cache.directory(*kept.parent.relative_to(self.cache.path).parts)
        with self.cache.writing():
            os.replace(copied, kept)
        return kept

    def from_servers(self, servers: Servers) -> None:
        """Ask for programs and libraries by their build ids."""
        wanted = [one for one in self.lacking if one.build_id]
        if not wanted or not servers.urls:
            return
        self.progress("asks debuginfod for files")
        for one, path in self._fetched(servers, wanted, "executable"):
            one.use(path, "debuginfod")

    def find_debug(self) -> None:
        """Find the debug information of files that have none themselves."""
        wanted = [one for one in self.found.files if one.build_id and not one.contents.lines]
        for one in wanted:
            if cached := self.cached(one, "debuginfo"):
                one.debug, one.debug_source = cached, "cache"
        self.from_directories([one for one in wanted if not one.debug])
        left = [one for one in wanted if not one.debug]
        servers = self.sources.servers
        if left and servers and servers.urls:
            self.progress("asks debuginfod for debug information")
            for one, path in self._fetched(servers, left, "debuginfo"):
                one.debug, one.debug_source = path, "debuginfod"

    def _fetched(self, servers: Servers, wanted: list[Mapped], kind: str) -> Iterator[tuple[Mapped, Path]]:
        """Ask for that ``kind`` of each, several at once; yield those that the servers have, and where the cache has it."""

        def fetch(one: Mapped) -> bool:
            try:
                return servers.fetch(one.build_id, kind)
            except Failure as failure:
                # The cache's own, such as a full disk: it is the same for all.
                if str(failure) not in self.found.problems:
                    self.found.problems.append(str(failure))
                return False

        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = pool.map(fetch, wanted)
            for one, there in zip(wanted, found, strict=True):
                if there:
                    yield one, self.cache.of_build_id(one.build_id, kind)

    def from_directories(self, wanted: list[Mapped]) -> None:
        """Look for separate files of debug information: by build id, or by any name in the directories of ``--symbols``."""
        by_id = {one.build_id: one for one in wanted}
        places = [
            *self.sources.symbols,
            *([self.sources.sysroot / DEBUG] if self.sources.sysroot else []),
            Path(f"/{DEBUG}"),
        ]
        for directory in places:
            for one in wanted:
                path = directory / ".build-id" / one.build_id[:2] / f"{one.build_id[2:]}.debug"
                if not one.debug and symbols.is_of(path, one.build_id):
                    one.debug, one.debug_source = path, str(directory)
        for directory in self.sources.symbols:
            if not directory.is_dir():
                self.found.problems.append(f"{directory}: no such directory: correct --symbols")
            if all(one.debug for one in wanted):
                return
            for base, _, names in os.walk(directory):
                for name in names:
                    path = Path(base, name)
                    known = symbols.read(path)
                    right = by_id.get(known.build_id)
                    if right and not right.debug and known.lines:
                        right.debug, right.debug_source = path, str(directory)


def _copy(stream: IO[bytes], file: IO[bytes]) -> None:
    """Copy a file. Raises Failure where it does not end."""
    done = 0
    while block := stream.read(BLOCK):
        done += len(block)
        if done > LARGEST:
            raise Failure("a file of the image is larger than 8 GiB", "say --sysroot DIRECTORY")
        file.write(block)


def _link(found: Gathered, said: CoreFacts) -> None:
    """Make the links: each file by its path and by the names that the loader has for it, and the debug information by id."""
    by_path = {one.path: one for one in found.files}
    for path, one in [
        *by_path.items(),
        *((name, by_path[target]) for name, target in said.links.items() if target in by_path),
    ]:
        # Below DEBUG, gdb also looks for programs of its own, and executes them as soon as anybody has added anything to its
        # auto-load safe-path.
        if one.file and not found.inside(path).is_relative_to(found.root / DEBUG):
            paths.symlink(one.file, found.inside(path))
    for one in found.files:
        if one.debug:
            paths.symlink(one.debug, found.root / DEBUG / ".build-id" / one.build_id[:2] / f"{one.build_id[2:]}.debug")

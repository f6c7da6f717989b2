"""The files that need not be fetched twice; only the user can read them, because cores hold secrets."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from corefetch.errors import Exit, Failure
from corefetch.text import encoded

MODE_OF_DIRECTORY = 0o700


class Cache:
    """A directory of the user's own."""

    def __init__(self, path: Path) -> None:
        """Take the directory; it comes into being when something is put there."""
        self.path = path.absolute()

    def directory(self, *names: str) -> Path:
        """Return a directory in it, and create it. Raises Failure."""
        path = self.path.joinpath(*names)
        try:
            for one in [
                *reversed([self.path, *self.path.parents]),
                *(self.path.joinpath(*names[: n + 1]) for n in range(len(names))),
            ]:
                if not one.is_dir():
                    one.mkdir(mode=MODE_OF_DIRECTORY, exist_ok=True)
            if self.path.stat().st_uid != os.geteuid():
                raise Failure(f"{self.path} belongs to somebody else", "name another by COREFETCH_CACHE", Exit.FAILED)
        except OSError as error:
            raise Failure(
                f"{error.filename}: {error.strerror}", "name another by COREFETCH_CACHE", Exit.FAILED
            ) from None
        return path

    def of_build_id(self, build_id: str, kind: str, image: str = "") -> Path:
        """Return where the ``executable`` or the ``debuginfo`` of a build id has its place, which an ``image`` may have given.

        Anybody can give a file the build id of another one: so each image has places of its own.
        """
        of_image = f".{hashlib.sha256(encoded(image)).hexdigest()[:24]}" if image else ""
        return self.path / "build-id" / build_id / f"{kind}{of_image}"

    def asked(self, build_id: str) -> list[str]:
        """Return the images that were asked for a build id."""
        try:
            return self.of_build_id(build_id, "images").read_text(encoding="utf-8").splitlines()
        except OSError:
            return []

    def note_asked(self, build_id: str, image: str) -> None:
        """Note that an image was asked for a build id. Raises Failure."""
        names = dict.fromkeys([*self.asked(build_id), image])
        with self.new(self.of_build_id(build_id, "images")) as file:
            file.write("".join(f"{name}\n" for name in names).encode())

    def of_core(self, url: str, etag: str, name: str) -> Path:
        """Return where a core of a store has its place."""
        return self.path / "cores" / hashlib.sha256(encoded(f"{url}\n{etag}")).hexdigest()[:24] / name

    @contextmanager
    def new(self, path: Path) -> Iterator[IO[bytes]]:
        """Yield a file that becomes ``path`` when all is written, and nothing before. Raises Failure."""
        self.directory(*path.parent.relative_to(self.path).parts)
        with self.writing(), _beside(path) as file:
            yield file

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make an error of the system, such as a full disk, the cache's own. Raises Failure."""
        try:
            yield
        except OSError as error:
            what = f"{self.path}: {error.strerror or error}"
            raise Failure(what, "make room there, or name another by COREFETCH_CACHE") from None

    def make_room(self, most: int, but: Path) -> None:
        """Delete the cores that nobody has used for the longest time, until all of them take at most so many bytes."""
        found = []
        for path in (self.path / "cores").glob("*/*"):
            try:
                known = path.stat()
            except OSError:
                continue
            found.append((known.st_atime, known.st_blocks * 512, path))
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used <= most:
                return
            if path != but:
                path.unlink(missing_ok=True)
                used -= size


@contextmanager
def _beside(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file beside ``path`` that takes its name at the end."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".new", delete=False
    ) as file:
        try:
            yield file
            file.close()
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise

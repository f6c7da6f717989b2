"""Copies single files out of an image, by docker or podman, without running anything of it."""

from __future__ import annotations

import io
import os
import posixpath
import re
import secrets
import select
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING

from corefetch.errors import Exit, Failure
from corefetch.programs import output_of
from corefetch.text import plain

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ENGINES = ("docker", "podman")
# Seconds in which an engine answers. What it copies may be of any size, and goes on while bytes come.
LONGEST = 60
MOST_LINKS = 8
REMOVE = ("rm", "--force", "--volumes")
CHECK = "see whether the engine works"


def choose(named: str) -> str:
    """Return the engine's program. Raises Failure."""
    for name in [named] if named else ENGINES:
        if shutil.which(name):
            return name
    raise Failure(
        f"there is no {named or 'docker or podman'}", "install one, or say --sysroot DIRECTORY", Exit.MISSING_PROGRAM
    )


class _Copy(io.RawIOBase):
    """What comes out of ``cp``, which may take any time as long as it does not stop."""

    def __init__(self, pipe: int, what: str) -> None:
        """Take the end of the pipe, and the words for a failure."""
        self.pipe = pipe
        self.what = what
        self.ready = select.poll()
        self.ready.register(pipe, select.POLLIN)

    def readinto(self, block: WriteableBuffer) -> int:
        """Read what has come, nothing at the end. Raises Failure."""
        if not self.ready.poll(LONGEST * 1000):
            raise Failure(f"{self.what} stopped: nothing came for {LONGEST} s", CHECK, Exit.UNREACHABLE)
        return os.readv(self.pipe, [block])


class Image:
    """A container of an image that is never started."""

    def __init__(self, engine: str, container: str) -> None:
        """Take the container."""
        self.engine = engine
        self.container = container

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes] | None]:
        """Yield a file of the image, None if it is not there. Raises Failure."""
        for _ in range(MOST_LINKS):
            with self._copied(path) as (archive, member):
                if archive is None or member is None or not member.issym():
                    yield archive.extractfile(member) if archive and member and member.isreg() else None
                    return
            # docker leaves that to us, podman does it. The option -L of docker is unknown to podman.
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), member.linkname))
        yield None

    @contextmanager
    def _copied(self, path: str) -> Iterator[tuple[tarfile.TarFile | None, tarfile.TarInfo | None]]:
        """Yield the archive that the engine makes of a file, and its first member. Raises Failure."""
        words = [self.engine, "cp", f"{self.container}:{path}", "-"]
        with ExitStack() as stack:
            copy = stack.enter_context(
                subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
            stack.callback(copy.kill)
            assert copy.stdout is not None
            stack.callback(copy.stdout.close)
            archive = member = None
            what = f"{plain(path)} of the image: {self.engine} cp"
            try:
                pipe = _Copy(copy.stdout.fileno(), what)
                archive = stack.enter_context(tarfile.open(fileobj=pipe, mode="r|"))
                member = archive.next()
            except tarfile.ReadError:
                pass  # It is not there, and the archive has no byte.
            try:
                yield archive, member
            except tarfile.TarError as error:
                raise Failure(f"{what} ended in the middle: {plain(str(error))}", CHECK, Exit.UNREACHABLE) from None


@contextmanager
def opened(engine: str, name: str) -> Iterator[Image]:
    """Yield the image of that name. The engine asks no registry for one that it does not have. Raises Failure."""
    # What a stranger's JSON has: such a word cannot be given to a program, or is several lines.
    if name.startswith("-") or plain(name) != name:
        raise Failure(f"no image: {plain(name)}", "say one by --image", Exit.USAGE)
    # By a name of its own, it can be removed also where this ends before the engine has printed the id.
    container = f"corefetch-{secrets.token_hex(8)}"
    try:
        # The word at the end is for images that name no program.
        words = ["create", "--pull=never", "--name", container, "--network", "none", name, "corefetch"]
        _run([engine, *words], LONGEST, name)
        yield Image(engine, container)
    finally:
        removed = _remove(engine, container)
    if not removed:
        # Where something else has failed before, that says more.
        remedy = f"{shlex.join([engine, *REMOVE, container])} removes container {container}, if it is still there"
        raise Failure(f"image {plain(name)}: {engine} does not answer", remedy, Exit.UNREACHABLE)


def _remove(engine: str, container: str) -> bool:
    """Remove a container, if there is one. Tells whether the engine answers."""
    try:
        # In a session of its own: Ctrl-C must not end what cleans up.
        subprocess.run(
            [engine, *REMOVE, container],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            timeout=LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return True


def _run(words: list[str], seconds: int, image: str) -> None:
    """Run the engine. Raises Failure."""
    try:
        done = output_of(words, seconds)
    except subprocess.TimeoutExpired:
        raise Failure(
            f"image {plain(image)}: {words[0]} does not answer", "see whether it works", Exit.UNREACHABLE
        ) from None
    if done.returncode == 0:
        return
    said = [
        line.strip() for line in done.stderr.splitlines() if line.strip() and not line.startswith(("See '", "Run '"))
    ]
    what = plain(said[-1] if said else f"{words[0]} ended with status {done.returncode}")[:300]
    remedy = f"{shlex.join([words[0], 'pull', image])} brings it, or say another by --image, or --sysroot DIRECTORY"
    if re.search(r"annot connect to|(nable|trying) to connect to|daemon running", done.stderr):
        remedy = "start the engine, or say another by --engine, or --sysroot DIRECTORY"
    raise Failure(f"image {plain(image)}: {what}", plain(remedy), Exit.UNREACHABLE)

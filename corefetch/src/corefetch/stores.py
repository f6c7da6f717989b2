"""Where cores lie: S3, Google Cloud Storage and Azure by obstore, and directories."""

from __future__ import annotations

import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from corefetch.errors import Exit, Failure
from corefetch.text import plain
from corefetch.unreadable import Listing, name_in
from obstore.exceptions import InvalidPathError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SHOWN, LONGEST_SHOWN = 3, 200
BLOCK = 1 << 20
# The first and the last second of Python's years, since the Epoch.
EARLIEST, LATEST = -62135596800, 253402300799


class Entry(NamedTuple):
    """An object."""

    path: str
    size: int
    modified: datetime
    etag: str


class Store(ABC):
    """A place with objects; paths are relative to its URL."""

    url: str
    # Why the entries are not all that there are.
    problem: Failure | None = None

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Yield all objects, page by page. Raises Failure."""

    @abstractmethod
    def stat(self, path: str) -> Entry | None:
        """Return what is known of an object, None if it is not there. Raises Failure."""

    @abstractmethod
    def blocks(self, path: str, offset: int = 0) -> Iterator[bytes]:
        """Yield the content of an object from a byte on; the caller may close it before its end. Raises Failure."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Delete an object. Raises Failure."""

    def read(self, path: str, most: int) -> bytes | None:
        """Return an object of at most so many bytes, None if it is not there or longer. Raises Failure."""
        found = self.stat(path)
        if found is None or found.size > most:
            return None
        return b"".join(self.blocks(path))

    def local(self, path: str) -> Path | None:
        """Return the file that an object is, None if it is far away."""
        return None


class Directory(Store):
    """A directory of this machine, in the order of the names.

    Others may have put there what they like. So a symbolic link is no object, but for the file that the user has ``named``.
    """

    def __init__(self, path: Path, named: str = "") -> None:
        """Take the directory. Raises Failure."""
        self.path = path.absolute()
        self.named = named
        self.url = self.path.as_uri()
        try:
            there = stat.S_ISDIR(self.path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            there = False
        except OSError as error:
            raise _of_os(error) from None
        if not there:
            raise Failure(f"{self.path}: no such directory", "say another store by --from", Exit.NOT_FOUND)

    def entries(self) -> Iterator[Entry]:
        """Yield all files, also of the directories below; symbolic links lead nowhere. ``problem`` has what cannot be read."""
        try:
            levels = [("", self._names(""))]
        except OSError as error:
            raise _of_os(error) from None
        # Such as lost+found of a volume, or what another user has put there. There may be very many.
        unreadable: list[OSError] = []
        number = 0
        while levels:
            below, names = levels[-1]
            one = next(names, None)
            if one is None:
                levels.pop()
                continue
            path = f"{below}{one.name}"
            try:
                if one.is_dir(follow_symlinks=False):
                    levels.append((f"{path}/", self._names(path)))
                elif one.is_file(follow_symlinks=False):
                    yield _entry(path, one.stat(follow_symlinks=False))
            except FileNotFoundError:
                continue
            except OSError as error:
                number += 1
                if len(unreadable) < SHOWN:
                    unreadable.append(error)
        if unreadable:
            shown = [f"{_shortened(str(one.filename))} ({one.strerror})" for one in unreadable]
            self.problem = Failure(
                f"{plain(str(self.path))}: what cannot be read: {_some(shown, number)}",
                "ask its owner, become root, or name a directory below by --from; cores in there are left out",
            )

    def _names(self, path: str) -> Iterator[os.DirEntry[str]]:
        """Return what is in a directory, in the order of the names. Raises OSError."""
        with os.scandir(self.path / path) as found:
            return iter(sorted(found, key=lambda one: one.name))

    def stat(self, path: str) -> Entry | None:
        """Ask for a file."""
        if ".." in path.split("/"):
            return None
        try:
            file = self.path / path
            if not file.is_file() or (file.is_symlink() and path != self.named):
                return None
            return _entry(path, file.stat())
        except OSError as error:
            raise _of_os(error) from None

    def blocks(self, path: str, offset: int = 0) -> Iterator[bytes]:
        """Read a file."""
        try:
            with self.opened(path) as file:
                file.seek(offset)
                while block := file.read(BLOCK):
                    yield block
        except OSError as error:
            raise _of_os(error) from None

    def read(self, path: str, most: int) -> bytes | None:
        """Read a small file, which may not say how long it is."""
        if self.stat(path) is None:
            return None
        try:
            with self.opened(path) as file:
                content = file.read(most + 1)
        except OSError as error:
            raise _of_os(error) from None
        return content if len(content) <= most else None

    def opened(self, path: str) -> BinaryIO:
        """Open a file. Raises OSError, also where somebody has put a link there meanwhile."""
        follow = 0 if path == self.named else os.O_NOFOLLOW
        return open(self.path / path, "rb", opener=lambda name, flags: os.open(name, flags | follow))

    def remove(self, path: str) -> None:
        """Delete a file."""
        try:
            (self.path / path).unlink(missing_ok=True)
        except OSError as error:
            raise _of_os(error) from None

    def local(self, path: str) -> Path | None:
        """Return the file."""
        return self.path / path


class Bucket(Store):
    """A bucket, below a prefix."""

    def __init__(self, url: str, store: ObjectStore) -> None:
        """Take an opened store."""
        self.url = url
        self.store = store

    def entries(self) -> Iterator[Entry]:
        """List page by page."""
        listing = Listing(self.store, self.url.partition("://")[2].partition("/")[2].strip("/"))
        try:
            for one in listing.objects():
                yield Entry(one["path"], one["size"], one["last_modified"], (one["e_tag"] or "").strip('"'))
        except Exception as error:
            raise self._failure(error) from None
        finally:
            if listing.unreadable:
                shown = [plain(name) for name in listing.unreadable[:SHOWN]]
                left = "all cores behind the last one are" if listing.cut else "cores beside them may be"
                self.problem = Failure(
                    f"{plain(self.url)}: names that cannot be read: {_some(shown, len(listing.unreadable))}",
                    f"delete these objects; {left} left out",
                )

    def stat(self, path: str) -> Entry | None:
        """Ask for the head of an object."""
        try:
            one = self.store.head(path)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failure(error, path) from None
        # Not its own "path": some versions put the prefix before that.
        return Entry(path, one["size"], one["last_modified"], (one["e_tag"] or "").strip('"'))

    def blocks(self, path: str, offset: int = 0) -> Iterator[bytes]:
        """Read an object as it comes."""
        try:
            skip = 0
            try:
                options: Any = {}
                if offset:
                    # Some servers know no range without an end.
                    size = self.store.head(path)["size"]
                    if offset >= size:
                        return
                    options = {"range": (offset, size)}
                found = self.store.get(path, options=options)
            except Exception as error:
                # rclone's server sends the range, and calls it the whole: then all comes again.
                if "non-partial" not in str(error):
                    raise
                found, skip = self.store.get(path), offset
            for block in found.stream(min_chunk_size=BLOCK):
                data = bytes(block)
                if skip < len(data):
                    yield data[skip:]
                skip = max(0, skip - len(data))
        except Exception as error:
            raise self._failure(error, path) from None

    def read(self, path: str, most: int) -> bytes | None:
        """Return a small object by one request."""
        try:
            found = self.store.get(path)
            return bytes(found.bytes()) if found.meta["size"] <= most else None
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failure(error, path) from None

    def remove(self, path: str) -> None:
        """Delete an object."""
        try:
            self.store.delete(path)
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._failure(error, path) from None

    def _failure(self, error: Exception, path: str = "") -> Failure:
        """Say in one line what a store's library says in many."""
        if isinstance(error, Failure):
            return error
        if isinstance(error, FileNotFoundError) and path and "NoSuchBucket" not in str(error):
            return Failure(f"{plain(path)}: it is not there any more", "see corefetch list", Exit.NOT_FOUND)
        return explain(self.url if not path else f"{self.url.rstrip('/')}/{path}", error)


# What the texts of a store's library have in them, the exit code, what that means, and the remedy.
CAUSES: tuple[tuple[str, Exit, str, str], ...] = (
    # Where nothing else has credentials, the library asks the machine's cloud.
    (r"169\.254\.169\.254|/latest/api/token|/computeMetadata/", Exit.DENIED, "there are no credentials", ""),
    (
        r"status code: 5\d\d|SlowDown",
        Exit.UNREACHABLE,
        "the store has a trouble of its own",
        "try again later",
    ),
    (
        r"NoSuchBucket|bucket does not exist|ContainerNotFound|404 Not Found",
        Exit.NOT_FOUND,
        "there is no such bucket",
        "correct --from",
    ),
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|InvalidClientTokenId|ExpiredToken|AuthenticationFailed"
        r"|AuthorizationFailure|403 Forbidden|401 Unauthorized|Forbidden|permission",
        Exit.DENIED,
        "the store refuses these credentials",
        "see that they are right and may list and read there",
    ),
    (
        r"credential|metadata|token|AccessKey|Account must be specified|OAuth",
        Exit.DENIED,
        "there are no credentials",
        "",
    ),
    (
        r"PermanentRedirect|BareRedirect|AuthorizationHeaderMalformed|301 Moved|redirect without LOCATION",
        Exit.UNREACHABLE,
        "the bucket is in another region",
        "say that by AWS_REGION",
    ),
    (
        r"certificate|UnknownIssuer|invalid peer",
        Exit.UNREACHABLE,
        "its certificate is not trusted",
        "name the authority's file by SSL_CERT_FILE",
    ),
    (
        r"error sending request|dns error|onnection refused|timed? ?out|unreachable|tcp connect|connect error|HTTP error",
        Exit.UNREACHABLE,
        "the store does not answer",
        "see the network, and AWS_ENDPOINT_URL if it is set",
    ),
)
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; with single sign-on: "
    'eval "$(aws configure export-credentials --format env)"',
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or: gcloud auth application-default login",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or: az login",
}


def explain(name: str, error: Exception) -> Failure:
    """Return the failure that an exception of a store's library means."""
    # Then comes what the library has in memory.
    said = str(error).partition("Debug source:")[0]
    if isinstance(error, InvalidPathError):
        # Anybody who may write into the bucket may have done that.
        what = f"{plain(name)}: an object has a name that cannot be read: {plain(name_in(error))}"
        return Failure(what, "delete that object, or say a directory below by --from", Exit.FAILED)
    for pattern, code, what, remedy in CAUSES:
        if re.search(pattern, said, re.I):
            return Failure(f"{plain(name)}: {what}", remedy or CREDENTIALS.get(name.partition(":")[0], ""), code)
    first = next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)
    return Failure(f"{plain(name)}: {plain(first)[:300]}", "see whether the store works", Exit.UNREACHABLE)


def _entry(path: str, found: os.stat_result) -> Entry:
    """Return what the file system says."""
    # Its owner may have set it to any.
    modified = datetime.fromtimestamp(min(max(found.st_mtime, EARLIEST), LATEST), timezone.utc)
    return Entry(path, found.st_size, modified, f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}")


def _some(shown: list[str], number: int) -> str:
    """Return the names that are shown of so many, for a message."""
    more = f" and {number - SHOWN} more" if number > SHOWN else ""
    return f"{', '.join(shown)}{more}"


def _shortened(path: str) -> str:
    """Return a path for a message: of a long one, what it begins with."""
    return plain(path if len(path) <= LONGEST_SHOWN else f"{path[:LONGEST_SHOWN]}...")


def _of_os(error: OSError) -> Failure:
    """Return the failure that an error of the system means."""
    denied = isinstance(error, PermissionError)
    remedy = "ask its owner, or become root" if denied else ""
    return Failure(
        f"{_shortened(str(error.filename or 'the disk'))}: {error.strerror}",
        remedy,
        Exit.DENIED if denied else Exit.FAILED,
    )

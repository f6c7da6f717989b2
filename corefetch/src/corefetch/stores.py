"""Where cores lie: S3, Google Cloud Storage and Azure by obstore, and directories.

A store is named by a URL. ``s3://BUCKET/PREFIX``, ``gs://BUCKET/PREFIX``, ``az://CONTAINER/PREFIX`` (or ``azblob://``), or
``file:///DIRECTORY``, which may also be what ``playbooks/collect.yml`` has brought.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from corefetch.errors import Exit, Failure
from corefetch.text import plain

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "azure": "az", "azblob": "az", "file": "file"}
PAGE = 1000
BLOCK = 1 << 20


class Entry(NamedTuple):
    """An object."""

    path: str
    size: int
    modified: datetime
    etag: str


class Store(ABC):
    """A place with objects; paths are relative to its URL."""

    url: str

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Yield all objects, page by page. Raises Failure."""

    @abstractmethod
    def stat(self, path: str) -> Entry | None:
        """Return what is known of an object, None if it is not there. Raises Failure."""

    @abstractmethod
    def blocks(self, path: str, offset: int = 0) -> Iterator[bytes]:
        """Yield the content of an object from a byte on; whoever has had enough closes this. Raises Failure."""

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
    """A directory of this machine, in the order of the names."""

    def __init__(self, path: Path) -> None:
        """Take the directory. Raises Failure."""
        self.path = path.absolute()
        self.url = self.path.as_uri()
        if not self.path.is_dir():
            raise Failure(f"{self.path}: no such directory", "say another store by --from", Exit.NOT_FOUND)

    def entries(self) -> Iterator[Entry]:
        """Yield all files."""
        yield from self._walk("")

    def _walk(self, below: str) -> Iterator[Entry]:
        """Yield the files of a directory and of those in it; symbolic links lead nowhere."""
        try:
            with os.scandir(self.path / below) as found:
                names = sorted(found, key=lambda one: one.name)
        except OSError as error:
            raise _of_os(error) from None
        for one in names:
            path = f"{below}{one.name}"
            if one.is_dir(follow_symlinks=False):
                yield from self._walk(f"{path}/")
            elif one.is_file(follow_symlinks=False):
                try:
                    yield _entry(path, one.stat(follow_symlinks=False))
                except FileNotFoundError:
                    continue

    def stat(self, path: str) -> Entry | None:
        """Ask for a file."""
        if ".." in path.split("/"):
            return None
        try:
            return _entry(path, (self.path / path).stat()) if (self.path / path).is_file() else None
        except OSError as error:
            raise _of_os(error) from None

    def blocks(self, path: str, offset: int = 0) -> Iterator[bytes]:
        """Read a file."""
        try:
            with open(self.path / path, "rb") as file:
                file.seek(offset)
                while block := file.read(BLOCK):
                    yield block
        except OSError as error:
            raise _of_os(error) from None

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
        try:
            for page in self.store.list(chunk_size=PAGE):
                for one in page:
                    yield Entry(one["path"], one["size"], one["last_modified"], (one["e_tag"] or "").strip('"'))
        except Exception as error:
            raise self._failure(error) from None

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
    if found := re.search(r'[Pp]ath "([^"]*)"', said):
        # Whoever may write there may do that. The library ends at such a name, and does not say what comes after it.
        what = f"{plain(name)}: an object has a name that cannot be read: {plain(found[1])}"
        return Failure(what, "delete that object, or say a directory below by --from", Exit.FAILED)
    for pattern, code, what, remedy in CAUSES:
        if re.search(pattern, said, re.I):
            return Failure(f"{plain(name)}: {what}", remedy or CREDENTIALS.get(name.partition(":")[0], ""), code)
    first = next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)
    return Failure(f"{plain(name)}: {plain(first)[:300]}", "see whether the store works", Exit.UNREACHABLE)


@dataclass(frozen=True)
class Options:
    """What leads to a store besides its URL."""

    endpoint: str = ""
    region: str = ""


def open_store(url: str, options: Options | None = None) -> Store:
    """Open a store by its URL. Raises Failure."""
    options = options or Options()
    if "://" not in url:
        if url.startswith(("/", ".", "~")) or Path(url).is_dir():
            return Directory(Path(url).expanduser())
        raise Failure(
            f"no store: {plain(url)}", "say s3://BUCKET, gs://BUCKET, az://CONTAINER or file:///DIRECTORY", Exit.USAGE
        )
    scheme, _, rest = url.partition("://")
    kind = SCHEMES.get(scheme.lower())
    if kind == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise Failure(f"no directory of this machine: {plain(url)}", "say file:///DIRECTORY", Exit.USAGE)
        return Directory(Path(unquote(parts.path)))
    bucket, _, prefix = rest.partition("/")
    if kind is None or not bucket:
        raise Failure(
            f"no store: {plain(url)}", "say s3://BUCKET, gs://BUCKET, az://CONTAINER or file:///DIRECTORY", Exit.USAGE
        )
    try:
        store = _CLIENTS[kind](bucket, prefix.strip("/") or None, options)
    except Exception as error:
        raise explain(f"{kind}://{rest}", error) from None
    return Bucket(f"{kind}://{rest.rstrip('/')}", store)


# Seconds; a store that hangs is said soon, and a core of many gigabytes has all the time that it moves on.
CLIENT: dict[str, Any] = {"connect_timeout": "5s", "read_timeout": "60s", "timeout": "1d"}
RETRY: dict[str, Any] = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}


def _client(endpoint: str) -> dict[str, Any]:
    """Return the options of the HTTP client: without encryption only where the endpoint says so."""
    return {**CLIENT, "allow_http": True} if endpoint.startswith("http://") else dict(CLIENT)


def _s3(bucket: str, prefix: str | None, options: Options) -> ObjectStore:
    """Open a bucket of S3. Its library knows the environment, and not the files of the AWS tools."""
    from obstore.store import S3Store

    endpoint = options.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    config: dict[str, Any] = {}
    if endpoint:
        config["endpoint"] = endpoint
    profile = {} if "AWS_ACCESS_KEY_ID" in os.environ and "AWS_PROFILE" not in os.environ else aws_profile()
    # A role, a web identity or an instance may have credentials, too: the library asks for them.
    for name in ("access_key_id", "secret_access_key", "session_token"):
        if profile.get(f"aws_{name}"):
            config[name] = profile[f"aws_{name}"]
    region = (
        options.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or profile.get("region")
    )
    config["region"] = region or "us-east-1"
    return S3Store(bucket, prefix=prefix, config=config, client_options=_client(endpoint), retry_config=RETRY)  # type: ignore[arg-type]


def aws_profile() -> dict[str, str]:
    """Return what ~/.aws/credentials and ~/.aws/config have of the profile that counts."""
    name = os.environ.get("AWS_PROFILE", "default")
    found: dict[str, str] = {}
    for variable, file, section in (
        ("AWS_CONFIG_FILE", "~/.aws/config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", name),
    ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(Path(os.environ.get(variable) or file).expanduser(), encoding="utf-8")
        except (OSError, configparser.Error, UnicodeError):
            continue
        if parser.has_section(section):
            found.update(parser.items(section))
    return found


def _gs(bucket: str, prefix: str | None, options: Options) -> ObjectStore:
    """Open a bucket of Google Cloud Storage."""
    from obstore.store import GCSStore

    endpoint = options.endpoint or os.environ.get("STORAGE_EMULATOR_HOST", "")
    config: dict[str, Any] = {}
    if endpoint:
        endpoint = endpoint if "://" in endpoint else f"http://{endpoint}"
        config["base_url"] = endpoint
        if endpoint.startswith("http://"):
            # An emulator: it asks for no credentials, and no cloud shall be asked for any.
            key = {
                "gcs_base_url": endpoint,
                "disable_oauth": True,
                "client_email": "",
                "private_key": "",
                "private_key_id": "",
            }
            config = {"service_account_key": json.dumps(key)}
    return GCSStore(bucket, prefix=prefix, config=config, client_options=_client(endpoint), retry_config=RETRY)  # type: ignore[arg-type]


def _az(bucket: str, prefix: str | None, options: Options) -> ObjectStore:
    """Open a container of Azure."""
    from obstore.store import AzureStore

    endpoint = options.endpoint or os.environ.get("AZURE_STORAGE_ENDPOINT", "")
    config: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    keyed = any(
        name.startswith("AZURE_") and ("KEY" in name or "SAS" in name or "CLIENT" in name) for name in os.environ
    )
    if not keyed and shutil.which("az"):
        config["use_azure_cli"] = True
    return AzureStore(bucket, prefix=prefix, config=config, client_options=_client(endpoint), retry_config=RETRY)  # type: ignore[arg-type]


_CLIENTS = {"s3": _s3, "gs": _gs, "az": _az}


def _entry(path: str, found: os.stat_result) -> Entry:
    """Return what the file system says."""
    modified = datetime.fromtimestamp(found.st_mtime, timezone.utc)
    return Entry(path, found.st_size, modified, f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}")


def _of_os(error: OSError) -> Failure:
    """Return the failure that an error of the system means."""
    denied = isinstance(error, PermissionError)
    remedy = "ask its owner, or become root" if denied else ""
    return Failure(
        f"{plain(str(error.filename or 'the disk'))}: {error.strerror}", remedy, Exit.DENIED if denied else Exit.FAILED
    )

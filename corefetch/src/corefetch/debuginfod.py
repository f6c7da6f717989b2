"""Asks debuginfod servers for programs and their debug information, by build id; debuginfod(8)."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from corefetch import __version__, symbols
from corefetch.cache import Cache
from corefetch.elf import GO
from corefetch.text import plain

SECONDS = 30
BLOCK = 1 << 20
HOUR = 3600  # Seconds for which a server need not be asked again for what it does not have.


class _AnotherError(Exception):
    """What a server has sent is not of the build id it was asked for, such as the page of a network that wants a login."""


class Servers:
    """The servers, in their order."""

    def __init__(self, urls: list[str], cache: Cache) -> None:
        """Take the URLs, as DEBUGINFOD_URLS has them."""
        self.urls = [url.rstrip("/") for url in urls if url.startswith(("http://", "https://"))]
        self.cache = cache
        self.problems: dict[str, str] = {}
        # By the URL: the build ids for which it has sent something else.
        self.others: dict[str, list[str]] = {}

    def fetch(self, build_id: str, kind: str) -> bool:
        """Put the ``executable`` or the ``debuginfo`` of a build id into the cache; tell if it is there. Raises Failure."""
        if build_id.startswith(GO):
            return False
        path = self.cache.of_build_id(build_id, kind)
        if symbols.is_of(path, build_id):
            return True
        absent = self.cache.of_build_id(build_id, f"{kind}.absent")
        known = _known(absent)
        for url in self.urls:
            if url in self.problems or url in known:
                continue
            try:
                request = urllib.request.Request(
                    f"{url}/buildid/{build_id}/{kind}", headers={"User-Agent": f"corefetch/{__version__}"}
                )
                with urllib.request.urlopen(request, timeout=SECONDS) as answer, self.cache.new(path) as file:
                    _copy(answer, file, answer.length)
                    file.flush()
                    if not symbols.is_of(Path(file.name), build_id):
                        raise _AnotherError
                return True
            except _AnotherError:
                self.others.setdefault(url, []).append(build_id)
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    known.append(url)
                    with self.cache.new(absent) as file:
                        file.write("\n".join(known).encode())
                else:
                    self.problems[url] = f"it answers {error.code}"
            except (OSError, http.client.HTTPException) as error:
                # None of the cache: that is a Failure.
                reason = getattr(error, "reason", None) or error
                self.problems[url] = plain(getattr(reason, "strerror", None) or str(reason) or type(reason).__name__)
        return False


def _known(absent: Path) -> list[str]:
    """Return the servers that have said a short while ago that they do not have this."""
    try:
        return absent.read_text().split() if absent.stat().st_mtime > time.time() - HOUR else []
    except OSError:
        return []


def _copy(answer: http.client.HTTPResponse, file: IO[bytes], length: int | None) -> None:
    """Copy what comes. Raises HTTPException where the server ends too early, and OSError where the cache takes no more."""
    done = 0
    while block := _read(answer):
        file.write(block)
        done += len(block)
    if length is not None and done != length:
        raise http.client.HTTPException(f"it has sent {done} of {length} bytes")


def _read(answer: http.client.HTTPResponse) -> bytes:
    """Return what comes next. Raises HTTPException."""
    try:
        return answer.read(BLOCK)
    except OSError as error:
        raise http.client.HTTPException(error.strerror or str(error)) from None

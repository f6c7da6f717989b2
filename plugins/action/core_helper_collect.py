# SPDX-License-Identifier: Apache-2.0
"""Ansible action: which cores a host keeps, and with ``directory`` the cores themselves, for playbooks/collect.yml.

``ansible.builtin.fetch`` would read a whole core into the memory of both sides where it has to become root. So the module
core_helper_cores reads one part after the other, as root on the host, and this plugin appends it on the controller::

    DIRECTORY/HOST/KEY.core            the core, decompressed, with holes, after its checksum was compared
    DIRECTORY/HOST/KEY.json            what the host knows of it, and its checksum
    DIRECTORY/HOST/KEY.core.zst.part   what has come of the file that the host has; KEY.core.part if that is not compressed
    DIRECTORY/HOST/KEY.core.new        the core while it is decompressed

A host may be in the hands of somebody else. So nothing that a host says becomes a path, except a key of harmless characters.

This is one file: in a clone, Ansible loads the action of a role into a package of Ansible's, which cannot import ours.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import re
import stat
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

MODULE = "core_helper_cores"
# Each part is in memory a few times on its way, in each fork of Ansible.
PART = 8 << 20
BLOCK = 1 << 20
# What is all zeros in this size becomes a hole.
PIECE = 1 << 16
ZEROS = bytes(PIECE)
COMPRESSED = ".zst"
# See key_of of helper/core_helper/key.py.
KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,230}")
CHECKSUM = re.compile(r"[0-9a-f]{64}")
LONGEST_NAME = 80
# What cannot be compressed is longer in the end, by less than a part of this.
OVERHEAD = 128
# What zstd says of a file that is not whole. Anything else, such as too little memory, is no fault of the file.
DAMAGE = re.compile(
    "premature end|unexpected end|unsupported format|unknown (header|frame)|checksum|corrupt", re.IGNORECASE
)
# A file cannot be larger.
LARGEST = (1 << 63) - 1
# Bytes that stay free on the disk of the controller.
FREE = 1 << 30
NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
MODE, MODE_OF_DIRECTORY = 0o600, 0o700

# Returns a part of a file of the host, and the size of the whole file.
Read = Callable[[str, int, int], "tuple[bytes, int]"]


class Problem(Exception):
    """Why a core was not brought. The text names the object and the remedy."""


class Core:
    """What a host says of one core. Raises KeyError, TypeError or ValueError if that makes no sense."""

    def __init__(self, known: dict[str, Any]) -> None:
        """Take what the helper lists."""
        self.known = known
        self.key = str(known["key"])
        if not KEY.fullmatch(self.key):
            raise ValueError(f"no key of a core: {self.key!r}")
        # A core that the helper still works on, or was killed at, has no checksum.
        self.sha256 = str(known.get("sha256") or "")
        if self.sha256 and not CHECKSUM.fullmatch(self.sha256):
            raise ValueError(f"no checksum: {self.sha256!r}")
        self.size = int(known["size"])
        if not 0 <= self.size <= LARGEST:
            raise ValueError(f"no size: {self.size}")
        self.path = str(known["path"])
        self.compressed = self.path.endswith(COMPRESSED)
        if self.compressed and not self.sha256:
            raise ValueError(f"compressed, and without a checksum: {self.key}")
        facts = known["facts"]
        self.row: dict[str, Any] = {
            "id": str(known["id"]),
            "key": self.key,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(facts["CORE_TIME"]))),
            "size": self.size,
            "on_disk": int(known["bytes"]),
            "signal": str(facts.get("CORE_SIGNAL_NAME") or facts.get("CORE_SIGNAL") or "-"),
            "program": str(facts.get("CORE_EXE") or facts.get("CORE_COMM") or "-"),
            "container": str(facts.get("CORE_CONTAINER_NAME") or known["group"]),
            "state": "truncated" if known["truncated"] else "whole",
            "reason": str(known.get("reason", "")),
            "sha256": self.sha256,
            "collected": "-",
        }


def name_of(host: str) -> str:
    """Return the name of the directory of a host: its own if that is harmless, and always another one for another host."""
    if KEY.fullmatch(host) and len(host) <= LONGEST_NAME:
        return host
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", host)[:LONGEST_NAME]
    return f"_{plain}.{hashlib.sha256(host.encode('utf-8', 'backslashreplace')).hexdigest()[:12]}"


# corefetch/src/corefetch/packing.py has it, too: that package is installed alone.
def put(file: int, block: bytes, offset: int) -> None:
    """Write ``block`` at the ``offset`` of a file, which ends there; what is all zeros becomes a hole."""
    for begin in range(0, len(block), PIECE):
        piece = memoryview(block)[begin : begin + PIECE]
        if piece == ZEROS[: len(piece)]:
            continue
        end = offset + begin + len(piece)
        while piece:
            piece = piece[os.pwrite(file, piece, end - len(piece)) :]
    os.ftruncate(file, offset + len(block))


def blocks_of(file: int) -> Iterator[bytes]:
    """Yield the content of a file."""
    offset = 0
    while True:
        block = os.pread(file, BLOCK, offset)
        if not block:
            return
        yield block
        offset += len(block)


def decompressed(file: int) -> Iterator[bytes]:
    """Yield the content of a file of zstd. Raises Problem, and Damaged only if zstd says that the file is so."""
    os.lseek(file, 0, os.SEEK_SET)
    try:
        zstd = subprocess.Popen(["zstd", "-d", "-q", "-c"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        raise Problem("it is compressed, and the controller has no zstd: install zstd, and run again") from None
    except OSError as error:
        raise Problem(f"zstd does not start: {error.strerror}: what has come stays; run again") from None
    assert zstd.stdout is not None and zstd.stderr is not None
    try:
        while True:
            block = zstd.stdout.read(BLOCK)
            if not block:
                break
            yield block
        said = " ".join(zstd.stderr.read(BLOCK).decode(errors="backslashreplace").split())
    finally:
        zstd.stdout.close()  # If the caller has ended this before, zstd ends, too.
        with zstd:
            pass
    code = zstd.returncode
    if code > 0 and DAMAGE.search(said):
        raise Damaged(f"zstd cannot decompress it: {said}")
    if code:
        said = said or (f"zstd was ended by signal {-code}" if code < 0 else f"zstd has ended with exit code {code}")
        raise Problem(f"{said}: what has come stays; run again, and if that does not help, delete its .part")


class Damaged(Problem):
    """What has come is not the core, so it is deleted."""


def make_directory(path: str) -> None:
    """Create the directory of a host, and that of the cores. Raises OSError."""
    directory = os.path.dirname(path)
    os.makedirs(os.path.dirname(directory), exist_ok=True)
    for name in (directory, path):
        try:
            os.mkdir(name, MODE_OF_DIRECTORY)
        except FileExistsError:
            pass


class Place:
    """The directory ``path`` of one host on the controller."""

    def __init__(self, path: str) -> None:
        """Open it. Raises Problem or OSError."""
        self.path = path
        self.directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        found = os.fstat(self.directory)
        # It is below the current directory by default, and that may be /tmp.
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            os.close(self.directory)
            raise Problem(
                f"{self.path} must be yours alone, because cores hold secrets: correct that by chown and chmod 0700, or name"
                " another collect_directory"
            )

    def close(self) -> None:
        """Close the directory."""
        os.close(self.directory)

    def open(self, name: str, flags: int) -> int:
        """Open a file in it. Raises OSError."""
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, MODE, dir_fd=self.directory)

    def stat(self, name: str) -> os.stat_result | None:
        """Return what is known of a file in it, None if it is not there."""
        try:
            return os.stat(name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def unlink(self, name: str) -> None:
        """Delete a file in it if it is there."""
        try:
            os.unlink(name, dir_fd=self.directory)
        except FileNotFoundError:
            pass

    def rename(self, old: str, new: str) -> None:
        """Rename a file in it."""
        os.rename(old, new, src_dir_fd=self.directory, dst_dir_fd=self.directory)

    def has(self, core: Core) -> bool:
        """Tell whether the core is there: key, size and the checksum that was compared when it came."""
        found = self.stat(f"{core.key}.core")
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != core.size:
            return False
        try:
            with open(self.open(f"{core.key}.json", os.O_RDONLY), encoding="utf-8") as file:
                noted = json.load(file)["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return not core.sha256 or bool(noted == core.sha256)

    def bring(self, core: Core, read: Read, checksum: Callable[[str], str]) -> None:
        """Bring a core. Raises Problem, and then keeps what has come, if that may be a part of the core; or OSError."""
        part = f"{core.key}.core{COMPRESSED if core.compressed else ''}.part"
        file = self.open(part, NEW_FILE)
        try:
            self.lock(file, part)
            try:
                self.complete(file, core, read)
                self.finish(file, part, core, core.sha256 or checksum(core.path))
            except Damaged as error:
                self.unlink(part)
                raise Problem(f"{error}: what had come of it is deleted; run again") from None
            except OSError as error:
                raise Problem(f"{self.path}/{part}: {error.strerror}: what has come stays; run again") from None
        finally:
            os.close(file)

    def lock(self, file: int, part: str) -> None:
        """Make sure that nobody else brings the same core. Raises Problem."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Problem("another run is bringing it") from None
        found = self.stat(part)
        if found is None or found.st_ino != os.fstat(file).st_ino:
            raise Problem("another run has just brought it")

    def complete(self, file: int, core: Core, read: Read) -> None:
        """Append to ``file`` what is missing. Raises Problem."""
        offset = os.fstat(file).st_size
        while True:
            data, size = read(core.path, offset, PART)
            if offset > size or len(data) != min(PART, size - offset):
                raise Damaged(f"the host has sent {len(data)} bytes from byte {offset} on, of {size}")
            if size > core.size + core.size // OVERHEAD + PIECE if core.compressed else size != core.size:
                raise Damaged(f"its file has {size} bytes, and the core {core.size}")
            self.leave_room()
            put(file, data, offset)
            offset += len(data)
            if offset >= size:
                os.fsync(file)
                return

    def leave_room(self) -> None:
        """Raise Problem if the disk is nearly full: a host may say that a core has any size."""
        system = os.fstatvfs(self.directory)
        if system.f_bavail * system.f_frsize < FREE:
            raise Problem(
                f"{self.path}: the disk has less than 1 GiB left: what has come stays; make room, and run again"
            )

    def finish(self, file: int, part: str, core: Core, expected: str) -> None:
        """Compare the core whose ``file`` is complete with its checksum, and give it its name. Raises Problem."""
        whole, new = f"{core.key}.core", f"{core.key}.core.new"
        if core.compressed:
            self.unlink(new)
            plain = self.open(new, NEW_FILE | os.O_EXCL)
            try:
                self.compare(core, decompressed(file), plain, expected)
                os.fsync(plain)
            except BaseException:
                self.unlink(new)
                raise
            finally:
                os.close(plain)
        else:
            self.compare(core, blocks_of(file), None, expected)
        # Never is one core described by the checksum of another, whenever this ends.
        self.unlink(whole)
        self.describe({**core.known, "sha256": expected}, core.key)
        self.rename(new if core.compressed else part, whole)
        # Also what has come of the core before the host has compressed it.
        for name in (f"{whole}.part", f"{whole}{COMPRESSED}.part"):
            self.unlink(name)
        os.fsync(self.directory)

    def compare(self, core: Core, blocks: Iterator[bytes], file: int | None, expected: str) -> None:
        """Write the ``blocks`` of a core to ``file``, if there is one, and compare their checksum. Raises Problem."""
        digest, size = hashlib.sha256(), 0
        for block in blocks:
            if size + len(block) > core.size:
                raise Damaged(f"it has more than {core.size} bytes")
            digest.update(block)
            if file is not None:
                self.leave_room()
                put(file, block, size)
            size += len(block)
        if size != core.size:
            raise Damaged(f"it has {size} bytes in place of {core.size}")
        if digest.hexdigest() != expected:
            raise Damaged(f"its checksum is wrong: {digest.hexdigest()} in place of {expected}")

    def describe(self, known: dict[str, Any], key: str) -> None:
        """Write the JSON file of a core."""
        name = f"{key}.json.new"
        self.unlink(name)
        with open(self.open(name, NEW_FILE | os.O_EXCL), "w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(known, file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        self.rename(name, f"{key}.json")


def failure(message: str) -> dict[str, Any]:
    """Return the result of a task that has failed."""
    return {"failed": True, "msg": message}


class ActionModule(ActionBase):
    """The list of a host, and its cores."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the host, and bring what is not there."""
        super().run(tmp, task_vars)
        self.variables = task_vars or {}
        self.bin_dir = self._task.args.get("bin_dir", "/opt/bin")
        answer = self.ask(step="list", bin_dir=self.bin_dir)
        if answer.get("failed"):
            return answer
        if answer.get("installed") is False:
            helper = os.path.join(self.bin_dir, "docker_core_helper")
            return failure(f"there is no {helper}, so nobody can say which cores the host keeps")
        try:
            cores = [Core(dict(known)) for known in answer["cores"]]
        except (AttributeError, KeyError, OverflowError, OSError, TypeError, ValueError) as error:
            return failure(f"its answer makes no sense: {type(error).__name__}: {error}")
        # One core of which nobody can read what is known costs the others nothing.
        problems = [str(answer["problem"])] if answer.get("problem") else []
        problems += self.collect(cores) if self._task.args.get("directory") else []
        rows = [core.row for core in cores]
        changed = any(row["collected"] in ("now", "would be") or "removed" in row for row in rows)
        failed = failure("; ".join(problems)) if problems else {}
        return {"changed": changed, "cores": rows, "problems": problems, **failed}

    def ask(self, **arguments: Any) -> dict[str, Any]:
        """Have the host do one step."""
        answer = self._execute_module(module_name=MODULE, module_args=arguments, task_vars=self.variables)
        if answer.get("failed"):
            answer["msg"] = str(answer.get("msg", "the module has failed"))
        return dict(answer)

    def collect(self, cores: list[Core]) -> list[str]:
        """Bring the cores, or in check mode say which would be brought; return why one could not be."""
        path = os.path.join(
            os.path.abspath(self._task.args["directory"]), name_of(self.variables["inventory_hostname"])
        )
        try:
            if not self._task.check_mode:
                make_directory(path)
            elif not os.path.lexists(path):
                for core in cores:
                    core.row["collected"] = "would be"
                return []
            place = Place(path)
        except OSError as error:
            return [f"{error.filename}: {error.strerror}: name another collect_directory"]
        except Problem as error:
            return [str(error)]
        problems: list[str] = []
        try:
            for core in cores:
                try:
                    self.collect_one(core, place)
                except OSError as error:
                    problems.append(f"{core.key}: {error.filename or path}: {error.strerror}")
                except Problem as error:
                    problems.append(f"{core.key}: {error}")
        except AnsibleConnectionFailure as error:
            problems.append(f"the connection is lost: {error}: what has come stays; run again")
        finally:
            place.close()
        return problems

    def collect_one(self, core: Core, place: Place) -> None:
        """Bring one core, if it is not there. Raises Problem or OSError."""
        if place.has(core):
            core.row["collected"] = "before"
        elif self._task.check_mode:
            core.row["collected"] = "would be"
            return
        else:
            core.row["collected"] = "failed"
            place.bring(core, self.read, self.checksum)
            core.row["collected"] = "now"
        core.row["file"] = f"{place.path}/{core.key}.core"
        if self._task.args.get("remove") and not self._task.check_mode:
            answer = self.ask(step="remove", bin_dir=self.bin_dir, keys=[core.key])
            if answer.get("failed"):
                raise Problem(f"it is here, and was not deleted on the host: {answer['msg']}")
            core.row["removed"] = True

    def read(self, path: str, offset: int, length: int) -> tuple[bytes, int]:
        """Return a part of a file of the host, and the size of that file. Raises Problem."""
        answer = self.ask(step="read", path=path, offset=offset, length=length)
        if answer.get("failed"):
            raise Problem(answer["msg"])
        try:
            packed = base64.b64decode(answer["data"], validate=True)
            # Not more than was asked for, however much a few bytes may be decompressed to.
            return zlib.decompressobj().decompress(packed, length + 1), int(answer["size"])
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise Problem(f"the host's answer makes no sense: {type(error).__name__}: {error}") from None

    def checksum(self, path: str) -> str:
        """Return the checksum of a file of the host. Raises Problem."""
        answer = self.ask(step="checksum", path=path)
        if answer.get("failed"):
            raise Problem(answer["msg"])
        return str(answer.get("sha256"))

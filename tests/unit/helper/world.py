"""A made-up host: its /proc and its control groups are directories of a test, its namespaces are files."""

from __future__ import annotations

import fcntl
import os
import posix
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from core_helper import (
    container,
    control_groups,
    first_process,
    foreign_files,
    holders,
    membership,
    mount_table,
    namespaces,
    procfs,
    runtime,
    start,
    strangers,
    tracing,
    verification,
)
from core_helper import process as process_module
from core_helper.crash import Refused
from core_helper.process import FaultingProcess, Withheld

NS_GET_USERNS, NS_GET_PARENT, NS_GET_OWNER_UID, NS_GET_PID_FROM_PIDNS = 0xB701, 0xB702, 0xB704, 0x8004B706
ALL = (1 << 41) - 1
KINDS = ("mnt", "pid", "user", "net", "uts", "ipc", "cgroup")
ID, OTHER_ID = "a1" * 32, "b2" * 32
DOCKER, OTHER = f"/docker/{ID}", f"/docker/{OTHER_ID}"
FILES = b"40 30 0:50 / / rw - overlay overlay rw\n"
OTHER_FILES = b"40 30 0:60 / / rw - overlay overlay rw\n"
SYS_ADMIN, SYS_PTRACE = 1 << 21, 1 << 19
FEW = ALL & ~(SYS_ADMIN | SYS_PTRACE)
ROOT_OF_HOST = b"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"


class Elsewhere:
    """The module posix, or what a test makes of it, with another /proc."""

    def __init__(self, proc: Path) -> None:
        self._proc = str(proc)

    def __getattr__(self, name: str) -> Any:
        real = getattr(posix, name)
        if name not in ("open", "stat", "statvfs", "listdir", "readlink"):
            return real

        def moved(path: Any, *words: Any, **named: Any) -> Any:
            text = os.fsdecode(path) if isinstance(path, (str, bytes)) else ""
            if name == "readlink" and text.startswith("/proc/self/fd/") and not os.path.lexists(self._proc + text[5:]):
                # A file of World.file, whose name is its number and path.
                return os.fsencode("/" + os.readlink(text).rpartition("/")[2].partition("!")[2].replace("!", "/"))
            if text == "/proc" or text.startswith("/proc/"):
                text = self._proc + text[5:]
                path = os.fsencode(text) if isinstance(path, bytes) else text
            return real(path, *words, **named)

        return moved


class World:
    """The host: ``process`` and ``namespace`` fill it, ``crashed`` looks at one of its processes as the helper does."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.proc, self.groups = directory / "proc", directory / "cgroup"
        for path in (self.proc, self.groups, directory / "namespaces", directory / "files"):
            path.mkdir()
        self.monkeypatch = monkeypatch
        self.parents: dict[int, Path] = {}
        self.owners: dict[int, Path] = {}
        self.makers: dict[int, int] = {}
        self.first_processes: dict[int, int] = {}
        self.opened: list[int] = []
        for module in (
            container,
            control_groups,
            first_process,
            foreign_files,
            mount_table,
            strangers,
            tracing,
            namespaces,
            process_module,
            procfs,
            runtime,
            holders,
            start,
            verification,
        ):
            monkeypatch.setattr(module, "posix", Elsewhere(self.proc))
        monkeypatch.setattr(namespaces, "_of_host", {})
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)
        monkeypatch.setattr(mount_table, "mount_of", self.mount_of)
        monkeypatch.setattr(
            mount_table.Visits, "mounts_of_namespace", lambda visits, *words: self.mounts_of_namespace(*words)
        )
        self.host = {kind: self.namespace() for kind in KINDS}
        for kind in KINDS:
            self.owners[self.host[kind].stat().st_ino] = self.host["user"]
        groups = b"30 20 0:26 / %s rw - cgroup2 cgroup2 rw\n" % os.fsencode(self.groups)
        self.process("self", mountinfo=ROOT_OF_HOST + groups)
        (self.proc / "self" / "fd").mkdir()

    def namespace(self, parent: Path | None = None, owner: Path | None = None, maker: int = 0) -> Path:
        """Return a new namespace: of users or processes with a ``parent``, any with an ``owner``, of users with a ``maker``."""
        path = self.directory / "namespaces" / str(len(os.listdir(self.directory / "namespaces")))
        path.touch()
        inode = path.stat().st_ino
        if parent is not None:
            self.parents[inode] = parent
        if owner is not None or parent is not None:
            self.owners[inode] = owner or self.host["user"]
        self.makers[inode] = maker
        return path

    def file(self, mount: int, path: str) -> Path:
        """Return a file that is to be at ``path`` on the ``mount``."""
        file = self.directory / "files" / f"{mount}!{path.strip('/').replace('/', '!')}"
        file.touch()
        return file

    def mount_of(self, descriptor: int, proc_self: int | None = None) -> int:
        """Return the number of the mount that a file of ``file`` is on; everything else is on the host's root."""
        number = os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2].partition("!")[0]
        return int(number) if number.isdigit() else 20

    def mounts_of_namespace(self, descriptor: int, *numbers: int) -> mount_table.Mounts:
        """Return the mounts that the first process of a mount namespace shows which shows any; a child would visit it."""
        inode = os.fstat(descriptor).st_ino
        for directory in sorted(self.proc.iterdir()):
            namespace, mountinfo = directory / "ns/mnt", directory / "mountinfo"
            if namespace.exists() and namespace.stat().st_ino == inode and mountinfo.stat().st_size:
                return mount_table.Mounts(mountinfo.read_bytes())
        raise Refused("the mounts of its mount namespace cannot be looked at: core not delegated")

    def container(self, **namespaces: Path) -> dict[str, Any]:
        """Return the namespaces of a new container: of processes and of mounts, and those that are given."""
        own = {"pid": self.namespace(self.host["pid"]), "mnt": self.namespace(owner=self.host["user"])}
        return {**own, **namespaces}

    def process(
        self,
        number: int | str,
        pids: str = "",
        cgroup: str = "/",
        mountinfo: bytes = ROOT_OF_HOST,
        started: int = 100,
        parent: int = 0,
        filters: int | None = 0,
        bounding: int = ALL,
        permitted: int | None = None,
        inheritable: int = 0,
        controllers: str = "",
        exe: tuple[int, str] | None = None,
        ids: str = "0 0 4294967295",
        **namespaces: Path,
    ) -> None:
        """Add a process: its ``pids`` in its namespaces below the host's, its control group, what else its files say."""
        directory = self.proc / str(number)
        (directory / "ns").mkdir(parents=True)
        (directory / "task").mkdir()
        (directory / "task" / str(number)).symlink_to("..")
        for kind in KINDS:
            os.link(namespaces.get(kind, self.host[kind]), directory / "ns" / kind)
        status = f"Name:\ta\nTgid:\t{number}\nNStgid:\t{number} {pids}\nPPid:\t{parent}\nCapBnd:\t{bounding:016x}\n"
        status += f"CapPrm:\t{bounding if permitted is None else permitted:016x}\nCapInh:\t{inheritable:016x}\n"
        status += "" if filters is None else f"Seccomp_filters:\t{filters}\n"
        (directory / "status").write_text(status)
        fields = [parent, *([0] * 17), started, 0, 0]
        (directory / "stat").write_text(f"{number} (a) S " + " ".join(map(str, fields)))
        (directory / "cgroup").write_text(f"0:{controllers}:{cgroup}\n")
        (directory / "mountinfo").write_bytes(mountinfo)
        mount = int(mountinfo.split(b" ")[0] or 20)
        (directory / "root").symlink_to(self.file(mount, "/"))
        (directory / "exe").symlink_to(self.file(*(exe or (mount, "/usr/bin/server"))))
        for name in ("uid_map", "gid_map"):
            (directory / name).write_text(ids + "\n")
        if isinstance(number, int):
            group = self.groups / cgroup.lstrip("/")
            group.mkdir(parents=True, exist_ok=True)
            with open(group / "cgroup.procs", "a") as file:
                file.write(f"{number}\n")

    def ioctl(self, descriptor: int, request: int, *buffer: Any) -> int:
        """Answer as nsfs does; ioctl_ns(2)."""
        inode = os.fstat(descriptor).st_ino
        if request == NS_GET_PID_FROM_PIDNS:
            if inode in self.first_processes:
                return self.first_processes[inode]
            raise OSError(25, "Inappropriate ioctl for device")
        if request == NS_GET_OWNER_UID:
            content, changes = buffer
            if changes:
                content[:] = self.makers[inode].to_bytes(4, sys.byteorder)
            return 0
        known = {NS_GET_PARENT: self.parents, NS_GET_USERNS: self.owners}[request]
        if inode not in known:
            raise PermissionError(1, "Operation not permitted")
        return self.open(known[inode])

    def open(self, path: Path, flags: int = os.O_RDONLY) -> int:
        descriptor = os.open(path, flags)
        self.opened.append(descriptor)
        return descriptor

    def crashed(self, pid: int, root: str = "/", mount: int | None = None, **facts: Any) -> Any:
        """Return what the helper knows of process ``pid``; its root directory is ``root``, on ``mount`` or its first one."""
        process: Any = FaultingProcess.__new__(FaultingProcess)
        directory = self.proc / str(pid)
        process.task = self.open(directory, os.O_PATH)
        process.root = self.open(directory / "root" if mount is None else self.file(mount, root), os.O_PATH)
        place = self.proc / "self" / "fd" / str(process.root)
        if place.is_symlink():
            place.unlink()
        place.symlink_to(root)
        status = procfs.parse_status((directory / "status").read_bytes())
        process.cgroups = procfs.parse_cgroup((directory / "cgroup").read_bytes())
        process.container_id = runtime.container_id(process.cgroups)
        process.host_pid = pid
        process.depth = len(status["NStgid"].split())
        process.seccomp_filters = int(status.get("Seccomp_filters", "0"))
        process.bounding = process.permitted = int(status["CapBnd"], 16)
        process.confined = False
        process.visits = mount_table.Visits()
        process.uid, process.gid, process.groups = 0, 0, []
        theirs = {kind: directory / "ns" / kind for kind in KINDS}
        foreign = {kind: path for kind, path in theirs.items() if not os.path.samefile(path, self.host[kind])}
        user = foreign.pop("user", None)
        process.user_namespace = None if user is None else self.open(user)
        process.namespaces = [(kind, 0, self.open(path)) for kind, path in foreign.items()]
        for name, fact in facts.items():
            setattr(process, name, fact)
        return process

    def close(self) -> None:
        """Close what was opened, though a test may have closed some of it."""
        for descriptor in self.opened:
            try:
                os.close(descriptor)
            except OSError:
                pass


def keeps_descriptors(function: Callable[[], object]) -> bool:
    """Tell whether ``function`` leaves as many descriptors open as there were."""

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    function()
    return count() == before


def told(process: Any) -> str:
    """Return why a core is withheld, or ""."""
    try:
        membership.check(process)
    except Withheld as error:
        return str(error) if error.process is process else "another process"
    return ""


def looked_at(pid: int) -> FaultingProcess:
    """Return what the helper knows of a process of this machine that does not crash."""
    proc = os.open("/proc", os.O_RDONLY)
    task = verification.open_task(proc, pid, None)
    status = procfs.parse_status(procfs.read(task, "status"))
    process = FaultingProcess(
        task, os.open(f"/proc/{pid}/root", os.O_PATH), *verification.open_namespaces(task, proc), status
    )
    os.close(proc)
    return process

"""Root of the host in the root directory of a container that has a user namespace, and files of root all the same."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hostile.intruders import NOT_FOR, OF_THE_HOST
from hostile.observe import wait_until
from support import lab
from support.containers import wait_for_log

# Takes the root of the user namespace, makes the directory the root of mounts of its own, and stays.
ENTER = (
    "mount --rbind {0} {0} && cd {0} && pivot_root . old && echo x >/opt/bin/of-the-container"
    " && exec /usr/bin/crasher wait=/never"
)
ALONE = ("unshare", "--mount", "--pid", "--ipc", "--uts", "--net", "--fork", "--propagation=private", "sh", "-c")
SYSCALLS = {"open_tree": 428, "move_mount": 429, "mount_setattr": 442}
OPEN_TREE_CLONE, MOUNT_ATTR_IDMAP, MOVE_MOUNT_F_EMPTY_PATH, AT_FDCWD, AT_EMPTY_PATH = 1, 1 << 20, 4, -100, 0x1000


def mount_with_ids_of(user_namespace: int, source: Path, target: Path) -> None:
    """As LXC, Incus and systemd-nspawn do it: what root of the user namespace writes there belongs to root on the disk."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    tree = call(SYSCALLS["open_tree"], AT_FDCWD, os.fsencode(source), OPEN_TREE_CLONE)
    attributes = struct.pack("=4Q", MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
    if call(SYSCALLS["mount_setattr"], tree, b"", AT_EMPTY_PATH, attributes, len(attributes)):
        pytest.skip(f"no mounts with other ids: {os.strerror(ctypes.get_errno())}")
    assert not call(SYSCALLS["move_mount"], tree, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)
    os.close(tree)


KINDS = ["of a user namespace", "of a user namespace with the ids of the host", "of the host"]


@pytest.mark.parametrize("kind", KINDS)
def test_attack_20_root_of_the_host_changes_its_root_directory_to_that_of_a_container(jail: Path, kind: str) -> None:
    (jail / "old").mkdir()
    target = jail.parent / "mounted"
    target.mkdir()
    holder = subprocess.Popen(["unshare", "--user", "sleep", "100"])
    wait_until(lambda: os.readlink(f"/proc/{holder.pid}/ns/user") != os.readlink("/proc/self/ns/user"), "no namespace")
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{holder.pid}/{name}").write_text(f"0 {100000 if kind == KINDS[0] else 0} 65536\n")
    user_namespace = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY)
    join: tuple[str, ...] = ()
    if kind == KINDS[0]:
        mount_with_ids_of(user_namespace, jail, target)
    else:
        lab.command("mount", "--bind", jail, target)
    if kind != KINDS[-1]:
        join = ("nsenter", f"--user=/proc/{holder.pid}/ns/user", "--setuid=0", "--setgid=0")
    container = subprocess.Popen([*join, *ALONE, ENTER.format(target)], start_new_session=True)
    try:
        written = jail / "opt/bin/of-the-container"
        wait_until(written.exists, "the container does not run")
        assert written.stat().st_uid == 0
        crash = subprocess.Popen(["chroot", jail, "/usr/bin/crasher"], env=OF_THE_HOST)
        crash.wait()
        lines = wait_for_log(f"pid={crash.pid} ", "deliver")
        assert not list(jail.glob("*delegate.*")), (
            f"the delegate of a running container has the rights of root: {lines}"
        )
        assert NOT_FOR in lines
    finally:
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (directory / "comm").read_text() == "crasher\n":
                    os.kill(int(directory.name), signal.SIGKILL)
        container.wait()
        holder.kill()
        holder.wait()
        os.close(user_namespace)
        lab.command("umount", "--lazy", target)

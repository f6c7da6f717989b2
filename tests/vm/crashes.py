"""Crashes on a virtual machine, and all the ways to one that a real host has."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from support import lab
from support.crashes import Crash
from support.machines import Machine
from support.records import Record

# On the machine: a root directory with busybox, the crashing program and the probe; the same as an image.
ROOT = "/srv/root"
ARCHIVE = "/srv/root.tar"
IMAGE = "localhost/core-lab"
RECORDS = "/srv/records"
# Where the host keeps cores.
CORES = "/var/lib/docker_core_helper/cores"

# What baselines such as the STIG demand.
HARDENING = "/etc/sysctl.d/99-kernel_core_pattern.conf"
PATTERN = "cat /proc/sys/kernel/core_pattern /proc/sys/kernel/core_pipe_limit"

# A user's own engine, with the session that systemd has for the user.
USER = "someone"
AS_USER = (
    f"runuser --user {USER} -- env --ignore-environment --chdir=/ PATH=/usr/bin:/bin HOME=/home/{USER}"
    ' XDG_RUNTIME_DIR="/run/user/$(id --user someone)"'
    ' DBUS_SESSION_BUS_ADDRESS="unix:path=/run/user/$(id --user someone)/bus"'
)
# Another storage of that user's, whose root directories are of FUSE: the file system lets nobody in but its user.
FUSE = (
    f"podman --root=/home/{USER}/fuse --runroot=/run/user/$(id --user {USER})/fuse --storage-driver=overlay"
    " --storage-opt=overlay.mount_program=/usr/bin/fuse-overlayfs"
)
# A variable of the process that its delegate gets.
KEPT = "KEPT=1"
IN_CONTAINER = f"run --rm --network=none --volume={{out}}:/out {IMAGE} crash"

# Each is a shell command; {out} is the directory for the records. A process of the host has the host's own delegate, a
# container that of its image.
PROCESS = f"RECORD_DIRECTORY={{out}} {ROOT}/usr/bin/crash"
WAYS = {
    "service": "systemd-run --quiet --wait --collect --unit=crasher --property=User=someone --property=PrivateTmp=yes"
    f" --property=MemoryMax=64M --setenv=RECORD_DIRECTORY={{out}} {ROOT}/usr/bin/crash",
    # Each filter is one of the whole service's, and so no sandbox within it.
    "hardened-service": "systemd-run --quiet --wait --collect --unit=crasher --property=ProtectSystem=strict"
    " --property=SystemCallFilter=@system-service --property=RestrictNamespaces=yes --property=NoNewPrivileges=yes"
    f" --property=ReadWritePaths={{out}} --setenv=RECORD_DIRECTORY={{out}} --setenv={KEPT} {ROOT}/usr/bin/crash",
    "chroot": f"""
        mount --bind {{out}} {ROOT}/out && mount -t proc proc {ROOT}/proc
        chroot {ROOT} /usr/bin/crash
        umount {ROOT}/proc {ROOT}/out""",
    "nspawn": f"systemd-nspawn --quiet --pipe --private-network --directory={ROOT} --bind={{out}}:/out"
    f" --setenv={KEPT} /usr/bin/crash",
    "docker": f"docker {IN_CONTAINER}",
    "podman": f"podman {IN_CONTAINER}",
    "rootless-podman": f"{AS_USER} podman {IN_CONTAINER}",
    "rootless-podman-fuse": f"{AS_USER} {FUSE} {IN_CONTAINER}",
}
# The containers, by that part of their AppArmor label which is not the version.
CONFINED = {"docker": "docker-default", "podman": "containers-default"}


def furnish(machine: Machine, programs: Path) -> None:
    """Brings what crashes to the machine, and the delegates; ``programs`` is a directory here for what is compiled."""
    lab.compile_programs(programs)
    machine.unpack(
        lab.root_archive({"usr/bin/crash": programs / "crash", "opt/bin/delegate": programs / "probe"}), ROOT
    )
    # systemd-nspawn wants to see an operating system. Nothing comes from an image registry.
    machine.run(f"""
        set -e
        cd {ROOT}
        mkdir -p dev etc proc run sys usr/lib
        echo ID=lab >usr/lib/os-release
        install -D --mode=755 opt/bin/delegate /opt/bin/delegate
        tar -c . >{ARCHIVE}
        # Each has its own storage.
        {{ docker import {ARCHIVE} {IMAGE} && podman import --quiet {ARCHIVE} {IMAGE}; }} &
        loginctl enable-linger {USER}
        for i in $(seq 100); do [ ! -S /run/user/$(id --user {USER})/bus ] || break; sleep 0.2; done
        {AS_USER} podman import --quiet {ARCHIVE} {IMAGE}
        {AS_USER} {FUSE} import --quiet {ARCHIVE} {IMAGE}
        wait $!
    """)


class MachineCrash(Crash):
    """A crash on a machine, with what the journal there holds of it."""

    def __init__(self, machine: Machine, way: str, local: Path) -> None:
        """Runs the crash to its end, and brings everything here."""
        remote = f"{RECORDS}/{uuid.uuid4().hex[:8]}"
        machine.run(f"""
            mkdir -p {remote} && chmod 777 {remote} && cd {remote}
            # A line of its own to begin after: in systemd 252, a cursor at one that does not match hides the first that does.
            logger --tag=docker_core_helper begin && journalctl --sync
            cursor=$(journalctl --identifier=docker_core_helper --lines=1 --show-cursor | sed -n 's/^-- cursor: //p')
            ( {way.format(out=remote)} ) >output 2>&1
            echo $? >status
            read_journal() {{
                journalctl --after-cursor="$cursor" --identifier=docker_core_helper --output=cat --no-pager >journal
            }}
            # The helper writes its line when the process is gone already. A second one would follow at once.
            for i in $(seq 40); do
                read_journal
                [ ! -s journal ] || break
                sleep 0.25
            done
            sleep 0.5
            read_journal
        """)
        machine.pack(remote, local)
        machine.run(f"rm -r {remote}")
        output = (local / "output").read_text(errors="replace")
        super().__init__(local, int((local / "status").read_text()), output)
        self.journal = (local / "journal").read_text(errors="replace").splitlines()

    def __repr__(self) -> str:
        """What pytest shows where a test fails."""
        return f"{super().__repr__()}, journal {self.journal}"


LOOP = "/srv/loop"
# A container as small as can be, one after the other, each in a directory of its own.
CRASHES = f"""
n=0
while [ ! -e {LOOP}.stop ]; do
    n=$((n + 1))
    mkdir {LOOP}/$n
    RECORD_DIRECTORY={LOOP}/$n unshare --pid --fork --mount-proc {ROOT}/usr/bin/crash
    sleep {{pause}}  # Others want the processor, too.
done
"""


class CrashLoop:
    """Processes that crash on a machine one after the other, while something else is done there."""

    def __init__(self, machine: Machine, pause: float) -> None:
        """Starts it, with so many seconds between two crashes."""
        self.machine = machine
        machine.run(f"mkdir {LOOP} && cat >{LOOP}.sh", data=CRASHES.format(pause=pause).encode())
        machine.run(f"systemd-run --quiet --unit=crashes --property=RuntimeMaxSec=1800 /bin/sh {LOOP}.sh")

    def wait_for(self, number: int) -> int:
        """How many processes have crashed, once there are that many."""
        self.machine.run(f"until [ $(ls {LOOP} | wc -l) -ge {number} ]; do sleep 0.2; done", seconds=300)
        return int(self.machine.run(f"ls {LOOP} | wc -l"))

    def end(self, local: Path) -> tuple[int, list[Record]]:
        """Ends it; returns how many processes have crashed, and what their delegates have said, brought to ``local``."""
        self.machine.run(
            f"touch {LOOP}.stop; while systemctl --quiet is-active crashes; do sleep 0.2; done", seconds=300
        )
        self.machine.pack(LOOP, local)
        self.machine.run(f"rm -r {LOOP} {LOOP}.stop {LOOP}.sh")
        return len(list(local.glob("*/process.1"))), [Record(path) for path in local.glob("*/delegate.1")]


def coredumpctl(machine: Machine) -> dict[str, str]:
    """Crashes a process of the host; returns what ``coredumpctl list`` shows, and the fields of the journal behind it."""
    pid, shown, entry = machine.run(f"""
        directory=$(mktemp --directory)
        systemd-run --quiet --wait --collect --unit=crasher --property=LimitCORE=infinity \
            --setenv=RECORD_DIRECTORY="$directory" {ROOT}/usr/bin/crash
        pid=$(ls "$directory" | sed -n 's/^process[.]//p')
        for i in $(seq 60); do
            ! coredumpctl --quiet --no-legend list "$pid" >/dev/null 2>&1 || break
            sleep 0.5
        done
        echo "$pid"
        coredumpctl --no-legend --no-pager list "$pid" || echo nothing
        journalctl --output=json --no-pager COREDUMP_PID="$pid" MESSAGE_ID=fc2e22bc6ee647b6b90729ab34a250b1
    """).splitlines()
    fields = {name: str(value) for name, value in json.loads(entry).items() if name.startswith("COREDUMP_")}
    # Time, pid, uid and gid come first, then signal, state of the core and program. The size at the end is the compressed one.
    return {**fields, "COREDUMP_PID": pid, "coredumpctl": " ".join(shown.partition(pid)[2].split()[:-1])}

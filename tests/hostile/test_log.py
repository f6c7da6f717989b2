"""What comes into the host's log: names full of odd bytes, names of others, and floods of lines."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.observe import lines_of, wait_until
from hostile.options import ADMINISTRATOR
from support import lab
from support.containers import MakeCrash, read_log
from support.hosts import HELPER
from support.records import is_whole

Kernel = Callable[[str, str], None]


def test_attack_15_names_full_of_bytes_that_matter_elsewhere(attack: MakeCrash, kernel: Kernel) -> None:
    kernel("kernel/core_pattern", f"|{HELPER} -s%s %P %u %g /opt/bin/delegate %e %h %E")
    options = (*ADMINISTRATOR, "--env=ATTACK=tells-words")
    container = attack("name", "thread-name", "user", options=options)
    (line,) = lines_of(container)
    assert " uid=1000 gid=1000 signal=11 (SIGSEGV)" in line
    assert "delivered" in line
    told = line.replace("\\x5c", "\\")
    assert r'comm="a\x0ab) \x22%P\x1b\xff" exe="/tmp/a \x22b\x22 \x0a0 0 0 %P \x1b[31m\xff\xfe"' in told
    assert r'host="h 0 0\x0a\x22%s\x1b\xff"' in told
    words = (container.records / "words").read_bytes().split(b"\0")
    assert words == [
        b'a\nb) "%P\x1b\xff',
        b'h 0 0\n"%s\x1b\xff',
        b'!tmp!a "b" \n0 0 0 %P \x1b[31m\xff\xfe',
        b"",
    ]


@pytest.mark.parametrize(("length", "told"), [(4000, 4000), (5000, 0)])
def test_attack_15_a_path_of_four_kibibytes_or_more(attack: MakeCrash, length: int, told: int) -> None:
    container = attack(f"path={length}", options=("--tmpfs=/tmp:exec,mode=1777",))
    (line,) = lines_of(container)
    assert ": delivered " in line, "the path has pushed out what became of the core"
    assert is_whole(container.delegate.core.read_bytes())
    # No more than PATH_MAX can be read of a path; proc_pid_exe(5).
    exe = container.delegate.environment["CORE_EXE"]
    assert len(exe) == told
    assert f'exe="{exe[:256]}{"..." if exe else ""}"' in line


USER_OF_THE_HOST = """
echo $$ > {group}/start/cgroup.procs
exec setpriv --reuid=1000 --regid=1000 --clear-groups --no-new-privs sh -c '
mkdir {group}/{name}
echo $$ > {group}/{name}/cgroup.procs
exec {crasher} tiny'
"""


@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_15_a_user_of_the_host_names_a_control_group_after_a_container(
    attack: MakeCrash, group_of_user: Path, records: Path
) -> None:
    other = attack("wait=/out/go", options=("--detach",))
    script = USER_OF_THE_HOST.format(group=group_of_user, name=other.identifier, crasher=f"{lab.PROGRAMS}/crasher")
    crash = subprocess.Popen(["sh", "-c", script], env={**os.environ, "RECORD_DIRECTORY": str(records)})
    crash.wait()
    written: list[str] = []

    def is_told() -> bool:
        written[:] = [line for line in read_log().splitlines() if f"pid={crash.pid} " in line]
        return any(": delivered " in line for line in written)

    wait_until(is_told, "the crash of the user was not handled")
    assert not [line for line in written if f"container={other.identifier[:12]}" in line]
    assert [line for line in written if f"container=1000:{other.identifier[:12]}" in line]


def test_attack_12_the_output_of_the_delegate_is_bounded(attack: MakeCrash) -> None:
    container = attack(options=("--env=ATTACK=talks",))
    told = [line for line in container.log("delivered").splitlines() if ": delegate: " in line]
    assert 100 < len(told) <= 201
    assert "not logged" in told[-1]
    assert "\x1b" not in "".join(told)


def test_attack_22_a_flood_of_lines_is_rationed_over_all_crashes(attack: MakeCrash) -> None:
    container = attack("fork=30", "tiny", options=("--env=ATTACK=talks",))
    told = container.log("more are left out while it writes over 10 a second")
    assert "more are left out while it writes over 10 a second" in told
    assert len(told.splitlines()) < 1100

"""What becomes of a core that the delegate does not read to its end, or that is cut off: nothing is lost without a word."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from hostile.keeping import core_file
from hostile.observe import delegates_of, kill_dumper, lines_of, processes_of, running, wait_until
from support import door, lab
from support.containers import MakeCrash
from support.records import is_whole

# A delegate that read nothing costs nothing.


@pytest.mark.parametrize("does", ["dies", "gives-up"])
def test_a_delegate_that_fails_and_read_nothing_leaves_the_whole_core(
    attack: MakeCrash, tmp_path: Path, fallback: tuple[str, ...], does: str
) -> None:
    container = attack("memory=4", options=(*fallback, f"--env=ATTACK={does}"))
    line = container.log("delivered")
    why = "/opt/bin/delegate: it (was killed by signal 9|ended with exit code 7) before it read a byte"
    assert re.search(rf": delivered \d+ bytes to .*; no delegate took it: {why}", line), line
    assert is_whole(core_file(tmp_path))


def test_a_delegate_that_wants_no_core_ends_well_and_nothing_else_gets_it(
    attack: MakeCrash, tmp_path: Path, fallback: tuple[str, ...]
) -> None:
    container = attack("memory=4", options=(*fallback, "--env=ATTACK=wants-nothing"))
    assert "not wanted by /opt/bin/delegate: it read nothing and ended with exit code 0" in container.log("not wanted")
    assert list(tmp_path.glob("core.*")) == []


@pytest.mark.parametrize("delegate", ["plain", "directory", "#!/opt/missing", "garbage"])
def test_a_delegate_that_cannot_be_started_leaves_the_whole_core_to_the_fallback(
    attack: MakeCrash, tmp_path: Path, delegate: str
) -> None:
    options = ("--env=DOCKERCOREHELPER_FALLBACK_CORE=1", f"--volume={tmp_path}:/tmp")
    container = attack(f"delegate={delegate}", "memory=4", options=options)
    assert ": delivered " in container.log("delivered")
    (core,) = tmp_path.glob("core.*")
    assert is_whole(core.read_bytes())
    assert core.stat().st_size > 4 << 20


def test_attack_11_the_container_is_killed_in_the_middle(attack: MakeCrash) -> None:
    container = attack("memory=64", options=("--env=ATTACK=waits", "--detach"))
    wait_until(lambda: delegates_of(container), "no delegate")
    lab.output("docker", "kill", container.name)
    # It had not begun to read.
    assert "/opt/bin/delegate: it was killed by signal 9 before it read a byte" in container.log("core dropped")


# How the delegate ended.


def test_attack_11_the_exit_code_of_the_delegate_is_told(attack: MakeCrash) -> None:
    container = attack(options=("--env=ATTACK=fails",))
    assert re.search(r"not delivered: it ended with exit code 7: \d+ bytes", container.log("not delivered"))


def test_attack_14_the_delegate_crashes(attack: MakeCrash) -> None:
    container = attack("fork=1", options=("--env=ATTACK=crashes", "--ulimit=core=-1"))
    lines = lines_of(container)
    # Of the delegate's own crash the kernel tells in its own log, where it has applied the limit.
    refused = [line for line in lines if "its limit for core files is 1 byte" in line]
    assert len(refused) == door.BY_SOCKET
    (line,) = (line for line in lines if line not in refused)
    assert "was killed by signal 6" in line


def test_a_delegate_that_asks_to_keep_the_core_is_heard(attack: MakeCrash, tmp_path: Path) -> None:
    tmp_path.parent.chmod(0o755)
    delegate = tmp_path / "delegate"
    delegate.write_text('#!/bin/sh\ncat >/dev/null\necho "$CORE_TIMEOUT" >/out/left\nexit 75\n')
    delegate.chmod(0o755)
    container = attack("memory=4", options=(f"--volume={delegate}:/opt/bin/delegate:ro",))
    told = container.log("not delivered")
    assert re.search(r"not delivered: it ended with exit code 75 \(keep the core and try again\): \d+ bytes", told), (
        told
    )
    assert 0 < int((container.records / "left").read_text()) <= 5


# A core that was cut off never has the name of a whole one.


def test_attack_11_the_process_is_killed_while_it_dumps(attack: MakeCrash) -> None:
    container = attack("keep=20", "memory=256", options=("--env=ATTACK=waits", "--detach"))
    wait_until(lambda: delegates_of(container), "no delegate")
    time.sleep(0.3)
    kill_dumper(container)
    (container.records / "go").touch()
    line = container.log("truncated")
    delivered, length = map(int, re.findall(r"(\d+) bytes to .*truncated: of (\d+) bytes", line)[0])
    assert 0 < delivered < 8 << 20
    assert length > 256 << 20


def test_attack_11_the_process_is_frozen_while_it_dumps(attack: MakeCrash) -> None:
    container = attack("keep=20", "memory=256", options=("--env=ATTACK=waits", "--detach"))
    wait_until(lambda: delegates_of(container), "no delegate")
    time.sleep(0.3)
    lab.output("docker", "pause", container.name)
    (container.records / "go").touch()
    lab.output("docker", "unpause", container.name)
    assert re.search(r"not delivered: .*\d+ bytes to .*truncated", container.log("truncated"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_helper_that_is_told_to_end_ends_its_delegate_first_and_says_so(attack: MakeCrash, number: int) -> None:
    container = attack("keep=20", "memory=64", options=("--env=ATTACK=waits", "--detach"))
    wait_until(lambda: delegates_of(container), "no delegate")
    time.sleep(0.3)
    for directory in running():
        os.kill(int(directory.name), number)
    assert f"the helper was told to end by {signal.Signals(number).name}" in container.log("told to end")
    wait_until(lambda: not delegates_of(container), "the delegate would take a part of the core for all of it")


WAIT_AND_UPLOAD = """#!/bin/sh
until [ -e /out/go ]; do sleep 0.05; done
exec /opt/bin/uploader.sh /out "$1" "$2" "$3"
"""


def test_a_core_that_was_cut_off_never_has_the_name_of_a_whole_one(attack: MakeCrash, tmp_path: Path) -> None:
    tmp_path.parent.chmod(0o755)
    delegate = tmp_path / "delegate"
    delegate.write_text(WAIT_AND_UPLOAD)
    delegate.chmod(0o755)
    uploader = f"{lab.PROJECT}/container_scripts/uploader.sh:/opt/bin/uploader.sh:ro"
    volumes = (f"--volume={delegate}:/opt/bin/delegate:ro", f"--volume={uploader}")
    container = attack("keep=20", "memory=256", options=(*volumes, "--detach"))
    wait_until(lambda: any("/opt/bin/delegate" in words for _, words in processes_of(container)), "no delegate")
    time.sleep(0.3)
    kill_dumper(container)
    (container.records / "go").touch()
    told = container.log("truncated: of")
    delivered, length = map(
        int, re.findall(r"the core was cut off: (\d+) bytes to .*truncated: of (\d+) bytes", told)[0]
    )
    assert 0 < delivered < 8 << 20 and length > 256 << 20
    (core,) = (path.name for path in container.records.iterdir() if ".core" in path.name)
    name = r"[A-Za-z0-9._-]+\.crasher\.crasher\.\d+\.\d{8}T\d{6}Z\.[0-9a-f]{12}\.core(\.zst|\.gz)?\.truncated"
    assert re.fullmatch(name, core), core
    assert f"delegate: uploader.sh: /out/{core}: ended by SIGTERM, so this is a part of the core" in told

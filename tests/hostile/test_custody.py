"""The host keeps a core: whatever no destination has taken, and nothing else; under its bounds, whatever containers do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.keeping import Keep, content_of, is_finished, kept_in
from hostile.observe import LIMIT, delegates_of, helpers, running, wait_until
from support import lab
from support.containers import MakeCrash, wait_for_log
from support.hosts import HELPER
from support.records import is_whole


def test_what_the_delegate_takes_does_not_stay(attack: MakeCrash, keep: Keep) -> None:
    store = keep("undelivered")
    container = attack("memory=4")
    assert ": delivered " in container.log("delivered")
    assert is_whole(container.delegate.core.read_bytes())
    assert [path for path in store.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("does", ["dies", "gives-up"])
def test_what_the_delegate_loses_stays(attack: MakeCrash, keep: Keep, does: str) -> None:
    store = keep("undelivered")
    container = attack("memory=4", options=(f"--env=ATTACK={does}",))
    line = container.log("kept on this host")
    ((known, core),) = kept_in(store)
    assert f"cores get {known['key']} FILE" in line
    assert is_whole(content_of(core))


def test_memory_for_the_process_and_nothing_else(attack: MakeCrash, keep: Keep) -> None:
    # While the kernel dumps, nothing runs in the container. The uploader gets the core when it is safe, and may die of it.
    store = keep("undelivered")
    uploader = f"--volume={lab.PROJECT}/container_scripts/uploader.sh:/opt/bin/delegate:ro"
    options = ("--memory=48m", "--memory-swap=48m", uploader, "--env=CORE_DESTINATION=/out")
    container = attack("memory=44", options=options)
    line = container.log("bytes")
    if ": delivered " in line:
        ((path),) = container.records.glob("*.core*")
        assert is_whole(content_of(path))
    else:
        ((known, core),) = kept_in(store)
        assert known["truncated"] is False
        assert is_whole(content_of(core))


def test_a_delegate_that_needs_the_memory_of_the_process_has_a_second_chance(attack: MakeCrash, keep: Keep) -> None:
    # The parent lives on, and so does the container.
    store = keep("undelivered")
    options = ("--memory=64m", "--memory-swap=64m", "--env=ATTACK=needs-memory")
    container = attack("leave=20", "memory=44", options=(*options, "--detach"))
    assert ": delivered " in container.log(": delivered ")
    wait_until(lambda: [path for path in store.rglob("*") if path.is_file()] == [], "the core stays")


def test_a_core_whose_delegate_asks_again_in_vain_stays(attack: MakeCrash, keep: Keep, tmp_path: Path) -> None:
    # The store is away. The parent lives on, and so does the container.
    store = keep("undelivered")
    tmp_path.parent.chmod(0o755)
    tmp_path.chmod(0o755)
    delegate = tmp_path / "delegate"
    delegate.write_text("#!/bin/sh\nwc -c >>/out/tried\nexit 75\n")
    delegate.chmod(0o755)
    options = (f"--volume={delegate}:/opt/bin/delegate:ro", "--detach")
    container = attack("leave=20", "memory=4", options=options)
    line = container.log("kept on this host")
    ((known, core),) = kept_in(store)
    assert is_whole(content_of(core))
    # Each time it had the whole core.
    assert [int(size) for size in (container.records / "tried").read_text().split()] == [known["size"]] * 2
    asked = "it ended with exit code 75 (keep the core and try again)"
    assert re.search(rf"{re.escape(asked)}.*; again without the process: .*{re.escape(asked)}", line)


def test_all_cores(attack: MakeCrash, keep: Keep) -> None:
    store = keep("always")
    container = attack("memory=4")
    assert ": delivered " in container.log("delivered")
    ((known, core),) = kept_in(store)
    assert content_of(core) == container.delegate.core.read_bytes()
    assert (known["size"], known["truncated"]) == (container.delegate.core.stat().st_size, False)
    assert container.delegate.environment["CORE_SIZE"] == str(known["size"])
    assert container.delegate.environment["CORE_TRUNCATED"] == "0"


def test_what_must_go_to_nobody_does_not_stay(
    attack: MakeCrash, keep: Keep, kernel: Callable[[str, str], None], refusal: Callable[[str], str]
) -> None:
    store = keep("always")
    kernel("fs/suid_dumpable", "2")
    attack("setid")
    refusal("never delegated")
    assert not store.exists() or [path for path in store.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("spoil", ["mode", "owner", "file"])
def test_a_store_that_others_could_change_is_not_used(
    attack: MakeCrash, keep: Keep, refusal: Callable[[str], str], spoil: str
) -> None:
    store = keep("always")
    if spoil == "file":
        store.touch()
    else:
        store.mkdir(mode=0o700)
        os.chmod(store, 0o755) if spoil == "mode" else os.chown(store, 1000, 1000)
    container = attack("memory=4")
    assert is_whole(container.delegate.core.read_bytes())
    assert "not kept" in refusal(str(store))
    assert store.is_file() or list(store.iterdir()) == []


def test_a_disk_that_is_too_small_is_not_used(
    attack: MakeCrash, keep: Keep, refusal: Callable[[str], str], small: Path
) -> None:
    keep("always")
    container = attack("memory=20")
    assert "not kept" in refusal(f"{small} has room for")
    assert is_whole(container.delegate.core.read_bytes())


def test_a_disk_that_fills_up_meanwhile(attack: MakeCrash, keep: Keep, small: Path) -> None:
    # It has less in memory than is dumped: files that it has mapped, and whose pages nobody has read.
    keep("always")
    container = attack("mapped=20")
    line = container.log("kept on this host")
    assert "truncated" in line and "has no room for more" in line
    assert is_whole(container.delegate.core.read_bytes())


def test_no_delegate(attack: MakeCrash, keep: Keep) -> None:
    store = keep("undelivered")
    container = attack("delegate=none", "memory=4")
    assert "kept on this host" in container.log("kept on this host")
    ((_known, core),) = kept_in(store)
    assert is_whole(content_of(core))


def test_the_delegate_may_come_after_the_process_is_gone(attack: MakeCrash, keep: Keep) -> None:
    # The uploader takes its time, and the parent sees at once that its child has ended.
    store = keep("undelivered", release="kept")
    container = attack("keep=1", "memory=4", options=("--env=ATTACK=waits", "--detach"))
    wait_until(lambda: "child ended" in lab.output("docker", "logs", container.name), "the process stays", 4)
    (container.records / "go").touch()
    assert ": delivered " in container.log(": delivered ")
    assert [path for path in store.rglob("*") if path.is_file()] == []


@pytest.mark.usefixtures("patient_enough")
def test_deliveries_of_released_processes_hold_no_slot_and_one_container_cannot_have_them_all(
    attack: MakeCrash, keep: Keep
) -> None:
    # Two slots. A container that crashes once more while its uploader takes its time had no slot for that.
    store = keep("undelivered", release="kept", pipe_limit="2")
    container = attack("keep=600", "memory=4", options=("--env=ATTACK=waits", "--detach"))
    wait_until(lambda: "child ended" in lab.output("docker", "logs", container.name), "the process stays")
    lab.command("docker", "exec", container.name, "/usr/bin/crasher", "memory=4", check=False)
    line = container.log("kept on this host")
    assert "has 1 crashes in flight, and 1 of 2 slots are free" in line
    (described,) = [path for path in store.glob("*/*.json") if "in flight" in path.read_text()]
    wait_until(lambda: is_finished(described), "no checksum")
    assert is_whole(content_of(described.parent / json.loads(described.read_text())["file"]))
    other = attack("keep=600", "memory=4", options=("--detach",))
    assert ": delivered " in other.log(": delivered ")
    lab.output("docker", "kill", other.name)
    (container.records / "go").touch()
    assert ": delivered " in container.log(": delivered ")
    lab.output("docker", "kill", container.name)


def test_an_operator_sees_fetches_and_deletes_a_core(attack: MakeCrash, keep: Keep, tmp_path: Path) -> None:
    store = keep("undelivered")
    container = attack("memory=4", options=("--env=ATTACK=fails",))
    container.log("kept on this host")
    ((known, core),) = kept_in(store)
    words = (HELPER, "cores")
    table = lab.output(*words, "list")
    (line,) = table.splitlines()[1:]
    assert "/usr/bin/crasher" in line and "SIGSEGV" in line and line.endswith("whole")
    name = line.split()[0]
    assert json.loads(lab.output(*words, "list", "--json"))[0]["key"] == known["key"]
    told = json.loads(lab.output(*words, "info", name))
    assert told["facts"]["CORE_EXE"] == "/usr/bin/crasher"
    notes = lab.output("readelf", "--notes", lab.PROGRAMS / "crasher")
    (build_id,) = re.findall("Build ID: ([0-9a-f]+)", notes)
    assert told["build_ids"] == {"/usr/bin/crasher": build_id}
    lab.output(*words, "get", name, tmp_path / "core")
    assert (tmp_path / "core").read_bytes() == content_of(core)
    again = lab.command(*words, "get", name, tmp_path / "core", check=False, stderr=subprocess.PIPE, text=True)
    assert again.returncode == 1 and "exists already" in again.stderr
    lab.output(*words, "remove", name)
    assert len(lab.output(*words, "list").splitlines()) == 1
    assert list(store.glob("*/*")) == []


def test_what_no_delegate_took_is_sent_by_a_user_without_privileges(
    attack: MakeCrash, keep: Keep, sender: Path
) -> None:
    store = keep("undelivered", sender=f'"{sender} {sender.parent}"')
    container = attack("memory=4", options=("--env=ATTACK=fails", "--env=CORE_DESTINATION=/of-the-container"))
    container.log("kept on this host")
    ((known, core),) = kept_in(store)
    whole = content_of(core)
    assert lab.output(HELPER, "cores", "send") == f"{known['key']}: sent"
    (sent,) = sender.parent.glob("*.core*")
    assert sent.name == f"{known['key']}.core.zst"
    assert sent.owner() == "docker-core-helper"
    assert content_of(sent) == whole and is_whole(whole)
    assert list(store.glob("*/*")) == []


def test_a_core_that_was_cut_off_is_sent_under_a_name_that_says_so(
    attack: MakeCrash, keep: Keep, small: Path, sender: Path
) -> None:
    store = keep("undelivered", sender=f'"{sender} {sender.parent}"')
    container = attack("delegate=none", "mapped=20")
    assert "truncated" in container.log("kept on this host")
    ((known, core),) = kept_in(store)
    part = content_of(core)
    lab.output(HELPER, "cores", "send")
    (sent,) = sender.parent.glob("*.core*")
    assert sent.name == f"{known['key']}.core.zst.truncated"
    assert content_of(sent.rename(sent.with_suffix(""))) == part


def test_a_container_that_is_stopped_during_the_delivery_loses_nothing(attack: MakeCrash, keep: Keep) -> None:
    store = keep("undelivered")
    container = attack("memory=4", options=("--env=ATTACK=never-ends", "--detach"))
    wait_until(lambda: delegates_of(container), "no delegate")
    lab.output("docker", "stop", "--time=1", container.name)
    container.log("kept on this host")
    ((known, core),) = kept_in(store)
    assert known["truncated"] is False
    assert is_whole(content_of(core))


def test_a_core_file_in_the_container_counts_as_taken(attack: MakeCrash, keep: Keep, tmp_path: Path) -> None:
    # The delegate has read half of it. The disk has it all.
    store = keep("undelivered")
    directory = tmp_path / "tmp"
    directory.mkdir()
    directory.chmod(0o1777)
    tmp_path.parent.chmod(0o755)
    options = ("--env=ATTACK=fails", "--env=DOCKERCOREHELPER_FALLBACK_CORE=1", f"--volume={directory}:/tmp")
    container = attack("memory=4", options=options)
    assert "no delegate took it: /opt/bin/delegate: it ended with exit code 7" in container.log("no delegate took it")
    (core,) = directory.glob("core.*")
    assert is_whole(core.read_bytes())
    assert [path for path in store.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("which", ["never", "undelivered"])
def test_terabytes_in_as_many_processes_as_there_are_slots(attack: MakeCrash, keep: Keep, which: str) -> None:
    keep(which)
    flood = attack("wait=/out/go", f"fork={LIMIT}", "reserve=8", options=("--env=ATTACK=never-ends", "--detach"))
    wait_until(lambda: helpers() == 0, "crashes of another test are in flight")
    (flood.records / "go").touch()
    wait_until(lambda: helpers() > LIMIT // 4, "the flood does not begin")
    wait_until(lambda: "children ended" in lab.output("docker", "logs", flood.name), "its processes stay", 90)
    wait_until(lambda: helpers() == 0, "its slots stay", 10)
    other = attack("memory=4")
    assert is_whole(other.delegate.core.read_bytes())


def test_terabytes_that_were_never_used_stay_no_longer_than_the_deadline(attack: MakeCrash, keep: Keep) -> None:
    store = keep("undelivered")
    container = attack("reserve=8", options=("--env=ATTACK=never-ends",))
    assert container.seconds < 30
    line = container.log("kept on this host")
    assert "truncated: the deadline has passed while the kernel dumped it" in line
    ((known, core),) = kept_in(store)
    assert known["truncated"] is True
    assert core.stat().st_blocks * 512 < 1 << 30


def test_a_helper_that_is_killed_during_the_delivery_loses_nothing(attack: MakeCrash, keep: Keep) -> None:
    store = keep("undelivered")
    container = attack("memory=4", options=("--env=ATTACK=never-ends", "--detach"))
    wait_until(lambda: delegates_of(container), "no delegate")
    for helper in running():
        os.kill(int(helper.name), signal.SIGKILL)
    (line,) = lab.output(HELPER, "cores", "list").splitlines()[1:]
    assert line.endswith("whole")
    (described,) = store.rglob("*.json")
    known = json.loads(described.read_text())
    assert known["reason"] == "its helper was killed"
    assert is_whole((described.parent / known["file"]).read_bytes())


def test_a_helper_that_is_killed_while_the_kernel_dumps_leaves_nothing_that_looks_whole(
    attack: MakeCrash, keep: Keep
) -> None:
    store = keep("undelivered")
    attack("reserve=8", options=("--detach",))
    wait_until(lambda: list(store.rglob(".*.part")), "nothing is written")
    for helper in running():
        os.kill(int(helper.name), signal.SIGKILL)
    assert [path.suffix for path in store.rglob("*.*")] == [".part"]
    assert lab.output(HELPER, "cores", "list").splitlines()[1:] == []
    # Whoever looks deletes what nobody writes any more.
    assert [path for path in store.rglob("*") if path.is_file()] == []


def test_a_process_of_the_host(keep: Keep, records: Path) -> None:
    store = keep("undelivered")
    crash = subprocess.Popen([lab.PROGRAMS / "crasher", "memory=4"], env={"RECORD_DIRECTORY": str(records)})
    crash.wait()
    assert "kept on this host" in wait_for_log(f"pid={crash.pid} ", "kept on this host")
    ((_known, core),) = kept_in(store)
    assert is_whole(content_of(core))


@pytest.mark.usefixtures("sender")
def test_a_huge_core_of_nothing_but_holes_does_not_keep_the_cores_of_others_from_being_sent(
    attack: MakeCrash, keep: Keep
) -> None:
    configuration = Path("/etc/docker_core_helper.conf")
    store = keep("undelivered", sender="/bin/cat")
    attack("delegate=none", *("untouched=20000", "memory=1") * 8, "fork=2", options=("--detach",))
    wait_until(lambda: len(list(store.glob("*/*.json"))) == 2, "not kept", 60)
    other = attack("delegate=none", "memory=1")
    other.log("kept on this host")
    for helper in running():
        # The one process that finishes cores would be busy with the first one for minutes.
        os.kill(int(helper.name), signal.SIGKILL)
    text = configuration.read_text()
    configuration.write_text(text.replace("TIMEOUT=5\n", "TIMEOUT=1\n").replace("_MAX=3600", "_MAX=1"))
    sending = subprocess.run([HELPER, "cores", "send"], check=False, capture_output=True, text=True)
    assert f"{other.name}." in sending.stdout, sending.stderr

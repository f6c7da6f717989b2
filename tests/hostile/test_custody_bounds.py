"""What cores that the host keeps take, and what finishes them: no container has the store grow, or lose the cores of others."""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hostile.keeping import Keep, bytes_in, content_of, is_finished, kept_in
from hostile.observe import LIMIT, helpers, running, wait_until
from support import lab
from support.containers import Container, MakeCrash, wait_for_log
from support.hosts import HELPER
from support.records import is_whole


def test_a_group_that_crashes_in_a_loop_pushes_out_its_own(attack: MakeCrash, keep: Keep) -> None:
    store = keep("undelivered", max="40M")
    first = attack("delegate=none", "memory=6")
    first.log("kept on this host")
    kept_in(store)
    attack("delegate=none", "fork=12", "memory=6")
    groups = {str(known["group"]) for known, _core in kept_in(store)}
    assert f"container-{first.identifier}" in groups
    assert bytes_in(store) <= 40 << 20


def test_a_loop_of_hundreds_of_crashes_keeps_to_the_bound_and_costs_nobody_else_a_core(
    attack: MakeCrash, keep: Keep
) -> None:
    store = keep("undelivered", max="40M")
    others = [attack("delegate=none", f"memory={size}") for size in (6, 1)]
    for other in others:
        other.log("kept on this host")
    loop = attack("wait=/out/go", "delegate=none", "loop=300", "memory=1", options=("--detach",))
    (loop.records / "go").touch()
    most = 0
    limit = time.monotonic() + 400
    while "children ended" not in lab.output("docker", "logs", loop.name):
        assert time.monotonic() < limit, "the loop does not end"
        most = max(most, bytes_in(store))
        time.sleep(0.2)
    assert most <= 40 << 20
    found = [str(known["group"]) for known, _core in kept_in(store)]
    assert {f"container-{other.identifier}" for other in others} <= set(found)
    # It has used the room that was left to it.
    assert found.count(f"container-{loop.identifier}") > 5


MIB = 1 << 20


def listed(container: Container) -> list[str]:
    """The keys of the kept cores of a container."""
    cores = json.loads(lab.output(HELPER, "cores", "list", "--json"))
    return [core["key"] for core in cores if core["group"] == f"container-{container.identifier}"]


def most_bytes(store: Path, seconds: float) -> int:
    """How much the store takes at most from now on."""
    most, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        most = max(most, bytes_in(store))
        time.sleep(0.001)
    return most


def test_what_was_never_in_memory_keeps_to_the_bound(attack: MakeCrash, keep: Keep) -> None:
    # Four processes, each with 30 MiB of a file that they have mapped and never read: less is expected of each of them.
    store = keep("undelivered", max="40M")
    container = attack("delegate=none", "mapped=30", "fork=4", options=("--detach",))
    assert 0 < most_bytes(store, 8) <= 40 * MIB
    assert "kept on this host" in container.log("kept on this host")


def test_memory_that_a_process_pretends_to_have(attack: MakeCrash, keep: Keep) -> None:
    keep("undelivered", max="100M")
    first = attack("delegate=none", "memory=6")
    first.log("kept on this host")
    attack("delegate=none", "inflate=90").log("core dropped")
    assert listed(first)


def test_a_disk_that_others_fill(attack: MakeCrash, keep: Keep, small: Path) -> None:
    # What a container writes to its files lies on the same disk, as a rule. It is no reason to delete cores.
    lab.command("mount", "-o", "remount,size=40M", small)
    keep("undelivered", free="0")
    kept = [attack("delegate=none", "memory=6") for _ in range(3)]
    assert all("kept on this host" in container.log("kept on this host") for container in kept)
    wait_until(lambda: not running(), "a process of ours stays", 30)
    (small / "of-others").write_bytes(b"x" * (14 << 20))
    keep("undelivered", free="50")
    assert "core dropped" in attack("delegate=none", "tiny").log("core dropped")
    assert all(map(listed, kept))


def test_a_process_that_stays_keeps_none_of_ours(attack: MakeCrash, keep: Keep) -> None:
    store = keep("undelivered")
    attack("delegate=none", "traced=3", options=("--detach",))
    wait_until(lambda: len(list(store.glob("*/*.json"))) == 3, "not kept")
    wait_until(lambda: not running(), "a process of ours stays", 30)
    assert all(map(is_finished, store.glob("*/*.json")))


def test_a_core_that_was_removed_stays_away(attack: MakeCrash, keep: Keep) -> None:
    # The tracer gives us the time to be the first.
    store = keep("undelivered")
    container = attack("delegate=none", "memory=4", "traced=1", options=("--detach",))
    wait_until(lambda: list(store.glob("*/*.json")), "not kept")
    (core,) = json.loads(lab.output(HELPER, "cores", "list", "--json"))
    lab.output(HELPER, "cores", "remove", core["key"])
    lab.output("docker", "kill", container.name)
    wait_until(lambda: not running(), "a process of ours stays", 30)
    assert list(store.glob("*/*")) == []


def test_a_core_and_what_is_compressed_of_it_keep_to_the_bound(attack: MakeCrash, keep: Keep) -> None:
    store = keep("undelivered", max="40M")
    container = attack("delegate=none", "memory=24", options=("--detach",))
    assert 24 * MIB < most_bytes(store, 8) <= 40 * MIB
    # Whatever else crashes on this machine meanwhile is kept, too.
    group = f"container-{container.identifier}"
    ((known, core),) = [found for found in kept_in(store) if found[0]["group"] == group]
    assert known["sha256"] and is_whole(content_of(core))


OLD_CORES = 990  # Of at most 1,000.

# Many cores whose delegates do not end; and a single one that takes the whole deadline to be written, and may take much.
SLOW = {
    "delegates": ("series=20", "memory=6"),
    "a process that pretends to have much memory": ("keep=60", "inflate=90", "reserve=100"),
}


@pytest.mark.parametrize("kind", SLOW)
def test_attack_22_cores_that_are_under_way_leave_room_for_the_first_one_of_others(
    attack: MakeCrash, keep: Keep, kind: str
) -> None:
    keep("undelivered", max="100M")
    slow = attack(*SLOW[kind], options=("--env=ATTACK=never-ends", "--detach"))
    # As many as there may be: a core that finds no room is not on the disk while its delegate runs.
    wait_until(lambda: helpers() >= (13 if kind == "delegates" else 1), "no cores", 30)
    time.sleep(1)
    other = attack("delegate=none", "memory=6")
    lab.output("docker", "kill", slow.name)
    assert "kept on this host" in other.log("core")


@pytest.mark.usefixtures("patient_enough")
def test_attack_22_many_small_cores_and_a_crash_loop_cost_nobody_else_a_core(attack: MakeCrash, keep: Keep) -> None:
    store = keep("undelivered")
    storm = attack("wait=/out/go", "storm=40", "tiny", options=("--detach",))
    lab.command("docker", "exec", storm.name, "/usr/bin/crasher", "delegate=none", "tiny", check=False)
    wait_until(lambda: list(store.glob("*/*.json")) and not running(), "nothing is kept")
    (known,) = store.glob("*/*.json")
    # As a loop leaves them.
    files = [(file.name, file.read_bytes()) for file in known.parent.iterdir()]
    for number in range(OLD_CORES):
        for name, content in files:
            key = f"{known.stem}{number}"
            changed = content.replace(known.stem.encode(), key.encode()) if name.endswith(".json") else content
            (known.parent / name.replace(known.stem, key)).write_bytes(changed)
    lab.command("docker", "exec", storm.name, "/usr/bin/crasher", "touch=/out/go", check=False)
    wait_until(lambda: len(running()) > 30, "no storm", 30)
    other = attack("memory=50")
    lines = wait_for_log(other.identifier[:12], "deliver")
    with suppress(subprocess.CalledProcessError):
        lab.output("docker", "kill", storm.name)
    wait_until(lambda: not running(), "the helpers do not end", 120)
    assert ": delivered " in lines


def test_attack_22_the_names_of_files_of_one_container_do_not_hide_the_cores_of_others(
    attack: MakeCrash, keep: Keep
) -> None:
    # Each byte of these names takes six in what is noted of the core: more than anybody reads.
    store = keep("undelivered")
    other = attack("delegate=none", "memory=1")
    other.log("kept on this host")
    attack("delegate=none", "build-ids=850").log("kept on this host")
    wait_until(lambda: len(list(store.glob("*/*.zst"))) == 2 and not running(), "not finished", 60)
    assert max(file.stat().st_size for file in store.glob("*/*.json")) < MIB
    assert len(listed(other)) == 1


def test_attack_22_threads_that_stay_leave_no_process_of_ours_for_each_crash(attack: MakeCrash, keep: Keep) -> None:
    # The thread that crashed is gone, so that the process holds no slot; but it is still there.
    keep("undelivered")
    actions = ("delegate=none", "wait=/out/go", "fork=8", "thread-traced=60", "tiny")
    container = attack(*actions, options=("--detach",))
    (container.records / "go").touch()
    most = 0
    limit = time.monotonic() + 15
    while time.monotonic() < limit:
        most = max(most, sum(map(is_left, running())))
        time.sleep(0.2)
    lab.output("docker", "kill", container.name)
    wait_until(lambda: not running(), "a process of ours stays", 60)
    assert most <= LIMIT // 2, f"{most} processes of ours without a slot"


def is_left(process: Path) -> bool:
    """Whether a process of ours has a session of its own, which the kernel gives to no helper."""
    with suppress(OSError):
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        return (
            fields[3] == process.name and (process / "ns/pid").stat().st_ino == Path("/proc/self/ns/pid").stat().st_ino
        )
    return False


def test_attack_22_a_sender_that_reads_on_in_a_compressed_core_of_holes_is_not_taken_for_one_that_hangs(
    attack: MakeCrash, keep: Keep, sender: Path
) -> None:
    # 128 KiB of the compressed core are 4 GiB of the core.
    slow = sender.with_name("slow")
    slow.write_text("#!/bin/sh\nwhile [ $(head -c 20000000 | wc -c) -gt 0 ]; do sleep 0.1; done; exit 1\n")
    slow.chmod(0o755)
    store = keep("undelivered", sender=str(slow))
    attack("delegate=none", "untouched=5000", "compressible=1").log("kept on this host")
    other = attack("delegate=none", "memory=1")
    other.log("kept on this host")
    wait_until(lambda: len(list(store.glob("*/*.zst"))) == 2 and not running(), "not compressed", 120)
    sending = subprocess.run([HELPER, "cores", "send"], check=False, capture_output=True, text=True)
    assert f"{other.name}." in sending.stderr, sending.stderr
    assert "read nothing" not in sending.stderr

"""A program of the host that is lent to a container: no handle on a file of the host, no more rights than a delegate."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile.keeping import core_file
from hostile.observe import processes_of, wait_until
from hostile.options import TRACER
from hostile.test_attributes import CASES, rows
from support import lab
from support.containers import Container, MakeCrash
from support.records import is_whole

F_GET_SEALS, ALL_SEALS = 1034, 0xF
NO_DELEGATE = "DOCKERCOREHELPER_DELEGATE=/opt/bin/none\n"
Lend = Callable[..., Path]


@pytest.fixture
def lend(configured: Callable[[str], None]) -> Iterator[Lend]:
    """Has the host lend a program of ours, in a directory of its own, to containers which then have no delegate."""
    directory = lab.DIRECTORY / "lent"
    directory.mkdir()
    program = Path(shutil.copy(lab.PROGRAMS / "delegate", directory))

    def lend(*words: str, more: str = NO_DELEGATE) -> Path:
        configured(f"{more}DOCKERCOREHELPER_LEND={program} {' '.join(words)}\n")
        return program

    yield lend
    shutil.rmtree(directory)


def lent_to(container: Container, program: Path) -> list[int]:
    """Host pids of the lent programs that run in a container."""
    return [pid for pid, words in processes_of(container) if words.startswith(str(program))]


def test_attack_25_a_container_has_no_handle_on_the_program_that_is_lent(attack: MakeCrash, lend: Lend) -> None:
    program = lend("%{CORE_KEY}")
    before = program.read_bytes()
    # Two crashes, and a first process that is there before and after them.
    options = (*TRACER, "--env=ATTACK=changes-itself", "--detach")
    container = attack("keep=60", "series=2", options=options)
    wait_until(lambda: len(lent_to(container, program)) == 2, "the program does not run")
    seen = []
    for pid in lent_to(container, program):
        assert os.readlink(f"/proc/{pid}/exe") == "/memfd:delegate (deleted)"
        file = os.open(f"/proc/{pid}/exe", os.O_RDONLY)
        assert fcntl.fcntl(file, F_GET_SEALS) == ALL_SEALS
        assert os.pread(file, 1 << 24, 0) == before
        seen.append(os.fstat(file).st_ino)
        os.close(file)
        # Neither open nor mapped: its pipes and its own copy, and nothing else.
        opened = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
        assert {name.partition(":")[0] for name in opened if not name.endswith("/exe")} <= {"pipe", "/memfd"}, opened
        mapped = {
            line.split(maxsplit=5)[5] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/" in line
        }
        assert mapped == {"/memfd:delegate (deleted)"}
    assert len(set(seen)) == 2, "both crashes had the same file"
    # CAP_SYS_PTRACE holds it open, to write to it when nobody executes it any more.
    script = (
        "for exe in /proc/[0-9]*/exe; do case $(readlink $exe) in /memfd*) exec 9<$exe;; esac; done;"
        "until [ -e /out/late ]; do sleep 0.1; done; { echo planted >/proc/self/fd/9; } 2>&1; cat <&9 | cksum"
    )
    words = ("docker", "exec", container.name, "/bin/sh", "-c", script)
    holder = subprocess.Popen(words, env=lab.environment(), stdout=subprocess.PIPE, text=True)
    wait_until(lambda: len([words for _, words in processes_of(container) if "/out/late" in words]) == 1, "no holder")
    (container.records / "go").touch()
    wait_until(lambda: not lent_to(container, program), "the program does not end")
    (container.records / "late").touch()
    told = holder.communicate(timeout=30)[0]
    assert ("Operation not permitted" in told or "Permission denied" in told) and "planted" not in told, told
    own = (container.records / "own").read_text()
    assert own == (
        f"seals {ALL_SEALS}\nunseal Operation not permitted\ntruncate Text file busy\nopen Text file busy\n"
        "directory Not a directory\n"
    )
    assert program.read_bytes() == before
    assert f"bytes to lent {program} in" in container.log(": delivered ")


@pytest.mark.parametrize("case", ["user 1000 with groups", "limits of its own", "root with one capability"])
def test_attack_25_the_program_that_is_lent_has_no_more_than_the_process(
    attack: MakeCrash, lend: Lend, case: str
) -> None:
    program = lend()
    actions, options = CASES[case]
    container = attack(*actions, "record", options=options)
    container.log("delivered")
    assert container.delegate.links["exe"] == "/memfd:delegate (deleted)"
    assert container.delegate.facts["descriptors"] == "0 1 2 "
    assert container.delegate.text("cmdline") == f"{program}\0"
    more = [row for row in rows(container.process, container.delegate) if not row[3]]
    assert not more, more


def test_attack_25_a_sandbox_does_not_say_what_the_program_that_is_lent_does(attack: MakeCrash, lend: Lend) -> None:
    program = lend("%{CORE_DESTINATION}")
    options = ("--env=CORE_DESTINATION=s3://elsewhere/",)
    container = attack("fork=1", "seccomp=filter", "record", options=options)
    assert f"lent {program}: the process has no CORE_DESTINATION" in container.log("core dropped")
    assert container.of("delegate") == []


@pytest.mark.parametrize("where", ["a delegate of its own", "outside of containers"])
def test_nothing_is_lent_where_it_is_not_missing(
    attack: MakeCrash, lend: Lend, refusal: Callable[[str], str], where: str
) -> None:
    program = lend(more="")
    if where == "outside of containers":
        lab.command(lab.PROGRAMS / "crasher", "tiny", check=False)
        assert "lent" not in refusal("/opt/bin/delegate: No such file on this host")
    else:
        container = attack("record")
        assert f"to lent {program}" not in container.log(": delivered ")
        assert container.delegate.links["exe"] == "/opt/bin/delegate"


def test_a_container_whose_memory_does_not_hold_the_program_keeps_its_processes_and_its_core(
    attack: MakeCrash, lend: Lend, fallback: tuple[str, ...], tmp_path: Path
) -> None:
    lend()
    container = attack("tiny", options=(*fallback, "--memory=24m", "--memory-swap=24m"))
    told = container.log("it takes")
    assert "MiB of the memory of the container, which has" in told, told
    assert is_whole(core_file(tmp_path))


@pytest.mark.parametrize("who", ["a user", "everybody"])
def test_attack_25_a_program_that_others_can_change_is_not_lent(attack: MakeCrash, lend: Lend, who: str) -> None:
    program = lend()
    if who == "a user":
        os.chown(program.parent, 1000, 0)
    else:
        program.chmod(0o777)
    changed = program.parent if who == "a user" else program
    container = attack("tiny")
    told = f"lent {program}: others than root can change {changed}: chown root and chmod go-w"
    assert told in container.log("core dropped"), container.log("pid=")

"""The server in a container, with what examples/kubernetes/daemonset.yml gives it: cores of containers and of the host arrive.

The pattern is up to the server; docs/socket.md says what becomes of it when the container ends. The server has an engine of its
own, and what crashes that of the lab.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import door, lab
from support.containers import MakeCrash, wait_for_log
from support.hosts import delegate_on_host, records_of_host
from support.records import NAMESPACES, Record, is_whole
from support.serving import CONFIGURATION, Engine, Server, capabilities

PATTERN = lab.setting(door.PATTERN)
OURS = f"@@{door.SOCKET}\n"
KEPT = Path(f"{door.SOCKET}.previous")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """The engine of the servers, with their image."""
    if not door.has_sockets():
        pytest.skip("this kernel has no core-dump socket: it takes Linux 6.17")
    if door.BY_SOCKET:
        pytest.skip("another server has the socket: these tests have servers of their own")
    engine = Engine()
    try:
        engine.build()
        yield engine
    finally:
        engine.stop()


@pytest.fixture
def serve(engine: Engine) -> Iterator[Callable[..., Server]]:
    """Starts servers: ``serve(*options)``; the pattern is the previous one after the test."""
    before = PATTERN.read_text()
    servers: list[Server] = []

    def start(*words: str, **options: object) -> Server:
        servers.append(Server(engine, *words, **options))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.remove()
    wait_until(lambda: not door.named(door.BUSY), "a worker is left")
    PATTERN.write_text(before)
    KEPT.unlink(missing_ok=True)


def wait_until(condition: Callable[[], object], what: str, seconds: float = 15) -> None:
    """Waits for a condition, and fails if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def first_process(server: Server) -> int:
    """The first process of the container, as the host sees it."""
    return int(server.state()["Pid"])


def test_a_core_of_another_container_arrives_as_through_the_pipe(
    crash: MakeCrash, serve: Callable[..., Server]
) -> None:
    by_pipe = crash()
    server = serve()
    assert server.wait(), server.log()
    container = crash("-m", "8")
    assert (container.process.pid, container.exit_status) == (1, 128 + 11)
    assert is_whole(container.delegate.core.read_bytes())
    # The engine's record is that of the host, and so are control groups and log.
    name = ("CORE_CONTAINER_NAME", container.name)
    assert name in container.delegate.environment.items()
    assert f": delivered {container.delegate.core.stat().st_size} bytes" in container.log(": delivered")
    assert f'name="{container.name}"' in server.log()
    for namespace in NAMESPACES:
        assert container.delegate.links[f"ns/{namespace}"] == container.process.links[f"ns/{namespace}"]
    same = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Groups")
    assert [container.delegate.status.get(row) for row in same] == [by_pipe.delegate.status.get(row) for row in same]
    assert container.delegate.limits == by_pipe.delegate.limits
    assert sorted(container.delegate.environment) == sorted(by_pipe.delegate.environment)
    assert "lacks them" not in container.log(": delivered")


def test_a_core_of_the_host_arrives(serve: Callable[..., Server]) -> None:
    server = serve()
    assert server.wait(), server.log()
    with delegate_on_host("probe"), records_of_host() as records:
        process = subprocess.Popen([lab.PROGRAMS / "crash"], env={"RECORD_DIRECTORY": str(records)})
        assert process.wait(timeout=60) == -signal.SIGSEGV
        one = Record(records / f"delegate.{process.pid}")
        assert is_whole(one.core.read_bytes())
        # It is a process of the host in all but its capabilities: no server gives what it has not.
        assert {name: one.links[f"ns/{name}"] for name in NAMESPACES} == {
            name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES
        }
        assert "the helper lacks them" in wait_for_log(f"pid={process.pid} ", ": delivered ")


def test_the_server_is_a_process_of_the_host_and_the_first_process_of_its_container_stays_there(
    serve: Callable[..., Server],
) -> None:
    server = serve()
    assert server.wait(), server.log()
    inside, outside = first_process(server), door.servers()[0]
    assert parent_of(outside) == inside
    assert "docker" in Path(f"/proc/{outside}/cgroup").read_text()
    assert memory([inside, outside, *door.idle_workers()]) < 30
    for worker in door.idle_workers():
        assert {line.rpartition(":")[2] for line in Path(f"/proc/{worker}/cgroup").read_text().splitlines()} == {"/"}
    # What is executed in the container later finds that, and not the host: the probe of the manifest, too.
    probe = ("grep", "-qx", OURS.rstrip("\n"), f"/proc/sys/{door.PATTERN}")
    assert server.engine.docker("exec", server.identifier, *probe, check=False).returncode == 0
    there = server.engine.docker("exec", server.identifier, "ls", "/opt/lib/docker_core_helper").stdout
    assert "compile_library.py" in there.split()


def memory(pids: list[int]) -> float:
    """The MiB of memory that processes take, each page counted once."""
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(text.partition("\nPss:")[2].split()[0]) for text in rollups) / 1024


def parent_of(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_container_that_is_stopped_gives_the_pattern_back_and_loses_nothing(
    crash: MakeCrash, serve: Callable[..., Server]
) -> None:
    before = PATTERN.read_text()
    server = serve()
    assert server.wait(), server.log()
    assert KEPT.read_text() == before and KEPT.stat().st_mode & 0o777 == 0o600
    # The worker goes on when the container is gone.
    container = crash(options=("--env=PROBE_LINGER=3", "--detach"))
    wait_until(lambda: list(container.records.glob(".delegate.*/core")), "no delegate")
    assert server.stop() == 0
    assert PATTERN.read_text() == before and not KEPT.exists() and not door.SOCKET.exists()
    assert ": delivered " in container.log(": delivered ")
    assert is_whole(container.delegate.core.read_bytes())
    assert is_whole(crash().delegate.core.read_bytes())


def test_a_server_that_is_killed_in_its_container_leaves_the_pattern_of_before(
    crash: MakeCrash, serve: Callable[..., Server]
) -> None:
    before = PATTERN.read_text()
    server = serve()
    assert server.wait(), server.log()
    os.kill(door.servers()[0], signal.SIGKILL)
    wait_until(lambda: not server.state()["Running"], "the container goes on")
    assert (server.state()["ExitCode"], PATTERN.read_text()) == (1, before)
    assert "was killed: the previous pattern is set again" in server.log()
    assert is_whole(crash().delegate.core.read_bytes())


def test_a_killed_container_leaves_the_pattern_of_the_socket_and_the_next_one_takes_over(
    crash: MakeCrash, serve: Callable[..., Server]
) -> None:
    before = PATTERN.read_text()
    server = serve()
    assert server.wait(), server.log()
    # Frozen, it cannot use the moment that it has.
    os.kill(door.servers()[0], signal.SIGSTOP)
    server.engine.docker("kill", server.identifier)
    wait_until(lambda: not door.named(door.SERVER), "the server goes on")
    assert PATTERN.read_text() == OURS
    # Until another one comes the kernel drops each core, at once.
    lost = crash()
    assert lost.exit_status == 128 + 11 and lost.of("delegate") == []
    assert f"Coredump socket connection {door.SOCKET} failed" in lab.output("dmesg")
    # The host can set it right by hand, in these words.
    assert KEPT.read_text() == before
    following = serve()
    assert following.wait(), following.log()
    assert KEPT.read_text() == before
    assert is_whole(crash().delegate.core.read_bytes())
    assert following.stop() == 0
    assert PATTERN.read_text() == before


def test_a_second_server_at_the_same_socket_ends_and_changes_nothing(
    crash: MakeCrash, serve: Callable[..., Server]
) -> None:
    first = serve()
    assert first.wait(), first.log()
    second = serve()
    wait_until(lambda: not second.state()["Running"], "it goes on")
    assert second.state()["ExitCode"] == 1 and "another server is there" in second.log()
    assert PATTERN.read_text() == OURS
    assert is_whole(crash().delegate.core.read_bytes())


def test_the_configuration_of_the_container_counts(
    crash: MakeCrash, serve: Callable[..., Server], tmp_path: Path
) -> None:
    file = tmp_path / "conf"
    file.write_text('DOCKERCOREHELPER_DELEGATE="/opt/bin/other"\n')
    server = serve(f"--volume={file}:{CONFIGURATION}:ro")
    assert server.wait(), server.log()
    container = crash(options=(f"--volume={lab.PROGRAMS / 'probe'}:/opt/bin/other:ro",))
    assert is_whole(container.delegate.core.read_bytes())
    assert "to /opt/bin/other" in container.log(": delivered ")


HANDLER = """#!/bin/sh
{{ readlink /proc/self/ns/mnt; readlink /proc/self/ns/net; wc -c; }} >{directory}/handled 2>&1
"""


def test_kept_cores_and_the_previous_handler_are_those_of_the_host(
    crash: MakeCrash, serve: Callable[..., Server]
) -> None:
    directory = lab.DIRECTORY / "of-the-server"
    directory.mkdir()
    handler = directory / "handler"
    handler.write_text(HANDLER.format(directory=directory))
    handler.chmod(0o755)

    def handled() -> str:
        return (directory / "handled").read_text() if (directory / "handled").exists() else ""

    before = Path(CONFIGURATION).read_text()
    keep = f"DOCKERCOREHELPER_KEEP=always\nDOCKERCOREHELPER_KEEP_DIRECTORY={directory}/cores\nDOCKERCOREHELPER_KEEP_FREE=0\n"
    try:
        server = serve()
        assert server.wait(), server.log()
        # The configuration of the host counts at once.
        Path(CONFIGURATION).write_text(f'{before}{keep}DOCKERCOREHELPER_CHAIN="{handler} %P"\n')
        container = crash(image="bare")
        assert "kept on this host" in container.log("kept on this host")
        # What comes last of a core that is kept.
        wait_until(
            lambda: any('"sha256"' in facts.read_text() for facts in directory.glob("cores/*/*.json")), "no checksum"
        )
        with records_of_host() as records:
            process = subprocess.Popen([lab.PROGRAMS / "crash"], env={"RECORD_DIRECTORY": str(records)})
            assert process.wait(timeout=60) == -signal.SIGSEGV
        wait_until(lambda: len(handled().splitlines()) == 3, "the handler was not executed")
        mounts, network, size = handled().splitlines()
        assert [mounts, network] == [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net")]
        assert int(size) > 100000
    finally:
        Path(CONFIGURATION).write_text(before)
        shutil.rmtree(directory)


def test_without_the_pid_namespace_of_the_host_it_does_not_start(serve: Callable[..., Server]) -> None:
    before = PATTERN.read_text()
    server = serve(but=("--pid=host",))
    wait_until(lambda: not server.state()["Running"], "it goes on")
    assert server.state()["ExitCode"] == 1 and "it takes the pid namespace of the host" in server.log()
    assert PATTERN.read_text() == before


# The others are for delegates.
USED = capabilities()[:10]
NOBODY = ("--user=65534:65534", "--cap-drop=ALL")


@pytest.fixture
def narrow(serve: Callable[..., Server], tmp_path: Path) -> Callable[..., Server]:
    """Starts a server whose own limit of open files is lower than that of others, and which soon loses its patience."""
    file = tmp_path / "conf"
    file.write_text('DOCKERCOREHELPER_DELEGATE="/opt/bin/delegate"\nDOCKERCOREHELPER_TIMEOUT=2\n')
    options = (f"--volume={file}:{CONFIGURATION}:ro", "--ulimit=nofile=256:512")
    return lambda given: serve(*options, given=given)


def is_as_it_should_be(crash: MakeCrash) -> bool:
    """Whether a core of a user without capabilities arrives, with nothing to say about it, and a delegate is ended in time."""
    container = crash(options=NOBODY)
    if not container.of("delegate") or not is_whole(container.delegate.core.read_bytes()):
        return False
    if "; " in container.log(": delivered "):
        return False
    return ends_a_delegate_of_the_host()


def ends_a_delegate_of_the_host() -> bool:
    """Whether a user's delegate that goes on is ended: that of a container would end with its first process."""
    with delegate_on_host("probe"), records_of_host() as records:
        words = {"RECORD_DIRECTORY": str(records), "PROBE_LINGER": "20"}
        crashing = subprocess.Popen([lab.PROGRAMS / "crash"], user=65534, group=65534, extra_groups=[], env=words)
        assert crashing.wait(timeout=60) == -signal.SIGSEGV
        wait_until(lambda: not door.named(door.BUSY), "a worker is left")
        left = door.named("delegate")
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert list(records.glob(".delegate.*")), "there was none"
        return not left


def test_with_all_capabilities_of_the_manifest_a_core_arrives_as_it_should(
    crash: MakeCrash, narrow: Callable[..., Server]
) -> None:
    server = narrow(capabilities())
    assert server.wait(), server.log()
    assert is_as_it_should_be(crash), server.log()


@pytest.mark.parametrize("lacking", USED)
def test_no_capability_is_given_for_nothing(crash: MakeCrash, narrow: Callable[..., Server], lacking: str) -> None:
    server = narrow([name for name in capabilities() if name != lacking])
    assert not (server.wait() and is_as_it_should_be(crash)), f"the server does without {lacking}"
    print(f"without {lacking}:\n{server.log()}")

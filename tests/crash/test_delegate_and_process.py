"""The delegate has the identity, the privileges and the surroundings of the faulting process: never more."""

from __future__ import annotations

import platform

import pytest
from support.containers import Container, MakeCrash
from support.records import CAPABILITY_SETS, NAMESPACES, is_whole

KINDS = {
    "plain": (),
    "user": ("--user=1000:1001", "--group-add=2000", "--group-add=3000"),
    "few-capabilities": ("--cap-drop=ALL", "--cap-add=CHOWN", "--cap-add=NET_RAW"),
    "no-new-privileges": ("--security-opt=no-new-privileges", "--user=1000:1001"),
    "no-seccomp": ("--security-opt=seccomp=unconfined",),
    "many-capabilities": ("--cap-add=SYS_ADMIN", "--cap-add=SYS_PTRACE", "--cap-add=NET_ADMIN"),
    "read-only": ("--read-only",),
    "host-namespaces": ("--pid=host", "--ipc=host", "--uts=host", "--cgroupns=host"),
    "private-cgroup": ("--cgroupns=private",),
    "limits": ("--ulimit=nofile=100:200", "--ulimit=nproc=50", "--memory=256m", "--oom-score-adj=500"),
    "environment": ("--env=GREETING=good morning", "--env=EMPTY=", "--env=LD_PRELOAD=/none.so", "--env=LINES=a\nb"),
}


@pytest.fixture(scope="module", params=KINDS)
def container(request: pytest.FixtureRequest, crash: MakeCrash) -> Container:
    """A container of each kind, in which PID 1 has crashed."""
    return crash(options=KINDS[request.param])


def test_the_whole_core_reaches_the_delegate(container: Container) -> None:
    assert is_whole(container.delegate.core.read_bytes())


def test_user_and_group_ids_of_the_delegate_are_those_of_the_process(container: Container) -> None:
    process, delegate = container.process.status, container.delegate.status
    assert (delegate["Uid"], delegate["Gid"]) == (process["Uid"], process["Gid"])


def test_supplementary_groups_of_the_delegate_are_those_of_the_process(container: Container) -> None:
    assert container.delegate.status["Groups"].split() == container.process.status["Groups"].split()


@pytest.mark.parametrize("name", CAPABILITY_SETS)
def test_no_capability_set_of_the_delegate_exceeds_that_of_the_process(container: Container, name: str) -> None:
    assert container.delegate.capabilities(name) & ~container.process.capabilities(name) == 0


def test_bounding_set_of_the_delegate_is_what_the_process_could_have_used(container: Container) -> None:
    process = container.process
    assert container.delegate.capabilities("CapBnd") == process.capabilities("CapBnd") & process.capabilities("CapPrm")


def test_effective_capabilities_of_the_delegate_are_those_of_the_process(container: Container) -> None:
    assert container.delegate.status["CapEff"] == container.process.status["CapEff"]


def test_the_delegate_always_has_no_new_privs(container: Container) -> None:
    assert container.delegate.status["NoNewPrivs"] == "1"


def test_seccomp_mode_of_the_delegate_is_that_of_the_process(container: Container) -> None:
    assert container.delegate.status["Seccomp"] == container.process.status["Seccomp"]


def test_cgroup_of_the_delegate_is_that_of_the_process(container: Container) -> None:
    assert container.delegate.text("cgroup") == container.process.text("cgroup") != ""


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_the_delegate_is_in_the_namespace_of_the_process(container: Container, namespace: str) -> None:
    name = f"ns/{namespace}"
    assert container.delegate.links[name] == container.process.links[name]


def test_root_directory_of_the_delegate_is_that_of_the_process(container: Container) -> None:
    assert container.delegate.facts["root_inode"] == container.process.facts["root_inode"]
    assert container.delegate.links["root"] == container.process.links["root"] == "/"


def test_working_directory_of_the_delegate_is_the_root(container: Container) -> None:
    assert container.delegate.links["cwd"] == "/"


def test_the_delegate_has_no_file_open_but_the_three_standard_ones(container: Container) -> None:
    assert container.delegate.facts["descriptors"].split() == ["0", "1", "2"]


def test_security_label_of_the_delegate_is_that_of_the_process(container: Container) -> None:
    assert container.delegate.text("label") == container.process.text("label")


def test_resource_limits_of_the_delegate_are_what_the_process_could_have_used(container: Container) -> None:
    for name in container.process.limits.keys() - {"Limit"}:  # That is the heading.
        soft, hard = container.process.limits[name].split()[:2]
        if name == "Max processes" and hard != "unlimited":
            hard = str(int(hard) + 64)
        soft = soft if name == "Max stack size" else hard
        assert container.delegate.limits[name].split()[:2] == [soft, hard], name


def test_if_memory_ends_the_delegate_goes_first(container: Container) -> None:
    assert container.delegate.text("oom_score_adj").strip() == "1000"


@pytest.mark.parametrize("name", ["SigBlk", "SigIgn", "SigCgt"])
def test_signals_of_the_delegate_are_at_their_defaults(container: Container, name: str) -> None:
    assert int(container.delegate.status[name], 16) == 0


def test_environment_of_the_delegate_is_that_of_the_process(container: Container) -> None:
    ours = {name: value for name, value in container.delegate.environment.items() if not name.startswith("CORE_")}
    assert ours == container.process.environment


def test_the_delegate_is_told_who_crashed_and_where(container: Container) -> None:
    process, told = container.process, container.delegate.environment
    assert told["CORE_PID"] == str(process.pid)
    assert told["CORE_HOST_PID"].isdecimal()
    assert (told["CORE_UID"], told["CORE_GID"]) == (process.status["Uid"].split()[0], process.status["Gid"].split()[0])
    assert (told["CORE_SIGNAL"], told["CORE_SIGNAL_NAME"]) == ("11", "SIGSEGV")
    assert (told["CORE_EXE"], told["CORE_COMM"]) == ("/usr/bin/crash", "crash")
    assert (told["CORE_HOSTNAME"], told["CORE_NODE"]) == (process.facts["hostname"], platform.node())
    assert told["CORE_CONTAINER_ID"] == container.identifier
    assert (told["CORE_CONTAINER_NAME"], told["CORE_IMAGE"]) == (container.name, container.image)
    assert [told[f"CORE_POD_{name}"] for name in ("NAME", "NAMESPACE", "UID")] == [""] * 3
    assert told["CORE_KEY"].startswith(f"{platform.node()}.{container.name}.crash.crash.{told['CORE_HOST_PID']}.")


def test_the_delegate_is_started_with_the_words_of_the_configuration(container: Container) -> None:
    told, words = container.delegate.environment, container.delegate.text("cmdline").split("\0")
    assert words == ["/opt/bin/delegate", told["CORE_HOST_PID"], told["CORE_UID"], told["CORE_GID"], ""]

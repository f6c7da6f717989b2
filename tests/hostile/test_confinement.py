"""What confines the process confines its delegate: seccomp filters and security labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.options import UNCONFINED
from support.containers import MakeCrash

# What Docker's profile may deny to the process and ours allows to the delegate, none of which gives anything away.
HARMLESS = {
    135,  # personality: the kernel takes -1 for the question which one it is, whatever the upper half of the word says.
    446,  # landlock_restrict_self: takes only rights away; needs no_new_privs, which the delegate always has.
}


def answers(file: Path) -> dict[int, int]:
    """The errno of each system call."""
    return {int(call): int(error) for call, error in (line.split() for line in file.read_text().splitlines())}


def test_attack_19_the_delegate_may_use_no_system_call_that_the_process_may_not(attack: MakeCrash) -> None:
    container = attack("syscalls", "record", options=("--cap-drop=ALL", "--env=ATTACK=system-calls"))
    container.log("delivered")
    process, delegate = (answers(container.records / f"{role}.syscalls") for role in ("process", "delegate"))
    denied = {1, 38}  # EPERM, ENOSYS
    assert len(process) > 300
    more = {call for call, error in process.items() if error in denied and delegate.get(call) not in denied}
    assert more - HARMLESS == set()
    # Tracing, which Docker allows.
    assert process[101] not in denied and delegate[101] in denied


def test_attack_19_no_system_call_of_32_bits_leads_around_the_filter(attack: MakeCrash) -> None:
    container = attack("syscalls", "record", options=("--cap-drop=ALL", "--env=ATTACK=system-calls"))
    container.log("delivered")
    process, delegate = (answers(container.records / f"{role}.syscalls-i386") for role in ("process", "delegate"))
    if not process:
        pytest.skip("the kernel takes no system call of 32 bits: int 0x80 ends the program")
    assert len(process) > 400
    # The process is one of 64 bits, and so is its delegate: it has no use for the others.
    assert set(delegate.values()) == {38}  # ENOSYS


def test_attack_19_strict_mode_is_never_left(attack: MakeCrash, refusal: Callable[[str], str]) -> None:
    container = attack("seccomp=strict", options=UNCONFINED)
    refusal("strict seccomp mode")
    assert container.of("delegate") == []


@pytest.mark.skipif(
    not Path("/sys/module/apparmor/parameters/enabled").exists(), reason="the kernel has no security module that labels"
)
def test_attack_19_the_label_of_the_delegate_is_that_of_the_process(attack: MakeCrash) -> None:
    container = attack("record")
    container.log("delivered")
    assert container.delegate.text("label") == container.process.text("label") != ""


# What a process that was confined more than its container may not choose: another program's code, and where its core goes.
CHOSEN = ("--env=LD_PRELOAD=/out/planted", "--env=CORE_DESTINATION=s3://elsewhere/")


@pytest.mark.parametrize("profile", [(), UNCONFINED], ids=["of the engine", "none"])
@pytest.mark.parametrize("nested", [(), ("userns=denied",)], ids=["", "in a user namespace"])
def test_attack_19_a_process_with_a_filter_of_its_own_passes_no_variables_on(
    attack: MakeCrash, profile: tuple[str, ...], nested: tuple[str, ...]
) -> None:
    if nested and not profile:
        profile = ("--cap-add=SYS_ADMIN",)
    container = attack("fork=1", *nested, "seccomp=filter", options=(*CHOSEN, *profile))
    assert "a seccomp filter of its own" in container.log("delivered")
    assert container.delegate.status["Seccomp"] == "2"
    assert all(name.startswith("CORE_") for name in container.delegate.environment)
    assert "CORE_DESTINATION" not in container.delegate.environment


def test_attack_24_filters_of_the_whole_container_take_no_variables_away(attack: MakeCrash) -> None:
    # As under systemd-nspawn, which has several: those of its first process are the container's.
    container = attack("seccomp=filter", "seccomp=filter", "fork=1", options=("--env=CORE_DESTINATION=s3://mine/",))
    container.log("delivered")
    assert container.delegate.environment["CORE_DESTINATION"] == "s3://mine/"


def test_attack_24_a_filter_of_its_own_below_the_pid_namespace_of_the_host(attack: MakeCrash) -> None:
    actions = ("user", "sandbox=user", "sandbox=pid", "seccomp=filter")
    container = attack(*actions, options=("--pid=host", *UNCONFINED, "--env=CORE_DESTINATION=s3://elsewhere/"))
    assert "a seccomp filter of its own" in container.log("delivered")
    assert "CORE_DESTINATION" not in container.delegate.environment

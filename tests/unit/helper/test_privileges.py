"""privileges: limits for real in a forked child, ids and capabilities as far as a test without root can see them, the label."""

from __future__ import annotations

import os
import posix
import resource
from pathlib import Path

import pytest
from core_helper import linux, privileges, procfs, seccomp, start
from core_helper.crash import Refused
from unit.helper.support import in_child, process
from unit.helper.world import Elsewhere, keeps_descriptors

NAMES = {
    "Max cpu time": "RLIMIT_CPU",
    "Max file size": "RLIMIT_FSIZE",
    "Max data size": "RLIMIT_DATA",
    "Max stack size": "RLIMIT_STACK",
    "Max resident set": "RLIMIT_RSS",
    "Max processes": "RLIMIT_NPROC",
    "Max open files": "RLIMIT_NOFILE",
    "Max locked memory": "RLIMIT_MEMLOCK",
    "Max address space": "RLIMIT_AS",
    "Max file locks": None,  # RLIMIT_LOCKS, 10: without effect since Linux 2.4, and Python does not name it.
    "Max pending signals": "RLIMIT_SIGPENDING",
    "Max msgqueue size": "RLIMIT_MSGQUEUE",
    "Max nice priority": "RLIMIT_NICE",
    "Max realtime priority": "RLIMIT_RTPRIO",
    "Max realtime timeout": "RLIMIT_RTTIME",
}


@pytest.mark.parametrize("row", sorted(NAMES))
def test_a_limit_has_the_number_that_the_library_knows(row: str) -> None:
    name = NAMES[row]
    number = 15 if name == "RLIMIT_RTTIME" else 10 if name is None else getattr(resource, name)
    assert privileges.RESOURCES[row] == number


def test_all_limits_are_taken_over_but_that_of_the_core_size() -> None:
    assert set(privileges.RESOURCES) == set(NAMES)
    assert resource.RLIMIT_CORE not in privileges.RESOURCES.values()


def test_limits_are_those_of_the_process() -> None:
    limits = {
        "Max open files": (100, 200),
        "Max file size": (1 << 20, 1 << 30),
        "Max stack size": (1 << 20, 1 << 40),
        "Max nice priority": (0, 0),
        "Max realtime timeout": (5, 6),
    }

    def become() -> object:
        failures = privileges.set_limits(process(limits=limits))
        return failures, {name: linux.getrlimit(privileges.RESOURCES[name]) for name in limits}

    failures, found = in_child(become)
    assert failures == []
    soft = {"Max stack size": 1 << 20}
    assert {name: tuple(pair) for name, pair in found.items()} == {
        name: (soft.get(name, hard), hard) for name, (_, hard) in limits.items()
    }


@pytest.mark.parametrize(
    ("name", "theirs", "expected"),
    [
        ("Max processes", (1, 1), (65, 65)),
        ("Max processes", (5, 100), (164, 164)),
        ("Max processes", (5, -1), (-1, -1)),
        ("Max stack size", (8, 9), (8, 9)),
        ("Max open files", (1024, 4096), (4096, 4096)),
        ("Max file size", (0, 0), (0, 0)),
    ],
)
def test_the_delegate_may_use_what_the_process_could_have_used(
    name: str, theirs: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert privileges.limits_of(process(limits={name: theirs}), name) == expected


def test_limits_that_are_not_told_stay() -> None:
    def become() -> object:
        before = [resource.getrlimit(number) for number in range(16)]
        return privileges.set_limits(process()) == [] and before == [resource.getrlimit(n) for n in range(16)]

    assert in_child(become) is True


def test_the_limit_of_the_core_size_is_never_taken_over() -> None:
    def become() -> object:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
        failures = privileges.set_limits(process(limits={"Max core file size": (-1, -1)}))
        return failures, resource.getrlimit(resource.RLIMIT_CORE)

    assert in_child(become) == [[], [1, 1]]


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [((60, 300), (200, 200)), ((250, 300), (200, 200)), ((-1, -1), (200, 200))],
)
def test_a_limit_above_our_own_is_told_and_set_as_high_as_it_may_be(
    theirs: tuple[int, int], expected: tuple[int, int]
) -> None:
    def become() -> object:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
        linux.capset(0, 0, 0)
        failures = privileges.set_limits(process(limits={"Max open files": theirs, "Max cpu time": (7, 7)}))
        return failures, resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CPU)

    failures, found, next_one = in_child(become)
    assert failures == [f"max open files {theirs[1]}: not above 200"]
    assert (tuple(found), next_one) == (expected, [7, 7])


def test_the_kernel_takes_a_limit_of_2_to_the_63_and_so_must_the_helper() -> None:
    # As the kernel shows it in /proc/PID/limits; a process may set it without any privilege.
    limit = 1 << 63

    def become() -> object:
        failures = privileges.set_limits(process(limits={"Max file locks": (limit, limit)}))
        return failures, procfs.parse_limits(Path("/proc/self/limits").read_bytes())["Max file locks"]

    assert in_child(become) == [[], [limit, limit]]


def test_room_above_our_own_hard_limit_is_made_only_with_privilege() -> None:
    def become() -> object:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
        linux.capset(0, 0, 0)
        privileges.raise_hard_limits(process(limits={"Max open files": (50, 300)}))
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    assert in_child(become) == [100, 200]


def test_room_is_made_with_the_soft_limit_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int, int]] = []
    monkeypatch.setattr(linux, "getrlimit", lambda number: (100, 200))
    monkeypatch.setattr(linux, "setrlimit", lambda *arguments: calls.append(arguments))
    limits = {"Max open files": (50, 300), "Max stack size": (1, -1), "Max file locks": (1, 200)}
    privileges.raise_hard_limits(process(limits=limits))
    assert calls == [(resource.RLIMIT_STACK, 100, -1), (resource.RLIMIT_NOFILE, 100, 300)]
    calls.clear()
    # The user may have that many processes in other containers.
    privileges.raise_hard_limits(process(limits={"Max processes": (1, 1)}))
    assert calls == [(resource.RLIMIT_NPROC, -1, -1)]
    calls.clear()
    monkeypatch.setattr(linux, "getrlimit", lambda number: (100, -1))
    privileges.raise_hard_limits(process(limits=limits))
    assert calls == []


def test_the_nice_value_is_taken_over() -> None:
    def become() -> object:
        failures = privileges.take_over_scheduling(process(nice=os.nice(0) + 3))
        return failures, os.nice(0)

    assert in_child(become) == [[], os.nice(0) + 3]


def test_if_memory_ends_the_delegate_goes_first() -> None:
    def become() -> object:
        return privileges.go_first(), Path("/proc/self/oom_score_adj").read_text()

    assert in_child(become) == [[], "1000\n"]


def test_what_cannot_be_taken_over_of_the_scheduling_is_told() -> None:
    def become() -> object:
        os.nice(5)
        linux.capset(0, 0, 0)
        return privileges.take_over_scheduling(process(nice=-20))

    (told,) = in_child(become)
    assert told.startswith("nice -20: ")


def test_a_process_that_cannot_go_first_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "FIRST_TO_GO", b"1001")
    assert privileges.go_first() == ["oom_score_adj 1001: Invalid argument"]


def test_the_child_is_hidden() -> None:
    def become() -> object:
        start.hide()
        # PR_GET_DUMPABLE; the files in /proc belong to root now.
        return os.stat("/proc/self/status").st_uid

    assert in_child(become) == 0


def test_strict_seccomp_is_refused() -> None:
    with pytest.raises(Refused, match="strict seccomp"):
        privileges.check(process(seccomp=1))


def test_a_filter_is_refused_on_a_machine_without_one_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix, "uname", lambda: os.uname_result(("Linux", "box", "6.1", "#1", "riscv64")))
    privileges.check(process(seccomp=0))
    with pytest.raises(Refused, match="riscv64"):
        privileges.check(process(seccomp=2))


def test_no_new_privs_is_always_set() -> None:
    def become() -> object:
        privileges.confine(process())
        status = procfs.parse_status(Path("/proc/self/status").read_bytes())
        return status["NoNewPrivs"], status["Seccomp"]

    before = procfs.parse_status(Path("/proc/self/status").read_bytes())["Seccomp"]
    assert in_child(become) == ["1", before]


@pytest.mark.skipif(os.uname().machine not in seccomp.MACHINES, reason="no filter of ours for this machine")
def test_a_process_with_a_filter_gets_ours() -> None:
    def become() -> object:
        privileges.confine(process(seccomp=2))
        return procfs.parse_status(Path("/proc/self/status").read_bytes())["Seccomp"]

    assert in_child(become) == "2"


SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def test_a_process_without_capabilities_keeps_none(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without privilege the bounding set cannot be changed; the crash tests look at it.
    monkeypatch.setattr(linux, "drop_from_bounding_set", lambda keep: None)
    facts = {"bounding": (1 << 41) - 1, "permitted": 0, "effective": 0xFF, "inheritable": 0xFF, "ambient": 0xFF}

    def become() -> object:
        privileges.limit_capabilities(process(**facts))
        status = procfs.parse_status(Path("/proc/self/status").read_bytes())
        return [int(status[name], 16) for name in SETS if name != "CapBnd"]

    assert in_child(become) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("facts", "keep", "sets", "ambient"),
    [
        # Docker's default for root, for a user, with --cap-add and an ambient set, and a root that gave all away.
        ((0xA80425FB, 0xA80425FB, 0xA80425FB, 0, 0), 0xA80425FB, (0xA80425FB, 0xA80425FB, 0), 0),
        ((0xA80425FB, 0, 0, 0, 0), 0, (0, 0, 0), 0),
        ((0xA80425FB, 0x400, 0x400, 0x400, 0x400), 0x400, (0x400, 0x400, 0x400), 0x400),
        ((0xA80425FB, 0, 0, 0xA80425FB, 0), 0, (0, 0, 0), 0),
        # Never more than permitted, and not what is permitted but outside of the bounding set after an execve.
        ((0x1, 0x3, 0x7, 0xF, 0xF), 0x1, (0x3, 0x3, 0x1), 0x1),
    ],
)
def test_capabilities_are_never_more_than_the_process_had(
    monkeypatch: pytest.MonkeyPatch,
    facts: tuple[int, int, int, int, int],
    keep: int,
    sets: tuple[int, int, int],
    ambient: int,
) -> None:
    done: list[object] = []
    monkeypatch.setattr(linux, "drop_from_bounding_set", lambda mask: done.append(("bounding", mask)))
    monkeypatch.setattr(linux, "capset", lambda *masks: done.append(("capset", masks)))
    monkeypatch.setattr(linux, "set_ambient", lambda mask: done.append(("ambient", mask)))
    bounding, permitted, effective, inheritable, ambient_set = facts
    privileges.limit_capabilities(
        process(
            bounding=bounding, permitted=permitted, effective=effective, inheritable=inheritable, ambient=ambient_set
        )
    )
    assert done == [("bounding", keep), ("capset", sets), ("ambient", ambient)]


def test_a_helper_that_lacks_a_capability_of_the_process_gives_what_it_has_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[object] = []

    def capset(*masks: int) -> None:
        done.append(masks)
        if masks[1] & ~0x3:
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(linux, "drop_from_bounding_set", lambda mask: None)
    monkeypatch.setattr(linux, "capset", capset)
    monkeypatch.setattr(linux, "permitted_capabilities", lambda: 0x3)
    monkeypatch.setattr(linux, "set_ambient", lambda mask: done.append(mask))
    facts = dict.fromkeys(("bounding", "permitted", "inheritable", "ambient"), 7)
    assert privileges.limit_capabilities(process(**facts, effective=0x6)) == ["capabilities 0x4: the helper lacks them"]
    assert done == [(0x6, 0x7, 0x7), (0x2, 0x3, 0x3), 0x3]


def test_ids_are_given_up_groups_first_and_the_user_last(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    for name in ("setgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(posix, name, lambda *arguments, name=name: done.append((name, arguments)))
    monkeypatch.setattr(linux, "prctl", lambda option, value=0: done.append((option, value)))
    monkeypatch.setattr(linux, "permitted_capabilities", lambda: 7)
    monkeypatch.setattr(linux, "capset", lambda *masks: done.append(("capset", masks)))
    privileges.take_over_ids(process(uid=1000, gid=100, groups=[4, 24]))
    assert done == [
        ("setgroups", ([4, 24],)),
        ("setresgid", (100, 100, 100)),
        (linux.PR_SET_KEEPCAPS, 1),
        ("setresuid", (1000, 1000, 1000)),
        (linux.PR_SET_KEEPCAPS, 0),
        (linux.PR_SET_DUMPABLE, 0),
        ("capset", (7, 7, 0)),
    ]


def test_a_user_namespace_is_joined_and_the_child_hidden_again(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[int, int]] = []
    monkeypatch.setattr(linux, "setns", lambda descriptor, kind: done.append((descriptor, kind)))
    monkeypatch.setattr(linux, "prctl", lambda option, value=0: done.append((option, value)))
    privileges.join_user_namespace(process())
    assert done == []
    privileges.join_user_namespace(process(user_namespace=99))
    assert done == [(99, linux.CLONE_NEWUSER), (linux.PR_SET_DUMPABLE, 0)]


@pytest.mark.parametrize(
    ("kind", "shown", "at_exec", "at_once"),
    [
        ("apparmor", b"docker-default (enforce)", b"exec docker-default", b"changeprofile docker-default"),
        ("apparmor", b"unconfined", b"exec unconfined", b"changeprofile unconfined"),
        ("other", b"system_u:system_r:container_t:s0:c1,c2", b"system_u:system_r:container_t:s0:c1,c2", None),
        ("", b"", b"", b""),
    ],
)
def test_the_label_is_written_as_its_module_reads_it(
    kind: str, shown: bytes, at_exec: bytes, at_once: bytes | None
) -> None:
    label = privileges.Label(process(label_kind=kind, label=shown))
    for name, method, expected in (("on_exec", label.at_exec, at_exec), ("now", label.at_once, at_once)):
        reading, writing = os.pipe()
        setattr(label, name, writing)
        method()
        os.close(writing)
        assert os.read(reading, 100) == (at_exec if expected is None else expected)
        os.close(reading)


def test_a_label_that_we_have_already_is_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "security_label", lambda task: ("apparmor", b"docker-default (enforce)"))
    label = privileges.Label(process(label_kind="apparmor", label=b"docker-default (enforce)"))
    label.open()
    label.at_exec()
    label.at_once()
    assert label.label == b""


@pytest.fixture
def attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory attr/ of the own thread on a made-up host, without any label."""
    attributes = tmp_path / "thread-self" / "attr"
    (attributes / "apparmor").mkdir(parents=True)
    for directory in (attributes, attributes / "apparmor"):
        for name in ("exec", "current"):
            (directory / name).touch()
    monkeypatch.setattr(privileges, "posix", Elsewhere(tmp_path))
    return attributes


@pytest.mark.parametrize(
    ("kind", "shown", "directory", "at_exec", "at_once"),
    [
        ("apparmor", b"box (enforce)", "apparmor", b"exec box", b"changeprofile box"),
        ("other", b"u:r:t:s0", "", b"u:r:t:s0", b"u:r:t:s0"),
    ],
)
def test_the_label_goes_into_the_files_of_its_module_on_the_host(
    attributes: Path, kind: str, shown: bytes, directory: str, at_exec: bytes, at_once: bytes
) -> None:
    label = privileges.Label(process(label_kind=kind, label=shown))
    label.open()
    label.at_exec()
    assert (attributes / directory / "exec").read_bytes() == at_exec
    assert (attributes / directory / "current").read_bytes() == b""
    label.at_once()
    assert (attributes / directory / "current").read_bytes() == at_once
    for descriptor in (label.on_exec, label.now):
        assert not os.get_inheritable(descriptor)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.read(descriptor, 1)
        os.close(descriptor)


def test_two_files_are_opened_for_a_label_and_none_without_one(attributes: Path) -> None:
    def opened() -> None:
        label = privileges.Label(process(label_kind="other", label=b"x"))
        label.open()
        for descriptor in (label.on_exec, label.now):
            os.close(descriptor)

    assert keeps_descriptors(opened)
    assert keeps_descriptors(privileges.Label(process()).open)


@pytest.mark.parametrize(("kind", "same"), [("apparmor", True), ("other", False)])
def test_only_the_very_same_label_is_had_already(attributes: Path, kind: str, same: bool) -> None:
    (attributes / "apparmor" / "current").write_bytes(b"box\n")
    label = privileges.Label(process(label_kind=kind, label=b"box"))
    if same:
        assert keeps_descriptors(label.open)
        assert label.label == b""
    else:
        label.open()
        assert label.label == b"box"
        for descriptor in (label.on_exec, label.now):
            os.close(descriptor)


def test_a_label_that_cannot_be_changed_ends_the_entry(attributes: Path) -> None:
    (attributes / "apparmor" / "exec").unlink()
    label = privileges.Label(process(label_kind="apparmor", label=b"box"))

    def refused() -> None:
        with pytest.raises(FileNotFoundError):
            label.open()

    assert keeps_descriptors(refused)


def test_an_ordinary_process_is_taken_over_without_a_system_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("setpriority", "open", "sched_setaffinity", "sched_setscheduler"):
        monkeypatch.setattr(posix, name, None)
    assert privileges.take_over_scheduling(process(nice=0)) == []
    own = posix.sched_getaffinity(0)
    for processors in (set(), own):
        assert privileges.take_over_processors(process(processors=processors, policy=posix.SCHED_OTHER)) == []


@pytest.mark.parametrize("policy", ["SCHED_BATCH", "SCHED_IDLE", "SCHED_FIFO", "SCHED_RR"])
def test_only_a_modest_scheduling_policy_is_taken_over(policy: str) -> None:
    number = getattr(posix, policy)

    def become() -> object:
        failures = privileges.take_over_processors(process(policy=number))
        return failures, posix.sched_getscheduler(0)

    modest = policy in ("SCHED_BATCH", "SCHED_IDLE")
    assert in_child(become) == [[], number if modest else posix.sched_getscheduler(0)]


def test_processors_are_those_of_the_process_and_what_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    one = min(posix.sched_getaffinity(0))

    def become() -> object:
        failures = privileges.take_over_processors(process(processors={one}))
        return failures, sorted(posix.sched_getaffinity(0))

    assert in_child(become) == [[], [one]]

    def refuse(*words: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(posix, "sched_setaffinity", refuse)
    monkeypatch.setattr(posix, "sched_setscheduler", refuse)
    failures = privileges.take_over_processors(process(processors={4095, 7}, policy=posix.SCHED_IDLE))
    assert failures == ["processors [7, 4095]: Invalid argument", "scheduling policy 5: Invalid argument"]


def test_the_score_of_memory_is_written_and_its_file_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "FIRST_TO_GO", Path("/proc/self/oom_score_adj").read_bytes().strip())
    assert keeps_descriptors(privileges.go_first)


def test_the_limit_of_a_files_size_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[int, int, int]] = []
    monkeypatch.setattr(linux, "setrlimit", lambda *words: done.append(words))
    privileges.limit_file_size(process(limits={"Max open files": (1, 2)}))
    privileges.limit_file_size(process(limits={"Max file size": (1, 2)}))
    assert done == [(1, 2, 2)]


@pytest.mark.parametrize(
    ("own", "hard", "raised"),
    [
        ((1, 5), 6, True),
        ((1, 5), 5, False),
        ((1, 5), 4, False),
        ((1, 5), -1, True),
        ((1, -1), -1, False),
        ((1, -1), 9, False),
    ],
)
def test_room_is_made_only_above_our_own_limit(
    monkeypatch: pytest.MonkeyPatch, own: tuple[int, int], hard: int, raised: bool
) -> None:
    done: list[tuple[int, int, int]] = []
    monkeypatch.setattr(linux, "getrlimit", lambda number: own)
    monkeypatch.setattr(linux, "setrlimit", lambda *words: done.append(words))
    privileges.raise_hard_limits(process(limits={"Max open files": (0, hard)}))
    assert done == ([(7, 1, hard)] if raised else [])


def test_a_process_that_only_has_no_filter_needs_no_machine_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(seccomp, "architectures", lambda narrow: asked.append(1))
    for mode in (0, 2):
        privileges.check(process(seccomp=mode))
    assert asked == [1]
    assert procfs.AT_SECURE == 23

"""Process and delegate side by side, attribute by attribute: the delegate has no more than the process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hostile.options import UNCONFINED
from support.containers import MakeCrash
from support.records import CAPABILITY_SETS, NAMESPACES, Record

CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "root with Docker's capabilities": ((), ()),
    "root with all capabilities dropped": ((), ("--cap-drop=ALL",)),
    "root with one capability": ((), ("--cap-drop=ALL", "--cap-add=CHOWN")),
    "root that gave its capabilities away": (("give",), ()),
    "user 1000 with groups": ((), ("--user=1000:1000", "--group-add=2000", "--group-add=3000")),
    "user 1000 with an ambient capability": (("ambient",), ()),
    "user namespace, user mapped": (("userns=mapped",), (*UNCONFINED, "--cap-add=SYS_ADMIN")),
    "user namespace, user unmapped": (("userns=unmapped",), UNCONFINED),
    "user namespace, setgroups denied": (("userns=denied",), UNCONFINED),
    "limits of its own": (("limits",), ()),
    "no_new_privs": ((), ("--security-opt=no-new-privileges",)),
}
Row = tuple[str, str, str, bool]
UNLIMITED = float("inf")


def number(value: str) -> float:
    """A limit as a number."""
    return UNLIMITED if value == "unlimited" else float(value)


def rows(process: Record, delegate: Record) -> list[Row]:
    """Name, both values, and whether the delegate has no more, for each attribute."""
    result: list[Row] = []

    def add(name: str, of: Callable[[Record], str], fine: Callable[[str, str], bool]) -> None:
        values = of(process), of(delegate)
        result.append((name, *values, fine(*values)))

    def same(ours: str, its: str) -> bool:
        return ours == its != ""

    def at_least(ours: str, its: str) -> bool:
        return int(its) >= int(ours)

    for name in ("Uid", "Gid", "Groups"):
        add(name.lower(), lambda r, n=name: " ".join(r.status[n].split()) or "-", same)  # type: ignore[misc]
    for name in NAMESPACES:
        add(f"namespace {name}", lambda r, n=name: r.links[f"ns/{n}"], same)  # type: ignore[misc]
    add("root", lambda r: r.facts["root_inode"] + " " + r.links["root"], same)
    add("cgroup", lambda r: r.text("cgroup"), same)
    for name in CAPABILITY_SETS:
        subset = lambda ours, its: int(its, 16) & ~int(ours, 16) == 0  # noqa: E731
        add(name, lambda r, n=name: r.status[n], subset)  # type: ignore[misc]
    add("no_new_privs", lambda r: r.status["NoNewPrivs"], at_least)
    add("seccomp mode", lambda r: r.status["Seccomp"], at_least)
    # The first line is the heading.
    for name in sorted(process.limits.keys() - {"Limit"}):
        # SECURITY.md says why the delegate may have so many processes more.
        more = 64 if name == "Max processes" else 0

        def no_more(ours: str, its: str, more: int = more) -> bool:
            hard = number(ours.split()[1]) + more
            return all(number(limit) <= hard for limit in its.split()[:2])

        add(name.lower(), lambda r, n=name: " ".join(r.limits[n].split()), no_more)  # type: ignore[misc]
    add("umask", lambda r: r.status["Umask"], same)
    add("oom_score_adj", lambda r: r.text("oom_score_adj").strip(), at_least)
    # The 19th field; the second is a name in parentheses.
    add("nice", lambda r: r.text("stat").rpartition(")")[2].split()[16], at_least)
    return result


@pytest.mark.parametrize("case", CASES)
def test_the_delegate_has_no_more_than_the_process(
    attack: MakeCrash, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    actions, options = CASES[case]
    container = attack(*actions, "record", options=options)
    container.log("delivered")
    table = rows(container.process, container.delegate)
    with capsys.disabled():
        print(f"\n{case}\n{'':22}{'process':50}{'delegate':50}")
        for name, ours, its, fine in table:
            # Each hierarchy is a line; they are long and alike.
            ours, its = (value.strip().rpartition("\n")[2] for value in (ours, its))
            print(f"{name:22}{ours[-48:]:50}{its[-48:]:50}{'' if fine else 'MORE'}".rstrip())
    assert [row for row in table if not row[3]] == []

"""The environment that the delegate gets: very long, overwritten, without an end, or in a file that never answers."""

from __future__ import annotations

import re

from hostile.options import ADMINISTRATOR
from support.containers import Container, MakeCrash
from support.records import is_whole


def test_attack_17_an_environment_of_one_letter_names(attack: MakeCrash) -> None:
    container = attack("environ=letters")
    container.log("delivered")
    ours = {name: value for name, value in container.delegate.environment.items() if not name.startswith("CORE_")}
    assert ours == {chr(letter): "1" for letter in range(ord("a"), ord("z") + 1)}


def test_attack_17_an_environment_of_two_megabytes(attack: MakeCrash) -> None:
    container = attack("environ=large")
    line = container.log("delivered")
    assert "the rest was left out" in line
    assert is_whole(container.delegate.core.read_bytes())


def test_attack_17_a_large_environment_and_a_small_stack(attack: MakeCrash) -> None:
    container = attack("environ=large", options=("--ulimit=stack=8388608",))
    container.log("delivered")
    (large,) = (container,)
    assert is_whole(large.delegate.core.read_bytes())
    small = attack("limits", options=tuple(f"--env=V{i}={'x' * 100000}" for i in range(8)))
    line = small.log("delivered")
    assert "only CORE_* passed on" in line
    assert all(name.startswith("CORE_") for name in small.delegate.environment)


def test_attack_17_an_environment_without_a_final_nul(attack: MakeCrash) -> None:
    container = attack("environ=unterminated", "record", options=("--env=LAST=value",))
    container.log("delivered")
    assert "N" in "".join(value[-1:] for value in container.delegate.environment.values())


def test_attack_22_two_hundred_thousand_variables(attack: MakeCrash) -> None:
    container = attack("environ=many", options=("--ulimit=stack=67108864",))
    assert "more than 8192 variables" in container.log("delivered")
    assert is_whole(container.delegate.core.read_bytes())


def test_attack_23_an_environment_in_a_file_that_never_answers(attack: MakeCrash, fuse: str) -> None:
    options = (fuse, *ADMINISTRATOR, f"--env=LONG={'x' * 20000}", "--detach")
    container: Container = attack("leave=60", "fuse=environ", options=options)
    # The kernel reads nothing there but memory: what lies behind that page is missing, and nobody waits.
    assert ": delivered " in container.log("delivered")
    assert len(container.delegate.environment.get("LONG", "")) < 20000


def test_a_process_that_has_overwritten_its_environment_is_told_as_such(attack: MakeCrash) -> None:
    told = attack("tiny", "title").log("it has overwritten its environment")
    assert re.search(
        r"; it has overwritten its environment, of which 0 variables are left: the delegate may lack", told
    )

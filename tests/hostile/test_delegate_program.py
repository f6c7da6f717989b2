"""Which program becomes the delegate: where its path leads, who may have changed it, and what the log says if there is none."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hostile.keeping import core_file
from hostile.options import UNCONFINED
from support import lab
from support.containers import MakeCrash
from support.records import is_whole


@pytest.mark.parametrize(
    ("delegate", "told"),
    [
        ("fifo", "not a regular file"),
        ("device", "not a regular file"),
        ("directory", "not a regular file"),
        ("plain", "not executable"),
        ("loop", "Too many levels of symbolic links"),
        ("magic", "Too many levels of symbolic links"),
        (f"{lab.DIRECTORY}/programs/delegate", "No such file"),
        ("#!../../opt/kept", "not an absolute path"),
        ("#!/opt/missing", "/opt/missing: No such file"),
        ("#!/opt/bin/delegate", "more than 5 scripts"),
    ],
)
def test_attack_06_the_path_of_the_delegate_leads_astray(attack: MakeCrash, delegate: str, told: str) -> None:
    container = attack(f"delegate={delegate}", "record")
    assert told in container.log("core dropped")
    assert container.of("delegate") == []
    assert container.seconds < 3


def test_attack_06_links_and_dots_at_every_component_stay_in_the_container(attack: MakeCrash) -> None:
    container = attack("delegate=directory-link", "record")
    container.log("delivered")
    assert container.delegate.links["exe"] == "/opt/kept"
    assert container.delegate.links["ns/mnt"] == container.process.links["ns/mnt"]


def test_below_which_root_directory_the_delegate_was_looked_for_is_told(attack: MakeCrash) -> None:
    told = attack("root=/tmp").log("core dropped")
    assert "No such file in the container, below /tmp, which the process has made its root directory" in told, told


def test_the_loader_that_the_delegate_misses_is_named(
    attack: MakeCrash, tmp_path: Path, fallback: tuple[str, ...]
) -> None:
    delegate = tmp_path / "delegate"
    delegate.write_bytes(Path("/bin/true").read_bytes().replace(b"/ld-", b"/no-"))
    delegate.chmod(0o755)
    container = attack("tiny", options=(*fallback, f"--volume={delegate}:/opt/bin/delegate:ro"))
    told = container.log("its dynamic loader")
    assert re.search(
        r"/opt/bin/delegate: its dynamic loader /\S+/no-\S+ is not there: install that one, or link", told
    ), told
    assert is_whole(core_file(tmp_path))


# Who may change what is executed.


@pytest.fixture
def home(jail: Path) -> Path:
    """A directory with the program that crashes, a delegate, and a place for its records."""
    (jail / "out").mkdir()
    return jail


@pytest.mark.parametrize("name", ["", "opt/bin", "opt/bin/delegate"])
def test_attack_20_a_user_of_a_container_has_a_delegate_for_a_daemon_of_root(
    attack: MakeCrash, home: Path, name: str
) -> None:
    os.chown(home / name, 1000, 1000)
    container = attack("tiny", "root=/home", options=(f"--volume={home}:/home",))
    assert "another user may change it" in container.log("core dropped, 0 bytes delivered")
    assert not list((home / "out").iterdir()), "the delegate was started"


@pytest.mark.parametrize("user", [0, 1000])
def test_a_daemon_has_the_delegate_of_its_root_directory(attack: MakeCrash, home: Path, user: int) -> None:
    for name in ("", "opt/bin", "out"):
        os.chown(home / name, user, user)
    actions = ("root=/home", "user", "execute=/usr/bin/crasher") if user else ("tiny", "root=/home")
    container = attack(*actions, options=(f"--volume={home}:/home",))
    assert ": delivered " in container.log(": delivered "), container.log("pid=")


@pytest.mark.parametrize("name", ["", "opt/bin", "opt/bin/delegate"])
def test_attack_20_all_users_whom_the_user_namespace_does_not_have_look_alike(
    attack: MakeCrash, home: Path, name: str
) -> None:
    os.chown(home / name, 1001, 1001)
    (home / "out").chmod(0o777)
    container = attack("tiny", "userns=unmapped", "root=/home", options=(f"--volume={home}:/home", *UNCONFINED))
    lines = container.log("another user may change it")
    assert not list((home / "out").iterdir()), f"the delegate of user 1001 was started for user 1000: {lines}"
    assert "another user may change it" in lines

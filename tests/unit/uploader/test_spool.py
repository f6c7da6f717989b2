"""CORE_SPOOL: what cannot be sent waits there."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.tables import Row
from unit.uploader.support import (
    CORE,
    NAME,
    Image,
    Server,
    assert_delivered,
    assert_failed,
    assert_refused,
    each_shell_and_client,
    fault,
    storing_client,
    unzstd,
)

AWAY = "cat >/dev/null; echo 'connection refused' >&2; exit 1\n"
TAKES = (
    'for name; do case $name in :s3:*) cat >"$STORE/${name##*/}"; echo "${name##*/}" >>"$STORE/order" ;; esac; done\n'
)


def test_a_core_waits_in_the_spool_until_the_next_crash(image: Image, spool: Path, cores: Path, row: Row) -> None:
    image.link("zstd")
    image.program("rclone", AWAY)
    image.program("sleep", "exit 0\n")
    environment = {"CORE_SPOOL": str(spool), "STORE": str(cores)}
    result = image.run("s3://bucket/a/", environment=environment, CORE_KEY="first")
    assert_failed(
        result, 75, "s3://bucket/a/first.core.zst: rclone: connection refused: ", f"waits in {spool}/first.core.zst"
    )
    assert sorted(path.name for path in spool.iterdir()) == ["first.core.zst", "first.json"]
    fault(row, "stays away, with CORE_SPOOL", "rclone", result)
    image.program("rclone", TAKES)
    os.utime(spool / "first.core.zst", (1, 1))
    result = image.run("s3://bucket/a/", environment=environment, CORE_KEY="second")
    told = [f"uploader.sh: s3://bucket/a/{name}.core.zst" for name in ("first", "second")]
    assert (result.returncode, result.stderr.decode().splitlines()) == (0, told)
    order = ["first.core.zst", "first.json", "second.core.zst", "second.json"]
    assert (cores / "order").read_text().split() == order
    assert unzstd(cores / "first.core.zst") == CORE == unzstd(cores / "second.core.zst")
    assert json.loads((cores / "first.json").read_text())["core"] == "first.core.zst"
    assert list(spool.iterdir()) == []


@each_shell_and_client
def test_what_waits_is_sent_by_hand(image: Image, client: str, server: Server, spool: Path) -> None:
    environment = {**server.environment, "CORE_SPOOL": str(spool)}
    real = (image.bin / client).readlink()
    image.program(client, AWAY)
    image.program("sleep", "exit 0\n")
    assert_failed(image.run("s3://bucket/hand/", environment=environment), 75, f"waits in {spool}/{NAME}.zst")
    assert_failed(
        image.run("--resend", "s3://bucket/hand/", environment=environment), 75, f"waits in {spool}/{NAME}.zst"
    )
    (image.bin / client).unlink()
    image.link(client, str(real))
    result = image.run("--resend", "s3://bucket/hand/", environment=environment, core=b"")
    assert_delivered(result, f"s3://bucket/hand/{NAME}.zst")
    assert unzstd(server.root / "bucket/hand" / f"{NAME}.zst") == CORE
    assert list(spool.iterdir()) == []
    assert_delivered_nothing(image.run("--resend", "s3://bucket/hand/", environment=environment, core=b""))


def assert_delivered_nothing(result: subprocess.CompletedProcess[bytes]) -> None:
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_the_spool_is_bounded_and_the_oldest_go(image: Image, spool: Path) -> None:
    image.program("rclone", AWAY)
    image.program("sleep", "exit 0\n")
    environment = {"CORE_SPOOL": str(spool), "CORE_SPOOL_MAX": "1"}
    for number in range(3):
        core = os.urandom(400_000)
        result = image.run("s3://bucket", core=core, environment=environment, CORE_KEY=f"core-{number}")
        os.utime(spool / f"core-{number}.core", (1000 + number,) * 2)
    assert b"core-0.core: deleted, for CORE_SPOOL_MAX is 1 MiB: " in result.stderr
    assert sorted(path.name for path in spool.iterdir()) == ["core-1.core", "core-1.json", "core-2.core", "core-2.json"]
    # One that is larger than all may take would only push out the others.
    result = image.run("s3://bucket", core=os.urandom(3 << 20), environment=environment, CORE_KEY="large")
    assert result.returncode == 74, result.stderr
    assert sorted(path.name for path in spool.iterdir()) == ["core-1.core", "core-1.json", "core-2.core", "core-2.json"]


def test_the_core_that_has_just_come_is_sent_also_where_another_is_newer(
    image: Image, spool: Path, cores: Path
) -> None:
    image.program("rclone", TAKES)
    environment = {"CORE_SPOOL": str(spool), "CORE_SPOOL_MAX": "1", "STORE": str(cores)}
    for name, when in (("newer", 2**31), ("newest", 2**31 + 1)):
        (spool / f"{name}.core").write_bytes(bytes(600_000))
        os.utime(spool / f"{name}.core", (when, when))
    result = image.run("s3://bucket", core=os.urandom(300_000), environment=environment, CORE_KEY="own")
    # The newer of the others has room beside it.
    assert result.returncode == 0 and b"/newer.core: deleted, for CORE_SPOOL_MAX is 1 MiB: " in result.stderr
    assert (cores / "order").read_text().split() == ["own.core", "own.json", "newest.core"]
    assert list(spool.iterdir()) == []


def test_what_another_crash_has_sent_meanwhile_is_no_failure(image: Image, spool: Path, cores: Path) -> None:
    taken = (
        f'case "$*" in *old.core*) rm -f {spool}/old.*; cat >/dev/null; echo "connection refused" >&2; exit 1 ;; esac\n'
    )
    image.program("rclone", taken + TAKES)
    image.program("sleep", "exit 0\n")
    environment = {"CORE_SPOOL": str(spool), "STORE": str(cores)}
    (spool / "old.core").write_bytes(b"old")
    os.utime(spool / "old.core", (1, 1))
    result = image.run("s3://bucket", environment=environment, CORE_KEY="own")
    assert result.returncode == 0, result.stderr
    assert (cores / "order").read_text().split() == ["own.core", "own.json"]


def test_what_others_put_into_the_spool_is_neither_sent_nor_deleted(
    public_image: Image, public_cores: Path, public: Path, users: list[int]
) -> None:
    store = public / "store"
    store.mkdir()
    store.chmod(0o777)
    public_image.program("rclone", TAKES)
    (public / "secret").write_text("of root")
    for name, owner in (("forged.core", users[0]), ("forged.json", users[0])):
        (public_cores / name).write_text("forged")
        os.chown(public_cores / name, owner, owner)
    (public_cores / "link.core").symlink_to(public / "secret")
    os.chown(public_cores / "link.core", users[0], users[0], follow_symlinks=False)
    environment = {"CORE_SPOOL": str(public_cores), "CORE_SPOOL_MAX": "1", "STORE": str(store)}
    for user in (users[1], 0):
        assert (
            public_image.run("s3://bucket", environment=environment, CORE_KEY=f"own-{user}", user=user).returncode == 0
        )
    assert sorted(path.name for path in store.iterdir() if path.suffix == ".core") == [
        "own-0.core",
        f"own-{users[1]}.core",
    ]
    assert sorted(path.name for path in public_cores.iterdir()) == ["forged.core", "forged.json", "link.core"]


@pytest.mark.parametrize("kind", ["forged", "link"])
def test_facts_that_another_user_puts_beside_a_core_of_the_spool_are_not_sent(
    public_image: Image, public_cores: Path, public: Path, users: list[int], kind: str
) -> None:
    store, secret, facts = public / "store", public / "secret", public_cores / "own.json"
    store.mkdir()
    store.chmod(0o777)
    public_image.program("rclone", TAKES)
    secret.write_text("of the user who crashed")
    secret.chmod(0o600)
    os.chown(secret, users[1], users[1])
    # The name of a core can be seen as soon as it is written.
    facts.write_text("{}") if kind == "forged" else facts.symlink_to(secret)
    os.chown(facts, users[0], users[0], follow_symlinks=False)
    environment = {"CORE_SPOOL": str(public_cores), "STORE": str(store)}
    result = public_image.run("s3://bucket", environment=environment, CORE_KEY="own", user=users[1])
    assert (result.returncode, [path.name for path in store.iterdir() if path.name != "order"]) == (0, ["own.core"])
    assert os.listdir(public_cores) == ["own.json"]


@pytest.mark.parametrize("known", [{"CORE_SIZE": "1000"}, {"CORE_SPOOL": "/proc/nowhere"}])
def test_a_spool_that_is_not_needed_or_not_there_is_not_used(
    image: Image, store: Path, spool: Path, known: dict[str, str]
) -> None:
    storing_client(image, "rclone")
    result = image.run("s3://bucket", environment={"CORE_SPOOL": str(spool), "STORE": str(store), **known})
    assert result.returncode == 0 and list(spool.iterdir()) == []
    assert store.read_bytes() == CORE
    assert (b"this CORE_SPOOL is no directory" in result.stderr) == ("CORE_SPOOL" in known)


def test_a_spool_in_which_all_may_replace_the_files_of_others_is_not_used(
    image: Image, store: Path, spool: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("of this user")
    (spool / "waits.core").symlink_to(tmp_path / "secret")
    spool.chmod(0o777)
    storing_client(image, "rclone")
    result = image.run("s3://bucket", environment={"CORE_SPOOL": str(spool), "STORE": str(store)})
    assert result.returncode == 0 and b"this CORE_SPOOL is no directory that the user can write" in result.stderr
    assert store.read_bytes() == CORE and [path.name for path in spool.iterdir()] == ["waits.core"]


@pytest.mark.parametrize("bound", ["0", "x", "1G", "-1"])
def test_a_wrong_bound_of_the_spool_is_refused(image: Image, spool: Path, bound: str) -> None:
    image.program("rclone", AWAY)
    offered = image.offer("s3://bucket", environment={"CORE_SPOOL": str(spool), "CORE_SPOOL_MAX": bound})
    assert_refused(offered, 64, f"CORE_SPOOL_MAX={bound}: not a number of MiB")


def test_without_a_spool_there_is_nothing_to_send_by_hand(image: Image, cores: Path) -> None:
    image.program("rclone", AWAY)
    assert_failed(image.run("--resend", "s3://bucket"), 64, "CORE_SPOOL is not set")
    assert_failed(image.run("--resend", str(cores)), 64, "no store to send to")


def test_a_client_tries_a_file_again_with_longer_and_longer_pauses(image: Image, spool: Path, tmp_path: Path) -> None:
    image.program("rclone", AWAY)
    image.program("sleep", f'echo "$1" >>{tmp_path}/pauses\n')
    image.run("s3://bucket", environment={"CORE_SPOOL": str(spool), "CORE_TIMEOUT": "300"})
    assert (tmp_path / "pauses").read_text().split() == ["1", "2", "4", "8", "16", "32"]
    (tmp_path / "pauses").unlink()
    image.program("rclone", "cat >/dev/null; echo NoSuchBucket >&2; exit 1\n")
    image.run("s3://bucket", environment={"CORE_SPOOL": str(spool), "CORE_TIMEOUT": "300"}, CORE_PID="43")
    assert not (tmp_path / "pauses").exists()

"""A directory as destination."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest
from unit.uploader.support import (
    CORE,
    FACTS,
    MADE,
    NAME,
    STARTS,
    Image,
    as_user,
    assert_delivered,
    assert_failed,
    assert_refused,
    files,
    unzstd,
)


def test_a_core_is_the_same_after_zstd(image: Image, cores: Path) -> None:
    image.link("zstd")
    image.link("gzip")
    assert_delivered(image.run(str(cores)), f"{cores}/{NAME}.zst")
    assert files(cores) == [f"{NAME}.zst"]
    assert unzstd(cores / f"{NAME}.zst") == CORE


def test_a_core_is_the_same_after_gzip_where_the_image_has_no_zstd(image: Image, cores: Path) -> None:
    image.link("gzip", image.command[0] if image.shell == "busybox" else None)
    assert_delivered(image.run(str(cores)), f"{cores}/{NAME}.gz")
    assert gzip.decompress((cores / f"{NAME}.gz").read_bytes()) == CORE


def test_a_core_is_stored_as_it_is_where_the_image_has_no_compressor(image: Image, cores: Path) -> None:
    if subprocess.run([*image.command, "-c", "command -v gzip"], env={"PATH": "/"}, capture_output=True).stdout:
        pytest.skip(f"gzip is built into this {image.shell}")
    assert_delivered(image.run(str(cores)), f"{cores}/{NAME}")
    assert (cores / NAME).read_bytes() == CORE


def test_only_the_owner_may_read_a_core_whatever_the_umask_was(image: Image, cores: Path) -> None:
    image.link("zstd")
    image.run(str(cores))
    assert stat.S_IMODE((cores / f"{NAME}.zst").stat().st_mode) == 0o600


def test_a_directory_gets_files_only(image: Image, cores: Path) -> None:
    image.link("zstd")
    assert_delivered(image.run(str(cores)), f"{cores}/{NAME}.zst")
    assert [path for path in cores.rglob("*") if path.is_dir()] == []


def test_the_first_user_to_crash_cannot_touch_the_cores_of_others(
    public_image: Image, public_cores: Path, users: list[int]
) -> None:
    public_image.link("zstd")
    first, second = users
    for user in (first, second, 0):
        assert public_image.run(str(public_cores), user=user, CORE_UID=str(user)).returncode == 0
    stored = files(public_cores)
    owners = {path.stat().st_uid: path for path in public_cores.rglob("*.zst")}
    assert sorted(owners) == [0, first, second]
    for owner in (0, second):
        core = owners[owner]
        attacks = [
            ["rm", "-f", str(core)],
            ["mv", str(core), f"{core}.moved"],
            ["mv", "-f", str(owners[first]), str(core)],
            ["cp", "--remove-destination", "/dev/null", str(core)],
            ["cat", str(core)],
            # The directory that the core is in, if it is one of ours.
            ["mv", str(core.parent), str(core.parent) + ".moved"],
        ]
        for attack in attacks:
            done = subprocess.run(attack, capture_output=True, **as_user(first))
            assert done.returncode != 0, attack
    assert files(public_cores) == stored
    assert {path.stat().st_uid: path for path in public_cores.rglob("*.zst")} == owners
    assert all(unzstd(path) == CORE for path in owners.values())


@pytest.mark.parametrize("mode", [0o777, 0o722])
def test_a_directory_in_which_all_may_delete_the_cores_of_others_is_one_line(
    image: Image, cores: Path, mode: int
) -> None:
    image.link("zstd")
    cores.chmod(mode)
    result = image.run(str(cores))
    assert result.returncode == 0
    warning, stored, end = result.stderr.decode().split("\n")
    remedy = f"chmod +t {cores}/"
    assert warning == f"uploader.sh: {cores}/: everybody can delete and replace the cores of others there: {remedy}"
    assert (stored, end) == (f"uploader.sh: {cores}/{NAME}.zst", "")


@pytest.mark.parametrize("mode", [0o1777, 0o1773, 0o755, 0o775, 0o700])
def test_nobody_is_warned_of_other_directories(image: Image, cores: Path, mode: int) -> None:
    image.link("zstd")
    cores.chmod(mode)
    assert_delivered(image.run(str(cores)), f"{cores}/{NAME}.zst")


def test_the_directory_may_be_said_as_a_url(image: Image, cores: Path) -> None:
    image.link("zstd")
    assert_delivered(image.run(f"file://{cores}/"), f"{cores}/{NAME}.zst")


def test_the_container_chooses_the_destination_where_the_pattern_names_none(image: Image, cores: Path) -> None:
    image.link("zstd")
    assert_delivered(image.run(CORE_DESTINATION=str(cores)), f"{cores}/{NAME}.zst")
    assert_delivered(
        image.run("", "7", "8", "9", CORE_DESTINATION=str(cores)),
        f"{cores}/{NAME.replace('42.1000.1001', '7.8.9')}.zst",
    )


def test_the_destination_of_the_argument_goes_before_that_of_the_environment(image: Image, cores: Path) -> None:
    image.link("zstd")
    assert_delivered(image.run(str(cores), CORE_DESTINATION="/proc/nowhere"), f"{cores}/{NAME}.zst")


def test_the_ids_of_the_arguments_go_before_those_of_the_environment(image: Image, cores: Path) -> None:
    image.link("zstd")
    key = "web-1.server.7.8.9.1700000000.core.zst"
    assert_delivered(image.run(str(cores), "7", "8", "9"), f"{cores}/{key}")
    for name in (key, key.replace(".core.zst", ".json")):
        (cores / name).unlink()
    assert_delivered(image.run("7", "8", "9", CORE_DESTINATION=str(cores)), f"{cores}/{key}")


def test_the_program_is_the_last_part_of_its_path_where_its_name_is_not_known(image: Image, cores: Path) -> None:
    image.link("zstd")
    result = image.run(str(cores), CORE_COMM="", CORE_EXE="/srv/app/worker")
    assert_delivered(result, f"{cores}/{NAME.replace('server', 'worker')}.zst")


def test_a_core_is_kept_also_when_nothing_is_known_about_it(image: Image, cores: Path) -> None:
    image.link("zstd")
    result = image.run(str(cores), environment=dict.fromkeys(FACTS, "UNSET"))
    assert result.returncode == 0, result.stderr
    (name,) = files(cores)
    assert re.fullmatch(r"[^.].*\.unknown\.unknown\.unknown\.unknown\.[0-9]+\.core\.zst", name)


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [
        ("../../etc", "_._.._etc"),
        ("..", "_."),
        (".", "_"),
        ("-rf", "_rf"),
        (".hidden", "_hidden"),
        ("a b\nc\td", "a_b_c_d"),
        ("$(id)`id`;*", "__id__id___"),
        ("caf\u00e9%n\\n", "caf___n_n"),
        ("x" * 4096, "x" * 64),
        ("x" * 100_000, "x" * 64),
        ("/" * 100_000, "_" * 64),
        (("x" * 63 + "/") * 20, "x" * 63 + "_"),
    ],
)
def test_names_that_a_container_chooses_cannot_leave_their_place(
    image: Image, cores: Path, chosen: str, kept: str
) -> None:
    image.link("zstd")
    name = f"{kept}.{kept}.42.1000.1001.1700000000.core.zst"
    assert_delivered(image.run(str(cores), CORE_HOSTNAME=chosen, CORE_COMM=chosen), f"{cores}/{name}")
    assert files(cores) == [name]


def test_the_name_of_a_core_is_the_one_that_the_helper_has_made(image: Image, cores: Path) -> None:
    image.link("zstd")
    assert_delivered(image.run(str(cores), "7", "8", "9", CORE_KEY=MADE), f"{cores}/{MADE}.core.zst")
    longest = MADE.ljust(200, "x")
    assert_delivered(image.run(f"{cores}//", CORE_KEY=longest), f"{cores}/{longest}.core.zst")


@pytest.mark.parametrize(
    ("chosen", "kept"), [("../../etc", "_._.._etc"), ("-rf", "_rf"), (".", "_"), ("x" * 4096, "x" * 200)]
)
def test_a_name_that_an_older_helper_has_left_to_the_container_cannot_leave_its_place(
    image: Image, cores: Path, chosen: str, kept: str
) -> None:
    image.link("zstd")
    assert_delivered(image.run(str(cores), CORE_KEY=chosen), f"{cores}/{kept}.core.zst")
    assert files(cores) == [f"{kept}.core.zst"]


def test_ids_and_time_of_the_environment_cannot_leave_their_place(image: Image, cores: Path) -> None:
    image.link("zstd")
    result = image.run(str(cores), CORE_PID="/1", CORE_UID="../2", CORE_GID="", CORE_TIME="-9" * 50)
    assert_delivered(
        result, f"{cores}/web-1.server._1.__._2.unknown.{'_9' + '-9' * 9}.core.zst".replace("__._2", "_._2")
    )


def test_an_existing_core_is_never_replaced(image: Image, cores: Path) -> None:
    image.link("zstd")
    path = cores / f"{NAME}.zst"
    path.write_text("the first")
    assert_refused(image.offer(str(cores)), 73, f"{path}: exists already")
    assert path.read_text() == "the first"
    assert files(cores) == [f"{NAME}.zst"]


@pytest.mark.parametrize("target", ["file", "directory", "nowhere"])
def test_a_symbolic_link_in_the_place_of_the_core_is_not_followed(
    image: Image, cores: Path, tmp_path: Path, target: str
) -> None:
    image.link("zstd")
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    (cores / f"{NAME}.zst").symlink_to(tmp_path / target)
    assert_refused(image.offer(str(cores)), 73, "exists already")
    assert (tmp_path / "file").read_bytes() == b""
    assert list((tmp_path / "directory").iterdir()) == []
    assert not (tmp_path / "nowhere").exists()


def test_a_missing_directory_is_not_created(image: Image, tmp_path: Path) -> None:
    assert_refused(image.offer(f"{tmp_path}/nowhere"), 73, f"no directory {tmp_path}/nowhere", "mount a volume")
    assert not (tmp_path / "nowhere").exists()


def test_a_directory_that_cannot_be_written_is_one_clear_line(image: Image) -> None:
    assert_refused(image.offer("/proc"), 73, "cannot create a file in /proc/: let every user write there (mode 1777)")


def test_a_limit_of_the_file_size_leaves_nothing_behind(image: Image, cores: Path) -> None:
    image.link("zstd")
    noise = os.urandom(1 << 20)
    assert_failed(image.run(str(cores), core=noise, limit=100_000), 74, "zstd: ")
    assert files(cores) == []


def test_a_compressor_that_fails_in_the_middle_leaves_nothing_behind(image: Image, cores: Path) -> None:
    image.program("zstd", STARTS + "head -c 1000\necho 'out of memory' >&2\nexit 3\n")
    assert_failed(image.run(str(cores)), 74, "zstd: out of memory")
    assert files(cores) == []


# ln in the images: with -T (today's), without it (old busybox), and on a file system without hard links.
LN = {
    "ln": "",
    "old ln": '[ "$1" != -T ] || { echo "invalid option" >&2; exit 1; }\nexec ln "$@"\n',
    "no links": "echo 'Operation not supported' >&2; exit 1\n",
}


@pytest.mark.parametrize("ln", LN)
@pytest.mark.parametrize(
    "puts",
    ["echo the other >{}", "mkdir {}", "ln -s elsewhere {}", "ln -s nowhere {}", "mkfifo {}"],
    ids=["file", "directory", "link", "broken link", "fifo"],
)
def test_what_another_puts_there_meanwhile_is_left_alone_and_the_core_is_stored(
    image: Image, cores: Path, ln: str, puts: str
) -> None:
    path = cores / f"{NAME}.zst"
    (cores / "elsewhere").mkdir()
    image.program("zstd", f"{STARTS}cat; {puts.format(path)}\n")
    if LN[ln]:
        image.program("ln", LN[ln])
    result = image.run(str(cores))
    stored = Path(result.stderr.decode().removeprefix("uploader.sh: ").removesuffix("\n"))
    assert_delivered(result, str(stored))
    assert re.fullmatch(re.escape(f"{cores}/{NAME.removesuffix('.core')}.") + r"\w{6}\.core\.zst", str(stored))
    assert stored.read_bytes() == CORE
    assert not stored.is_symlink()
    facts = stored.name.removesuffix(".core.zst") + ".json"
    assert {entry.name for entry in cores.iterdir()} == {path.name, stored.name, facts, "elsewhere"}
    assert list((cores / "elsewhere").iterdir()) == []
    if path.is_dir():
        assert list(path.iterdir()) == []
    if path.is_file():
        assert path.read_text() == "the other\n"


@pytest.mark.parametrize("ln", LN)
def test_a_core_gets_its_name_with_every_ln(image: Image, cores: Path, ln: str) -> None:
    image.link("zstd")
    if LN[ln]:
        image.program("ln", LN[ln])
    assert_delivered(image.run(str(cores)), f"{cores}/{NAME}.zst")
    assert files(cores) == [f"{NAME}.zst"]


def test_a_core_that_ends_early_is_delivered_as_far_as_it_went(image: Image, cores: Path) -> None:
    image.link("zstd")
    assert_delivered(image.run(str(cores), core=b""), f"{cores}/{NAME}.zst")
    assert unzstd(cores / f"{NAME}.zst") == b""


@pytest.mark.parametrize("path", ["UNSET", "", "/srv/app/bin"])
def test_the_path_of_the_crashed_process_need_not_lead_anywhere(image: Image, cores: Path, path: str) -> None:
    result = image.run(str(cores), PATH=path)
    assert result.returncode == 0, result.stderr
    assert len(files(cores)) == 1


def test_old_parts_of_the_same_user_are_swept(public_image: Image, public_cores: Path, users: list[int]) -> None:
    for tool in ("find", "id"):
        public_image.link(tool, public_image.command[0] if public_image.shell == "busybox" else None)
    own, young, others, core = (f".{name}.core.zst.AbCdE1" for name in ("own", "young", "others", "core"))
    for name, owner in ((own, users[0]), (young, users[0]), (others, users[1]), (core[1:], users[0])):
        (public_cores / name).write_text("part")
        os.chown(public_cores / name, owner, owner)
        if name != young:
            os.utime(public_cores / name, (time.time() - 3 * 86400,) * 2)
    (public_cores / "sub").mkdir(mode=0o777)
    shutil.copy(public_cores / own, public_cores / "sub" / own)
    assert public_image.run(str(public_cores), user=users[0]).returncode == 0
    assert files(public_cores) == sorted([young, others, core[1:], NAME, f"sub/{own}"])

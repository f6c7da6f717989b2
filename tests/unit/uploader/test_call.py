"""How it is called, and what it needs before it reads the core."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from core_helper.configuration import LONGEST_TIMEOUT
from unit.uploader.support import (
    CORE,
    KEY,
    NAME,
    STARTS,
    UPLOADER,
    Image,
    assert_delivered,
    assert_failed,
    assert_refused,
    files,
)


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
        "    read -r line <$stat || continue; set -- ${line##*) }; [ $4 != $session ] || number=$((number + 1))\n"
        f"done 2>/dev/null; echo $number >{public}/told; exec cat >{public}/core\n",
    )
    public.chmod(0o777)
    result = public_image.run("s3://bucket", user=limited_user, processes=4)
    assert_delivered(result, f"s3://bucket/{KEY}")
    assert (public / "told").read_text() == "2\n" and (public / "core").read_bytes() == CORE

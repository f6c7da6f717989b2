"""The package: what pip makes of it, and what the page about it shows."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import zstandard
from corefetch import __version__
from support.command import Desk
from support.cores import Shop
from support.servers import S3

PACKAGE = Path(__file__).resolve().parents[1]
PAGE = PACKAGE.parent / "docs" / "corefetch.md"


def test_pip_makes_a_program_of_it(tmp_path: Path) -> None:
    copy = tmp_path / "corefetch"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info", ".*cache"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", tmp_path, copy], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"corefetch-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        entry = content.read(f"corefetch-{__version__}.dist-info/entry_points.txt").decode()
        metadata = content.read(f"corefetch-{__version__}.dist-info/METADATA").decode()
    assert "corefetch = corefetch.cli:program" in entry
    assert {f"corefetch/{path.name}" for path in (PACKAGE / "src/corefetch").iterdir() if path.is_file()} <= names
    required = set(re.findall(r"^Requires-Dist: ([\w-]+)", metadata, re.M))
    listed = set(re.findall(r"^([\w-]+)", (PACKAGE / "requirements.in").read_text(), re.M))
    # What is tested is what is required.
    assert required <= listed
    own = tmp_path / "own"
    install: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--prefix",
        own,
        wheel,
    ]
    subprocess.run(install, check=True)
    # As pipx and uvx start it; the libraries are those of the tests.
    (place,) = own.rglob("site-packages")
    told = subprocess.run(
        [own / "bin/corefetch", "--version"], check=True, capture_output=True, text=True, env={"PYTHONPATH": str(place)}
    )
    assert told.stdout == f"corefetch {__version__}\n"


def test_the_first_use_of_the_page_works_as_it_stands(desk: Desk, bucket: S3, shop: Shop) -> None:
    now = subprocess.run(["date", "-u", "+%Y%m%dT%H%M%SZ"], check=True, capture_output=True, text=True).stdout.strip()
    name = f"node-7.shop-1.shop.shop.7775.{now}.0f3a9c27d1b4.core.zst"
    (bucket.directory / "shop" / name).write_bytes(zstandard.ZstdCompressor(level=1).compress(shop.core.read_bytes()))
    block = re.findall(r"^```console\n(.*?)^```", PAGE.read_text(), re.M | re.S)[0]
    commands = [shlex.split(line[2:], comments=True) for line in block.splitlines() if line.startswith("$ ")]
    assert [words[:2] for words in commands] == [
        ["pipx", "install"],
        ["export", "COREFETCH_FROM=s3://my-bucket-for-cores/shop/"],
        ["corefetch", "list"],
        ["corefetch", "info"],
        ["corefetch", "debug"],
    ]
    assert "0f3a9c27" in desk.good(*commands[2][1:]).out
    assert "SIGSEGV" in desk.good(*commands[3][1:], "--sysroot", str(shop.root)).out
    assert "total_of" in desk.good(*commands[4][1:], "--sysroot", str(shop.root), "--", "-batch", "-nx").out

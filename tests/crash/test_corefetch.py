"""From a crash in a Debian container to the line of code, by the uploader, an S3 server, corefetch and the engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import debian, desk, lab
from support.containers import Container, MakeCrash

STORE = f"s3://{lab.BUCKET}/test"
SOURCES = lab.PROJECT / "corefetch/tests/programs"
LINE = next(n for n, line in enumerate((SOURCES / "shop.c").read_text().splitlines(), 1) if "/* CRASH */" in line)
TOLD = f"shop: SIGSEGV in total_of at {SOURCES / 'shop.c'}:{LINE}"
IMAGE = f"{lab.NO_REGISTRY}/shop:1.0"
DEBUGINFOD = "http://127.0.0.1:8002"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build contexts: ``whole`` with the program and its library, ``stripped`` without symbols; these are in ``debug``."""
    directory = tmp_path_factory.mktemp("shop")
    whole, debug = directory / "whole", directory / "debug"
    whole.mkdir()
    debug.mkdir()
    flags = ("gcc", "-g", "-O0", "-Wl,--build-id")
    library = whole / "libtax.so.1"
    lab.command(*flags, "-shared", "-fPIC", "-Wl,-soname,libtax.so.1", "-o", library, SOURCES / "tax.c")
    rpath = "-Wl,-rpath,/opt/shop"
    lab.command(*flags, "-o", whole / "shop", SOURCES / "shop.c", library, "-lpthread", rpath)
    shutil.copytree(whole, directory / "stripped")
    for name in ("shop", "libtax.so.1"):
        lab.command("objcopy", "--only-keep-debug", whole / name, debug / f"{name}.debug")
        lab.command("strip", directory / "stripped" / name)
    return directory


@pytest.fixture(scope="module")
def container(crash: MakeCrash, files: Path) -> Iterator[Container]:
    """A Debian container in which the program has crashed, and whose core is in the bucket."""
    root = shutil.copy(debian.curl_only(), files / "debian.tar")
    with tarfile.open(root, "a") as archive:
        archive.add(lab.PROJECT / "container_scripts/uploader.sh", "./opt/bin/delegate")
    lab.command("docker", "import", root, "core-lab/debian", stdout=subprocess.DEVNULL)
    build(files / "whole")
    lab.start_s3()
    variables = {**lab.S3_ENVIRONMENT, "CORE_DESTINATION": f"{STORE}/"}
    options = (*lab.S3_OPTIONS, *(f"--env={name}={value}" for name, value in variables.items()))
    container = crash(image=IMAGE, options=options)
    assert ": delivered " in container.log("pid="), container.log("pid=")
    yield container
    lab.stop_s3()


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    """Let corefetch know nothing of the test before."""
    shutil.rmtree(desk.CACHE, ignore_errors=True)


def build(context: Path) -> None:
    """Makes the image of a program and its library."""
    # The word that the tests give to a container is for the shell.
    start = 'ENTRYPOINT ["/bin/sh", "-c", "exec /opt/shop/shop"]'
    (context / "Containerfile").write_text(f"FROM core-lab/debian\nCOPY . /opt/shop/\n{start}\n")
    words = ("docker", "build", "--network=none", "--quiet", "--tag", IMAGE, "--file", context / "Containerfile")
    lab.command(*words, context, stdout=subprocess.DEVNULL)


def test_the_image_of_the_facts_leads_to_the_line(container: Container, tmp_path: Path) -> None:
    (row,) = json.loads(desk.corefetch(STORE, "list", "--json"))
    assert (row["program"], row["signal"], row["container"]) == ("/opt/shop/shop", "SIGSEGV", container.name)
    assert row["image"] == IMAGE
    files = json.loads(desk.corefetch(STORE, "info", "last", "--json"))["files"]
    states = {Path(one["path"]).name: one["state"] for one in files}
    assert states.items() >= {"shop": "lines", "libtax.so.1": "lines", "libc.so.6": "stripped"}.items()
    assert {one["source"] for one in files} == {"image"}
    told = desk.corefetch(STORE, "info", "last")
    assert told.splitlines()[0] == TOLD
    assert re.search(r"#1 +checkout \(order=0x[0-9a-f]+, dies=0\)", told)

    core = tmp_path / "core"
    desk.corefetch(STORE, "get", row["id"], "--output", str(core))
    assert core.read_bytes()[:4] == b"\x7fELF"
    told = desk.corefetch(
        STORE, "debug", "last", "--", "-batch", "-nx", "-ex", "backtrace", "-ex", "info sharedlibrary"
    )
    assert re.search(r"#1 .*checkout \(order=", told)
    assert re.search(r"Yes .*/opt/shop/libtax\.so\.1", told)
    assert lab.output("docker", "ps", "--all", "--quiet", "--filter=name=corefetch-") == ""


def test_a_stripped_program_has_its_lines_from_debuginfod(container: Container, files: Path) -> None:
    build(files / "stripped")
    told = desk.corefetch(STORE, "info", "last")
    assert re.match(r"shop: SIGSEGV at /opt/shop/shop\+0x[0-9a-f]+\n", told)
    assert "- /opt/shop/shop is stripped" in told
    build_id = json.loads(desk.corefetch(STORE, "info", "last", "--json", "--facts"))["build_id"]
    words = desk.beside_s3("debuginfod", "-p", "8002", "-d", files / "debuginfod.sqlite", "-F", files / "debug")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            ask = desk.beside_s3(
                "curl", "--silent", "--fail", "--output", "/dev/null", f"{DEBUGINFOD}/buildid/{build_id}/debuginfo"
            )
            deadline = time.monotonic() + 20
            while lab.command(*ask, check=False).returncode != 0:
                assert server.poll() is None and time.monotonic() < deadline, "debuginfod does not find the file"
                time.sleep(0.2)
            assert desk.corefetch(STORE, "info", "last", DEBUGINFOD_URLS=DEBUGINFOD).splitlines()[0] == TOLD
        finally:
            server.terminate()


def test_a_core_whose_image_is_gone_is_said(container: Container) -> None:
    lab.command("docker", "rmi", "--force", IMAGE, stdout=subprocess.DEVNULL)
    # What is missing is the program that crashed.
    told = desk.corefetch(STORE, "info", "last", status=7)
    assert re.match(r"shop: SIGSEGV at /opt/shop/shop\+0x[0-9a-f]+\n", told)
    assert re.search(rf"- image {IMAGE}: .*: docker pull {IMAGE} brings it, or say another by --image", told)
    assert re.search(r"- /opt/shop/shop \(build id [0-9a-f]{12}\): not found: say --image", told)

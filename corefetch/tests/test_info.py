"""``info`` and ``debug``: from a core in a bucket to the line of code, and what is said where that is not possible."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard
from corefetch import acquire, elfcore, engine, symbols, sysroot, text
from corefetch.cache import Cache
from corefetch.config import Settings
from corefetch.debuginfod import Servers
from corefetch.errors import Exit, Failure
from support import servers
from support.command import Desk
from support.cores import PROGRAMS, Shop, run
from support.servers import S3, answering

KEY = "node-7.shop-1.shop.shop.7775.20261129T180000Z.0f3a9c27d1b4"
LINE = next(n for n, line in enumerate((PROGRAMS / "shop.c").read_text().splitlines(), 1) if "/* CRASH */" in line)
# What stands in for docker: a directory is its only image. The real one is in `make demo`.
DOCKER = """#!/bin/sh
echo "$*" >>{log}
case $1 in
create) [ "$2" = --pull=never ] || {{ echo "it pulls" >&2; exit 125; }}
    [ "$7" = shop:1.0 ] || {{ echo "Error response from daemon: No such image: $7" >&2; exit 1; }}
    [ ! -e {log}.slow ] || sleep 30 ;;
cp) path=${{2#*:}}; cd {image}; [ -e ".$path" ] || [ -h ".$path" ] || exit 1; tar -c -C ".${{path%/*}}" "${{path##*/}}" ;;
rm) ;;
*) exit 1 ;;
esac
"""


@pytest.fixture
def place(bucket: S3, shop: Shop) -> Path:
    """The bucket's directory, with a core."""
    place = bucket.directory / "shop"
    (place / f"{KEY}.core.zst").write_bytes(zstandard.ZstdCompressor(level=1).compress(shop.core.read_bytes()))
    facts = {"CORE_NODE": "node-7", "CORE_POD_NAME": "shop-1", "CORE_IMAGE": "shop:1.0", "CORE_SIGNAL_NAME": "SIGSEGV"}
    (place / f"{KEY}.json").write_text(
        json.dumps({"sha256": None, "build_ids": None, "truncated": False, "facts": facts})
    )
    return place


@pytest.fixture
def stripped(shop: Shop, tmp_path: Path) -> tuple[Path, Path]:
    """The image's files without symbols, and the directory of those."""
    image, debug = tmp_path / "stripped", tmp_path / "debug"
    shutil.copytree(shop.root, image, symlinks=True)
    debug.mkdir()
    for path in (shop.program, shop.library):
        there = image / path.relative_to(shop.root)
        run("objcopy", "--only-keep-debug", there, debug / f"{path.name}.any-name")
        run("strip", there)
    return image, debug


@pytest.fixture
def docker(desk: Desk, tmp_path: Path) -> Path:
    """Put a docker before all others into PATH, whose image has the files of ``image`` beside it."""
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "docker"
    program.write_text(DOCKER.format(log=directory / "log", image=directory / "image"))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    desk.variables["PATH"] = f"{directory}:{os.environ['PATH']}"
    return directory


def without_docker(desk: Desk, tmp_path: Path, *names: str) -> None:
    """Leave only these programs in PATH."""
    directory = tmp_path / "only"
    directory.mkdir()
    for name in names:
        (directory / name).symlink_to(shutil.which(name) or "/nowhere")
    desk.variables["PATH"] = str(directory)


def without_functions(desk: Desk, **variables: str) -> str:
    """Return what info says where a program is missing: what crashed, or one that reads it."""
    done = desk.run("info", "last", **variables)
    assert done.status == Exit.MISSING_PROGRAM, done.err
    return done.out


def test_the_files_of_the_image_lead_to_the_line(desk: Desk, place: Path, shop: Shop, docker: Path) -> None:
    (docker / "image").symlink_to(shop.root)
    done = desk.good("info", "last")
    lines = done.out.splitlines()
    assert lines[0] == f"shop: SIGSEGV in total_of at {PROGRAMS / 'shop.c'}:{LINE}"
    assert "image      shop:1.0" in lines
    assert re.search(r"#1 +checkout \(order=0x[0-9a-f]+, dies=0\) at \S+shop\.c:\d+", done.out)
    assert re.search(r"3 threads: .*\n #0 .*pause", done.out)
    assert "wait_for_ever" in done.out
    assert "missing" not in done.out
    said = (docker / "log").read_text().splitlines()
    created = re.fullmatch(
        r"create --pull=never --name (corefetch-[0-9a-f]+) --network none shop:1\.0 corefetch", said[0]
    )
    assert created
    assert said[-1] == f"rm --force --volumes {created[1]}"
    # Only what is mapped, and not what this machine has.
    copied = {line.split(":")[-1].split()[0] for line in said if line.startswith("cp")}
    assert {Path(path).name for path in copied} == {"shop", "libtax.so.1"}


def test_links_of_an_image_are_followed(desk: Desk, place: Path, shop: Shop, docker: Path) -> None:
    image = docker / "image"
    shutil.copytree(shop.root, image)
    library = image / shop.library.relative_to(shop.root)
    library.rename(image / "tax")
    library.symlink_to("libtax.so")
    (library.parent / "libtax.so").symlink_to("/tax")
    files = desk.good("info", "last", "--json").json["files"]
    assert {one["state"] for one in files if one["path"].endswith("libtax.so.1")} == {"lines"}
    library.unlink()
    library.symlink_to(library.name)
    shutil.rmtree(desk.directory / ".cache/corefetch/build-id")
    files = desk.good("info", "last", "--json").json["files"]
    assert {one["state"] for one in files if one["path"].endswith("libtax.so.1")} == {"missing"}


def test_an_engine_that_ends_in_the_middle_is_said(desk: Desk, place: Path, shop: Shop, docker: Path) -> None:
    (docker / "image").symlink_to(shop.root)
    program = docker / "docker"
    program.write_text(program.read_text().replace('"${path##*/}" ;;', '"${path##*/}" | head -c 9000 ;;'))
    assert "docker cp ended in the middle" in without_functions(desk)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Cannot connect to the Docker daemon at unix:///x.sock. Is the docker daemon running?", "start the engine"),
        ("permission denied while trying to connect to the docker API at unix:///x.sock", "start the engine"),
        ("Error: unable to connect to Podman socket: connection refused", "start the engine"),
        (
            'Error response from daemon: Get "http://localhost:1/v2/": connect: connection refused',
            "{} pull shop:1.0 brings it",
        ),
        ("Error: shop:1.0: image not known", "{} pull shop:1.0 brings it"),
    ],
)
def test_an_engine_that_makes_no_container_is_said_with_the_remedy(tmp_path: Path, said: str, remedy: str) -> None:
    program = tmp_path / "docker"
    program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(Failure, match=f"image shop:1.0: .*{re.escape(said[-20:])}: {remedy.format(program)}"):
        engine.opened(str(program), "shop:1.0").__enter__()


@pytest.mark.parametrize(
    ("hangs", "told"),
    [
        ("create|rm", "image shop:1.0: {0} does not answer: see whether it works"),
        ("cp|rm", "/file of the image: {0} cp stopped: nothing came for 1 s: see whether the engine works"),
        ("rm", "image shop:1.0: {0} does not answer: {0} rm --force --volumes {1} removes container {1}, if it is"),
    ],
)
def test_an_engine_that_hangs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: str, told: str) -> None:
    program = tmp_path / "docker"
    program.write_text(f"#!/bin/sh\ncase $1 in {hangs}) exec sleep 20 ;; esac\n")
    program.chmod(0o755)
    monkeypatch.setattr(engine, "LONGEST", 1)
    container = f"corefetch-{'0' * 16}"
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
    began = time.monotonic()
    with (
        pytest.raises(Failure) as failure,
        engine.opened(str(program), "shop:1.0") as image,
        image.open("/file") as file,
    ):
        assert file is None
    assert str(failure.value).startswith(told.format(program, container))
    assert failure.value.code == Exit.UNREACHABLE
    assert time.monotonic() - began < 10


def test_an_engine_that_is_slow_may_copy_for_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x" * 20000)
    program = tmp_path / "docker"
    slow = "for n in 1 2 3 4; do head -c 10240; sleep 0.4; done"
    program.write_text(f"#!/bin/sh\n[ $1 != cp ] || tar -c -C {tmp_path} file | ({slow})\n")
    program.chmod(0o755)
    monkeypatch.setattr(engine, "LONGEST", 1)
    with engine.opened(str(program), "shop:1.0") as image, image.open("/file") as file:
        assert file is not None and file.read() == b"x" * 20000


def test_the_files_are_fetched_once(desk: Desk, place: Path, shop: Shop, docker: Path) -> None:
    (docker / "image").symlink_to(shop.root)
    desk.good("info", "last")
    (docker / "log").unlink()
    assert "total_of" in desk.good("info", "last").out
    assert not (docker / "log").exists()
    assert not list((desk.directory / ".cache/corefetch/roots").iterdir())


def test_what_is_stripped_in_the_cache_hides_no_other_copy(
    desk: Desk, place: Path, shop: Shop, stripped: tuple[Path, Path], docker: Path
) -> None:
    # strip(1) leaves the build id as it is.
    (docker / "image").symlink_to(stripped[0])
    assert "/app/shop is stripped" in desk.good("info", "last").out
    (docker / "log").unlink()
    assert "/app/shop is stripped" in desk.good("info", "last").out
    assert not (docker / "log").exists()
    assert "total_of" in desk.good("info", "last", "--sysroot", str(shop.root)).out
    (docker / "image").unlink()
    (docker / "image").symlink_to(shop.root)
    assert "total_of" in desk.good("info", "last", "--image", "shop:1.0").out
    assert "total_of" in desk.good("info", "last").out


def test_what_an_image_says_counts_for_its_own_cores_alone(
    desk: Desk, place: Path, shop: Shop, docker: Path, tmp_path: Path
) -> None:
    """Anybody can give a file the build id of another one."""
    forged = tmp_path / "forged"
    shutil.copytree(shop.root, forged, symlinks=True)
    there = forged / shop.program.relative_to(shop.root)
    there.write_bytes(there.read_bytes().replace(b"total_of\0", b"planted!\0"))
    program = docker / "docker"
    program.write_text(program.read_text().replace("shop:1.0", "forged:1.0"))
    (docker / "image").symlink_to(forged)
    assert "planted!" in desk.good("info", "last", "--image", "forged:1.0").out
    (docker / "image").unlink()
    (docker / "image").symlink_to(shop.root)
    program.write_text(program.read_text().replace("forged:1.0", "shop:1.0"))
    out = desk.good("info", "last").out
    assert "total_of" in out and "planted" not in out


def test_ctrl_c_leaves_no_container_and_no_directory(desk: Desk, place: Path, docker: Path) -> None:
    (docker / "log.slow").touch()
    process = subprocess.Popen(
        desk.words("info", "last"), cwd=desk.directory, env=desk.environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not (docker / "log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == Exit.INTERRUPTED
    assert said.startswith("corefetch: interrupted")
    created, removed = (docker / "log").read_text().splitlines()
    assert removed == f"rm --force --volumes {created.split()[3]}"
    assert not list((desk.directory / ".cache/corefetch/roots").iterdir())


def test_what_programs_read_is_json(desk: Desk, place: Path, shop: Shop) -> None:
    known = desk.good("info", "last", "--json", "--sysroot", str(shop.root)).json
    assert known["crash"]["function"] == "total_of"
    assert known["crash"]["line"] == LINE
    assert known["at"] == {"file": str(PROGRAMS / "shop.c"), "line": LINE, "function": "total_of"}
    assert [frame["function"] for frame in known["threads"][0]["frames"]] == ["total_of", "checkout", "main"]
    assert len(known["threads"]) == 4
    assert known["facts"]["facts"]["CORE_NODE"] == "node-7"
    assert {one["state"] for one in known["files"] if one["path"].endswith(("shop", "libtax.so.1"))} == {"lines"}
    assert known["problems"] == []


def test_an_abort_is_of_the_function_that_called_it(desk: Desk, shop: Shop) -> None:
    done = desk.good("info", shop.aborted, "--sysroot", str(shop.root))
    assert done.out.startswith(f"shop: SIGABRT in total_of at {PROGRAMS / 'shop.c'}:")


def test_stripped_programs_are_said_with_the_remedy(desk: Desk, place: Path, stripped: tuple[Path, Path]) -> None:
    image, debug = stripped
    done = desk.good("info", "last", "--sysroot", str(image))
    assert re.match(r"shop: SIGSEGV at \S+/app/shop\+0x[0-9a-f]+\n", done.out)
    assert "??" not in done.out
    assert re.search(r"- \S+/app/shop is stripped, .*--symbols DIRECTORY.*DEBUGINFOD_URLS", done.out)
    done = desk.good("info", "last", "--sysroot", str(image), "--symbols", str(debug))
    assert done.out.startswith(f"shop: SIGSEGV in total_of at {PROGRAMS / 'shop.c'}:{LINE}\n")
    assert "stripped" not in done.out


def test_debuginfod_serves_what_is_stripped(
    desk: Desk, place: Path, stripped: tuple[Path, Path], tmp_path: Path
) -> None:
    assert servers.has_debuginfod(), "install Debian's debuginfod"
    with servers.debuginfod(tmp_path, *stripped) as url:
        for _ in range(100):
            # It looks for files first.
            done = desk.run("info", "last", DEBUGINFOD_URLS=url)
            if "total_of" in done.out:
                break
            shutil.rmtree(desk.directory / ".cache/corefetch/build-id", ignore_errors=True)
        assert done.out.startswith(f"shop: SIGSEGV in total_of at {PROGRAMS / 'shop.c'}:{LINE}\n")
        files = desk.good("info", "last", "--json", DEBUGINFOD_URLS=url).json["files"]
        assert {one["source"] for one in files if one["path"].endswith("/app/shop")} == {"cache"}
    # All is here now.
    assert "total_of" in desk.good("info", "last", DEBUGINFOD_URLS=url).out


def test_what_a_server_sends_that_is_of_another_build_id_is_neither_taken_nor_kept(
    desk: Desk, place: Path, shop: Shop, tmp_path: Path
) -> None:
    """Such as the page of a network that wants a login."""
    # The second run finds there what an older version has kept.
    kept = desk.directory / ".cache/corefetch/build-id" / symbols.read(shop.program).build_id
    with answering(200, b"<html>Please log in</html>") as url:
        for again in (False, True):
            told = without_functions(desk, DEBUGINFOD_URLS=url)
            assert re.search(rf"- {url}: what it sends is not of build id [0-9a-f]{{12}} and of \d+ more: see", told)
            kept.mkdir(parents=True, exist_ok=True)
            for kind in ("executable", "debuginfo"):
                assert again or not (kept / kind).exists()
                (kept / kind).write_bytes(b"<html>Please log in</html>")
        assert "total_of" in desk.good("info", "last", "--sysroot", str(shop.root), DEBUGINFOD_URLS=url).out
    with answering(200, shop.program.read_bytes()) as url:
        assert "total_of" in desk.good("info", "last", DEBUGINFOD_URLS=url).out
        assert symbols.is_of(kept / "executable", kept.name)


@pytest.mark.parametrize("status", [200, 404])
def test_a_full_disk_is_the_cache_s_own_trouble(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    cache = Cache(tmp_path / "cache")
    kept = symbols.read(shop.program).build_id
    said = elfcore.CoreFacts(program="/x/shop", build_ids={"/x/shop": kept, "/x/tax": "ab" * 20})
    said.mappings = [elfcore.Mapping(n << 12, n + 1 << 12, 0, path) for n, path in enumerate(said.build_ids)]

    @contextmanager
    def opened(program: str, name: str) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(open=lambda path: io.BytesIO(shop.program.read_bytes()))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    told = f"{cache.path}: No space left on device: make room there, or name another by COREFETCH_CACHE"
    with answering(status, shop.program.read_bytes()) as url, monkeypatch.context() as patch:
        patch.setattr(tempfile, "NamedTemporaryFile", full)
        patch.setattr(engine, "opened", opened)
        sources = sysroot.Sources(image="shop:1.0", engine="true", servers=Servers([url], cache))
        with sysroot.gathered(said, sources, cache) as found:
            assert found.problems == [told]
        patch.setattr(tempfile, "mkdtemp", full)
        with pytest.raises(Failure, match=re.escape(told)), sysroot.gathered(said, sources, cache):
            pass


def test_a_debuginfod_that_ends_too_early_is_said(desk: Desk, place: Path, shop: Shop) -> None:
    with answering(200, shop.program.read_bytes(), missing=1) as url:
        told = without_functions(desk, DEBUGINFOD_URLS=url)
    size = shop.program.stat().st_size
    assert f"- {url}: it has sent {size} of {size + 1} bytes: see DEBUGINFOD_URLS and the network\n" in told


def test_a_debuginfod_that_is_away_is_said(desk: Desk, place: Path) -> None:
    url = f"http://127.0.0.1:{servers.free_port()}"
    assert re.search(rf"- {url}: .*refused: see DEBUGINFOD_URLS", without_functions(desk, DEBUGINFOD_URLS=url))


def test_an_image_of_another_build_is_said_by_file(
    desk: Desk, place: Path, shop: Shop, docker: Path, tmp_path: Path
) -> None:
    image = docker / "image"
    shutil.copytree(shop.root, image, symlinks=True)
    other = image / shop.program.relative_to(shop.root)
    run("objcopy", "--remove-section", ".note.gnu.build-id", other)
    told = without_functions(desk)
    assert re.search(
        r"- \S+/app/shop: build id [0-9a-f]{12} in the core, none in the image: they are of another build", told
    )
    assert "total_of" not in told
    assert "libtax" not in told.partition("What is missing")[2]


def test_a_core_without_its_image_is_said(desk: Desk, place: Path, docker: Path) -> None:
    facts = json.loads((place / f"{KEY}.json").read_text())
    facts["facts"]["CORE_IMAGE"] = "gone:2"
    (place / f"{KEY}.json").write_text(json.dumps(facts))
    told = without_functions(desk)
    assert re.match(r"shop: SIGSEGV at \S+/app/shop\+0x", told)
    assert (
        "- image gone:2: Error response from daemon: No such image: gone:2: docker pull gone:2 brings it, or say"
        in told
    )
    assert re.search(r"- \S+/app/shop \(build id [0-9a-f]{12}\): not found: say --image or --sysroot", told)
    # A script gets what is known, and the same status.
    done = desk.run("info", "last", "--json")
    assert (done.status, done.json["image"]) == (Exit.MISSING_PROGRAM, "gone:2")
    assert done.json["threads"]
    desk.good("info", "last", "--facts")


def test_a_machine_without_docker_is_said(desk: Desk, place: Path, tmp_path: Path) -> None:
    without_docker(desk, tmp_path, "gdb")
    assert "- there is no docker or podman: install one, or say --sysroot" in without_functions(desk)


def test_a_machine_without_gdb_but_with_the_program_is_no_success(
    desk: Desk, place: Path, shop: Shop, tmp_path: Path
) -> None:
    without_docker(desk, tmp_path)
    assert desk.run("info", "last", "--sysroot", str(shop.root)).status == Exit.MISSING_PROGRAM


def test_a_machine_without_gdb_shows_the_facts_all_the_same(desk: Desk, place: Path, tmp_path: Path) -> None:
    without_docker(desk, tmp_path)
    told = without_functions(desk)
    assert "pod        shop-1" in told
    assert "- there is no gdb: install gdb" in told
    assert "exit code 7: " in desk.good("info", "--help").out
    assert desk.run("debug", "last").status == Exit.MISSING_PROGRAM
    assert desk.run("debug", "last", "--lldb").status == Exit.MISSING_PROGRAM


def test_a_cache_that_takes_nothing_is_said_with_what_names_another(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache")
    student, core = acquire.local(place / f"{KEY}.core.zst", cache)

    def bring() -> Path:
        return acquire.obtain(student.store, core, cache, Settings(), lambda *_: None)

    def refuse(path: Path, *_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patched:
        patched.setattr("corefetch.packing.put", lambda *_: refuse(tmp_path / "cache"))
        with pytest.raises(Failure) as failure:
            bring()
    assert str(failure.value) == f"{tmp_path}/cache: Read-only file system: name another cache by COREFETCH_CACHE"
    # One that holds the core already may be read only.
    path = bring()
    monkeypatch.setattr(os, "utime", refuse)
    assert bring() == path


def test_facts_alone_need_no_download(desk: Desk, place: Path, tmp_path: Path) -> None:
    without_docker(desk, tmp_path)
    done = desk.good("info", "last", "--facts")
    assert re.search(r"fault +\S+/app/shop\+0x[0-9a-f]+", done.out)
    # The second time, this is known from the first.
    for _ in range(2):
        done = desk.good("info", "last", "--facts")
        assert re.search(r"^arguments  \S+/app/shop$", done.out, re.M)
        assert re.search(r"^pid +7775, in its container \d+$", done.out, re.M)
    assert desk.good("info", "last", "--facts", "--json").json["arguments"].endswith("/app/shop")
    assert not list((desk.directory / ".cache/corefetch/cores").glob("*/*.core"))


@pytest.mark.parametrize("part", [0.2, 0.9])
def test_a_core_that_was_cut_off_is_said(desk: Desk, shop: Shop, part: float) -> None:
    content = shop.core.read_bytes()
    path = desk.directory / f"{KEY}.core.truncated"
    path.write_bytes(content[: int(len(content) * part)])
    done = desk.good("info", path, "--sysroot", str(shop.root))
    assert done.out.startswith("shop: SIGSEGV ")
    assert re.search(r"truncated +yes", done.out)
    assert "- the core was cut off" in done.out


def test_a_size_is_said_once_and_of_what_is_there(desk: Desk, place: Path, shop: Shop) -> None:
    size, stored = text.size(shop.core.stat().st_size), text.size((place / f"{KEY}.core.zst").stat().st_size)
    assert f"\nsize       {size}, {stored} packed\n" in desk.good("info", "last", "--facts").out
    assert f"\nsize       {size}\n" in desk.good("info", shop.core, "--facts").out


def test_what_is_no_core_is_one_line(desk: Desk) -> None:
    (desk.directory / "x.core").write_bytes(b"nothing")
    done = desk.run("info", "x.core")
    assert done.status == Exit.DAMAGED
    assert done.err.count("\n") == 1
    assert done.err.startswith("corefetch: x.core: no core")


@pytest.mark.parametrize("there", [True, False])
def test_a_warning_of_gdb_that_is_harmless_is_not_shown(desk: Desk, shop: Shop, tmp_path: Path, there: bool) -> None:
    without_docker(desk, tmp_path)
    gdb = tmp_path / "only" / "gdb"
    trace = "Thread 1 (LWP 1):\n#0  total_of (order=0x0) at shop.c:18" if there else ""
    warning = "warning: Section \\`.reg-xstate/1' in core file too small."
    gdb.write_text(f'#!/bin/sh\necho "{trace}"\necho "{warning}" >&2\n')
    gdb.chmod(0o755)
    done = desk.run("info", shop.core, "--sysroot", str(shop.root))
    assert done.status == (0 if there else Exit.DAMAGED)
    assert "reg-xstate" not in done.out + done.err
    assert ("total_of" in done.out) == there


def test_debug_gives_gdb_the_right_files(desk: Desk, place: Path, shop: Shop) -> None:
    done = desk.good(
        "debug",
        "last",
        "--sysroot",
        str(shop.root),
        "--",
        "-batch",
        "-nx",
        "-ex",
        "backtrace",
        "-ex",
        "info sharedlibrary",
    )
    assert re.search(r"#1 .*checkout \(order=", done.out)
    assert re.search(r"Yes +\S+/app/libtax\.so\.1", done.out)
    assert not list((desk.directory / ".cache/corefetch/roots").iterdir())


def test_debug_gives_lldb_the_right_files(desk: Desk, place: Path, shop: Shop, stripped: tuple[Path, Path]) -> None:
    if not shutil.which("lldb"):
        pytest.skip("there is no lldb here: apt-get install lldb")
    image, debug = stripped
    for words in (("--sysroot", str(shop.root)), ("--sysroot", str(image), "--symbols", str(debug))):
        done = desk.good("debug", "last", "--lldb", *words, "--", "-b", "-o", "bt all", "-o", "image list")
        assert re.search(r"thread #1, .*SIGSEGV\n.*frame #0: .*total_of\(.*shop\.c:", done.out)
        assert re.search(r"frame #1: .*checkout\(", done.out)
        assert re.search(r"thread #4.*\n.*\n.*frame #1: .*wait_for_ever\(", done.out)
        # Of the libraries, too, it has those of the image.
        assert re.search(r" /\S+/roots/\S+/app/libtax\.so\.1 ", done.out)


def test_the_status_of_the_debugger_is_ours(desk: Desk, shop: Shop) -> None:
    assert desk.run("debug", shop.core, "--", "-batch", "-nx", "-ex", "quit 9").status == 9


def test_the_command_of_the_debugger_can_be_had(desk: Desk, shop: Shop) -> None:
    known = desk.good("debug", shop.core, "--sysroot", str(shop.root), "--json").json
    out = run(*known["command"], "-batch", "-nx", "-ex", "backtrace")
    assert "checkout" in out


def test_paths_of_a_core_lead_nowhere_else(shop: Shop, desk: Desk, tmp_path: Path) -> None:
    content = shop.core.read_bytes()
    path = str(shop.program.relative_to(shop.root)).encode()
    evil = b"../" * (len(path) // 3) + b"x" * (len(path) % 3)
    changed = desk.directory / "evil.core"
    changed.write_bytes(content.replace(b"/" + path, b"/" + evil))
    assert any("/../" in one for one in elfcore.of_file(changed).files)
    assert desk.run("info", changed).status == Exit.MISSING_PROGRAM
    assert sorted(one.name for one in desk.directory.iterdir()) == [".cache", "evil.core"]


@pytest.mark.parametrize("program", ["gdb", "lldb"])
def test_paths_of_a_core_are_no_commands_and_steer_no_terminal(
    shop: Shop, desk: Desk, tmp_path: Path, program: str
) -> None:
    path = str(shop.program.relative_to(shop.root))
    # lldb takes each line of -o for a command.
    evil = "\x1b[2J\nplatform shell id\n/".ljust(len(path), "x")
    changed = desk.directory / "evil.core"
    changed.write_bytes(shop.core.read_bytes().replace(f"/{path}\0".encode(), f"/{evil}\0".encode()))
    sysroot, tools = tmp_path / "sysroot", tmp_path / "tools"
    (sysroot / evil).parent.mkdir(parents=True)
    shutil.copy(shop.program, sysroot / evil)
    tools.mkdir()
    (tools / program).symlink_to("/bin/true")
    desk.variables["PATH"] = f"{tools}:{os.environ['PATH']}"
    words: list[str | Path] = ["debug", changed, "--sysroot", sysroot, *(["--lldb"] if program == "lldb" else [])]
    command = desk.good(*words, "--json").json["command"]
    assert any("platform shell id" in word for word in command)
    assert not any(character < " " for word in command for character in word)
    printed = desk.good(*words, "--print")
    assert len(printed.out.splitlines()) == 1
    assert "\x1b" not in printed.out + printed.err


def test_the_name_of_a_core_is_no_command_of_lldb(shop: Shop, desk: Desk, tmp_path: Path) -> None:
    store, tools = tmp_path / "store", tmp_path / "tools"
    store.mkdir()
    tools.mkdir()
    (tools / "lldb").symlink_to("/bin/true")
    desk.variables["PATH"] = f"{tools}:{os.environ['PATH']}"
    shutil.copy(shop.core, store / "\x1b[2J\nplatform shell id\n.core")
    done = desk.run("debug", "last", "--from", store, "--lldb", "--print")
    assert (done.status, done.out, len(done.err.splitlines())) == (Exit.USAGE, "", 1)
    assert "lldb takes no such name" in done.err
    assert "\x1b" not in done.err
    assert "\x1b" not in desk.good("debug", "last", "--from", store, "--print").out


def test_no_file_of_a_container_is_a_program_of_gdb(shop: Shop, desk: Desk, tmp_path: Path) -> None:
    path = str(shop.program.relative_to(shop.root))
    evil = f"usr/lib/debug/{'x' * (len(path) - 21)}-gdb.py"
    changed, sysroot = desk.directory / "evil.core", tmp_path / "sysroot"
    changed.write_bytes(shop.core.read_bytes().replace(f"/{path}\0".encode(), f"/{evil}\0".encode()))
    (sysroot / evil).parent.mkdir(parents=True)
    shutil.copy(shop.program, sysroot / evil)
    command = desk.good("debug", changed, "--sysroot", sysroot, "--json").json["command"]
    (root,) = [word.partition("set sysroot ")[2] for word in command if word.startswith("set sysroot ")]
    assert evil in " ".join(command)
    assert not Path(root, evil).exists()

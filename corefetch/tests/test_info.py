"""``info``: from a core in a bucket to the line of code, and what is said where that is not possible."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from corefetch import acquire, elfcore, engine, symbols, sysroot, text
from corefetch.cache import Cache
from corefetch.config import Settings
from corefetch.debuginfod import Servers
from corefetch.errors import Exit, Failure
from support import servers
from support.command import Desk, without_functions
from support.cores import KEY, LINE, PROGRAMS, Shop, run
from support.servers import answering


def without_docker(desk: Desk, tmp_path: Path, *names: str) -> None:
    """Leave only these programs in PATH."""
    directory = tmp_path / "only"
    directory.mkdir()
    for name in names:
        (directory / name).symlink_to(shutil.which(name) or "/nowhere")
    desk.variables["PATH"] = str(directory)


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

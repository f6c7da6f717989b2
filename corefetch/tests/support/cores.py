"""Makes cores: of a program that crashes under gdb, in the order in which the kernel writes them."""

from __future__ import annotations

import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parents[1] / "programs"
KEY = "node-7.shop-1.shop.shop.7775.20261129T180000Z.0f3a9c27d1b4"
LINE = next(n for n, line in enumerate((PROGRAMS / "shop.c").read_text().splitlines(), 1) if "/* CRASH */" in line)
PAGE = 4096
PT_NOTE = 4
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SEGMENT = struct.Struct("<2I6Q")


@dataclass(frozen=True)
class Shop:
    """A directory with the program and its library, and the cores of it."""

    root: Path
    program: Path
    library: Path
    core: Path
    aborted: Path


def build(root: Path, *options: str) -> tuple[Path, Path]:
    """Compile the program and its library into a directory."""
    root.mkdir(parents=True, exist_ok=True)
    library, program = root / "libtax.so.1", root / "shop"
    flags = ["-g", "-O0", "-Wall", "-Wextra", "-Werror", "-Wl,--build-id", *options]
    run("gcc", *flags, "-shared", "-fPIC", "-Wl,-soname,libtax.so.1", "-o", library, PROGRAMS / "tax.c")
    run("gcc", *flags, "-o", program, PROGRAMS / "shop.c", library, "-lpthread", f"-Wl,-rpath,{root}")
    return program, library


def crash(program: Path, core: Path, *words: str) -> Path:
    """Let a program crash under gdb, and write its core as the kernel would."""
    raw = core.with_name(f"{core.name}.raw")
    # A crash here must not reach whoever gets the cores of this machine: gdb ends the program before that.
    run(
        "gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-ex", "run", "-ex", f"generate-core-file {raw}",
        "--args", program, *words, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    core.write_bytes(ordered(raw.read_bytes()))
    raw.unlink()
    return core


def ordered(content: bytes) -> bytes:
    """Return a core with its notes first, and no sections. gdb writes both at the end."""
    fields = list(HEADER.unpack_from(content))
    segments = [list(SEGMENT.unpack_from(content, fields[5] + n * SEGMENT.size)) for n in range(fields[10])]
    segments.sort(key=lambda one: (one[0] != PT_NOTE, one[3]))
    end = HEADER.size + SEGMENT.size * len(segments)
    data = b""
    for one in segments:
        piece = content[one[2] : one[2] + one[5]]
        if one[0] != PT_NOTE:
            data += bytes(-(end + len(data)) % PAGE)
        one[2] = end + len(data)
        data += piece
    fields[5], fields[6] = HEADER.size, 0
    fields[11:] = 0, 0, 0
    return HEADER.pack(*fields) + b"".join(SEGMENT.pack(*one) for one in segments) + data


def run(*words: str | Path, **options: object) -> str:
    """Run a program, and return what it prints."""
    done = subprocess.run(words, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return str(done.stdout)

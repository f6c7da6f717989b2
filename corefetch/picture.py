"""Makes docs/corefetch.svg: a crash loop in a directory of cores, and what corefetch says of it. `make picture` runs this."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "docs" / "corefetch.svg"
sys.path[:0] = [str(HERE / "src"), str(HERE / "tests")]

from corefetch import elfcore  # noqa: E402
from support import cores  # noqa: E402

WIDTH = 80
COMMANDS = (("list",), ("list", "--group"), ("info", "last"))
LOOP = ("170312", "170344", "170451")


def main() -> None:
    """Crash a program some times, and draw what the commands print."""
    with tempfile.TemporaryDirectory(prefix="shop-") as name:
        root = Path(name)
        program, _ = cores.build(root / "app", f"-ffile-prefix-map={cores.PROGRAMS}=src")
        store = root / "cores"
        store.mkdir()
        core = cores.crash(program, root / "core")
        # The others of the loop are copies, with the pids of other processes. The last is shown by info.
        last = elfcore.of_file(core).pid or 0
        for number, time in enumerate(LOOP):
            shutil.copy(
                core,
                store
                / f"node-{number % 2 + 3}.shop-{number}.shop.shop.{last - 2 + number}.20261129T{time}Z.{name_of(time)}.core",
            )
        aborted = cores.crash(program, root / "aborted", "dies")
        shutil.copy(aborted, store / f"node-3.shop-0.shop.shop.4702.20261129T164530Z.{name_of('1')}.core")
        console = Console(record=True, width=WIDTH, file=io.StringIO())
        for words in COMMANDS:
            console.print(f"[bold]$ corefetch {' '.join(words)}[/]", highlight=False)
            console.print(Text.from_ansi(said(root, *words)))
        svg = console.export_svg(title="corefetch", unique_id="corefetch")
    # The text of the picture needs no font of another server.
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.S).replace("Fira Code", "ui-monospace, Menlo, Consolas")
    svg = re.sub(r"\s*<!--.*?-->", "", svg, flags=re.S)
    PICTURE.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")
    print(PICTURE)


def name_of(time: str) -> str:
    """Return twelve digits that are the same each time."""
    return f"{int(time) * 7919 % (1 << 48):012x}"[::-1]


def said(root: Path, *words: str) -> str:
    """Return what a command prints on a terminal of 80 columns, with the fonts of a terminal."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE / "src"),
        "COLUMNS": str(WIDTH),
        "FORCE_COLOR": "1",
        "COREFETCH_FROM": str(root / "cores"),
        "COREFETCH_CACHE": str(root / "cache"),
    }
    command = [sys.executable, "-m", "corefetch", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


if __name__ == "__main__":
    main()

"""What the user sees: tables and text on standard output, all else on standard error; colours and progress on terminals."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from corefetch.text import plain
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

# Wide enough for any row where nobody sees the width.
WIDE = 4000


class _Console(Console):
    """A console that leaves it to cli.py what happens when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        """End with no exit code of its own."""
        raise BrokenPipeError


def output() -> Console:
    """Return standard output: as wide as the terminal, or as wide as needed. It knows NO_COLOR by itself."""
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE
    return _Console(width=wide, highlight=False, markup=False, emoji=False, soft_wrap=False)


def errors() -> Console:
    """Return standard error."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def say(text: str) -> None:
    """Say a line beside the result."""
    errors().print(Text(plain(f"corefetch: {text}")))


def print_json(value: Any) -> None:
    """Print a value for programs."""
    print(json.dumps(value, indent=1, ensure_ascii=True))


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows how many bytes are done; silent where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    bars: dict[str, Any] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=errors(), transient=True, expand=True) as shown:

        def show(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = shown.add_task(what, total=total, completed=done)
            shown.update(bars[what], completed=done, total=total)

        yield show


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the step; silent where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    with errors().status(plain(what)) as status:
        yield lambda text: status.update(Text(plain(text)))


@contextmanager
def without_interrupt() -> Iterator[None]:
    """Leave Ctrl-C to a child, which does not inherit that this process does nothing then."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

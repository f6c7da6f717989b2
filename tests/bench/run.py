"""`make bench`: what a crash costs, for this project's helper at both doors of the kernel and for handlers that do the least.

Prints tables, and writes them and results.json into the directory that the command line names; plots.py draws what is there.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import handlers, measure, page
from support import door, lab

# MiB of a core, and how many crashes of that size each handler gets.
ROUNDS = {1: 100, 64: 20, 256: 10, 1024: 5}
CROWDS = (1, 10, 100, 500)
LOOPS = 400
QUICK_ROUNDS = {1: 5, 64: 1}
QUICK_CROWDS = (1, 100)
QUICK_LOOPS = 20


def main() -> None:
    """Sets the lab up, measures, and gives the machine back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--quick", action="store_true", help="few crashes: the numbers say little")
    words = parser.parse_args()
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, interrupt)
    pipe = None
    try:
        lab.start()
        pipe = handlers.set_up()
        with handlers.serving():
            results = measure.everything(
                handlers.plain(pipe),
                handlers.keeping(pipe),
                handlers.KEEP,
                QUICK_ROUNDS if words.quick else ROUNDS,
                QUICK_CROWDS if words.quick else CROWDS,
                QUICK_LOOPS if words.quick else LOOPS,
                lambda text: print(text, flush=True),
            )
    finally:
        if pipe is not None:
            lab.setting(door.PATTERN).write_text(pipe)
        lab.stop()
    # Measured apart, by machine.py.
    earlier = page.read(words.directory)
    page.write(words.directory, {**results, **({"virtual": earlier["virtual"]} if "virtual" in earlier else {})})
    print(f"\n{page.text_of(results)}")


def interrupt(number: int, frame: FrameType | None) -> None:
    """Lets the end of a terminal or of a job clean up like Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

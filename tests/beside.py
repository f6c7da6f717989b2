"""Runs two commands at once: ``beside.py COMMAND... -- COMMAND...``.

What the second one says is seen as it comes, and what the first one says in one piece, when both have ended. Each comes to its
end, also where the other fails. Ctrl-C, and the end of a terminal or of a job, end both.
"""

from __future__ import annotations

import functools
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from types import FrameType


def main() -> int:
    """Returns the exit status, which is 0 if both commands have passed."""
    separator = sys.argv.index("--")
    commands = sys.argv[1:separator], sys.argv[separator + 1 :]
    names = [shlex.join(command) for command in commands]
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    # The commands are in the same process group, so what a terminal sends reaches them. They clean up, and this one waits.
    for number in (signal.SIGHUP, signal.SIGINT):
        # What is ignored stays ignored, in the commands too.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)
    signal.signal(signal.SIGTERM, pass_on)
    # What comes before both have begun is passed on to both.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    heeds = functools.partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, [signal.SIGTERM])
    with tempfile.TemporaryFile() as output:
        print(f"{names[0]} runs beside this. Its output comes at the end.", flush=True)
        processes.append(
            subprocess.Popen(commands[0], preexec_fn=heeds, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        )
        processes.append(subprocess.Popen(commands[1], preexec_fn=heeds))
        heeds()
        processes[1].wait()
        if processes[0].poll() is None:
            print(f"\nWaits for: {names[0]}", flush=True)
        processes[0].wait()
        print(f"\nThis was said meanwhile by: {names[0]}\n", flush=True)
        output.seek(0)
        shutil.copyfileobj(output, sys.stdout.buffer)
        sys.stdout.flush()
    failed = [name for name, process in zip(names, processes, strict=True) if process.returncode != 0]
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

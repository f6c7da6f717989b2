"""`make demo`: everything once, from the rollout to a core in a bucket; then the machine is as it was."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support import desk, lab

BUCKET = "cores"


def main() -> None:
    """Rolls out, crashes, downloads, and restores the machine, also after a failure or Ctrl-C."""
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        lab.start()
        told = demonstrate()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted.")
    except (subprocess.CalledProcessError, RuntimeError) as error:
        sys.exit(f"\nThe demo failed: {error}")
    finally:
        # Half a clean-up helps nobody. Children inherit that these signals are ignored.
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if lab.DIRECTORY.exists():
            step("The demo restores this machine")
            lab.stop()
        print()
        for name in lab.SETTINGS:
            print(f"{name.replace('/', '.')} is", lab.setting(name).read_text().rstrip())
    print(f"\n{told}")


def demonstrate() -> str:
    """The demonstration itself; returns what corefetch says of the crash."""
    step("The role installs the helper on this machine")
    lab.playbook("site.yml", *lab.HERE)
    print("kernel.core_pattern is now:", lab.setting("kernel/core_pattern").read_text().rstrip())

    step("A playbook adds uploader.sh to an image; an S3 server starts with a bucket")
    lab.playbook("images.yml", "-e", "images_base=core-lab/client", "-e", "images_tag=core-lab/uploader")
    lab.start_s3(BUCKET)

    step("A process crashes in a container")
    variables = {**lab.S3_ENVIRONMENT, "CORE_DESTINATION": f"s3://{BUCKET}/demo/"}
    options = ["--rm", *lab.S3_OPTIONS, *(f"--env={name}={value}" for name, value in variables.items())]
    print("$ docker run", shlex.join(options), "core-lab/uploader crash")
    status = lab.run("uploader", "crash", options=options).returncode
    print(f"exit status {status}: 128 + signal {status - 128}")

    step("corefetch finds its core in the bucket, and the function that crashed")
    corefetch("list")
    told = corefetch("info", "last")
    if "SIGSEGV in the_defect" not in told:
        raise RuntimeError("corefetch does not name the crashed function; the helper's log says more: see dmesg")
    return told


def corefetch(*words: str) -> str:
    """Shows and runs a command of corefetch; returns what it prints."""
    print("$ corefetch", shlex.join(words), flush=True)
    told = desk.corefetch(f"s3://{BUCKET}/demo", *words)
    print(told)
    return told


def step(text: str) -> None:
    """Announces a step."""
    print(f"\n== {text}", flush=True)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Makes the end of a terminal or of a job clean up like Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

"""`make demo`: everything once, from the rollout to a core in a bucket; then the machine is as it was."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support import lab

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
    """The demonstration itself; returns the key and the size of the core, and its backtrace."""
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

    step("Its core comes back from the bucket")
    keys = [key for key in lab.s3("lsf", BUCKET).decode().splitlines() if not key.endswith("/")]
    if len(keys) != 1:
        raise RuntimeError(f"expected one object in the bucket, found {keys}; the helper's log says why: see dmesg")
    compressed = lab.s3("cat", f"{BUCKET}/{keys[0]}")
    core = lab.DIRECTORY / "core"
    with open(core, "wb") as target:
        lab.command("zstd", "--decompress", "--stdout", input=compressed, stdout=target)
    hidden = ("[New LWP", "[Thread debugging", "Using host libthread_db")
    backtrace = "\n".join(line for line in lab.read_by_gdb(core).splitlines() if not line.startswith(hidden))
    return f"key   s3://{BUCKET}/{keys[0]}\nsize  {len(compressed)} bytes\n{backtrace}"


def step(text: str) -> None:
    """Announces a step."""
    print(f"\n== {text}", flush=True)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Makes the end of a terminal or of a job clean up like Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

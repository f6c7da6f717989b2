"""`make bench`: a core of 4 GiB on its whole way into a bucket, beside rclone that sends the same bytes from a file.

The two take turns; what counts is the ratio of the medians, and the memory of all that is between the kernel and the client.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import lab
from support.containers import Container, wait_for_log

MIB = 4096
ROUNDS = 3
PATIENCE = 600.0
BUCKET = "cores"
ALONE = ("rclone", "rcat", "--config=", "--streaming-upload-cutoff=0", "--stats=0", "--log-level=ERROR")
REMOTE = ":s3,env_auth,provider=Other,no_check_bucket,no_head_object,chunk_size=16M,upload_concurrency=2"
# What is between the kernel and the client: the helper, and the shells of uploader.sh.
BETWEEN = re.compile(r"docker_core_helper|uploader\.sh")


class Watch(threading.Thread):
    """The most memory that the processes between the kernel and the client have had together."""

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__(daemon=True)
        self.most = 0
        self.over = False

    def run(self) -> None:
        """Look ten times a second. Memory that processes share counts once."""
        while not self.over:
            used = 0
            for directory in Path("/proc").glob("[0-9]*"):
                try:
                    if BETWEEN.search((directory / "cmdline").read_text(errors="replace")):
                        found = re.search(r"^Pss:\s+(\d+)", (directory / "smaps_rollup").read_text(), re.M)
                        used += int(found[1]) if found else 0
                except OSError:
                    continue
            self.most = max(self.most, used)
            time.sleep(0.1)


def whole_way() -> tuple[float, float]:
    """Seconds from the crash to the line about its delivery, and MiB of memory beside the client."""
    variables = {**lab.S3_ENVIRONMENT, "CORE_DESTINATION": f"s3://{BUCKET}/way/"}
    options = (*lab.S3_OPTIONS, *(f"--env={name}={value}" for name, value in variables.items()))
    watch = Watch()
    watch.start()
    container = Container("plain", ("crash", "-m", str(MIB)), (*options, "--detach"))
    told, deadline = "", time.monotonic() + PATIENCE
    while "bytes to" not in told and time.monotonic() < deadline:
        told = wait_for_log(container.identifier[:12], "bytes to")
    watch.over = True
    found = re.search(r"delivered (\d+) bytes to \S+ in ([0-9.]+) s", told)
    if not found or int(found[1]) < MIB << 20:
        raise RuntimeError(f"the core was not delivered: {told}")
    container.remove()
    return float(found[2]), watch.most / 1024


def alone(source: str) -> float:
    """Seconds that rclone takes for the same bytes."""
    variables = [f"--env={name}={value}" for name, value in lab.S3_ENVIRONMENT.items()]
    words = " ".join((*ALONE, f"'{REMOTE}:{BUCKET}/alone/core'"))
    began = time.monotonic()
    lab.command("docker", "exec", *variables, lab.S3, "sh", "-c", f"{words} <{source}")
    return time.monotonic() - began


def in_server(script: str) -> str:
    """What a command in the container of the server prints."""
    return lab.output("docker", "exec", lab.S3, "sh", "-c", script)


def main() -> None:
    """Sets the lab up, measures, and gives the machine back."""
    try:
        lab.start()
        rclone = Path(sys.executable).parent / "rclone"
        uploader = lab.PROJECT / "container_scripts/uploader.sh"
        lab.import_image("plain", {"usr/bin/rclone": rclone, "opt/bin/uploader.sh": uploader})
        # Without a compressor: both send the same bytes.
        build = ("docker", "build", "--network=none", "--quiet", "--tag", "core-lab/plain", "-")
        lab.command(*build, input=b"FROM core-lab/plain\nRUN rm /bin/gzip\n", stdout=subprocess.DEVNULL)
        lab.playbook("site.yml", *lab.HERE)
        lab.start_s3(BUCKET)
        way, memory, rcat = [], [], []
        rounds = int(sys.argv[1]) if sys.argv[1:] else ROUNDS
        for _ in range(rounds):
            seconds, used = whole_way()
            way.append(seconds)
            memory.append(used)
            (core,) = in_server(f"ls /data/{BUCKET}/way/*.core").split()
            in_server(f"mv {core} /data/core && cat /data/core >/dev/null")
            rcat.append(alone("/data/core"))
            in_server(f"rm -rf /data/core /data/{BUCKET}/alone /data/{BUCKET}/way")
        print(f"\n{rounds} cores of {MIB} MiB, medians:")
        print(f"the whole way {median(way):.1f} s, rclone rcat alone {median(rcat):.1f} s", end=": ")
        print(f"{median(way) / median(rcat):.2f} times; at most {max(memory):.0f} MiB beside the client")
    finally:
        subprocess.run(["docker", "rm", "--force", lab.S3], env=lab.environment(), capture_output=True)
        lab.stop()


if __name__ == "__main__":
    main()

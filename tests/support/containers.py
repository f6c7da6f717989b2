"""A container in which something crashed, and what the log of the host says of it."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from support import lab
from support.crashes import Crash


class Container(Crash):
    """A container in which something crashed."""

    def __init__(self, image: str, words: tuple[str, ...], options: tuple[str, ...]) -> None:
        """Runs the crash to its end."""
        # The host name leads from a line in the log to the container; with --uts=host there is none to set.
        self.name = f"crash-{uuid.uuid4().hex[:12]}"
        self.image = lab.named(image)
        records = lab.RECORDS / self.name
        records.mkdir()
        records.chmod(0o777)
        hostname = [] if "--uts=host" in options or "--network" in options else [f"--hostname={self.name}"]
        mount = f"--volume={records}:/out"
        started = time.monotonic()
        result = lab.run(image, *words, options=[f"--name={self.name}", *hostname, mount, *options])
        self.seconds = time.monotonic() - started
        super().__init__(records, result.returncode, result.stdout)
        if self.exit_status in (125, 126, 127):
            raise RuntimeError(f"the container did not start: {self.output}")

    def log(self, text: str) -> str:
        """The lines of the helper about this container, as soon as they hold the text; see ``wait_for_log``."""
        return wait_for_log(self.identifier[:12], text)

    @property
    def identifier(self) -> str:
        """Docker's identifier of this container."""
        return lab.output("docker", "inspect", "--format={{.Id}}", self.name)

    def remove(self) -> None:
        """Removes the container and its records."""
        # The engine gives up where it meets the first process as a zombie that its shim has not reaped yet.
        removal = ("docker", "rm", "--force", self.name)
        for _ in range(10):
            if lab.command(*removal, check=False, capture_output=True).returncode == 0:
                break
            time.sleep(0.5)
        else:
            lab.output(*removal)
        shutil.rmtree(self.records)


MakeCrash = Callable[..., Container]


def crash_in(containers: list[Container], image: str, program: str) -> MakeCrash:
    """What runs a program in a container and adds it to ``containers``: ``crash(*arguments, image=..., options=...)``."""

    def run(*arguments: str, image: str = image, options: tuple[str, ...] = ()) -> Container:
        containers.append(Container(image, (program, *arguments), options))
        return containers[-1]

    return run


def wait_for_log(subject: str, text: str) -> str:
    """The helper's lines about a subject in the host's log, as soon as they hold the text, or after ten seconds.

    The helper writes them when the process and its container are gone already.
    """
    deadline = time.monotonic() + 10
    while True:
        lines = [line for line in read_log().splitlines() if "docker_core_helper" in line and subject in line]
        if text in (found := "\n".join(lines)) or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def read_log() -> str:
    """The host's log: the journal, or the kernel's log where the helper finds no /dev/log."""
    if Path("/dev/log").exists():
        return lab.output("journalctl", "--no-pager", "--identifier=docker_core_helper")
    return lab.output("dmesg")

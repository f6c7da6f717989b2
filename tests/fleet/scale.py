"""`make scale`: what the role costs the controller, for each host and task, next to a playbook of one ping.

The hosts are simulated by local connections. Everything up to the execution of a module is real: the tasks, their
templates, the workers, and the module as it would be sent. What a module does on a host and what ssh takes is not the
controller's work, so a stand-in answers at once; that is this file, too, as an action plugin under the modules' names.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

PROJECT = Path(__file__).resolve().parents[2]
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
FORKS = 10
PLAY = "- hosts: all\n  gather_facts: false\n  tasks: [{ping: {}}]\n"
ROLE = "- hosts: all\n  gather_facts: false\n  roles: [docker_core_helper]\n"
# The handler reads the kernel's values, which are those of this machine: a ping costs the controller the same.
HANDLERS = "- name: Verify the values of the kernel\n  ping:\n"


class ActionModule(ActionBase):  # type: ignore[misc]
    """The stand-in."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Make the module ready to be sent, and answer in its place."""
        super().run(tmp, task_vars)
        variables = task_vars or {}
        self._configure_module(self._task.action, self._task.args, variables)
        return {"changed": self._task.action != "ping" and bool(variables.get("first"))}


def play(directory: Path, playbook: str, count: int, *options: str) -> tuple[float, float, int]:
    """Run a playbook for so many hosts and return seconds, seconds of processor time, and tasks of each host."""
    inventory = directory / f"inventory-{count}"
    names = "".join(f"host{number:04}\n" for number in range(count))
    python = f"ansible_python_interpreter={sys.executable}"
    inventory.write_text(f"{names}[all:vars]\nansible_connection=local\n{python}\n")
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [PLAYBOOK, "-i", inventory, *options, directory / playbook],
        cwd=directory,
        env={
            **os.environ,
            "ANSIBLE_FORKS": str(FORKS),
            "ANSIBLE_INJECT_FACT_VARS": "false",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOME": str(directory),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    recap = re.findall(r"ok=(\d+).*skipped=(\d+)", done.stdout.rpartition("PLAY RECAP")[2])
    tasks = {int(ok) + int(skipped) for ok, skipped in recap}
    if done.returncode or len(recap) != count or len(tasks) != 1:
        raise RuntimeError(f"expected the same tasks for {count} hosts:\n{done.stdout[-3000:]}")
    return seconds, spent, tasks.pop()


def measure(directory: Path, count: int) -> None:
    """Print the lines of the table for so many hosts."""
    runs: list[tuple[str, list[str]]] = [
        ("one `ping`", ["ping.yml"]),
        ("the role, first run", ["role.yml", "-e", "first=true"]),
        ("the role, unchanged", ["role.yml"]),
    ]
    for name, (playbook, *options) in runs:
        seconds, spent, tasks = play(directory, playbook, count, *options)
        each, cost = seconds / count * 1000, spent / count * 1000
        line = (
            f"{count:,}",
            name,
            tasks,
            f"{seconds:.0f}",
            f"{each:.0f}",
            f"{each / tasks:.0f}",
            f"{cost / tasks:.0f}",
        )
        print(f"| {' | '.join(map(str, line))} |", flush=True)


def main() -> None:
    """Make the role with the stand-in and measure it."""
    memory = re.search(r"MemTotal: *(\d+)", Path("/proc/meminfo").read_text())
    gib = int(memory.group(1)) / 2**20 if memory else 0
    version = subprocess.run([PLAYBOOK, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.split("\n")[
        0
    ]
    print(f"{os.cpu_count()} cores, {gib:.0f} GiB, {version}, {FORKS} forks\n")
    print("| Hosts | Playbook | Tasks a host | Seconds | ms a host | ms a host and task | CPU ms a host and task |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "ping.yml").write_text(PLAY)
        (directory / "role.yml").write_text(ROLE)
        role = directory / "roles/docker_core_helper"
        shutil.copytree(PROJECT / "roles/docker_core_helper", role)
        (role / "handlers/main.yml").write_text(HANDLERS)
        (directory / "action_plugins").mkdir()
        for module in ("core_helper_files", "core_pattern", "ping"):
            shutil.copy(__file__, directory / f"action_plugins/{module}.py")
        for count in [int(word) for word in sys.argv[1:]] or [100, 1000]:
            measure(directory, count)


if __name__ == "__main__":
    main()

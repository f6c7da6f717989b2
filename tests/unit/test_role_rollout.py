"""The playbooks from the first run to the removal, on this machine, with files in place of what they would change.

In a mount namespace of its own, which needs root: /etc and /opt are private, and so are the kernel's two values. Molecule
does the same for real.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.undumpable import undumpable

PROJECT = Path(__file__).resolve().parents[2]
README = PROJECT / "roles/docker_core_helper/README.md"
BINARIES = Path(sys.executable).parent
SANDBOX = """
set -e
mount -t tmpfs none "$1"
mkdir "$1/opt"
cp -a /etc "$1/etc"
mount --bind "$1/etc" /etc
rm -f /etc/docker_core_helper.conf /etc/sysctl.d/60-docker-core-helper.conf
mount --bind "$1/opt" /opt
# Where systemd runs, it is not the one of this host.
[ ! -d /run/systemd/system ] || mount -t tmpfs none /run/systemd
for name in core_pattern core_pipe_limit; do
    eval "printf '%s\\n' \\"\\$$name\\"" > "$1/$name"
    mount --bind "$1/$name" "/proc/sys/kernel/$name"
done
echo ready
exec sh
"""
PATTERN = "|/bin/false %P"
SOCKET = "@@/run/systemd/coredumpd/kernel"
LISTING = "cat /proc/sys/kernel/core_pattern /proc/sys/kernel/core_pipe_limit; find /opt /etc/sysctl.d /etc/*.conf"


class Sandbox:
    """A shell whose host is its own."""

    def __init__(self, directory: Path, pattern: str = PATTERN) -> None:
        """Start it with values of the kernel that are not the default ones."""
        self.directory = directory
        words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", SANDBOX, "sh", str(directory)]
        self.shell = subprocess.Popen(
            words,
            env={**os.environ, "core_pattern": pattern, "core_pipe_limit": "3", "ANSIBLE_NOCOLOR": "1"},
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.shell.stdout
        first = self.shell.stdout.readline()
        if first != "ready\n":
            pytest.skip(f"no private mounts here: {first.strip()}")

    def run(self, command: str) -> str:
        """Run a command of the shell and return what it prints and its exit code."""
        assert self.shell.stdin
        assert self.shell.stdout
        self.shell.stdin.write(f"{command} 2>&1 </dev/null; echo end of command $?\n")
        self.shell.stdin.flush()
        lines: list[str] = []
        while not (lines and lines[-1].startswith("end of command")):
            lines.append(self.shell.stdout.readline())
            assert lines[-1], "".join(lines)
        return "".join(lines)

    def play(self, playbook: str, *options: str, status: int = 0) -> str:
        """Run a playbook, which must end with this exit code, and return what Ansible prints."""
        here = f"-i localhost, -c local -e rollout_directory={self.directory}/rollout"
        said = self.run(f"{BINARIES}/ansible-playbook {here} playbooks/{playbook} {' '.join(options)}")
        assert f"end of command {status}" in said, said
        return said

    def apply(self, *options: str) -> str:
        """Run the role alone, where site.yml proves nothing more: that costs twice as much."""
        playbook = self.directory / "role.yml"
        # The directory is another one in the sandbox.
        self.run(f"echo '- {{hosts: all, gather_facts: false, roles: [docker_core_helper]}}' >{playbook}")
        python = "ansible_python_interpreter=/usr/bin/python3"
        return self.play(os.path.relpath(playbook, PROJECT / "playbooks"), "-e", python, *options)


@pytest.fixture
def sandbox(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Return a bare host; the parameter is the core pattern that it has."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for private mounts")
    sandbox = Sandbox(tmp_path, getattr(request, "param", PATTERN))
    yield sandbox
    sandbox.shell.communicate("exit\n")


# The tasks of site.yml around the role, which are the controller's but for two: begin, take the canaries, look at the host,
# write down, look again, try a crash, stop, close. No canary here: the kernel does not know the files in place of its values.
AROUND = 8
SITE = ("site.yml", "-e", "'{\"rollout_canaries\": []}'")


def count(said: str) -> tuple[int, int]:
    """Return how many tasks a run had on the host, and how many changed something."""
    recap = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", said.rpartition("PLAY RECAP")[2])}
    return recap["ok"] + recap["skipped"], recap["changed"]


def test_a_host_from_the_first_run_to_the_removal(sandbox: Sandbox) -> None:
    documented = [int(number) for number in re.findall(r"^\| [\w ,]+ \| (\d+) \|$", README.read_text(), re.M)]
    # Each task costs a fleet time of the controller for each host.
    assert (documented[0] <= 8, documented[1] <= 5) == (True, True)
    bare = sandbox.run(LISTING)

    said = sandbox.play(*SITE, "--check", "--diff")
    assert "+DOCKERCOREHELPER_TIMEOUT=300" in said
    assert "+DOCKERCOREHELPER_PIPE_LIMIT=64" in said
    assert "+kernel.core_pipe_limit = 512" in said
    assert sandbox.run(LISTING) == bare

    assert count(sandbox.play(*SITE)) == (AROUND + documented[0], 2)
    installed = sandbox.run(LISTING)
    assert installed.startswith("|/opt/bin/docker_core_helper -F%F -I%I -s%s -t%t -d%d -c%c %P %u %g\n512\n")
    assert sandbox.run("/opt/bin/docker_core_helper --version").startswith("docker_core_helper ")
    assert count(sandbox.play(*SITE)) == (AROUND + documented[1], 0)

    fewer = ("-e", "docker_core_helper_pipe_limit=8")
    # The kernel's values stay, so nothing verifies them once more.
    assert count(sandbox.apply(*fewer)) == (documented[1], 1)
    assert "DOCKERCOREHELPER_PIPE_LIMIT=8\n" in sandbox.run("cat /etc/docker_core_helper.conf")
    assert sandbox.run(LISTING).splitlines()[1] == "512"
    limited = (*fewer, "-e", "docker_core_helper_kernel_limit=0600")
    said = sandbox.apply(*limited)
    assert count(said) == (documented[0], 1)
    assert re.search(r"Verify the values of the kernel\] \**\nok: ", said)
    assert sandbox.run(LISTING).splitlines()[1] == "600"
    assert count(sandbox.apply(*limited)) == (documented[1], 0)

    sandbox.play("remove.yml", "--check")
    assert sandbox.run(LISTING) != bare
    # The playbook itself has one for all hosts.
    assert count(sandbox.play("remove.yml")) == (1 + documented[2], 2)
    assert sandbox.run(LISTING) == bare
    assert count(sandbox.play("remove.yml")) == (1 + documented[2], 0)
    sandbox.play("remove.yml", "-e", "docker_core_helper_state=present", status=2)
    assert sandbox.run(LISTING) == bare


def test_a_host_from_before_the_limits_were_two_gets_both_and_is_taken_back(sandbox: Sandbox) -> None:
    contents = f"{LISTING}; cat /etc/docker_core_helper.conf /etc/sysctl.d/60-docker-core-helper.conf"
    verify = ("verify.yml", *(f"-e verify_{kind}={sandbox.directory}/verify.{kind}" for kind in ("json", "html")))
    bare = sandbox.run(LISTING)
    # As 1.0.0 has left it: one number for both, in the kernel alone.
    sandbox.apply("-e", "docker_core_helper_kernel_limit=64")
    sandbox.run("sed -i /PIPE_LIMIT/d /etc/docker_core_helper.conf")
    before = sandbox.run(contents)
    assert "PIPE_LIMIT" not in before and "kernel.core_pipe_limit = 64\n" in before

    said = sandbox.play(*verify, status=2)
    assert "kernel.core_pipe_limit is '64' instead of '512'" in said
    assert "the files are not those of this version: /etc/docker_core_helper.conf" in said
    said = sandbox.play(*SITE, "--check", "--diff")
    assert "+DOCKERCOREHELPER_PIPE_LIMIT=64" in said
    assert said.count("-kernel.core_pipe_limit = 64") == said.count("+kernel.core_pipe_limit = 512") == 2
    assert sandbox.run(contents) == before

    assert count(sandbox.play(*SITE))[1] == 2
    after = sandbox.run(contents)
    assert after.splitlines()[1] == "512"
    assert "DOCKERCOREHELPER_PIPE_LIMIT=64\n" in after and "kernel.core_pipe_limit = 512\n" in after
    assert count(sandbox.apply())[1] == 0
    sandbox.play(*verify)
    sandbox.run("echo 64 >/proc/sys/kernel/core_pipe_limit")
    said = sandbox.play(*verify, status=2)
    assert "drift: kernel.core_pipe_limit is '64', somebody has changed it since the role set '512'" in said

    sandbox.play("rollback.yml")
    assert sandbox.run(contents) == before
    sandbox.apply()
    sandbox.play("remove.yml")
    assert sandbox.run(LISTING) == bare


@pytest.mark.parametrize("sandbox", [SOCKET], indirect=True)
def test_a_host_whose_cores_went_to_a_socket(sandbox: Sandbox) -> None:
    is_socket = f"{SOCKET!r}, the socket /run/systemd/coredumpd/kernel (systemd-coredump)"
    verify = ("verify.yml", *(f"-e verify_{kind}={sandbox.directory}/verify.{kind}" for kind in ("json", "html")))
    bare = sandbox.run(LISTING)
    assert bare.startswith(f"{SOCKET}\n3\n")
    # By default, the host's cores go to the previous handler.
    for playbook in (SITE, verify):
        said = " ".join(sandbox.play(*playbook, status=2).split())
        assert "previous cannot pass a core to the socket /run/systemd/coredumpd/kernel (systemd-coredump)" in said
        assert sandbox.run(LISTING) == bare
    assert '"pattern": "the socket /run/systemd' in sandbox.run(f"cat {sandbox.directory}/verify.json")

    none = ("-e", "docker_core_helper_chain=none")
    said = sandbox.play(*SITE, *none)
    assert f"kernel.core_pattern was {is_socket}, which gets no cores any more" in " ".join(said.split())
    assert "CHAIN" not in sandbox.run("cat /etc/docker_core_helper.conf")
    assert count(sandbox.apply(*none))[1] == 0
    setting = f"{sandbox.directory}/suid_dumpable"
    sandbox.run(f"echo 0 >{setting}; mount --bind {setting} /proc/sys/fs/suid_dumpable")
    with undumpable("lab-changed"):
        said = sandbox.play(*verify, *none)
    assert re.search("warning: localhost: fs.suid_dumpable is 0: in containers, .*lab-changed", said)
    assert "previous handler gets" not in said
    sandbox.run(f"echo 2 >{setting}; echo {SOCKET} >/proc/sys/kernel/core_pattern")
    said = sandbox.play(*verify, *none, status=2)
    assert f"drift: kernel.core_pattern is {is_socket}, somebody has changed it since the role set" in said
    assert "suid_dumpable" not in said
    sandbox.play("rollback.yml", *none)
    assert sandbox.run(LISTING) == bare
    sandbox.apply(*none)
    sandbox.play("remove.yml")
    assert sandbox.run(LISTING) == bare


SECRET = "not-to-be-shown"
UNITS = "/etc/systemd/system/docker-core-helper-sender"
WITH_SENDER = {
    "docker_core_helper_keep": "always",
    "docker_core_helper_keep_directory": "/opt/kept cores",
    "docker_core_helper_sender": ["{{ docker_core_helper_lib_dir }}/uploader.sh", "file:///mnt"],
    "docker_core_helper_sender_environment": {"KEY": f"{SECRET}-1", "ID": f'{SECRET}-2 "q" $'},
}
WANTS = "/etc/systemd/system/timers.target.wants"
PARTS = "cat /etc/passwd /etc/group; find /etc/systemd/system; cat /etc/docker_core_helper.* /opt/lib/*/uploader.sh"


def test_a_host_with_a_sender_from_the_first_run_to_the_removal(sandbox: Sandbox) -> None:
    if missing := [name for name in ("systemctl", "useradd", "userdel") if not shutil.which(name)]:
        pytest.skip(f"this machine lacks {', '.join(missing)}")
    sandbox.run(f"echo {shlex.quote(json.dumps(WITH_SENDER))} >{sandbox.directory}/sender.json")
    new = {"docker_core_helper_sender": ["/bin/true"], "docker_core_helper_sender_environment": {"KEY": "-3"}}
    sandbox.run(f"echo {shlex.quote(json.dumps(new))} >{sandbox.directory}/new.json")
    told: list[str] = []

    def play(*words: str, sender: bool = True, status: int = 0) -> str:
        given = ("-e", f"@{sandbox.directory}/sender.json") if sender else ()
        # The kept cores are below /opt, which is private.
        told.append(sandbox.play(*words[:1], *given, *words[1:], status=status) if words else sandbox.apply(*given))
        return told[-1]

    bare = sandbox.run(f"{LISTING}; {PARTS}")
    said = play(*SITE, "--check", "--diff", "-vvv")
    assert "+KEY=(not shown)" in said
    assert "+ExecStart=/opt/bin/docker_core_helper cores send" in said
    assert sandbox.run(f"{LISTING}; {PARTS}") == bare

    assert count(play(*SITE, "--diff", "-vvv"))[1] == 2
    installed = sandbox.run(f"{LISTING}; {PARTS}")
    assert f'KEY="{SECRET}-1"\nID="{SECRET}-2 \\"q\\" \\$"\n' in installed
    assert 'DOCKERCOREHELPER_SENDER="/opt/lib/docker_core_helper/uploader.sh file:///mnt"\n' in installed
    assert f"\n{WANTS}/docker-core-helper-sender.timer\n" in installed
    assert re.search(
        r"^docker-core-helper:x:[1-9]\d*:[1-9]\d*:docker_core_helper sender:/nonexistent:.*(nologin|false)$",
        installed,
        re.M,
    )
    assert sandbox.run("stat -c '%a %U' /etc/docker_core_helper.credentials").startswith("600 root\n")
    assert 'ReadWritePaths="-/opt/kept cores"\nReadWritePaths="-/mnt"\n' in sandbox.run(f"cat {UNITS}.service")
    assert count(play())[1] == 0

    verify = ("verify.yml", *(f"-e verify_{kind}={sandbox.directory}/verify.{kind}" for kind in ("json", "html")))
    play(*verify)
    sandbox.run("chmod 644 /etc/docker_core_helper.credentials")
    said = play(*verify, "--diff", "-vvv", status=2)
    assert "the files are not those of this version: /etc/docker_core_helper.credentials" in said
    assert count(play())[1] == 1

    # A version with another sender is rolled back, and its credentials stay; one without a sender brings none back.
    recorded = (
        f"cat {UNITS}.* /etc/docker_core_helper.conf /opt/lib/*/uploader.sh; cut -d: -f 1,5 /etc/passwd; ls {WANTS}"
    )
    before = sandbox.run(recorded)
    play(*SITE, "-e", f"@{sandbox.directory}/new.json")
    assert sandbox.run(recorded) != before
    play("rollback.yml")
    assert sandbox.run(recorded) == before
    assert 'KEY="-3"\n' in sandbox.run("cat /etc/docker_core_helper.credentials")
    play(*SITE, sender=False)
    assert sandbox.run("cat /etc/passwd /etc/group; ls -R /etc/systemd/system").count("docker-core-helper") == 0
    play("rollback.yml", sender=False)
    assert sandbox.run(recorded) == before
    assert "No such file" in sandbox.run("cat /etc/docker_core_helper.credentials")

    sandbox.run("mkdir -p '/opt/kept cores/group' && touch '/opt/kept cores/group/x.core'")
    said = " ".join(play("remove.yml").split())
    assert "1 core stays in /opt/kept cores, and no bound or age deletes them any more" in said
    assert "/opt/kept cores/group/x.core" in sandbox.run("find /opt")
    sandbox.run("rm -r '/opt/kept cores'")
    assert sandbox.run(f"{LISTING}; {PARTS}") == bare
    assert count(play("remove.yml"))[1] == 0
    assert SECRET not in "".join(told)
    assert SECRET not in sandbox.run(f"cat {sandbox.directory}/rollout/* {sandbox.directory}/verify.*")


@pytest.mark.parametrize("sandbox", ["|/bin/echo -p%p %E"], indirect=True)
def test_a_host_with_a_handler_and_another_owner_of_the_pattern(sandbox: Sandbox) -> None:
    hardening = "/etc/sysctl.d/99-kernel_core_pattern.conf"
    sandbox.run(f"echo 'kernel.core_pattern = |/bin/false' > {hardening}")
    bare = sandbox.run(LISTING)
    for option in ("--diff", "--check"):
        said = sandbox.play(*SITE, option, status=2)
        assert f"{hardening}, line 1, sets kernel.core_pattern = |/bin/false" in said
        assert sandbox.run(LISTING) == bare

    take_over = ("-e", "docker_core_helper_conflicts=take_over")
    said = sandbox.play(*SITE, "--check", "--diff", *take_over)
    assert '+DOCKERCOREHELPER_CHAIN="/bin/echo -p%p %E"' in said
    assert "after: /etc/sysctl.d/zz-docker-core-helper.conf" in said
    assert sandbox.run(LISTING) == bare
    assert count(sandbox.play(*SITE, *take_over))[1] == 2
    assert count(sandbox.apply(*take_over))[1] == 0
    assert 'DOCKERCOREHELPER_CHAIN="/bin/echo -p%p %E"' in sandbox.run("cat /etc/docker_core_helper.conf")
    sandbox.apply("-e", "docker_core_helper_chain=none")
    assert "CHAIN" not in sandbox.run("cat /etc/docker_core_helper.conf")

    sandbox.play("remove.yml")
    assert sandbox.run(LISTING) == bare
    assert "|/bin/false" in sandbox.run(f"cat {hardening}")

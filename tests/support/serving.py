"""A server in a container: an image of this machine's Python, and an engine of its own, which the kernel starts.

The options are those of examples/kubernetes/daemonset.yml, in the words of `docker run`: so what is shown of the one holds of
the other.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import yaml
from support import door, lab
from support.hosts import HELPER

MANIFEST = lab.PROJECT / "examples/kubernetes/daemonset.yml"
IMAGE = "core-lab/server"
CONFIGURATION = "/etc/docker_core_helper.conf"


def objects() -> list[dict[str, Any]]:
    """What the manifest has the cluster make."""
    return list(yaml.safe_load_all(MANIFEST.read_text()))


def pod() -> dict[str, Any]:
    """The pod of the manifest."""
    (daemon_set,) = (found for found in objects() if found["kind"] == "DaemonSet")
    return dict(daemon_set["spec"]["template"]["spec"])


def capabilities() -> list[str]:
    """What the server is given."""
    return list(pod()["containers"][0]["securityContext"]["capabilities"]["add"])


def options(added: list[str] | None = None) -> list[str]:
    """The options of `docker run` that do what the manifest says, with other capabilities if ``added`` has them.

    Raises KeyError or AssertionError where the manifest says something that no option here does.
    """
    said = pod()
    (container,) = said["containers"]
    context = container["securityContext"]
    assert context["capabilities"]["drop"] == ["ALL"] and not context["privileged"] and context["runAsUser"] == 0
    assert context["seccompProfile"] == context["appArmorProfile"] == {"type": "Unconfined"}
    assert context["readOnlyRootFilesystem"] and said["hostPID"]
    known = {"privileged", "runAsUser", "readOnlyRootFilesystem", "capabilities", "seccompProfile", "appArmorProfile"}
    assert set(context) == known and not {"hostNetwork", "hostIPC", "hostUsers", "securityContext"} & set(said)
    return [
        "--pid=host",
        "--read-only",
        "--cap-drop=ALL",
        *(f"--cap-add={name}" for name in (capabilities() if added is None else added)),
        "--security-opt=seccomp=unconfined",
        "--security-opt=apparmor=unconfined",
        f"--stop-timeout={said['terminationGracePeriodSeconds']}",
    ]


class Engine:
    """A Docker engine with all that PID 1 may do: the lab's own has what the shell had that started it."""

    def __init__(self) -> None:
        """Has the kernel start it, and waits for it."""
        self.directory = lab.DIRECTORY / "engine-of-servers"
        self.directory.mkdir()
        self.socket = self.directory / "docker.sock"
        log = self.directory / "log"
        words = [
            *("dockerd", "--bridge=none", "--iptables=false", "--ip6tables=false", f"--host=unix://{self.socket}"),
            f"--pidfile={self.directory}/docker.pid",
            f"--data-root={self.directory}/data",
            f"--exec-root={self.directory}/exec",
        ]
        # What the kernel starts has no environment, and a limit of 1 byte for cores.
        door.by_kernel(
            f"PATH={lab.environment()['PATH']} HOME={self.directory}\nexport PATH HOME\nulimit -c unlimited\n"
            f"exec {' '.join(words)} </dev/null >{log} 2>&1\n"
        )
        deadline = time.monotonic() + 60
        while self.docker("version", check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise RuntimeError("the engine of the servers did not start:\n" + log.read_text()[-2000:])
            time.sleep(0.2)

    def docker(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs the Docker client, and returns what it prints."""
        environment = {**lab.environment(), "DOCKER_HOST": f"unix://{self.socket}"}
        said: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 400}
        return lab.command("docker", *words, **{**said, "env": environment, **options})

    def build(self) -> None:
        """Builds the image, by the playbook, on one that has the Python of the helper on this machine."""
        archive = python_image(Path(HELPER.read_text().partition("\n")[0].split()[0][2:]))
        self.docker("import", "-", "core-lab/python", input=archive, text=False)
        words = ("server_image_base=core-lab/python", f"server_image_tag={IMAGE}")
        host = f"server_image_docker_host=unix://{self.socket}"
        lab.playbook("server_image.yml", *(word for said in (*words, host) for word in ("-e", said)))

    def stop(self) -> None:
        """Ends it, with all of its containers."""
        if containers := self.docker("ps", "--all", "--quiet").stdout.split():
            self.docker("rm", "--force", *containers)
        pid = int((self.directory / "docker.pid").read_text())
        lab.command("kill", str(pid))
        deadline = time.monotonic() + 30
        while Path(f"/proc/{pid}").exists():
            if time.monotonic() > deadline:
                raise RuntimeError("the engine of the servers does not end")
            time.sleep(0.1)


def python_image(python: Path) -> bytes:
    """The archive of a root directory with a Python of this machine, at the same paths."""
    program = "import sys, sysconfig; print(sys.executable, sysconfig.get_path('stdlib'))"
    stdlib = Path(lab.output(python, "-IS", "-c", program).split()[1])
    modules = sorted((stdlib / "lib-dynload").glob("*.so"))
    files = {f"usr/bin/{python.name}": python.resolve(), "usr/bin/python3": python.resolve()}
    archive = io.BytesIO(lab.root_archive({**files, **{str(path).lstrip("/"): path for path in modules}}))

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = set(Path(entry.name).parts[3:])
        left_out = {"test", "tests", "idlelib", "lib2to3", "__pycache__", "lib-dynload", "dist-packages", "ensurepip"}
        return None if parts & left_out or "/config-" in entry.name else entry

    with tarfile.open(fileobj=archive, mode="a") as image:
        image.add(stdlib, str(stdlib).lstrip("/"), filter=wanted)
    return archive.getvalue()


class Server:
    """A server in a container."""

    def __init__(self, engine: Engine, *words: str, given: list[str] | None = None, but: tuple[str, ...] = ()) -> None:
        """Starts it with more options, or with other capabilities, or without some of the options."""
        self.engine = engine
        kept = [word for word in options(given) if word not in but]
        command = pod()["containers"][0]["args"]
        run = ("run", "--detach", "--network=none", *kept, *words, IMAGE, *command)
        self.identifier = engine.docker(*run).stdout.split()[-1]

    def state(self) -> dict[str, Any]:
        """What the engine says of its state."""
        found: dict[str, Any] = json.loads(
            self.engine.docker("inspect", "--format={{json .State}}", self.identifier).stdout
        )
        return found

    def log(self) -> str:
        """What it has written into the log of its container."""
        return self.engine.docker("logs", self.identifier).stdout

    def wait(self) -> bool:
        """Waits until it is ready, and tells whether it is: it may have ended."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if lab.setting(door.PATTERN).read_text() == f"@@{door.SOCKET}\n" and door.named(door.IDLE):
                return True
            if not self.state()["Running"]:
                return False
            time.sleep(0.05)
        raise RuntimeError(f"the server is neither ready nor at its end:\n{self.log()}")

    def stop(self) -> int:
        """Has the engine stop it, and returns its exit code."""
        self.engine.docker("stop", self.identifier)
        return int(self.state()["ExitCode"])

    def remove(self) -> None:
        """Removes what is left of it."""
        self.engine.docker("rm", "--force", self.identifier)

"""The lab: what the demo and the tests need around the helper, set up on this machine and given back.

A Docker engine, images made of files of this machine, an S3 server in a container, and the kernel's settings as they
were before. Nothing comes from an image registry. ``lab.py start`` and ``lab.py stop`` are for molecule.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PROJECT = Path(__file__).resolve().parents[2]
# One place for everything, with a short name: the path of a Unix socket has at most 107 bytes.
DIRECTORY = Path("/var/lib/core-lab")
RECORDS = DIRECTORY / "records"
PROGRAMS = DIRECTORY / "programs"
SOCKET = DIRECTORY / "docker.sock"
ENGINE = DIRECTORY / "engine"
# The three values of the kernel which a rollout of the helper, or a test of it, changes.
SETTINGS = ("kernel/core_pattern", "kernel/core_pipe_limit", "fs/suid_dumpable")

# What a rollout brings.
INSTALLED = (
    "/opt/bin/docker_core_helper",
    "/opt/lib/docker_core_helper",
    "/etc/docker_core_helper.conf",
    "/etc/sysctl.d/60-docker-core-helper.conf",
)
# This machine is the only host of the inventory. The record of its rollout goes with the lab.
HERE = ("-i", "localhost,", "-c", "local", "-e", f"rollout_directory={DIRECTORY}/rollout")

# An image whose name begins with this is looked for nowhere else where the engine does not have it: nothing listens there.
NO_REGISTRY = "localhost:1"

S3 = "core-lab-s3"
BUCKET = "cores"
# A container reaches the S3 server by sharing its network namespace, which has nothing but a loopback interface.
S3_OPTIONS = ["--network", f"container:{S3}"]
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "lab",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
    "AWS_REGION": "us-east-1",
}


def command(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Runs a program and raises ``CalledProcessError`` if it fails, with its standard error shown."""
    return subprocess.run(words, **{"check": True, "env": environment(), **options})


def output(*words: str | Path) -> str:
    """What a program prints, without the newline at the end."""
    return str(command(*words, stdout=subprocess.PIPE, text=True).stdout).rstrip("\n")


def environment() -> dict[str, str]:
    """The environment of the lab's programs: leads the Docker client to the lab's engine, if that is private."""
    # A root shell opened by su lacks the directories of dockerd and of its helpers.
    result = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    if SOCKET.exists():
        result["DOCKER_HOST"] = f"unix://{SOCKET}"
        result.pop("DOCKER_CONTEXT", None)
    return result


def playbook(name: str, *options: str) -> None:
    """Runs one of the project's playbooks, and shows how."""
    words = ["ansible-playbook", *options, f"playbooks/{name}"]
    print("$", shlex.join(words), flush=True)
    # What Ansible keeps at home goes with the lab. That it finds no inventory is not worth a word: localhost is enough.
    quiet = {"ANSIBLE_INVENTORY_UNPARSED_WARNING": "false", "ANSIBLE_LOCALHOST_WARNING": "false"}
    command(*words, cwd=PROJECT, env={**environment(), **quiet, "HOME": str(DIRECTORY)})


def setting(name: str) -> Path:
    """The file below /proc/sys of a kernel setting."""
    return Path("/proc/sys") / name


def saved(name: str) -> Path:
    """The copy of a kernel setting from before."""
    return DIRECTORY / "kernel" / name


def start() -> None:
    """Sets everything up. What an earlier run had to leave behind, killed in the middle, is given back first."""
    stop()
    if present := [path for path in INSTALLED if Path(path).exists()]:
        raise RuntimeError(
            f"the helper is in use on this machine, and would be removed at the end: {', '.join(present)}"
        )
    DIRECTORY.mkdir(mode=0o755)
    for name in SETTINGS:
        saved(name).parent.mkdir(parents=True, exist_ok=True)
        saved(name).write_bytes(setting(name).read_bytes())
    RECORDS.mkdir()
    PROGRAMS.mkdir()
    compile_programs(PROGRAMS)
    start_engine()
    import_images()


def stop() -> None:
    """Gives everything back, and raises ``RuntimeError`` if the project's own removal left anything of the helper.

    Does nothing where there is no lab: then a helper on this machine is somebody's own.
    """
    if not DIRECTORY.exists():
        return
    from support import door  # Which needs this module.

    try:
        door.stop()
        playbook("remove.yml", *HERE)
        left = [path for path in INSTALLED if Path(path).exists()]
        # A run that ended while it saved them had changed nothing yet.
        complete = all(saved(name).exists() and saved(name).read_bytes() for name in SETTINGS)
        left += [name for name in SETTINGS if complete and setting(name).read_bytes() != saved(name).read_bytes()]
        if left:
            raise RuntimeError(f"playbooks/remove.yml has not given back: {', '.join(left)}")
    finally:
        for name in SETTINGS:
            if saved(name).exists() and saved(name).read_bytes():
                setting(name).write_bytes(saved(name).read_bytes())
        remove_from_engine()
        stop_engine()
        with open("/proc/self/mountinfo") as mounts:
            below = [line.split()[4] for line in mounts if line.split()[4].startswith(f"{DIRECTORY}/")]
        for mount in reversed(below):
            command("umount", "--lazy", mount)
        shutil.rmtree(DIRECTORY)


# The Docker engine


def start_engine() -> None:
    """Starts a private engine, unless one answers already. It touches no bridge and no firewall rule."""
    if command("docker", "info", check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
        return
    log = DIRECTORY / "docker.log"
    words = [
        "dockerd",
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
        f"--host=unix://{SOCKET}",
        f"--pidfile={DIRECTORY / 'docker.pid'}",
        f"--data-root={DIRECTORY / 'data'}",
        f"--exec-root={DIRECTORY / 'exec'}",
    ]
    with open(log, "wb") as target:
        # A session of its own: Ctrl-C must reach the one who cleans up, not the engine that is still needed for that.
        engine = subprocess.Popen(
            words, env=environment(), stdin=subprocess.DEVNULL, stdout=target, stderr=target, start_new_session=True
        )
    # Its own file comes only after a while, in which Ctrl-C would leave it behind.
    ENGINE.write_text(str(engine.pid))
    deadline = time.monotonic() + 60
    while not SOCKET.exists() or command("docker", "version", check=False, capture_output=True).returncode != 0:
        if engine.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the Docker engine did not start:\n" + log.read_text()[-2000:])
        time.sleep(0.1)


def remove_from_engine() -> None:
    """Removes the lab's containers and images, which matters for an engine that stays."""
    if command("docker", "info", check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode != 0:
        return
    if containers := output("docker", "ps", "--all", "--quiet", "--filter", "label=core-lab").split():
        command("docker", "rm", "--force", "--volumes", *containers, stdout=subprocess.DEVNULL)
    filters = ("--filter=reference=core-lab/*", f"--filter=reference={NO_REGISTRY}/*")
    if images := output("docker", "images", "--format={{.Repository}}:{{.Tag}}", *filters).split():
        command("docker", "rmi", "--force", *images, stdout=subprocess.DEVNULL)


def stop_engine() -> None:
    """Stops the private engine and waits for its end."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            pid = int(ENGINE.read_text())
            # The number may be another process's by now, after a restart of the machine.
            if str(DIRECTORY) not in Path(f"/proc/{pid}/cmdline").read_text():
                return
            os.kill(pid, number)
        except (FileNotFoundError, ProcessLookupError):
            return
        deadline = time.monotonic() + 30
        while (
            time.monotonic() < deadline and Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()
        ):
            time.sleep(0.1)


# The images


# Where a program has 32 bits, its files have 64 all the same.
FLAGS = ("-static", "-O1", "-g", "-D_FILE_OFFSET_BITS=64", "-Wall", "-Wextra", "-Werror")


def compile_programs(directory: Path, compiler: str = "gcc") -> None:
    """Compiles the program that crashes and the delegate that records; both run in any root directory."""
    for program in ("crash", "probe"):
        source = PROJECT / "tests" / "support" / "programs" / f"{program}.c"
        command(compiler, *FLAGS, "-o", directory / program, source)


def import_images() -> None:
    """Makes three images: ``probe`` has a delegate for tests, ``bare`` and ``client`` have none, the last rclone."""
    rclone = Path(sys.executable).parent / "rclone"
    probe = PROGRAMS / "probe"
    import_image("bare", {})
    import_image("probe", {"opt/bin/delegate": probe, "jail/opt/bin/delegate": probe})
    import_image("client", {"usr/bin/rclone": rclone, "usr/bin/zstd": which("zstd")})


def named(image: str) -> str:
    """The name by which the engine knows an image of the lab."""
    return image if image.startswith(f"{NO_REGISTRY}/") else f"core-lab/{image}"


def import_image(name: str, files: dict[str, Path]) -> None:
    """Imports an image of busybox, the crashing program and the given files."""
    archive = root_archive({"usr/bin/crash": PROGRAMS / "crash", **files})
    command("docker", "import", "-", f"core-lab/{name}", input=archive, stdout=subprocess.DEVNULL)


def root_archive(files: dict[str, Path]) -> bytes:
    """The tar archive of a root directory of busybox and the given files."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as image:
        for directory in ("bin", "opt", "opt/bin", "out", "jail", "jail/out", "tmp"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            image.addfile(entry)
        for applet in output("busybox", "--list").split():
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                image.addfile(entry)
        for path, source in with_libraries({"bin/busybox": which("busybox"), **files}).items():
            entry = tarfile.TarInfo(path)
            entry.mode, entry.size = 0o755, source.stat().st_size
            with open(source, "rb") as content:
                image.addfile(entry, content)
    return archive.getvalue()


def with_libraries(programs: dict[str, Path]) -> dict[str, Path]:
    """Adds the libraries that programs are linked with, each at its own path."""
    files = dict(programs)
    for program in programs.values():
        linked = command(
            "ldd", program, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ).stdout
        files |= {library.lstrip("/"): Path(library) for library in re.findall(r"(/\S+) \(0x", linked)}
    return files


def read_by_gdb(core: Path, program: str = "crash") -> str:
    """What gdb says of a core of a program of ``PROGRAMS``: the command line, the signal, the backtrace."""
    # Its warnings are about sections of the processor's state that a newer kernel has made larger.
    words: list[str | Path] = ["gdb", "--nx", "--batch", "--ex=backtrace", PROGRAMS / program, core]
    return str(command(*words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout)


def which(program: str) -> Path:
    """The path of a program of this machine."""
    path = shutil.which(program, path=environment()["PATH"])
    if path is None:
        raise RuntimeError(f"the program {program} is missing: run this by make, which installs it")
    return Path(path)


# Containers


def run(
    image: str, *words: str, options: list[str] | None = None, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs a container to its end and returns what it printed; all of its output is text."""
    network = [] if options and "--network" in options else ["--network", "none"]
    return command(
        *("docker", "run", "--label", "core-lab", *network, *(options or []), named(image), *words),
        check=check,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )


@dataclass(frozen=True)
class S3Server:
    """A container with an S3 server on the loopback interface: in a network namespace of its own, or in that of ``network``."""

    name: str = S3
    port: int = 9000
    network: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"


def start_s3(bucket: str = BUCKET, server: S3Server = S3Server()) -> None:
    """Starts an S3 server with one bucket, and waits for it."""
    serve = f"exec rclone serve s3 --auth-key lab,not-a-secret --addr {server.address} /data"
    script = f"mkdir -p /data/{bucket} && {serve}"
    run("client", "sh", "-c", script, options=["--detach", "--name", server.name, *server.network], check=True)
    deadline = time.monotonic() + 30
    while bucket not in s3("lsf", "", check=False, server=server).decode():
        if time.monotonic() > deadline:
            raise RuntimeError("the S3 server did not start:\n" + output("docker", "logs", server.name))
        time.sleep(0.2)


def stop_s3(server: S3Server = S3Server()) -> None:
    """Removes an S3 server with all of its objects."""
    command("docker", "rm", "--force", server.name, stdout=subprocess.DEVNULL)


def s3(
    verb: str,
    path: str,
    check: bool = True,
    stdout: int | IO[bytes] = subprocess.PIPE,
    server: S3Server = S3Server(),
) -> bytes:
    """Asks the S3 server by the S3 protocol: ``lsf`` lists, ``cat`` downloads. The path is BUCKET/KEY."""
    variables = [f"--env={name}={value}" for name, value in {**S3_ENVIRONMENT, "RCLONE_S3_ENV_AUTH": "true"}.items()]
    remote = f":s3,provider=Rclone,endpoint='http://{server.address}':{path}"
    words = ["docker", "exec", *variables, server.name, "rclone", "--config=", verb, "--recursive", remote]
    if verb != "lsf":
        words.remove("--recursive")
    return bytes(
        command(*words, check=check, stdout=stdout, stderr=None if check else subprocess.DEVNULL).stdout or b""
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    {"start": start, "stop": stop}[sys.argv[1]]()

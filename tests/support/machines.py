"""Virtual machines as hosts: built by mmdebstrap, cached in .cache/machines, booted by qemu, reached by ssh.

A machine has a kernel of its own, and with it a kernel.core_pattern of its own: nothing of this machine is changed. Its
image stays as it was built, what a run writes goes with the run. From inside nothing is reached, from outside the port
of ssh on the loopback interface only. ``machines.py start`` and ``machines.py stop`` are for molecule.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CACHE = PROJECT / ".cache" / "machines"

# What a host of ours has; no machine needs more to answer ssh, and little of it starts at boot.
PACKAGES = (
    *("apparmor", "dbus", "dbus-user-session", "initramfs-tools", "iproute2", "kmod", "libpam-systemd"),
    *("openssh-server", "procps", "python3", "systemd-sysv", "udev", "zstd"),
    *("crun", "docker.io", "fuse-overlayfs", "podman", "systemd-container", "uidmap"),
)
# Nobody reads them there.
WITHOUT = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")

# The key of the run comes by the kernel's command line: the image in the cache holds none, and each boot has it.
FILES = {
    "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/docker/daemon.json": '{"bridge": "none", "iptables": false, "ip6tables": false}\n',
    "etc/ssh/sshd_config.d/machine.conf": (
        "AuthorizedKeysCommand /usr/local/sbin/authorized-key\nAuthorizedKeysCommandUser nobody\n"
    ),
    "etc/systemd/network/machine.network": "[Match]\nType=ether\n[Network]\nAddress=10.0.2.15/24\n",
    "usr/local/sbin/authorized-key": (
        "#!/bin/sh\nexec sed -n 's/.*machine.key=\\([^ ]*\\).*/ssh-ed25519 \\1/p' /proc/cmdline\n"
    ),
}
# The engines start when they are asked for. The others wait for what never comes here, or look for news. Of AppArmor's hundred
# profiles, which an emulated machine compiles for a minute, those stay that have to do with engines.
CUSTOMIZE = """
find /etc/apparmor.d -maxdepth 1 -type f ! -name '*run*' ! -name '*podman*' ! -name '*docker*' ! -name '*userns*' -delete
useradd --create-home --shell /bin/sh someone
systemctl --quiet disable docker.service containerd.service
systemctl --quiet enable docker.socket systemd-networkd.service
systemctl --quiet mask systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer getty@.service \
serial-getty@.service
"""
# Python of Debian's next release beside that of this one. Its lists are valid for a week, which a mirror may be behind.
NEXT_PYTHON = """
sed -n 's/^deb \\(.*\\) trixie main/deb [check-valid-until=no] \\1 sid main/p' /etc/apt/sources.list \\
	>/etc/apt/sources.list.d/sid.list
printf 'Package: *\\nPin: release n=sid\\nPin-Priority: 100\\n' >/etc/apt/preferences.d/sid
apt-get --quiet=2 update
DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 --yes --no-install-recommends --target-release sid install python3.14
"""


@dataclass(frozen=True)
class Description:
    """What a machine is built from."""

    suite: str
    packages: tuple[str, ...]
    backports: bool = False
    customize: str = ""


MACHINES = {
    "trixie": Description("trixie", ("docker-cli", "linux-image-cloud-amd64", "systemd-coredump")),
    # In the fleet it is reached as a user who becomes root by sudo.
    "bookworm": Description("bookworm", ("linux-image-cloud-amd64", "sudo")),
    # It rolls out to itself, too.
    "trixie-backports": Description(
        "trixie",
        ("ansible-core", "docker-cli", "git", "linux-image-cloud-amd64/trixie-backports"),
        backports=True,
        customize=NEXT_PYTHON,
    ),
}
DEFAULT = "trixie"

# On a busy computer the kernel of an emulated machine thinks that the time stamp counter is broken, and takes a slow clock.
# What it does against attacks on processors is work for nothing here, and so are its tests of its own cryptography.
QUICK = "tsc=reliable mitigations=off cryptomgr.notests"
# qemu 7.2 emulates cmpxchg16b in a way on which kernels from 6.12 on panic. Each feature of qemu's "max" costs an emulated
# machine something: modules, and more to be saved at each switch of processes.
EMULATED = "qemu64,-cx16,-svm,+ssse3,+sse4.1,+sse4.2,+popcnt"
# An emulated machine takes half a minute to boot on a quiet machine with two cores.
BOOT_SECONDS = 900
# Whatever happens to the one who started it, a machine does not live longer.
LIFETIME_SECONDS = 3 * 3600


# Building


def build(name: str) -> Path:
    """The directory of a machine's image, kernel and initial RAM disk; builds them if the cache has none."""
    description = MACHINES[name]
    parts = json.dumps([asdict(description), PACKAGES, WITHOUT, FILES, CUSTOMIZE, CREATE])
    image = CACHE / f"{name}-{hashlib.sha256(parts.encode()).hexdigest()[:12]}"
    if image.exists():
        return image
    print(f"Builds the machine {name}, which takes about a minute: {image.relative_to(PROJECT)}", flush=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob(f"{name}-????????????"):
        shutil.rmtree(old)
    with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=CACHE) as temporary:
        partial = Path(temporary) / "image"
        partial.mkdir(mode=0o755)
        make_image(name, description, Path(temporary) / "root", partial)
        partial.rename(image)
    # The clone belongs to somebody who is not root, maybe, and wants to remove it.
    owner = PROJECT.stat()
    for path in (CACHE.parent, CACHE, image, *image.iterdir()):
        os.chown(path, owner.st_uid, owner.st_gid)
    return image


# 3 GiB, of which the file holds what is in use. A journal would only be written to be thrown away.
CREATE = ("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d")


def make_image(name: str, description: Description, root: Path, image: Path) -> None:
    """Makes the image of a machine from Debian's packages."""
    suite = description.suite
    # The mirrors are those that mmdebstrap chooses.
    backports = rf"s/^\(deb .*\) {suite} main/&\n\1 {suite}-backports main/" if description.backports else ""
    script = root.parent / "customize"
    script.write_text(f"set -eu\n{CUSTOMIZE}{description.customize}")
    subprocess.run(
        [
            # It mounts /dev, /proc and /sys into the root. If it is killed, they go with its mount namespace, and what removes
            # the directory never sees them.
            *("unshare", "--mount", "--propagation=private"),
            *("mmdebstrap", "--quiet", "--mode=root", "--variant=apt", '--aptopt=APT::Install-Recommends "false"'),
            *(f"--dpkgopt=path-exclude={path}" for path in WITHOUT),
            f"--include={','.join((*PACKAGES, *description.packages))}",
            f'--customize-hook=chroot "$1" /bin/sh <{shlex.quote(str(script))}',
            f'--setup-hook=sed -i {shlex.quote(backports)} "$1/etc/apt/sources.list"',
            *(suite, str(root)),
        ],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    for path, text in {**FILES, "etc/hostname": f"{name}\n"}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
        (root / path).chmod(0o755 if text.startswith("#!") else 0o644)
    for kind in ("vmlinuz", "initrd.img"):
        (kernel,) = (root / "boot").glob(f"{kind}-*")
        shutil.copy(kernel, image / kind)
        (image / kind).chmod(0o644)
    with open(image / "root.img", "wb") as file:
        file.truncate(3 << 30)
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    subprocess.run([*CREATE, root, image / "root.img"], check=True, env={**os.environ, "PATH": path})


# Starting and stopping


class Machine:
    """A machine that runs. Its directory holds the key, the console, and what it has written over its image."""

    def __init__(self, directory: Path) -> None:
        """Finds a machine that was started in a directory."""
        self.directory = directory
        facts = json.loads((directory / "machine.json").read_text())
        self.name, self.port = str(facts["name"]), int(facts["port"])
        self.key = directory / "key"
        # How often it was rebooted by ``reboot``.
        self.boots = 0

    def ssh(self, *options: str) -> list[str]:
        """The command that reaches the machine, without what to run there."""
        settings = {
            **{"BatchMode": "yes", "ConnectTimeout": "10", "IdentitiesOnly": "yes", "LogLevel": "ERROR"},
            **{"StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "ServerAliveInterval": "30"},
            **{"ControlMaster": "auto", "ControlPath": str(self.directory / "ssh"), "ControlPersist": "600"},
        }
        words = ["ssh", "-F", "none", "-i", str(self.key), "-p", str(self.port), "-l", "root", *options]
        return [*words, *(f"-o{name}={value}" for name, value in settings.items()), "127.0.0.1"]

    def try_run(
        self, script: str, *, data: bytes | None = None, seconds: float = 900
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a shell script on the machine, as root."""
        return subprocess.run(
            [*self.ssh(), script], input=data, stdin=None if data else subprocess.DEVNULL,
            capture_output=True, timeout=seconds, check=False,
        )  # fmt: skip

    def run(self, script: str, *, data: bytes | None = None, seconds: float = 900) -> str:
        """What a shell script on the machine prints; raises ``RuntimeError`` if it fails."""
        return self.fetch(script, data=data, seconds=seconds).decode(errors="surrogateescape").rstrip("\n")

    def fetch(self, script: str, *, data: bytes | None = None, seconds: float = 900) -> bytes:
        """The bytes that a shell script on the machine writes; raises ``RuntimeError`` if it fails."""
        result = self.try_run(script, data=data, seconds=seconds)
        if result.returncode != 0:
            said = (result.stderr or result.stdout)[-2000:].decode(errors="replace")
            raise RuntimeError(f"{self.name}: exit status {result.returncode} of: {script}\n{said}")
        return result.stdout

    def unpack(self, archive: bytes, directory: str) -> None:
        """Unpacks a tar archive on the machine."""
        self.run(f"mkdir -p {directory} && tar -x -C {directory}", data=archive)

    def pack(self, directory: str, to: Path) -> None:
        """Brings the content of a directory of the machine here."""
        with tarfile.open(fileobj=io.BytesIO(self.fetch(f"tar -c -C {directory} ."))) as archive:
            archive.extractall(to, filter="data")

    def reboot(self) -> None:
        """Reboots the machine for real, and waits until another boot answers."""
        before = self.run("cat /proc/sys/kernel/random/boot_id")
        # Detached, because systemd ends the session, and with it the command, in the middle. It is the boot that counts: with
        # --force systemd ends the processes and unmounts, and does not stop one unit after the other before.
        self.run("systemd-run --quiet --on-active=1 --timer-property=AccuracySec=100ms systemctl reboot --force")
        subprocess.run([*self.ssh("-O", "exit")], capture_output=True, check=False)
        self.wait(before)
        self.boots += 1

    def wait(self, earlier_boot: str = "") -> None:
        """Waits until the machine answers, from another boot than an earlier one.

        Raises ``RuntimeError`` with the console's last lines if it does not within ``BOOT_SECONDS``.
        """
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline:
            if not processes(self.directory):
                raise RuntimeError(f"{self.name}: qemu has ended.\n{self.last_words()}")
            try:
                # On a busy computer an emulated machine takes a minute to log somebody in.
                answer = self.try_run("cat /proc/sys/kernel/random/boot_id", seconds=180)
            except subprocess.TimeoutExpired:
                continue
            if answer.returncode == 0 and answer.stdout.decode().strip() not in ("", earlier_boot):
                return
            time.sleep(0.5)
        raise RuntimeError(f"{self.name}: no answer within {BOOT_SECONDS} s.\n{self.last_words()}")

    def last_words(self) -> str:
        """The last lines of the console, and what qemu said."""
        console = (self.directory / "console.log").read_text(errors="replace").splitlines()[-40:]
        return "\n".join(["The console's last lines:", *console, (self.directory / "qemu.log").read_text()])


def start(name: str, directory: Path) -> Machine:
    """Boots a machine and waits until it answers; what it writes goes into a directory, which must not exist."""
    image = build(name)
    directory.mkdir(parents=True, mode=0o700)
    for file in ("console.log", "qemu.log"):
        (directory / file).touch()
    key = directory / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    (directory / "machine.json").write_text(json.dumps({"name": name, "port": port}))
    machine = Machine(directory)
    # "restrict": nothing that the machine sends leaves it, but answers to ssh. "snapshot": the image stays as it is.
    words = [
        *qemu(image, directory, f"root=/dev/vda rw machine.key={key.with_suffix('.pub').read_text().split()[1]}"),
        *accelerator(image),
        *("-drive", f"file={image / 'root.img'},format=raw,if=virtio,snapshot=on,cache=unsafe"),
        *("-nic", f"user,model=virtio-net-pci,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"),
    ]
    with open(directory / "qemu.log", "wb") as log:
        # A session of its own: Ctrl-C must reach the one who cleans up. TMPDIR is for what the machine writes.
        subprocess.Popen(
            ["timeout", "--kill-after=10", str(LIFETIME_SECONDS), *words],
            env={**os.environ, "TMPDIR": str(directory)}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        time.sleep(0.5)
        machine.wait()
    except BaseException:
        stop(directory)
        raise
    return machine


def qemu(image: Path, directory: Path, append: str) -> list[str]:
    """The command of a machine, without its processor and devices."""
    return [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"),
        *("-m", "1280", "-serial", f"file:{directory / 'console.log'}", "-device", "virtio-rng-pci"),
        *("-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd.img")),
        *("-append", f"console=ttyS0 panic=-1 {QUICK} {append}"),
    ]


def accelerator(image: Path) -> list[str]:
    """KVM where it really runs this kernel, else emulation.

    That there is a /dev/kvm says little: in nested virtual machines qemu may end, or the kernel may hang. So the kernel
    has to come as far as its first program there, which ends, whereupon the kernel panics and qemu ends.
    """
    # One processor is emulated with a quarter less work than two, because that needs no atomic operations, and it leaves one to
    # the suites that run beside.
    emulation = ["-accel", "tcg", "-cpu", EMULATED, "-smp", "1"]
    kvm = ["-accel", "kvm", "-cpu", "host", "-smp", "2"]
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return emulation
    with tempfile.TemporaryDirectory() as temporary:
        words = [*qemu(image, Path(temporary), "rdinit=/bin/true"), *kvm, "-no-reboot"]
        try:
            # Where qemu crashes, it leaves no core.
            subprocess.run(["prlimit", "--core=0", *words], timeout=20, capture_output=True, check=False)
            console = (Path(temporary) / "console.log").read_text(errors="replace")
        except (subprocess.TimeoutExpired, FileNotFoundError):
            return emulation
    return kvm if "Attempted to kill init" in console else emulation


def processes(directory: Path) -> list[int]:
    """The pids of the machine of a directory: of qemu, and of what limits its life."""
    console = f"file:{directory / 'console.log'}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if console in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def stop(directory: Path) -> None:
    """Ends the machine of a directory, and removes the directory. Does nothing where there is none."""
    deadline = time.monotonic() + 20
    while (running := processes(directory)) and time.monotonic() < deadline:
        # There is nothing to save.
        for pid in running:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
    if directory.exists():
        shutil.rmtree(directory)


if __name__ == "__main__":
    try:
        if sys.argv[1] == "start":
            print(json.dumps({"port": start(sys.argv[2], Path(sys.argv[3])).port}))
        else:
            stop(Path(sys.argv[2]))
    except RuntimeError as error:
        sys.exit(f"machines.py: {error}")

"""record: what an engine has written about a container, on a made-up host, and each reason not to believe it."""

from __future__ import annotations

import json
import os
import posix
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import namespaces, record, runtime
from core_helper.process import CONTAINER_NAME, IMAGE, POD_NAME, POD_NAMESPACE, POD_UID, Record
from unit.helper.world import DOCKER, FILES, ID, OTHER, OTHER_ID, Elsewhere, World, keeps_descriptors

STATE = "/run/containerd/io.containerd.runtime.v2.task"
BUNDLE = f"{STATE}/moby/{ID}"
OF_DOCKER = "/data/docker/containers"
STORAGE = "/var/lib/containers/storage"
UID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
POD = f"/kubepods/burstable/pod{UID}"
MONITOR, INIT, CRASHED = 5, 10, 11


class Host(Elsewhere):
    """The module posix with another /proc, /run, /data and /var, whose files are root's unless the test says otherwise."""

    def __init__(self, proc: Path, tree: Path) -> None:
        super().__init__(proc)
        self.tree = tree
        self.owners: dict[str, int] = {}
        self.modes: dict[str, int] = {}
        self.seen: list[str] = []

    def _moved(self, path: str) -> str:
        return path if path.startswith("/proc") else str(self.tree) + path

    def open(self, path: str, flags: int) -> int:
        return super().__getattr__("open")(self._moved(path), flags)  # type: ignore[no-any-return]

    def stat(self, path: str, **named: Any) -> Any:
        found = super().__getattr__("stat")(self._moved(path), **named)
        self.seen.append(path)
        return self._owned(path, found)

    def fstat(self, descriptor: int) -> Any:
        path = posix.readlink(f"/proc/self/fd/{descriptor}")
        return self._owned(path[len(str(self.tree)) :], posix.fstat(descriptor))

    def _owned(self, path: str, found: posix.stat_result) -> Any:
        mode = self.modes.get(path, stat.S_IMODE(found.st_mode) & 0o755)
        return SimpleNamespace(st_mode=stat.S_IFMT(found.st_mode) | mode, st_uid=self.owners.get(path, 0))


class Engine:
    """A container of the processes 10, the first one, and 11, which crashes; its monitor is process 5."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch, tree: Path) -> None:
        self.world = world
        self.host = Host(world.proc, tree)
        self.makers: dict[bytes, int | None] = {}
        monkeypatch.setattr(record, "posix", self.host)
        monkeypatch.setattr(runtime, "maker_of", lambda controllers, above: self.makers.get(above, 0))
        self.box = world.container()

    def write(self, path: str, content: object) -> None:
        """Write a file of the engine's, as JSON unless it is bytes."""
        file = Path(str(self.host.tree) + path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode())

    def run(self, bundle: str = BUNDLE, group: str = DOCKER, pid_file: str = "init.pid", **facts: Any) -> None:
        """Have a container run whose OCI bundle is there, and holds these ``facts`` besides the path of its group."""
        for pid, pids, parent in ((INIT, "1", MONITOR), (CRASHED, "2", INIT)):
            self.world.process(pid, pids, group, FILES, parent=parent, **self.box)
        self.write(f"{bundle}/config.json", {"linux": {"cgroupsPath": group}, **facts})
        self.write(f"{bundle}/{pid_file}", b"%d" % INIT)

    def monitor(self, directory: str = BUNDLE, cgroup: str = "/system.slice/docker.service", *words: str) -> None:
        """Have a monitor that works in this directory, and has these words in its command line."""
        self.world.process(MONITOR, cgroup=cgroup, parent=1)
        (self.world.proc / str(MONITOR) / "cwd").symlink_to(directory)
        (self.world.proc / str(MONITOR) / "cmdline").write_text("".join(f"{word}\0" for word in ("monitor", *words)))

    def facts(self, pid: int = CRASHED) -> dict[str, str]:
        """Return what is found out about a crash of that process."""
        found = record.record_of(self.world.crashed(pid)).facts
        return {name[len("CORE_") :].decode(): text.decode() for name, text in found.items()}


@pytest.fixture
def engine(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    """An engine that has written nothing yet."""
    return Engine(world, monkeypatch, tmp_path / "tree")


@pytest.fixture
def docker(engine: Engine) -> Engine:
    """Docker with a data directory of its own, and a container."""
    mounts = [
        {"destination": "/etc/hosts.d", "source": "/data/x"},
        {"destination": "/etc/hostname", "source": f"{OF_DOCKER}/{ID}/hostname"},
    ]
    engine.run(mounts=mounts, process={"env": ["PATH=/bin", "A=1", "A=2", "=x", "B", "C=a\0b", "D=\u00e9", 7]})
    engine.monitor()
    config = {"Image": "shop:1.0", "Labels": {"a": "b"}}
    engine.write(
        f"{OF_DOCKER}/{ID}/config.v2.json", {"ID": ID, "Name": "/shop-1", "Config": config, "Image": "sha256:1"}
    )
    return engine


SHOP = {"CONTAINER_NAME": "shop-1", "IMAGE": "shop:1.0"}


def test_docker_knows_name_and_image(docker: Engine) -> None:
    assert docker.facts() == docker.facts(INIT) == SHOP
    crashed = docker.world.crashed(CRASHED)
    assert keeps_descriptors(lambda: record.record_of(crashed))
    elsewhere(docker)
    assert keeps_descriptors(lambda: record.record_of(crashed))


def test_the_first_record_that_counts_is_the_one(docker: Engine) -> None:
    # What lies at a usual place, too, comes after that of the monitor.
    docker.write(f"{STATE}/k8s.io/{ID}/init.pid", b"%d" % INIT)
    annotations = {"io.kubernetes.cri.container-name": "other", "io.kubernetes.cri.image-name": "other:1"}
    docker.write(f"{STATE}/k8s.io/{ID}/config.json", {"linux": {"cgroupsPath": DOCKER}, "annotations": annotations})
    assert docker.facts() == SHOP


def test_a_text_with_a_newline_in_it_is_read(docker: Engine) -> None:
    docker.write(
        f"{OF_DOCKER}/{ID}/config.v2.json", b'{"ID": "%s", "Name": "/sh\nop", "Config": {"Image": "x"}}' % ID.encode()
    )
    assert docker.facts() == {"CONTAINER_NAME": "sh_op", "IMAGE": "x"}


def test_the_variables_are_those_that_the_container_was_started_with(docker: Engine) -> None:
    found = record.record_of(docker.world.crashed(CRASHED)).environment
    assert found == {b"PATH": b"/bin", b"A": b"1", b"D": b"\xc3\xa9"}


def test_whoever_has_all_namespaces_of_the_first_process_is_no_container_of_its_own(docker: Engine) -> None:
    assert record.record_of(docker.world.crashed(CRASHED)).shared
    assert record.record_of(docker.world.crashed(INIT)).shared
    remapped = docker.world.namespace(docker.world.host["user"])
    for pid in (INIT, CRASHED):
        user = docker.world.proc / str(pid) / "ns/user"
        user.unlink()
        user.symlink_to(remapped)
    assert record.record_of(docker.world.crashed(CRASHED)).shared


@pytest.mark.parametrize("kind", ["user", "pid", "mnt", "net", "ipc", "uts"])
def test_whoever_has_a_namespace_of_its_own_is_told_from_the_container(docker: Engine, kind: str) -> None:
    world = docker.world
    above = docker.box["pid"] if kind == "pid" else None
    owner = world.host["user"]
    own = world.namespace(owner=owner, parent=above) if above else world.namespace(owner=owner)
    world.process(30, "5,1" if kind == "pid" else "5", DOCKER, FILES, parent=INIT, **{**docker.box, kind: own})
    found = record.record_of(world.crashed(30))
    assert not found.shared


def test_a_kind_of_namespace_that_the_kernel_does_not_have_says_nothing_of_the_others(
    docker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, real = docker.world, namespaces.of_host

    def of_host(kind: str) -> int:
        if kind == "user":
            raise FileNotFoundError(2, "No such file or directory")
        return real(kind)

    monkeypatch.setattr(namespaces, "of_host", of_host)
    assert record.record_of(world.crashed(CRASHED)).shared
    own = world.namespace(owner=world.host["user"])
    world.process(30, "5", DOCKER, FILES, parent=INIT, **{**docker.box, "net": own})
    assert not record.record_of(world.crashed(30)).shared


def test_a_container_in_the_network_of_another_has_a_file_of_its_own(docker: Engine) -> None:
    config = {"linux": {"cgroupsPath": f"system.slice:docker:{ID}"}}
    mounts = [{"destination": "/etc/hosts", "source": f"{OF_DOCKER}/{OTHER_ID}/hosts"}]
    docker.write(f"{BUNDLE}/config.json", {**config, "mounts": mounts})
    docker.write(f"{OF_DOCKER}/{OTHER_ID}/config.v2.json", {"ID": OTHER_ID, "Name": "/other"})
    assert docker.facts() == SHOP


@pytest.mark.parametrize("config", [{"ID": OTHER_ID, "Name": "/other"}, {}, [], b"", b"{", None])
def test_a_damaged_file_of_docker_tells_nothing(docker: Engine, config: object) -> None:
    file = f"{OF_DOCKER}/{ID}/config.v2.json"
    if config is None:
        os.unlink(str(docker.host.tree) + file)
    else:
        docker.write(file, config)
    assert docker.facts() == {}


def parents(path: str) -> list[str]:
    """Return the directories above a path, and the root directory."""
    parts = path.split("/")[1:-1]
    return ["", *("/" + "/".join(parts[: end + 1]) for end in range(len(parts)))]


FILES_OF_DOCKER = [f"{BUNDLE}/config.json", f"{BUNDLE}/init.pid", f"{OF_DOCKER}/{ID}/config.v2.json"]


@pytest.mark.parametrize("path", sorted({name for file in FILES_OF_DOCKER for name in [file, *parents(file)]}))
def test_what_others_than_root_may_write_tells_nothing(docker: Engine, path: str) -> None:
    for mode in (0o757, 0o775, 0o1777):
        docker.host.modes[path or "/"] = mode
        assert docker.facts() == {}
    docker.host.modes.clear()
    docker.host.owners[path or "/"] = 1000
    assert docker.facts() == {}
    docker.host.owners.clear()
    assert docker.facts() == SHOP


@pytest.mark.parametrize("path", FILES_OF_DOCKER)
def test_only_a_regular_file_in_real_directories_is_read(docker: Engine, path: str) -> None:
    file = Path(str(docker.host.tree) + path)
    kept = file.rename(file.with_name("kept"))
    file.symlink_to(kept)
    assert docker.facts() == {}
    file.unlink()
    os.mkfifo(file)
    assert docker.facts() == {}
    file.unlink()
    kept.rename(file)
    assert docker.facts() == SHOP
    directory = file.parent.rename(file.parent.with_name("kept"))
    file.parent.symlink_to(directory)
    assert docker.facts() == {}


def test_a_record_that_is_too_long_is_not_read(docker: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    length = (docker.host.tree / BUNDLE[1:] / "config.json").stat().st_size
    monkeypatch.setattr(record, "LONGEST_RECORD", length)
    assert docker.facts() == SHOP
    monkeypatch.setattr(record, "LONGEST_RECORD", length - 1)
    assert docker.facts() == {}


@pytest.mark.parametrize("maker", [1000, None])
def test_a_container_that_a_user_may_have_named_has_no_record(docker: Engine, maker: int | None) -> None:
    docker.makers[b"/docker/"] = maker
    assert docker.facts() == {}


def test_outside_of_containers_nothing_is_looked_for(docker: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    docker.world.process(30, cgroup="/system.slice/a.service")
    monkeypatch.setattr(record, "_places_of", lambda *words: pytest.fail("looked for"))
    assert docker.facts(30) == {}


@pytest.mark.parametrize("path", [OTHER, "", None, 7, f"{DOCKER}/x"])
def test_the_record_of_another_container_tells_nothing(docker: Engine, path: object) -> None:
    docker.write(f"{BUNDLE}/config.json", {"linux": {"cgroupsPath": path}, "annotations": {NAME: "x"}})
    assert docker.facts() == {}


NAME = record.CONTAINERD[CONTAINER_NAME]


def elsewhere(engine: Engine) -> None:
    """Have the first process in the control group of the container, but in a pid namespace of its own."""
    engine.world.process(20, "1", DOCKER, FILES, **engine.world.container())
    engine.write(f"{BUNDLE}/init.pid", b"20")


def in_another_group(engine: Engine) -> None:
    """Have the first process in the pid namespace, but in another container."""
    engine.world.process(20, "3", OTHER, FILES, **engine.box)
    engine.write(f"{BUNDLE}/init.pid", b"20")


def below_another_group(engine: Engine) -> None:
    """Have the first process in a group of the same name, but below another one."""
    engine.world.process(20, "3", f"/x{DOCKER}", FILES, **engine.box)
    engine.write(f"{BUNDLE}/init.pid", b"20")


def on_the_host(engine: Engine) -> None:
    """Have the first process in the host's pid namespace, in other mounts."""
    engine.world.process(20, "", DOCKER, FILES, mnt=engine.world.namespace(owner=engine.world.host["user"]))
    engine.write(f"{BUNDLE}/init.pid", b"20")


def recycled(engine: Engine) -> None:
    """Have a process of the host under the pid of a first process that has ended."""
    engine.world.process(20)
    engine.write(f"{BUNDLE}/init.pid", b"20")


@pytest.mark.parametrize("first", [elsewhere, in_another_group, below_another_group, on_the_host, recycled])
def test_a_record_whose_first_process_is_elsewhere_tells_nothing(
    docker: Engine, first: Callable[[Engine], None]
) -> None:
    first(docker)
    assert docker.facts() == {}


@pytest.mark.parametrize("pid", [b"99", b"", b"x", b"-1", None])
def test_a_record_without_a_first_process_tells_nothing(docker: Engine, pid: bytes | None) -> None:
    if pid is None:
        os.unlink(f"{docker.host.tree}{BUNDLE}/init.pid")
    else:
        docker.write(f"{BUNDLE}/init.pid", pid)
    assert docker.facts() == {}


def test_in_the_pid_namespace_of_the_host_the_mounts_tell(engine: Engine) -> None:
    engine.box.pop("pid")
    engine.run(annotations={NAME: "agent"})
    engine.monitor()
    assert engine.facts() == {"CONTAINER_NAME": "agent"}
    mounts = engine.world.namespace(owner=engine.world.host["user"])
    engine.world.process(12, "", DOCKER, FILES, parent=INIT, mnt=mounts)
    assert engine.facts(12) == {}


def test_a_sandbox_in_the_container_is_in_the_container(docker: Engine) -> None:
    below = docker.world.namespace(docker.box["pid"])
    docker.world.process(12, "3 1", f"{DOCKER}/sandbox", FILES, parent=CRASHED, pid=below, mnt=docker.box["mnt"])
    assert docker.facts(12) == SHOP


@pytest.mark.parametrize("text", [b"", b"[]", b"7", b"null", b'{"linux": 7}', b"\xff", b"{", b"[" * 100_000])
def test_a_damaged_record_tells_nothing(docker: Engine, text: bytes) -> None:
    docker.write(f"{BUNDLE}/config.json", text)
    assert docker.facts() == {}


@pytest.mark.parametrize("wrong", [7, None, "x", [7], {"env": 7}, {"env": "x"}])
def test_what_is_of_another_kind_than_expected_is_left_out(docker: Engine, wrong: object) -> None:
    words = {"mounts": wrong, "process": wrong, "root": wrong}
    annotations = {NAME: 7, record.CONTAINERD[IMAGE]: "shop"}
    linux = {"cgroupsPath": DOCKER}
    docker.write(f"{BUNDLE}/config.json", {"linux": linux, "annotations": annotations, **words})
    assert docker.facts() == {"IMAGE": "shop"}
    docker.write(f"{BUNDLE}/config.json", {"linux": linux, "annotations": wrong, **words})
    assert docker.facts() == {}


def of_a_pod(names: dict[bytes, str], uid: str = UID) -> dict[str, str]:
    """Return the annotations of a container of a pod."""
    values = {CONTAINER_NAME: "web", IMAGE: "shop:1.0", POD_NAME: "web-0", POD_NAMESPACE: "prod", POD_UID: uid}
    return {names[fact]: value for fact, value in values.items()}


WEB = {"CONTAINER_NAME": "web", "IMAGE": "shop:1.0", "POD_NAME": "web-0", "POD_NAMESPACE": "prod", "POD_UID": UID}
OF_CONTAINER = {name: WEB[name] for name in ("CONTAINER_NAME", "IMAGE")}


def test_the_monitor_of_a_pod_works_in_the_bundle_of_the_first_container(engine: Engine) -> None:
    engine.run(f"/run/k3s/containerd/k8s.io/{ID}", f"{POD}/{ID}", annotations=of_a_pod(record.CONTAINERD))
    engine.monitor(f"/run/k3s/containerd/k8s.io/{OTHER_ID}", "/system.slice/k3s.service")
    assert engine.facts() == WEB


OF_CRIO = f"/run/containers/storage/overlay-containers/{ID}/userdata"


@pytest.mark.parametrize("words", [(), ("-b", "x", "-p", "y"), ("-b", "/x"), ("-p", "/y", "-b")])
def test_where_the_monitor_shows_nothing_the_usual_places_are_tried(engine: Engine, words: tuple[str, ...]) -> None:
    annotations = {**of_a_pod(record.KUBELET), **of_a_pod(record.CONTAINERD, "x"), record.OF_CRIO: ID}
    engine.run(OF_CRIO, f"{POD}/crio-{ID}", "pidfile", annotations=annotations)
    engine.monitor("/", "/system.slice/crio.service", *words)
    assert engine.facts() == WEB


# As CRI-O writes it: SpecAddAnnotations in internal/factory/container/container.go, and CreateContainer in
# internal/oci/runtime_oci.go. These are the words of that source, and none of ours. The labels and annotations of the kubelet
# stand among those of CRI-O.
OF_CRIO_SOURCE = {
    "io.container.manager": "cri-o",
    "io.kubernetes.cri-o.Annotations": '{"io.kubernetes.container.hash":"30f2b72b"}',
    "io.kubernetes.cri-o.ContainerID": ID,
    "io.kubernetes.cri-o.ContainerType": "container",
    "io.kubernetes.cri-o.Image": "registry.example/shop@sha256:1",
    "io.kubernetes.cri-o.ImageName": "registry.example/shop:1.0",
    "io.kubernetes.cri-o.ImageRef": "f" * 64,
    "io.kubernetes.cri-o.Labels": '{"io.kubernetes.container.name":"web"}',
    "io.kubernetes.cri-o.Metadata": '{"name":"web"}',
    "io.kubernetes.cri-o.Name": f"k8s_web_web-0_prod_{UID}_0",
    "io.kubernetes.cri-o.SandboxID": OTHER_ID,
    "io.kubernetes.cri-o.SandboxName": f"k8s_web-0_prod_{UID}_0",
    "io.kubernetes.container.hash": "30f2b72b",
    "io.kubernetes.container.name": "web",
    "io.kubernetes.pod.name": "web-0",
    "io.kubernetes.pod.namespace": "prod",
    "io.kubernetes.pod.uid": UID,
}
SLICE_OF_POD = f"kubepods-burstable-pod{UID.replace('-', '_')}.slice"
IN_SLICE = f"/kubepods.slice/kubepods-burstable.slice/{SLICE_OF_POD}/crio-{ID}.scope"


@pytest.mark.parametrize(
    ("group", "path", "monitors"),
    [
        (IN_SLICE, f"{SLICE_OF_POD}:crio:{ID}", f"/system.slice/crio-conmon-{ID}.scope"),
        # crun has a group of its own below that of the container.
        (f"{IN_SLICE}/container", f"{SLICE_OF_POD}:crio:{ID}", f"/system.slice/crio-conmon-{ID}.scope"),
        (f"{POD}/crio-{ID}", f"{POD}/crio-{ID}", f"{POD}/crio-conmon-{ID}"),
    ],
    ids=["systemd", "systemd and crun", "cgroupfs"],
)
@pytest.mark.parametrize("storage", ["/run/containers/storage", "/srv/storage/run"])
def test_what_the_source_of_cri_o_writes_is_understood(
    engine: Engine, group: str, path: str, monitors: str, storage: str
) -> None:
    bundle = f"{storage}/overlay-containers/{ID}/userdata"
    engine.run(bundle, group, "pidfile", annotations=OF_CRIO_SOURCE, linux={"cgroupsPath": path})
    words = (
        f"-b {bundle} -c {ID} --exit-dir /var/run/crio/exits -l /var/log/pods/prod_web-0_{UID}/web/0.log --log-level info"
        f" -n k8s_web_web-0_prod_{UID}_0 -P {bundle}/conmon-pidfile -p {bundle}/pidfile"
        f" --persist-dir /var/lib/containers/storage/overlay-containers/{ID}/userdata -r /usr/bin/crun"
        f" --runtime-arg --root=/run/crun --socket-dir-path /var/run/crio --syslog -u {ID} -s"
    )
    engine.monitor(bundle, monitors, *words.split())
    assert engine.facts() == {**WEB, "IMAGE": "registry.example/shop:1.0"}


def test_the_command_line_of_a_user_is_not_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.run(f"{STATE}/k8s.io/{ID}", f"{POD}/{ID}", annotations=of_a_pod(record.CONTAINERD))
    engine.monitor("/")
    engine.host.owners[f"/proc/{MONITOR}"] = 1000
    os.unlink(engine.world.proc / str(MONITOR) / "cmdline")
    os.mkfifo(engine.world.proc / str(MONITOR) / "cmdline")  # Whoever reads it has to wait.
    assert engine.facts() == WEB


def test_nothing_in_a_directory_of_somebody_else_is_looked_at(docker: Engine) -> None:
    docker.host.modes[STATE] = 0o777
    assert docker.facts() == {}
    assert STATE in docker.host.seen
    assert not [path for path in docker.host.seen if path.startswith(f"{STATE}/moby")]


def test_a_monitor_that_has_ended_is_not_missed(engine: Engine) -> None:
    engine.run(f"{STATE}/k8s.io/{ID}", f"{POD}/{ID}", annotations=of_a_pod(record.CONTAINERD))
    assert engine.facts() == WEB


def test_a_pod_counts_only_in_its_own_control_group(engine: Engine) -> None:
    engine.run(group=f"{POD}/{ID}", annotations=of_a_pod(record.CONTAINERD, UID.replace("0", "1")))
    engine.monitor()
    assert engine.facts() == {**OF_CONTAINER, "POD_UID": UID}


def test_the_uid_of_a_pod_is_known_without_a_record_and_the_old_containerd_does_not_say_it(engine: Engine) -> None:
    annotations = of_a_pod(record.CONTAINERD, "")
    engine.run(group=f"{POD}/{ID}", annotations=annotations)
    assert engine.facts() == {"POD_UID": UID}
    engine.monitor()
    assert engine.facts() == WEB


@pytest.mark.parametrize(("group", "known"), [(f"{POD}/{ID}", WEB), (DOCKER, OF_CONTAINER)])
def test_the_labels_of_docker_name_a_pod_only_in_its_control_group(
    docker: Engine, group: str, known: dict[str, str]
) -> None:
    for pid in (INIT, CRASHED):
        (docker.world.proc / str(pid) / "cgroup").write_text(f"0::{group}\n")
    labels = {name: text for name, text in of_a_pod(record.KUBELET).items() if "Image" not in name}
    config = {"ID": ID, "Name": "/k8s_web", "Config": {"Image": "shop:1.0", "Labels": labels}}
    docker.write(f"{OF_DOCKER}/{ID}/config.v2.json", config)
    assert docker.facts() == known


OF_RUNC, BOX = f"/run/runc/{ID}/state.json", "/srv/box"
IN_BOX = {"CONTAINER_NAME": "box"}


def state_of(group: str = f"/{ID}", **facts: object) -> dict[str, object]:
    """Return what runc 1.1 writes into its state.json, without the parts of the configuration that say nothing here."""
    return {
        "id": ID,
        "init_process_pid": INIT,
        "init_process_start": 1547017,
        "created": "2026-11-30T13:30:33.700397984Z",
        "config": {
            "rootfs": f"{BOX}/rootfs",
            "cgroups": {"name": ID, "path": "", "scope_prefix": ""},
            "labels": [f"{NAME}=box", f"bundle={BOX}"],
        },
        "rootless": False,
        "cgroup_paths": {"": f"/sys/fs/cgroup/unified{group}", "name=systemd": f"/sys/fs/cgroup/systemd{group}"},
        "namespace_paths": {"NEWNS": f"/proc/{INIT}/ns/mnt", "NEWPID": f"/proc/{INIT}/ns/pid"},
        "external_descriptors": ["/dev/null", "pipe:[1]", "pipe:[2]"],
        "intel_rdt_path": "",
        **facts,
    }


@pytest.fixture
def runc(engine: Engine) -> Engine:
    """A container of runc without an engine: its parent process has ended, and its bundle names no control group."""
    engine.run(BOX, f"/{ID}", annotations={NAME: "box"}, process={"env": ["A=1"]}, linux={})
    (engine.host.tree / BOX[1:] / "init.pid").unlink()
    engine.write(OF_RUNC, state_of())
    return engine


def test_runc_without_an_engine_has_a_state_that_names_the_bundle(runc: Engine) -> None:
    assert runc.facts() == runc.facts(INIT) == IN_BOX
    crashed = runc.world.crashed(CRASHED)
    assert keeps_descriptors(lambda: record.record_of(crashed))
    assert record.record_of(crashed).environment == {b"A": b"1"}


@pytest.mark.parametrize(
    ("group", "path", "known"),
    [
        (f"/{ID}", None, True),
        (f"/{ID}", "", True),
        (f"/{ID}", f"/{ID}", True),
        (f"/system.slice/runc-{ID}.scope", "", True),
        (f"/system.slice/runc-{ID}.scope", f"system.slice:runc:{ID}", True),
        (f"/{ID}/inner", f"/{ID}/inner", True),
        (f"/{ID}", f"/{OTHER_ID}", False),
        (f"/{ID}", "/other", False),
    ],
)
def test_a_bundle_for_runc_need_not_name_the_control_group(
    runc: Engine, group: str, path: str | None, known: bool
) -> None:
    for pid in (INIT, CRASHED):
        (runc.world.proc / str(pid) / "cgroup").write_text(f"0::{group}\n")
    runc.write(OF_RUNC, state_of(group))
    runc.write(f"{BOX}/config.json", {"annotations": {NAME: "box"}, "linux": {"cgroupsPath": path}})
    assert runc.facts() == (IN_BOX if known else {})


@pytest.mark.parametrize(
    "path", sorted({name for file in (OF_RUNC, f"{BOX}/config.json") for name in [file, *parents(file)]})
)
def test_what_others_than_root_may_write_of_runc_tells_nothing(runc: Engine, path: str) -> None:
    runc.host.modes[path or "/"] = 0o757
    assert runc.facts() == {}
    runc.host.modes.clear()
    runc.host.owners[path or "/"] = 1000
    assert runc.facts() == {}


@pytest.mark.parametrize(
    "facts",
    [
        {"id": OTHER_ID},
        {"id": None},
        {"init_process_pid": 99},
        {"init_process_pid": str(INIT)},
        {"init_process_pid": None},
        {"config": {}},
        {"config": {"labels": [7, "bundle=srv/box", "x"]}},
        {"config": {"labels": [f"bundle={BOX}x"]}},
        {"cgroup_paths": None},
        {"cgroup_paths": {"": 7}},
        {"cgroup_paths": {"": f"/sys/fs/cgroup/unified/{OTHER_ID}"}},
    ],
)
def test_a_state_of_runc_that_is_not_that_of_the_container_tells_nothing(
    runc: Engine, facts: dict[str, object]
) -> None:
    runc.write(OF_RUNC, state_of(**facts))  # type: ignore[arg-type]
    assert runc.facts() == {}


def test_a_container_of_runc_whose_name_is_no_id_has_no_record(runc: Engine) -> None:
    for pid in (INIT, CRASHED):
        (runc.world.proc / str(pid) / "cgroup").write_text("0::/box\n")
    runc.write("/run/runc/box/state.json", state_of("/box", id="box"))
    assert runc.facts() == {}


@pytest.mark.parametrize("name", record.LIST_OF_STORAGE)
def test_podman_has_a_list_of_all_containers(engine: Engine, name: str) -> None:
    bundle = f"{STORAGE}/overlay-containers/{ID}/userdata"
    group = f"/machine.slice/libpod-{ID}.scope"
    root = {"path": f"{STORAGE}/overlay/{'c' * 64}/merged"}
    engine.run(bundle, group, linux={"cgroupsPath": f"machine.slice:libpod:{ID}"}, root=root)
    engine.write("/run/x/pidfile", b"%d" % INIT)
    # It works wherever Podman was started.
    words = ("--api-version", "1", "-c", ID, "-b", bundle, "-p", "/run/x/pidfile", "-n", "shop-1")
    engine.monitor("/root", f"/machine.slice/libpod-conmon-{ID}.scope", *words)
    assert engine.facts() == {}
    metadata = json.dumps({"image-name": "docker.io/library/shop:1.0", "name": "x"})
    containers = [
        {"id": identifier, "names": names, "image": "1", "metadata": metadata}
        for identifier, names in ((OTHER_ID, ["other"]), (ID, ["caf\u00e9-1", "b"]))
    ]
    file = f"{STORAGE}/overlay-containers/{name}"
    engine.write(file, json.dumps(containers, separators=(",", ":")).encode())
    assert engine.facts() == {"CONTAINER_NAME": "caf__-1", "IMAGE": "docker.io/library/shop:1.0"}
    engine.host.owners[file] = 1000
    assert engine.facts() == {}
    engine.host.owners.clear()
    engine.write(file, b'[{"id":"%s","names":null,"metadata":"x"}]' % ID.encode())
    assert engine.facts() == {}


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ("a b\nc\0d", "a_b_c_d"),
        ("x" * 10_000, "x" * record.LONGEST_FACT),
        ("\u00e9\ud800", "__?"),
        ('"=$()', '"=$()'),
        ("", None),
    ],
)
def test_a_fact_is_one_word_and_no_longer_than_it_may_be(docker: Engine, chosen: str, told: str | None) -> None:
    config = {"ID": ID, "Name": chosen}
    docker.write(f"{OF_DOCKER}/{ID}/config.v2.json", json.dumps(config).encode())
    assert docker.facts().get("CONTAINER_NAME") == told


def test_a_process_has_many_ancestors_and_not_all_are_looked_at(
    docker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "DEEPEST", 2)
    assert docker.facts() == SHOP
    monkeypatch.setattr(record, "DEEPEST", 1)
    assert docker.facts() == {}


def test_the_record_is_read_once_and_only_when_it_is_asked_for(docker: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    process = docker.world.crashed(CRASHED, _record=None)
    asked: list[object] = []

    def record_of(process: Any) -> Record:
        asked.append(process)
        return Record()

    monkeypatch.setattr(record, "record_of", record_of)
    assert process.record is process.record
    assert asked == [process]
    docker.world.process(30, cgroup="/system.slice/a.service")
    assert docker.world.crashed(30, _record=None).record.facts == {}
    assert asked == [process]

"""Reads what a container engine has written about the container of the faulting process. No daemon is asked.

The engine keeps an OCI bundle for each container, a directory with the file config.json: containerd, CRI-O, Docker, and Podman
as root. It starts a monitor for a container, which is the parent of the first process. The shim of containerd and Docker works
in that directory, and the command line of conmon, the monitor of CRI-O and Podman, names it. So no engine's directories need be
known here. Docker keeps the name and the image in a file of its own, config.v2.json, and Podman in a list of all containers.
runc without an engine has no monitor; its own file, state.json, names the first process and the bundle.

Everybody who may make control groups can name one after the container of somebody else. So a record counts only if

- root has made the control group that has the id of the container,
- nobody but root can write the record, or replace it,
- the first process that the record names is in that very control group, and the faulting process is in its pid namespace, or
  in one below. Where that is the host's, both have the same mount namespace.

In all other cases the facts are empty, as they are for rootless engines, whose records belong to users.
"""

import posix
from _json import make_scanner

from core_helper import linux, namespaces, procfs, runtime
from core_helper.first_process import Member
from core_helper.process import CONTAINER_NAME, IMAGE, POD_NAME, POD_NAMESPACE, POD_UID, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from core_helper.process import FaultingProcess

# The annotations of containerd, and those of CRI-O, which are also the labels that a kubelet gives to containers of Docker.
CONTAINERD = {
    CONTAINER_NAME: "io.kubernetes.cri.container-name",
    IMAGE: "io.kubernetes.cri.image-name",
    POD_NAME: "io.kubernetes.cri.sandbox-name",
    POD_NAMESPACE: "io.kubernetes.cri.sandbox-namespace",
    POD_UID: "io.kubernetes.cri.sandbox-uid",
}
KUBELET = {
    CONTAINER_NAME: "io.kubernetes.container.name",
    IMAGE: "io.kubernetes.cri-o.ImageName",
    POD_NAME: "io.kubernetes.pod.name",
    POD_NAMESPACE: "io.kubernetes.pod.namespace",
    POD_UID: "io.kubernetes.pod.uid",
}
OF_CRIO = "io.kubernetes.cri-o.ContainerID"
# Where the monitor does not show it: that of a container may have ended, and CRI-O may have one for a whole pod.
OF_SHIM = "/run/containerd/io.containerd.runtime.v2.task/k8s.io/{}"
OF_CONMON = "/run/containers/storage/overlay-containers/{}/userdata"
USUAL_PLACES = ((OF_SHIM, OF_SHIM + "/init.pid"), (OF_CONMON, OF_CONMON + "/pidfile"))
STATE_OF_RUNC = "/run/runc/{}/state.json"
FILES_OF_DOCKER = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")  # Mounted from beside config.v2.json.
# Of all containers of Podman; the second one of those with --rm.
LIST_OF_STORAGE = ("containers.json", "volatile-containers.json")
KINDS = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time")
LONGEST_RECORD = 1 << 20
LONGEST_FACT = 512
DEEPEST = 64  # Ancestors of the faulting process that are looked at.
OTHERS_WRITE = 0o022
# A fact is one word of printable ASCII.
WORD = bytes(byte if 32 < byte < 127 else ord("_") for byte in range(256))


class _Json:
    """How the scanner of the json module is to read; the module itself would cost more than all of the rest."""

    strict = False
    object_hook = object_pairs_hook = None
    parse_float = parse_constant = float
    parse_int = int


_scan: "Callable[[str, int], tuple[object, int]]" = make_scanner(_Json)  # type: ignore[arg-type]


def record_of(process: "FaultingProcess") -> Record:
    """Return the record of the container of the verified ``process``; an empty one where there is none that counts."""
    record = Record()
    group = runtime.outermost_group(process.cgroups)
    # Outside of containers, and where a user may have given the name, nothing is looked for.
    if group is None or runtime.maker_of(*group[1:]) != 0:
        return record
    identifier, pod = group[0], runtime.pod_of(group[2])
    if pod:
        record.facts[POD_UID] = pod.encode()
    for bundle, pid_file in _places_of(process, identifier):
        try:
            if _is_of(int(_read(pid_file)), process, group, record):
                _read_bundle(_read(f"{bundle}/config.json"), identifier, pod, record)
                return record
        except (OSError, ValueError):
            continue  # There is none, it is not root's, or it is damaged.
    try:
        state = _parsed(_read(STATE_OF_RUNC.format(identifier)))
        pid, bundle = _at(state, "init_process_pid"), _bundle_of(state)
        if _text(state, "id") == identifier and isinstance(pid, int) and _is_of(pid, process, group, record):
            _read_bundle(_read(f"{bundle}/config.json"), identifier, pod, record, _at(state, "cgroup_paths"))
    except (OSError, ValueError):
        pass
    return record


def _bundle_of(state: object) -> str:
    """Return where the bundle of a container is, as its ``state`` has it, which is runc's. Raises ValueError."""
    for label in _list(state, "config", "labels"):
        name, _equals, bundle = str(label).partition("=")
        if name == "bundle" and bundle[:1] == "/":
            return bundle
    raise ValueError("no bundle")


def _places_of(process: "FaultingProcess", identifier: str) -> "list[tuple[str, str]]":
    """Return where the bundle of the container may be, and the file in which the engine has written its first process."""
    places = [(place.format(identifier), pid_file.format(identifier)) for place, pid_file in USUAL_PLACES]
    try:
        monitor = f"/proc/{_monitor_of(process.host_pid)}"
        if posix.stat(monitor).st_uid != 0:
            return places  # No engine's. The memory of a user's process may lie in a file system that does not answer.
        words = procfs.read_path(f"{monitor}/cmdline").decode("utf-8", "surrogateescape").split("\0")
        parts = posix.readlink(f"{monitor}/cwd").split("/")
    except (OSError, ValueError):
        return places
    options = dict(zip(words, words[1:]))
    if options.get("-b", "")[:1] == options.get("-p", "")[:1] == "/":
        return [(options["-b"], options["-p"]), *places]
    for index in range(len(parts) - 1, 0, -1):
        if runtime.container_id([(b"", parts[index].encode("utf-8", "surrogateescape"))]):
            # A shim may have several containers, those of a pod; it works in the bundle of the first one.
            parts[index] = identifier
            bundle = "/".join(parts)
            return [(bundle, f"{bundle}/init.pid"), *places]
    return places


def _monitor_of(pid: int) -> int:
    """Return the first ancestor of process ``pid`` that is in no container. Raises OSError, or ValueError for none."""
    for _step in range(DEEPEST):
        pid = int(procfs.stat_fields(procfs.read_path(f"/proc/{pid}/task/{pid}/stat"))[1])
        if pid == 0:
            break
        if not runtime.container_id(procfs.parse_cgroup(procfs.read_path(f"/proc/{pid}/cgroup"))):
            return pid
    raise ValueError("no monitor")


def _is_of(pid: int, process: "FaultingProcess", group: "tuple[str, bytes, bytes]", record: Record) -> bool:
    """Tell whether ``pid``, the first process of a container, shows that ``process`` belongs to it.

    Notes in the ``record`` whether the two have all their namespaces in common.
    """
    first = Member(pid)
    try:
        if runtime.outermost_group(first.cgroups) != group:
            return False
        record.shared = _shares_namespaces(process, first)
        namespace, host = process.descriptor("pid"), namespaces.of_host("pid")
        if first.pid_namespace == host:
            return first.mount_namespace == process.inode("mnt")
        return namespace is not None and first.pid_namespace in namespaces.lineage(namespace, host)
    finally:
        first.close()


def _shares_namespaces(process: "FaultingProcess", first: Member) -> bool:
    """Tell whether ``process`` has all namespaces of the ``first`` process of its container. Raises OSError if that is gone."""
    for kind in KINDS:
        try:
            namespaces.of_host(kind)
        except FileNotFoundError:
            continue  # The kernel was built without this kind of namespace.
        if first.namespace(kind) != process.inode(kind):
            return False
    return True


def _read_bundle(config: bytes, identifier: str, pod: str, record: Record, groups: object = None) -> None:
    """Take over what an OCI bundle says of a container. Raises ValueError where it is damaged, or of another container.

    Whoever writes a bundle for runc alone may leave its control group to runc, or name one below that of the container. Then
    the control ``groups`` count that runc has noted.
    """
    bundle = _parsed(config)
    path = _text(bundle, "linux", "cgroupsPath")
    noted = [str(group).encode("utf-8", "replace") for group in groups.values()] if isinstance(groups, dict) else []
    ours = (runtime.container_id([(b"", group)]) == identifier and group.endswith(path.encode()) for group in noted)
    if not path.endswith(identifier) and not any(ours):
        raise ValueError("the record of another container")
    for variable in _list(bundle, "process", "env"):
        name, equals, value = str(variable).encode("utf-8", "replace").partition(b"=")
        if name and equals and b"\0" not in value:
            record.environment.setdefault(name, value)
    annotations = _at(bundle, "annotations")
    _add(record, annotations, KUBELET if _text(annotations, OF_CRIO) else CONTAINERD, pod)
    if CONTAINER_NAME not in record.facts:
        for add in (_add_docker, _add_podman):
            try:
                add(record, bundle, identifier, pod)
            except (OSError, ValueError):
                continue
            if CONTAINER_NAME in record.facts:
                return


def _add(record: Record, words: object, names: "dict[bytes, str]", pod: str) -> None:
    """Add the facts that are among the annotations or labels ``words``.

    Those of a pod count only in the control group of that pod: whoever starts a container of Docker chooses its labels.
    """
    found = {fact: _text(words, name) for fact, name in names.items()}
    if not pod or found.pop(POD_UID) not in ("", pod):
        found = {fact: found[fact] for fact in (CONTAINER_NAME, IMAGE)}
    for fact, text in found.items():
        _set(record, fact, text)


def _add_docker(record: Record, bundle: object, identifier: str, pod: str) -> None:
    """Add what Docker's own file says, which lies where Docker has all its files of containers."""
    for mount in _list(bundle, "mounts"):
        directory, _slash, _name = _text(mount, "source").rpartition("/")
        if _text(mount, "destination") in FILES_OF_DOCKER:
            # That of another container, if the two have one network.
            config = _parsed(_read(f"{directory.rpartition('/')[0]}/{identifier}/config.v2.json"))
            if _text(config, "ID") == identifier:
                _set(record, CONTAINER_NAME, _text(config, "Name").lstrip("/"))
                _set(record, IMAGE, _text(config, "Config", "Image"))
                _add(record, _at(config, "Config", "Labels"), KUBELET, pod)
                return


def _add_podman(record: Record, bundle: object, identifier: str, pod: str) -> None:
    """Add what the list of all containers says that Podman keeps beside the layers of their images."""
    storage, driver, _layer, _name = _text(bundle, "root", "path").rsplit("/", 3)
    for name in LIST_OF_STORAGE:
        try:
            containers = _read(f"{storage}/{driver}-containers/{name}")
        except FileNotFoundError:
            continue
        begin = containers.find(b'{"id":"%s",' % identifier.encode())
        if begin >= 0:
            container = _parsed(containers[begin:])
            for word in _list(container, "names")[:1]:
                _set(record, CONTAINER_NAME, str(word))
            _set(record, IMAGE, _text(_parsed(_text(container, "metadata").encode()), "image-name"))
            return


def _set(record: Record, fact: bytes, text: str) -> None:
    """Add a fact, if it is known."""
    if text:
        record.facts[fact] = text.encode("utf-8", "replace")[:LONGEST_FACT].translate(WORD)


def _read(path: str) -> bytes:
    """Return the content of a file that nobody but root can have written or replaced. Raises OSError for others.

    Nothing in a directory of somebody else is even looked at: it may lie in a file system that does not answer.
    """
    end = 0
    while end >= 0:
        _check(posix.stat(path[:end] or "/", follow_symlinks=False), linux.S_IFDIR, path)
        end = path.find("/", end + 1)
    file = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_NOCTTY)
    try:
        _check(posix.fstat(file), linux.S_IFREG, path)
        content = procfs.read_all(file, LONGEST_RECORD + 1)
    finally:
        posix.close(file)
    if len(content) > LONGEST_RECORD:
        raise ValueError(f"{path} is too long")
    return content


def _check(found: posix.stat_result, kind: int, path: str) -> None:
    """Raise PermissionError where others than root may write this file or directory, or it is something else."""
    if found.st_mode & linux.S_IFMT != kind or found.st_uid != 0 or found.st_mode & OTHERS_WRITE:
        raise PermissionError(1, "not of root alone", path)


def _parsed(text: bytes) -> object:
    """Return the JSON value with which ``text`` begins. Raises ValueError."""
    try:
        return _scan(text.decode(), 0)[0]
    except (StopIteration, RecursionError) as error:
        raise ValueError(str(error)) from None


def _at(value: "Any", *names: str) -> object:
    """Return what stands at these names in objects of JSON, None where there is nothing."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _text(value: object, *names: str) -> str:
    """Return the text at these names, "" where there is none."""
    found = _at(value, *names)
    return found if isinstance(found, str) else ""


def _list(value: object, *names: str) -> "list[object]":
    """Return the list at these names, an empty one where there is none."""
    found = _at(value, *names)
    return found if isinstance(found, list) else []

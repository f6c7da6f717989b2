#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the files of docker_core_helper on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: core_helper_files
short_description: Installs and removes the files of docker_core_helper
version_added: 1.0.0
description:
  - Installs the helper that C(kernel.core_pattern) names, its library and its configuration.
  - Finds a Python on the host for it and compiles the library for that Python, because the kernel starts the helper
    anew at each crash.
  - A new version of the library is put beside the old one, and the new helper is tried before it replaces the old one
    in one step. A crash during an upgrade meets either version whole. The version before stays, so that a crash that it
    still handles is not disturbed.
  - Refuses, before it changes anything, a host on which the helper cannot work.
options:
  state:
    description: Whether the files shall be there.
    type: str
    choices: [present, absent]
    default: present
  bin_dir:
    description: Directory of the helper.
    type: str
    default: /opt/bin
  lib_dir:
    description: Directory of the library's versions.
    type: str
    default: /opt/lib/docker_core_helper
  python:
    description:
      - Absolute path of the Python for the helper. If empty, the first usable one of the usual places is taken.
      - Only root may be able to change it, because the kernel starts it as root.
    type: str
    default: ''
  library:
    description: Name and content of each file of the library. Needed for O(state=present).
    type: dict
  entry:
    description: Content of the helper itself. Needed for O(state=present).
    type: str
  compiler:
    description:
      - Content of C(compile_library.py), with which the Python of the helper compiles the library. The host does not keep it.
      - Needed for O(state=present).
    type: str
  configuration:
    description: Content of C(/etc/docker_core_helper.conf). Needed for O(state=present).
    type: str
attributes:
  check_mode:
    support: full
    description: Tells what a run would change.
  diff_mode:
    support: full
    description: Shows the helper and the configuration, and the version of the library.
author:
  - The docker-core-helper authors
"""

EXAMPLES = r"""
- name: Install the helper
  core_helper_files:
    library:
      __init__.py: "{{ lookup('ansible.builtin.file', 'core_helper/__init__.py', rstrip=false) }}"
      main.py: "{{ lookup('ansible.builtin.file', 'core_helper/main.py', rstrip=false) }}"
    entry: "{{ lookup('ansible.builtin.file', 'docker_core_helper', rstrip=false) }}"
    compiler: "{{ lookup('ansible.builtin.file', 'compile_library.py', rstrip=false) }}"
    configuration: |
      DOCKERCOREHELPER_DELEGATE="/opt/bin/uploader.sh s3://cores/"

- name: Remove the helper
  core_helper_files:
    state: absent
"""

RETURN = r"""
python:
  description: The Python that runs the helper.
  returned: if O(state=present)
  type: str
  sample: /usr/bin/python3
python_version:
  description: The version of that Python.
  returned: if O(state=present)
  type: str
  sample: 3.11.2
library:
  description: The directory of the installed version of the library.
  returned: if O(state=present)
  type: str
  sample: /opt/lib/docker_core_helper/2f7c0d1e9a34
"""

import contextlib  # noqa: E402 (Ansible wants the documentation first)
import hashlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import stat  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

HELPER = "docker_core_helper"
PACKAGE = "core_helper"
CONFIGURATION = "/etc/docker_core_helper.conf"
# How one begins that a role has written; the template has it.
WRITTEN = "# Written by the Ansible role docker_core_helper"
CORE_PATTERN = "/proc/sys/kernel/core_pattern"
# The user and the group that own the files, and the only ones that may be able to change what the kernel starts.
OWNER = 0
GROUP = 0
# openat2(2), without which the helper could not open a container's files safely, came with Linux 5.6.
OLDEST_KERNEL = (5, 6)
# Names that the distribution keeps stable come first: the helper then survives an upgrade of Python. platform-python is
# what Red Hat's version 8 has in any case.
PYTHONS = (
    "/usr/bin/python3",
    "/usr/libexec/platform-python",
    *(f"/usr/bin/python3.{minor}" for minor in range(14, 7, -1)),
    "/usr/local/bin/python3",
)


class UnusableError(Exception):
    """The host or what was asked for cannot be used; the text names the object and the remedy."""


class Python:
    """A Python that can run the helper."""

    def __init__(self, path: str, version: str, uncompiled: list[str]) -> None:
        """Take its stable path, its version, and the files of the library that are not compiled for it."""
        self.path = path
        self.version = version
        self.uncompiled = uncompiled


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a program as the kernel starts the helper: without environment, in the root directory."""
    return subprocess.run(
        words,
        env={},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def last_line(text: str) -> str:
    """Return the line of an error output that says what happened: with Python it is the last one."""
    return (text.strip().splitlines() or ["no message"])[-1]


def changeable(path: str) -> str | None:
    """Return what of the ``path``, symbolic links followed, others than root could change.

    What is missing does not count. A directory that all may write is harmless if it is sticky: then nobody can take
    away what root owns in it.
    """
    pending = [part for part in reversed(path.split("/")) if part]
    reached = "/"
    for _step in range(200):
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(reached)
            sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
            if found.st_uid not in (0, OWNER):
                return f"{reached} belongs to user {found.st_uid}"
            if stat.S_ISLNK(found.st_mode):
                target = os.readlink(reached)
                pending += [part for part in reversed(target.split("/")) if part]
                reached = "/" if target.startswith("/") else os.path.dirname(reached)
            elif not sticky and found.st_mode & 0o002:
                return f"{reached} can be written by everybody"
            elif not sticky and found.st_mode & 0o020 and found.st_gid not in (0, GROUP):
                return f"{reached} can be written by group {found.st_gid}"
        if not pending:
            return None
        part = pending.pop()
        reached = os.path.dirname(reached) if part == ".." else os.path.join(reached, part)
    return f"{path} has too many symbolic links"


def examine(path: str, compiler: str, package: str) -> Python:
    """Return the Python at ``path``, or raise UnusableError with the reason why it cannot run the helper.

    The program ``compiler`` says that, and what of the ``package`` is not compiled for this Python; there need not be one.
    """
    if not re.match(r"/[^\s]*\Z", path):
        raise UnusableError(f"{path!r} is not an absolute path without spaces")
    if not os.access(path, os.X_OK):
        raise UnusableError(f"{path} is no program on this host")
    danger = changeable(path)
    if danger:
        raise UnusableError(f"{danger}: the kernel would start it as root")
    try:
        result = run(path, "-I", "-S", "-c", compiler, "check", package)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnusableError(f"{path} does not run: {error}") from error
    if result.returncode:
        raise UnusableError(f"{path} {last_line(result.stderr)}")
    version, uncompiled = result.stdout.splitlines()
    return Python(path, version, uncompiled.split())


def find_python(asked: str, compiler: str, package: str) -> Python:
    """Return the Python ``asked`` for, or else the first usable one; raise UnusableError if there is none."""
    reasons = []
    for path in [asked] if asked else PYTHONS:
        if not asked and not os.path.exists(path):
            continue
        try:
            return examine(path, compiler, package)
        except UnusableError as error:
            reasons.append(str(error))
    remedy = "change docker_core_helper_python" if asked else "install one, or name it by docker_core_helper_python"
    raise UnusableError(f"no usable Python: {'; '.join(reasons) or 'none in the usual places'}; {remedy}")


def read(path: str) -> str | None:
    """Return the content of a file, None if there is none. Bytes that are not text become escapes."""
    try:
        with open(path, encoding="utf-8", errors="backslashreplace", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None


def is_owned(path: str, mode: int) -> bool:
    """Tell whether ``path`` has this mode, and the owner of all our files, and is no symbolic link."""
    found = os.lstat(path)
    is_link = stat.S_ISLNK(found.st_mode)
    return not is_link and (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, OWNER, GROUP)


def version_of(library: dict[str, str]) -> str:
    """Return the name of the library's version: it changes with every file."""
    digest = hashlib.sha256()
    for name, content in sorted(library.items()):
        digest.update(f"{name}\0{content}\0".encode())
    return digest.hexdigest()[:12]


def library_of(entry: str | None) -> str | None:
    """Return the directory that an installed helper takes its library from; None if it is not one of ours."""
    found = re.search(r'^LIBRARY = "(/.*)"$', entry or "", re.MULTILINE)
    return found.group(1) if found and (entry or "").startswith("#!") else None


def remove_empty(directories: list[str]) -> None:
    """Remove directories, the last one first, as far as nothing is in them."""
    for directory in reversed(directories):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


class Files:
    """The files of the helper, as they are and as they are wanted."""

    def __init__(self, module: AnsibleModule) -> None:
        """Take the parameters; look at the host, change nothing."""
        self.module = module
        self.bin_dir: str = module.params["bin_dir"]
        self.lib_dir: str = module.params["lib_dir"]
        self.entry = os.path.join(self.bin_dir, HELPER)
        # The directories that were missing before the first installation: these go with it.
        self.directories = os.path.join(self.lib_dir, "directories.json")
        self.diff: list[dict[str, str]] = []

    # -- looking

    def refuse_host(self) -> None:
        """Raise UnusableError if the helper cannot work on this host."""
        if not sys.platform.startswith("linux"):
            raise UnusableError(f"this host runs {sys.platform}: only Linux has kernel.core_pattern")
        release = os.uname().release
        numbers = re.match(r"(\d+)\.(\d+)", release)
        if numbers and (int(numbers.group(1)), int(numbers.group(2))) < OLDEST_KERNEL:
            raise UnusableError(f"this host runs Linux {release}: the helper needs 5.6 or newer, for openat2(2)")
        if os.geteuid() != OWNER:
            raise UnusableError(
                "only root can install the helper: become root, with ansible-playbook --become for example"
            )
        if not os.access(CORE_PATTERN, os.W_OK):
            raise UnusableError(
                f"{CORE_PATTERN} cannot be written: this seems to be a container, apply the role to its host"
            )
        for directory in (self.bin_dir, self.lib_dir):
            danger = changeable(directory)
            if danger:
                raise UnusableError(f"{directory} cannot hold what the kernel starts as root: {danger}")

    def refuse_second_installation(self) -> None:
        """Raise UnusableError if the helper is installed elsewhere: those files would stay for ever."""
        remedy = "remove it first, with docker_core_helper_state=absent and the directories that it was installed with"
        for word in (read(CORE_PATTERN) or "").lstrip("|").split():
            if word != self.entry and library_of(read(word) if os.path.basename(word) == HELPER else None):
                raise UnusableError(f"the helper is already installed as {word}: {remedy}")
        library = library_of(read(self.entry))
        if library and os.path.dirname(library) != self.lib_dir:
            raise UnusableError(f"the installed helper has its library in {os.path.dirname(library)}: {remedy}")

    def refuse_configuration(self) -> None:
        """Raise UnusableError if there is a configuration that somebody has written by hand: removal could not give it back."""
        if not library_of(read(self.entry)) and not (read(CONFIGURATION) or WRITTEN).startswith(WRITTEN):
            raise UnusableError(
                f"{CONFIGURATION} was written by somebody else, and would be lost: move it away, and give its settings to"
                " the role"
            )

    def wanted_entry(self, python: str, version: str) -> str:
        """Return the entry for this host: its interpreter and the directory of its library filled in."""
        content: str = self.module.params["entry"]
        for pattern, line in (
            (r"\A#!/usr/bin/python3 -IS$", f"#!{python} -IS"),
            (r"^LIBRARY = .*$", f'LIBRARY = "{version}"'),
        ):
            content, count = re.subn(pattern, line.replace("\\", r"\\"), content, flags=re.MULTILINE)
            if count != 1:
                raise UnusableError(
                    f"the helper to install has {count} lines {pattern}, not one: is the role complete?"
                )
        return content

    def wrong_files(self, package: str) -> list[str]:
        """Return the library's files that are not in ``package`` as they should be."""
        wrong = []
        for name, content in sorted(self.module.params["library"].items()):
            path = os.path.join(package, name)
            if read(path) != content or not is_owned(path, 0o644):
                wrong.append(name)
        return wrong

    def wrong_compiled(self, package: str) -> list[str]:
        """Return the compiled files in ``package`` that do not belong to us, or have another mode."""
        cache = os.path.join(package, "__pycache__")
        paths = [os.path.join(cache, name) for name in sorted(os.listdir(cache))] if os.path.isdir(cache) else []
        return [path for path in paths if not os.path.isdir(path) and not is_owned(path, 0o644)]

    def created_directories(self) -> list[str]:
        """Return the directories that an earlier run has created, the innermost last."""
        return list(json.loads(read(self.directories) or "[]"))

    def missing_directories(self) -> list[str]:
        """Return the directories that this run has to create, the innermost last."""
        missing: list[str] = []
        for directory in (self.bin_dir, self.lib_dir):
            parents = []
            while not os.path.isdir(directory):
                parents.append(directory)
                directory = os.path.dirname(directory)
            missing += [parent for parent in reversed(parents) if parent not in missing]
        return missing

    def versions(self) -> list[str]:
        """Return the directories of the library's versions, and of those that an interrupted run has left.

        A name of this kind does not make a directory ours, where others keep things in the same place: nothing but the library
        is in one of ours.
        """
        names = sorted(os.listdir(self.lib_dir)) if os.path.isdir(self.lib_dir) else []
        paths = [os.path.join(self.lib_dir, name) for name in names if re.match(r"(\.new\.)?[0-9a-f]{12}\Z", name)]
        return [
            path
            for path in paths
            if os.path.isdir(path) and not os.path.islink(path) and not set(os.listdir(path)) - {PACKAGE}
        ]

    def show(self, name: str, before: str | None, after: str | None) -> None:
        """Add a change to what --diff shows."""
        self.diff.append({"before_header": name, "after_header": name, "before": before or "", "after": after or ""})

    # -- changing

    def make_directories(self, paths: list[str]) -> None:
        """Create directories, readable for all whatever the umask is."""
        for path in paths:
            os.mkdir(path)
            os.chmod(path, 0o755)
            self.module.set_default_selinux_context(path, False)

    def write(self, path: str, content: str, mode: int) -> None:
        """Write a file that after a crash of the host is either the old or the new one."""
        os.replace(self.write_temporary(path, content, mode), path)

    def write_temporary(self, path: str, content: str, mode: int) -> str:
        """Write what shall become the file ``path`` beside it, and return its name."""
        descriptor, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=os.path.dirname(path))
        try:
            with open(descriptor, "w", encoding="utf-8", newline="") as file:
                file.write(content)
                os.fchmod(descriptor, mode)
                os.fchown(descriptor, OWNER, GROUP)
                file.flush()
                os.fsync(descriptor)
            self.module.set_context_if_different(temporary, self.module.selinux_default_context(path), False)
        except BaseException as error:
            os.unlink(temporary)
            if isinstance(error, OSError):
                error.filename = path  # A full disk names no file.
            raise
        return temporary

    def compile(self, python: Python, staged: str, final: str) -> None:
        """Compile the library's files in ``staged`` for the Python of the helper."""
        result = run(python.path, "-I", "-S", "-c", self.module.params["compiler"], "compile", staged, final)
        if result.returncode:
            raise UnusableError(f"{python.path} cannot compile the helper's library: {last_line(result.stderr)}")

    def install_library(self, python: Python, version: str) -> None:
        """Bring a whole new version into place in one step, or repair what is wrong in an existing one file by file."""
        library = self.module.params["library"]
        package = os.path.join(version, PACKAGE)
        if os.path.isdir(package):
            for name in self.wrong_files(package):
                self.write(os.path.join(package, name), library[name], 0o644)
            for path in self.wrong_compiled(package):
                os.unlink(path)
            self.compile(python, package, package)
            return
        staged = os.path.join(self.lib_dir, f".new.{os.path.basename(version)}")
        for leftover in (staged, version):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            self.make_directories([staged, os.path.join(staged, PACKAGE)])
            for name, content in library.items():
                self.write(os.path.join(staged, PACKAGE, name), content, 0o644)
            self.compile(python, os.path.join(staged, PACKAGE), package)
            os.rename(staged, version)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def install_entry(self, content: str) -> None:
        """Put the helper into its place if it starts on this host as the kernel would start it."""
        temporary = self.write_temporary(self.entry, content, 0o755)
        try:
            result = run(temporary, "--version")
            if result.returncode or not result.stdout.startswith(HELPER):
                raise UnusableError(f"the new helper does not start on this host: {last_line(result.stderr)}")
            os.replace(temporary, self.entry)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UnusableError(f"the new helper does not start from {self.bin_dir}: {error}") from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    # -- the two states

    def present(self) -> dict[str, object]:
        """Install what is missing or different, and return the result for Ansible."""
        self.refuse_host()
        self.refuse_second_installation()
        self.refuse_configuration()
        library = self.module.params["library"]
        if "__init__.py" not in library or any("/" in name for name in library):
            raise UnusableError("the helper's library is not in what the role brought: is the role complete?")
        version = os.path.join(self.lib_dir, version_of(library))
        package = os.path.join(version, PACKAGE)
        # In a sticky directory somebody else may have been first, with the name that everybody can tell.
        danger = changeable(os.path.join(package, "__pycache__"))
        if danger:
            raise UnusableError(f"{version} cannot hold what the kernel starts as root: {danger}; remove it")
        python = find_python(self.module.params["python"], self.module.params["compiler"], package)
        entry = self.wanted_entry(python.path, version)
        configuration = self.module.params["configuration"]

        before = read(self.entry)
        missing = self.missing_directories()
        old = library_of(before)
        wrong = not os.path.isdir(package) or self.wrong_files(package) or self.wrong_compiled(package)
        install_library = bool(wrong or python.uncompiled)
        if install_library:
            state = f"{old}{', damaged' if wrong else ', for another Python'}\n" if old == version else f"{old}\n"
            self.show("library", state if old else None, f"{version}\n")
        install_configuration = read(CONFIGURATION) != configuration or not is_owned(CONFIGURATION, 0o644)
        if install_configuration:
            self.show(CONFIGURATION, read(CONFIGURATION), configuration)
        install_entry = before != entry or not is_owned(self.entry, 0o755)
        if install_entry:
            self.show(self.entry, before, entry)

        if not self.module.check_mode:
            new = not os.path.isdir(version)
            self.make_directories(missing)
            try:
                if install_library:
                    self.install_library(python, version)
                if install_entry:
                    self.install_entry(entry)
            except (OSError, UnusableError):
                if new:
                    shutil.rmtree(version, ignore_errors=True)
                remove_empty(missing)
                raise
            if missing:
                self.write(self.directories, json.dumps(self.created_directories() + missing) + "\n", 0o644)
            if install_configuration:
                self.write(CONFIGURATION, configuration, 0o644)
            if old != version:
                self.prune({version, old})
        return {
            "changed": install_library or install_configuration or install_entry,
            "diff": self.diff,
            "python": python.path,
            "python_version": python.version,
            "library": version,
        }

    def prune(self, kept: set[str | None]) -> None:
        """Remove all versions of the library but the ``kept`` ones."""
        for version in self.versions():
            if version not in kept:
                shutil.rmtree(version)

    def absent(self) -> dict[str, object]:
        """Remove the files, and the directories that were created for them."""
        paths = self.versions()
        entry = read(self.entry)
        if entry is not None and not library_of(entry):
            self.module.warn(f"{self.entry} was not installed by this role: left as it is, with {CONFIGURATION}")
        elif os.path.exists(CONFIGURATION) and (entry or (read(CONFIGURATION) or WRITTEN).startswith(WRITTEN)):
            self.show(CONFIGURATION, read(CONFIGURATION), None)
            paths.append(CONFIGURATION)
        if library_of(entry):
            self.show(self.entry, entry, None)
            # First of all: a helper without its library is worse than none.
            paths.insert(0, self.entry)
        if os.path.exists(self.directories):
            paths.append(self.directories)
        if not self.module.check_mode:
            created = self.created_directories()
            for path in paths:
                if os.path.isdir(path):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
            remove_empty(created)
        return {"changed": bool(paths), "diff": self.diff}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "bin_dir": {"type": "str", "default": "/opt/bin"},
            "lib_dir": {"type": "str", "default": "/opt/lib/docker_core_helper"},
            "python": {"type": "str", "default": ""},
            # Nothing secret: no_log keeps 100 KB out of the host's log, where Ansible writes the parameters.
            "library": {"type": "dict", "no_log": True},
            "entry": {"type": "str", "no_log": True},
            "compiler": {"type": "str", "no_log": True},
            "configuration": {"type": "str"},
        },
        required_if=[("state", "present", ["library", "entry", "compiler", "configuration"])],
        supports_check_mode=True,
    )
    os.umask(0o022)
    files = Files(module)
    try:
        result = files.present() if module.params["state"] == "present" else files.absent()
    except UnusableError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()

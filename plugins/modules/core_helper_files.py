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
  - Finds a Python on the host for it and compiles the library for that Python, because the kernel starts a new helper
    at each crash.
  - A new version of the library is put next to the old one, and the new helper is tried before it replaces the old one
    in one step. One complete version handles a crash during an upgrade, the old or the new one. The previous version
    stays, so that a crash that it still handles is not disturbed.
  - Refuses, before it changes anything, a host on which the helper cannot work.
  - With O(uploader), also sets up what sends the cores that the host keeps - a system user, credentials, and a timer of
    systemd. That comes last, and goes first. The cores themselves stay where they are, also after O(state=absent).
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
  lent:
    description:
      - Path of the program that the helper lends to containers. It is refused if it is not static, or if others than root can
        change it.
    type: str
  uploader:
    description:
      - Content of C(uploader.sh), which goes to O(lib_dir), for a sender. Without it there shall be no sender.
      - Needs O(service) and O(timer).
    type: str
  service:
    description: Content of C(docker-core-helper-sender.service).
    type: str
  timer:
    description: Content of C(docker-core-helper-sender.timer), which is enabled and started.
    type: str
  credentials:
    description:
      - Content of C(/etc/docker_core_helper.credentials), whose variables the sender gets. Only root may read the
        file.
      - Nothing that this module returns or logs has a value of it.
    type: str
attributes:
  check_mode:
    support: full
    description: Tells what a run would change.
  diff_mode:
    support: full
    description: Shows the helper, the configuration and the units, the version of the library and of the uploader, and the
      names of the credentials.
author:
  - The docker-core-helper authors (@docker-core-helper)
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
import json  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils.docker_core_helper import directories, files, kept_cores, library, places, usable_host  # noqa: E402
from ..module_utils.docker_core_helper.places import BIN_DIR, HELPER, LIB_DIR, is_ours, library_of  # noqa: E402
from ..module_utils.docker_core_helper.programs import last_line  # noqa: E402
from ..module_utils.docker_core_helper.sender import Sender  # noqa: E402
from ..module_utils.docker_core_helper.usable_python import UnusableError, find_python, run  # noqa: E402


class Files:
    """The files of the helper, as they are and as they are wanted."""

    def __init__(self, module: AnsibleModule) -> None:
        """Read the parameters; look at the host, change nothing."""
        self.module = module
        self.bin_dir: str = module.params["bin_dir"]
        self.lib_dir: str = module.params["lib_dir"]
        self.library = library.Library(module, self.lib_dir, module.params["library"])
        self.entry = os.path.join(self.bin_dir, HELPER)
        self.sender = Sender(module, self.lib_dir)
        # The directories that were missing before the first installation: these go with it.
        self.directories = os.path.join(self.lib_dir, "directories.json")
        self.diff: list[dict[str, str]] = []

    # -- the two states

    def present(self) -> dict[str, object]:
        """Install what is missing or different, and return the result for Ansible. Raises UnusableError."""
        usable_host.refuse_host((self.bin_dir, self.lib_dir))
        usable_host.refuse_second_installation(self.entry, self.lib_dir)
        usable_host.refuse_configuration(self.entry)
        usable_host.refuse_lent(self.module.params["lent"])
        self.library.refuse()
        sender = self.wanted_sender()
        self.sender.refuse(sender)
        version = self.library.version
        compiler = self.module.params["compiler"]
        python = find_python(self.module.params["python"], compiler, self.library.package)
        entry = self.wanted_entry(python.path, version)
        configuration = self.module.params["configuration"]

        before = files.read(self.entry)
        missing = directories.missing((self.bin_dir, self.lib_dir))
        old = library_of(before)
        damaged = self.library.is_damaged()
        install_library = bool(damaged or python.uncompiled)
        if install_library:
            state = f"{old}{', damaged' if damaged else ', for another Python'}\n" if old == version else f"{old}\n"
            self.show("library", state if old else None, f"{version}\n")
        path = places.CONFIGURATION
        install_configuration = files.read(path) != configuration or not library.is_owned(path, 0o644)
        if install_configuration:
            self.show(path, files.read(path), configuration)
        install_entry = before != entry or not library.is_owned(self.entry, 0o755)
        if install_entry:
            self.show(self.entry, before, entry)

        if not self.module.check_mode:
            new = not os.path.isdir(version)
            directories.create(self.module, missing)
            recorded = files.read(self.directories)
            try:
                # Before anything else: a removal after an interrupted run deletes these, too.
                if missing:
                    self.write(self.directories, json.dumps(self.created_directories() + missing) + "\n")
                if install_library:
                    self.library.install(python, compiler)
                if install_entry:
                    self.install_entry(entry)
            except (OSError, UnusableError):
                if new:
                    shutil.rmtree(version, ignore_errors=True)
                if missing and recorded is not None:
                    self.write(self.directories, recorded)
                elif missing:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.directories)
                directories.remove_empty(missing)
                raise
            if install_configuration:
                self.write(path, configuration)
            if old != version:
                self.library.prune({version, old})
        # Last of all: it starts the new helper.
        try:
            change_sender = self.sender.change(sender)
        except (OSError, UnusableError) as error:
            raise UnusableError(
                f"{files.reason(error)}; the helper itself is whole, its sender is not: run this again when that is mended"
            ) from error
        self.diff += change_sender
        return {
            "changed": bool(install_library or install_configuration or install_entry or change_sender),
            "diff": self.diff,
            "python": python.path,
            "python_version": python.version,
            "library": version,
        }

    def absent(self) -> dict[str, object]:
        """Remove the files, and the directories that were created for them. The cores that the host keeps stay."""
        paths = self.library.versions()
        entry = files.read(self.entry)
        configuration = files.read(places.CONFIGURATION)
        kept_cores.warn(self.module, configuration)
        # First of all: it starts the helper.
        change_sender = self.sender.change(self.wanted_sender())
        self.diff += change_sender
        if entry is not None and not library_of(entry):
            self.module.warn(f"{self.entry} was not installed by this role: left as it is, with {places.CONFIGURATION}")
        elif configuration is not None and (entry or is_ours(configuration)):
            self.show(places.CONFIGURATION, configuration, None)
            paths.append(places.CONFIGURATION)
        if library_of(entry):
            self.show(self.entry, entry, None)
            # First of these: a helper without its library is worse than none.
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
            directories.remove_empty(created)
        return {"changed": bool(paths or change_sender), "diff": self.diff}

    # -- before a change

    def wanted_entry(self, python: str, version: str) -> str:
        """Return the entry for this host: its interpreter and the directory of its library filled in. Raises UnusableError."""
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

    def wanted_sender(self) -> dict[str, str | None]:
        """Return the files of the sender as they shall be: none without an uploader, and none after a removal."""
        names = ("uploader", "service", "timer", "credentials")
        is_wanted = self.module.params["state"] == "present"
        uploader, service, timer, credentials = (self.module.params[name] if is_wanted else None for name in names)
        return {**self.sender.wanted(uploader, service, timer), places.CREDENTIALS: (uploader and credentials) or None}

    def created_directories(self) -> list[str]:
        """Return the directories that an earlier run has created, the innermost last."""
        return list(json.loads(files.read(self.directories) or "[]"))

    # -- a change

    def write(self, path: str, content: str) -> None:
        """Write a file of ours that all may read."""
        files.write(self.module, path, content, 0o644, library.owner())

    def install_entry(self, content: str) -> None:
        """Put the helper into its place if it starts on this host as the kernel would start it. Raises UnusableError."""
        temporary = files.write_beside(self.module, self.entry, content, 0o755, library.owner())
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

    def show(self, name: str, before: str | None, after: str | None) -> None:
        """Add a change to what --diff shows."""
        self.diff.append(files.diff_step(name, before, after))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "bin_dir": {"type": "str", "default": BIN_DIR},
            "lib_dir": {"type": "str", "default": LIB_DIR},
            "python": {"type": "str", "default": ""},
            # Nothing secret: no_log keeps 100 KB out of the host's log, where Ansible writes the parameters.
            "library": {"type": "dict", "no_log": True},
            "entry": {"type": "str", "no_log": True},
            "compiler": {"type": "str", "no_log": True},
            "configuration": {"type": "str"},
            "lent": {"type": "str"},
            "uploader": {"type": "str", "no_log": True},
            "service": {"type": "str"},
            "timer": {"type": "str"},
            # One text, and no mapping of names to values: Ansible would hide each value wherever it stands, also "1".
            "credentials": {"type": "str", "no_log": True},
        },
        required_together=[("uploader", "service", "timer")],
        required_if=[("state", "present", ["library", "entry", "compiler", "configuration"])],
        supports_check_mode=True,
    )
    os.umask(0o022)
    installation = Files(module)
    try:
        result = installation.present() if module.params["state"] == "present" else installation.absent()
    except (OSError, UnusableError) as error:
        module.fail_json(msg=files.reason(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

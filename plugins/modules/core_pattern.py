#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the kernel's core pattern, live and for the next boot."""

from __future__ import annotations

DOCUMENTATION = r"""
module: core_pattern
short_description: Makes the kernel start docker_core_helper at each crash, and gives the kernel back
version_added: 1.0.0
description:
  - Sets C(kernel.core_pipe_limit) and then C(kernel.core_pattern), live and for the next boot, and reads both back. If
    the kernel shows other values than those written, everything is set back to what it was and the module fails.
  - Before the first change it keeps the live values in a file, from which O(state=absent) restores them.
  - Looks who else would set these values at the next boot, by the order of C(sysctl.d(5\)) and by the services that are
    known to write the pattern when they start, and either refuses or takes over, so that O(state=absent) can undo it.
  - The live value is set here and not in a handler, because notified handlers do not run when a batch of hosts is
    aborted.
options:
  state:
    description: Whether the kernel shall start the helper.
    type: str
    choices: [present, absent]
    default: present
  pattern:
    description: The value for C(kernel.core_pattern). Needed for O(state=present).
    type: str
  pipe_limit:
    description:
      - The value for C(kernel.core_pipe_limit), how many crashes are at the helper at a time. Needed for O(state=present).
      - How many cores the helper delivers at once is a line of its configuration.
    type: int
  record:
    description: The file that keeps the values from before the first change. Its directory must exist.
    type: str
    default: /opt/lib/docker_core_helper/previous.json
  sysctl_file:
    description:
      - The file that sets both values at the next boot; see C(sysctl.d(5\)).
      - With O(conflicts=take_over) it may become C(zz-docker-core-helper.conf) in the same directory.
    type: str
    default: /etc/sysctl.d/60-docker-core-helper.conf
  conflicts:
    description:
      - What to do if somebody else would win at the next boot. V(fail) names each and changes nothing. V(take_over) gives the
        file a name that sorts last, and where that is not enough comments lines out and disables services.
    type: str
    choices: [fail, take_over]
    default: fail
attributes:
  check_mode:
    support: full
    description: Tells what a run would change.
  diff_mode:
    support: full
    description: Shows the live values and the file for the next boot.
author:
  - The docker-core-helper authors
"""

EXAMPLES = r"""
- name: Let the kernel start the helper
  core_pattern:
    pattern: "|/opt/bin/docker_core_helper %P %u %g"
    pipe_limit: 512

- name: Give the kernel back
  core_pattern:
    state: absent
"""

RETURN = r"""
live:
  description:
    - The live C(kernel.core_pattern) that this run has found, before it changed anything.
    - This and the next five are returned if the module fails, too.
  returned: always
  type: str
  sample: core
pipe_limit:
  description: The live C(kernel.core_pipe_limit) that this run has found.
  returned: always
  type: int
  sample: 0
next_boot:
  description: The C(kernel.core_pattern) of the next boot as this run has found it; empty if a service decides it.
  returned: always
  type: str
  sample: "|/bin/false"
next_boot_file:
  description: The file, or the service, that decides about it; empty if the kernel's own value stays.
  returned: always
  type: str
  sample: /etc/sysctl.d/99-kernel_core_pattern.conf
conflicts:
  description: A line for each who would win over the wanted values at the next boot. O(conflicts=take_over) takes these over.
  returned: always
  type: list
  elements: str
previous_handler:
  description: The command line of the program that got the host's core dumps before the first change; empty if none did.
  returned: always
  type: list
  elements: str
  sample: [/usr/lib/systemd/systemd-coredump, "%P", "%u"]
core_pattern:
  description: The live value after the run.
  returned: always
  type: str
  sample: "|/opt/bin/docker_core_helper %P %u %g"
core_pipe_limit:
  description: The live value after the run.
  returned: always
  type: str
  sample: "512"
previous:
  description: The values from before the first change.
  returned: always
  type: dict
  sample: {core_pattern: core, core_pipe_limit: "0"}
"""

import contextlib  # noqa: E402 (Ansible wants the documentation first)
import errno  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import shlex  # noqa: E402
import stat  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

HELPER = "docker_core_helper"
ROOT = "/"
KERNEL = "/proc/sys/kernel"
# In this order: a helper must never be started without the limit, because the kernel would then not wait for it.
NAMES = ("core_pipe_limit", "core_pattern")
# What the kernel has if nobody sets anything.
DEFAULTS = {"core_pattern": "core", "core_pipe_limit": "0"}
HEADER = """\
# Written by the Ansible role docker_core_helper; its docker_core_helper_state=absent removes it.
# Above 0: the kernel waits for the helper, and drops the crashes that come while so many are at the helper.
"""
WRITTEN = HEADER.partition(";")[0]
# Of these directories, the first one that has a file of a name masks that of the others; sysctl.d(5).
DIRECTORIES = ("etc", "run", "usr/local/lib", "usr/lib", "lib")
# Sorts behind whatever begins with a number.
LAST = "zz-docker-core-helper.conf"
MARK = "# docker_core_helper took this over, its removal gives it back: "
# Set the pattern whenever they start, also when their package is upgraded.
SERVICES = ("apport.service", "abrt-ccpp.service")
# Programs that are in a core pattern so that there are no cores.
NO_HANDLERS = ("false", "true")
REMEDY = "or set docker_core_helper_conflicts=take_over"


class SettingError(Exception):
    """A value cannot be set; the text names it, what the kernel shows, and the remedy."""


class ConflictError(Exception):
    """Somebody else would win at the next boot; the text names who, where, and the remedy."""


def read(path: str) -> str | None:
    """Return the content of a file, None if there is none."""
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            return file.read()
    except FileNotFoundError:
        return None


def parse_record(text: str, path: str) -> dict[str, Any]:
    """Return the values from before the first change, and what was taken over. Raises SettingError where they are not told."""
    try:
        record = json.loads(text)
        if all(isinstance(record[name], str) for name in DEFAULTS) and isinstance(record.get("taken_over", {}), dict):
            return dict(record)
    except (ValueError, TypeError, LookupError, AttributeError):
        pass
    raise SettingError(
        f"{path} does not tell the values from before the first run any more: restore it, or write"
        f" {json.dumps(DEFAULTS)} into it"
    )


def get(name: str) -> str:
    """Return a live value of the kernel."""
    return (read(os.path.join(KERNEL, name)) or "").rstrip("\n")


def set_live(values: dict[str, str], names: tuple[str, ...]) -> None:
    """Set live values in the order of ``names`` and read each back, as some kernels take what they cannot use.

    Raises SettingError if the kernel refuses one or shows another one.
    """
    for name in names:
        value = values[name]
        if get(name) == value:
            continue
        try:
            with open(os.path.join(KERNEL, name), "w", encoding="utf-8") as file:
                file.write(value + "\n")
        except OSError as error:
            raise SettingError(f"kernel.{name}: the kernel refuses {value!r}: {error.strerror}") from error
        if get(name) != value:
            raise SettingError(f"kernel.{name}: wrote {value!r}, but the kernel shows {get(name)!r}")


def access(path: str) -> str:
    """Return whose a file is and who may write it, empty if it is as all of ours are, or is not there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return ""
    wrong = stat.S_ISLNK(found.st_mode) or (found.st_uid, stat.S_IMODE(found.st_mode)) != (os.geteuid(), 0o644)
    return f"# {stat.filemode(found.st_mode)}, user {found.st_uid}\n" if wrong else ""


def lines(values: dict[str, str]) -> str:
    """Return values of the kernel as sysctl.d(5) has them."""
    return "".join(f"kernel.{name} = {values[name]}\n" for name in NAMES)


def starts_the_helper(pattern: str) -> bool:
    """Tell whether a core pattern is one of ours, however it names the helper and its options."""
    return any(os.path.basename(word) == HELPER for word in pattern.lstrip("|").split())


def handler_of(pattern: str) -> list[str]:
    """Return the words of the program that a core pattern hands cores to; none if that is ours, or one that drops them."""
    words = pattern[1:].split() if pattern.startswith("|") else []
    if not words or starts_the_helper(pattern) or os.path.basename(words[0]) in NO_HANDLERS:
        return []
    return words if os.path.isfile(words[0]) and os.access(words[0], os.X_OK) else []


class Assignment(NamedTuple):
    """A line of a file that sets one of the two values."""

    file: str
    number: int
    name: str
    value: str
    line: str


def read_exactly(path: str) -> str:
    """Return the content of somebody else's file so that writing it gives the same bytes again; empty if there is none.

    A directory and a link that leads nowhere or in a circle set nothing at boot either, and a pipe would have us wait for ever.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        with open(path, encoding="latin-1", newline="") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return ""


def assignments(path: str) -> list[Assignment]:
    """Return the lines of ``path`` that set one of the two values, in either spelling of the key; sysctl.d(5).

    Keys with wildcards are left out, as both systemd and procps do for a key that is set by its name: ours is.
    """
    found = []
    for number, line in enumerate(read_exactly(path).split("\n"), 1):
        key, equals, value = line.strip().partition("=")
        # A - in front: no error if it cannot be set.
        name = re.sub(r"^-?\s*kernel[./](\w+)\s*$", r"\1", key)
        if equals and name in NAMES:
            found.append(Assignment(path, number, name, value.strip(), line))
    return found


class Boot:
    """Who sets the two values at the next boot: the files of sysctl.d(5) in their order, and services at their start."""

    def __init__(self, own: tuple[str, str]) -> None:
        """Look at the host. ``own`` are the two names that our file may have: they are not somebody else's."""
        self.own = own
        self.systemd = os.path.isdir(os.path.join(ROOT, "run/systemd/system"))
        files: dict[str, str] = {}
        for directory in DIRECTORIES:
            directory = os.path.join(ROOT, directory, "sysctl.d")
            for name in os.listdir(directory) if os.path.isdir(directory) else []:
                if name.endswith(".conf"):
                    files.setdefault(name, os.path.join(directory, name))
        last = os.path.join(ROOT, "etc/sysctl.conf")
        if not self.systemd:
            # sysctl --system reads this one last, whatever links lead to it; systemd only where a link does.
            files = {name: file for name, file in files.items() if os.path.realpath(file) != os.path.realpath(last)}
        # Each with its place in the order. What is masked by a link to /dev/null has no lines.
        self.lines = [((0, name), line) for name in sorted(files) for line in assignments(files[name])]
        if not self.systemd:
            self.lines += [((1, ""), line) for line in assignments(last)]
        links = {service: self.links(service) for service in SERVICES}
        # Those that are enabled, with the symbolic links that say so.
        self.services = {service: found for service, found in links.items() if found}

    def winner(self, name: str) -> Assignment | None:
        """Return the line that sets a value last, None if there is none."""
        found = [line for _, line in self.lines if line.name == name]
        return found[-1] if found else None

    def stronger(self, file: str, wanted: dict[str, str]) -> list[tuple[tuple[int, str], Assignment]]:
        """Return the lines that are read after our ``file`` and set other values than the ``wanted`` ones."""
        ours = (0, os.path.basename(file))
        later = [(place, line) for place, line in self.lines if place > ours and line.file not in self.own]
        found = []
        for name in NAMES:
            same = [(place, line) for place, line in later if line.name == name]
            if same and same[-1][1].value != wanted[name]:
                found += [(place, line) for place, line in same if line.value != wanted[name]]
        return found

    def links(self, service: str) -> list[str]:
        """Return the symbolic links by which a service is enabled."""
        units = os.path.join(ROOT, "etc/systemd/system")
        if os.path.realpath(os.path.join(units, service)) == "/dev/null":
            return []
        found = []
        for directory in sorted(os.listdir(units)) if os.path.isdir(units) else []:
            link = os.path.join(units, directory, service)
            if directory.endswith((".wants", ".requires")) and os.path.islink(link):
                found.append(link)
        name = service.rpartition(".")[0]
        native = any(os.path.exists(os.path.join(ROOT, path, "systemd/system", service)) for path in DIRECTORIES)
        # Without systemd, or for it to make a unit of: the links of the run levels. Apport's script asks its settings first.
        if not (self.systemd and native) and os.path.exists(os.path.join(ROOT, "etc/init.d", name)):
            settings = read_exactly(os.path.join(ROOT, "etc/default", name))
            if not re.search(r"^\s*enabled=[\"']?0", settings, re.MULTILINE):
                for level in "2345":
                    directory = os.path.join(ROOT, f"etc/rc{level}.d")
                    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
                    found += [os.path.join(directory, link) for link in names if re.match(rf"S\d\d{name}\Z", link)]
        return found

    def next(self, live: dict[str, str]) -> tuple[str, str]:
        """Return the core pattern of the next boot, and the file or service that decides about it."""
        for service in self.services:
            name = service.rpartition(".")[0].partition("-")[0]
            return (live["core_pattern"] if f"/{name}" in live["core_pattern"] else "", service)
        winner = self.winner("core_pattern")
        if winner:
            return winner.value, winner.file
        try:
            words = shlex.split(read("/proc/cmdline") or "")
        except ValueError:
            words = []
        # The kernel sets these before the first program, so that every file comes later.
        given = [re.match(r"sysctl\.kernel[./]core_pattern=(.*)", word) for word in words]
        values = [found.group(1) for found in given if found]
        return (values[-1], "/proc/cmdline") if values else (DEFAULTS["core_pattern"], "")


class Takeover:
    """What was taken from others, for the record: it says how to give that back, done or not."""

    def __init__(self, module: AnsibleModule, recorded: dict[str, Any]) -> None:
        """Take what is recorded of earlier runs."""
        self.module = module
        self.sysctl_file: str | None = recorded.get("sysctl_file")
        self.lines: list[list[str]] = [list(line) for line in recorded.get("lines", [])]
        self.services: dict[str, dict[str, str]] = dict(recorded.get("services", {}))

    def recorded(self) -> dict[str, Any]:
        """Return what is to be recorded; nothing if nothing was taken."""
        found = {"sysctl_file": self.sysctl_file, "lines": self.lines, "services": self.services}
        return {key: value for key, value in found.items() if value}

    def add_line(self, line: Assignment) -> None:
        """Plan to comment a line out."""
        # Where a link leads, because the link must stay one.
        entry = [os.path.realpath(line.file), line.line]
        if entry not in self.lines:
            self.lines.append(entry)

    def add_service(self, service: str, links: list[str]) -> None:
        """Plan to disable a service."""
        self.services.setdefault(service, {}).update({link: os.readlink(link) for link in links})

    def comment_out(self, file: str) -> str:
        """Return the content of ``file`` without the planned lines."""
        content = read_exactly(file)
        for path, line in self.lines:
            if path == file:
                content = "\n".join(MARK + found if found == line else found for found in content.split("\n"))
        return content

    def give_back(self, file: str) -> str:
        """Return the content of ``file`` with our lines in force again. Whatever somebody has changed meanwhile stays."""
        content = read_exactly(file)
        theirs = [line for path, line in self.lines if path == file]
        if not os.path.exists(file):
            self.module.warn(f"{file} is gone: not given back: {'; '.join(theirs)}")
            return content
        added = [found for found in assignments(file) if found.line not in theirs]
        for line in theirs:
            found = content.split("\n")
            if MARK + line in found and added:
                self.module.warn(
                    f"{file}, line {added[0].number}, was added meanwhile: left as it is; from before, in a comment: {line}"
                )
            elif MARK + line in found:
                content = "\n".join(line if one == MARK + line else one for one in found)
            elif line not in found:
                self.module.warn(f"{file} was changed meanwhile: left as it is; before, it had the line: {line}")
        return content

    def files(self) -> list[str]:
        """Return the files that have lines of ours."""
        return sorted({path for path, _ in self.lines})

    def disable(self, service: str) -> None:
        """Disable a service. It is not stopped: Apport, for one, would then set values of its own."""
        if os.path.isdir(os.path.join(ROOT, "run/systemd/system")):
            code, _, said = self.module.run_command(["systemctl", "disable", service])
            if code:
                raise SettingError(f"systemctl disable {service} failed: {said.strip()}")
            return
        for link in self.services[service]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(link)

    def enable(self, service: str) -> None:
        """Enable a service again, if it is still there."""
        problem = ""
        if os.path.isdir(os.path.join(ROOT, "run/systemd/system")):
            code, _, said = self.module.run_command(["systemctl", "enable", service])
            problem = said.strip() if code else ""
        else:
            for link, target in self.services[service].items():
                try:
                    if not os.path.lexists(link):
                        os.symlink(target, link)
                except OSError as error:
                    problem = f"{link}: {error.strerror}"
        if problem:
            self.module.warn(f"{service} was enabled before the first run, and cannot be enabled again: {problem}")


class Settings:
    """Both settings of the kernel: live, for the next boot, and as they were before."""

    def __init__(self, module: AnsibleModule) -> None:
        """Take the parameters; look at the host, change nothing."""
        self.module = module
        self.record: str = module.params["record"]
        first: str = module.params["sysctl_file"]
        last = os.path.join(os.path.dirname(first), LAST)
        self.live = {name: get(name) for name in NAMES}
        self.recorded = read(self.record)
        record = parse_record(self.recorded, self.record) if self.recorded else self.first_record()
        self.previous: dict[str, str] = {name: record[name] for name in DEFAULTS}
        self.taken = Takeover(module, record.get("taken_over", {}))
        self.sysctl_file = self.taken.sysctl_file or first
        self.last = last
        self.boot = {path: read(path) for path in (first, last)}
        # What of ours has another owner or mode than we gave it, also where its content is right.
        self.access = {path: access(path) for path in (*self.boot, self.record)}
        self.others = Boot((first, last))
        self.diff: list[dict[str, str]] = []
        self.conflicts: list[str] = []
        self.left: list[str] = []

    def first_record(self) -> dict[str, str]:
        """Return the values to come back to if none are recorded yet."""
        if starts_the_helper(self.live["core_pattern"]):
            self.module.warn(
                "kernel.core_pattern starts the helper already, and no values from before are known:"
                f" removal will set {DEFAULTS}"
            )
            return dict(DEFAULTS)
        return dict(self.live)

    def found(self) -> dict[str, object]:
        """Return what this run has found, for Ansible."""
        value, file = self.others.next(self.live)
        limit = self.live["core_pipe_limit"]
        return {
            "live": self.live["core_pattern"],
            "pipe_limit": int(limit) if limit.isdigit() else 0,
            "next_boot": value,
            "next_boot_file": file,
            "conflicts": self.conflicts,
            "record": self.record,
            "previous_handler": handler_of(self.previous["core_pattern"]),
        }

    def write(self, path: str, content: str, encoding: str = "utf-8", ours: bool = False) -> None:
        """Write a file that after a crash of the host is the old or the new one; one of others keeps owner and mode."""
        if not os.path.isdir(os.path.dirname(path)):
            # Nothing on this host reads /etc/sysctl.d yet: it may be there for a loader that is installed later.
            os.mkdir(os.path.dirname(path))
            os.chmod(os.path.dirname(path), 0o755)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=os.path.dirname(path))
        try:
            with open(descriptor, "w", encoding=encoding, newline="") as file:
                file.write(content)
                if os.path.exists(path) and not ours:
                    owner = os.stat(path)
                    os.fchown(descriptor, owner.st_uid, owner.st_gid)
                    os.fchmod(descriptor, stat.S_IMODE(owner.st_mode))
                else:
                    os.fchmod(descriptor, 0o644)
                file.flush()
                os.fsync(descriptor)
            self.module.set_context_if_different(temporary, self.module.selinux_default_context(path), False)
            os.replace(temporary, path)
        except BaseException as error:
            os.unlink(temporary)
            if isinstance(error, OSError):
                error.filename = path  # A full disk names no file.
            raise

    def put(self, path: str, content: str | None) -> None:
        """Give a file of ours this content, or remove it."""
        if content is not None:
            self.write(path, content, ours=True)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def find_conflicts(self, wanted: dict[str, str]) -> None:
        """Say who would win at the next boot, and plan to take over; nothing is changed."""
        for place, line in self.others.stronger(self.sysctl_file, wanted):
            after = "last of all" if place[0] else f"after {os.path.basename(self.sysctl_file)}"
            self.conflicts.append(
                f"{line.file}, line {line.number}, sets kernel.{line.name} = {line.value} and is read {after}:"
                f" remove that line, {REMEDY}"
            )
        for service in self.others.services:
            self.conflicts.append(
                f"{service} is enabled and sets kernel.core_pattern when it starts: disable it, {REMEDY}"
            )

    def plan(self, wanted: dict[str, str]) -> None:
        """Plan to take over with as little as is enough: a name that sorts last, else what others have is put out of force."""
        stronger = self.others.stronger(self.sysctl_file, wanted)
        if any(place < (0, LAST) for place, _ in stronger):
            self.taken.sysctl_file = self.sysctl_file = self.last
        for _, line in self.others.stronger(self.sysctl_file, wanted):
            self.taken.add_line(line)
        for service in self.others.services:
            self.taken.add_service(service, self.others.services[service])

    def present(self) -> dict[str, object]:
        """Set the wanted values and return the result for Ansible."""
        parameters = self.module.params
        wanted = {"core_pattern": parameters["pattern"], "core_pipe_limit": str(parameters["pipe_limit"])}
        self.warn_of_files()
        for path, content in self.boot.items():
            if self.recorded is None and not (content or WRITTEN).startswith(WRITTEN):
                raise SettingError(
                    f"{path} was written by somebody else, and would be lost: move its lines to a file of another name"
                )
        self.find_conflicts(wanted)
        if self.conflicts and parameters["conflicts"] == "fail":
            raise ConflictError(" | ".join(self.conflicts))
        self.plan(wanted)
        disabled = list(self.others.services)
        edited = {path: self.taken.comment_out(path) for path in self.taken.files()}
        before = {path: read_exactly(path) for path in edited}
        boot = {path: HEADER + lines(wanted) if path == self.sysctl_file else None for path in self.boot}
        record = self.recorded or ""
        taken = self.taken.recorded()
        if not record or taken != json.loads(record).get("taken_over", {}):
            record = json.dumps({**self.previous, **({"taken_over": taken} if taken else {})}) + "\n"
        for path, content in edited.items():
            self.show(path, before[path], content)
        for service in disabled:
            self.show(service, "enabled\n", "disabled\n")
        if not self.module.check_mode:
            try:
                # The record first: once the host is changed, nobody else knows what it had.
                if self.recorded != record or self.access[self.record]:
                    self.put(self.record, record)
                for service in disabled:
                    self.taken.disable(service)
                for path, content in edited.items():
                    if content != before[path]:
                        self.write(path, content, "latin-1")
                self.put_boot(boot)
                set_live(wanted, NAMES)
            except (OSError, SettingError):
                self.take_back(before, disabled)
                raise
        return self.result(wanted, boot, record)

    def warn_of_files(self) -> None:
        """Say that the kernel will write no files any more where somebody has told it which."""
        pattern = self.live["core_pattern"]
        if self.recorded is None and not pattern.startswith("|") and pattern != DEFAULTS["core_pattern"]:
            self.module.warn(
                f"kernel.core_pattern was the file name {pattern!r}, and no such files are written any more: processes of this"
                " host need a delegate on the host, too, or docker_core_helper_fallback_core; else their cores are dropped"
            )

    def put_boot(self, boot: dict[str, str | None]) -> None:
        """Write the file for the next boot, and remove the one of the other name."""
        for path, content in sorted(boot.items(), key=lambda item: item[1] is None):
            if self.boot[path] != content or self.access[path]:
                self.put(path, content)

    def take_back(self, edited: dict[str, str], disabled: list[str]) -> None:
        """Undo a change that failed, as far as possible; one step that fails keeps no other from being tried."""
        with self.undoing(KERNEL):
            set_live(self.live, tuple(reversed(NAMES)))
        for path, content in self.boot.items():
            with self.undoing(path):
                if read(path) != content:
                    self.put(path, content)
        for path, content in edited.items():
            with self.undoing(path):
                if read_exactly(path) != content:
                    self.write(path, content, "latin-1")
        for service in disabled:
            with self.undoing(service):
                self.taken.enable(service)
        # The record goes last, and stays where it is still needed.
        if not self.left:
            with self.undoing(self.record):
                if read(self.record) != self.recorded:
                    self.put(self.record, self.recorded)

    @contextlib.contextmanager
    def undoing(self, name: str) -> Iterator[None]:
        """Note in ``left`` that what is named could not be brought back, and why."""
        try:
            yield
        except OSError as error:
            self.left.append(f"{name}: {error.strerror}")
        except SettingError as error:
            self.left.append(f"{name}: {error}")

    def outcome(self) -> str:
        """Return how a run that failed has left the host, for its message."""
        if self.left:
            return f"and these could not be brought back: {'; '.join(self.left)}: run this again when that is mended"
        return "the kernel's values and those of the next boot are as they were before"

    def absent(self) -> dict[str, object]:
        """Bring the previous values back, unless somebody else has set others meanwhile, and what was taken over."""
        wanted = dict(self.live)
        if starts_the_helper(self.live["core_pattern"]) or self.live["core_pattern"] == self.previous["core_pattern"]:
            wanted = self.previous
        else:
            self.module.warn(
                f"somebody else has set kernel.core_pattern meanwhile: left as it is, {self.live};"
                f" before the first run it was {self.previous}"
            )
        # What somebody else has under our names was refused, and stays.
        ours = (
            path for path in self.boot if self.recorded is not None or (self.boot[path] or WRITTEN).startswith(WRITTEN)
        )
        boot: dict[str, str | None] = dict.fromkeys(ours)
        before = {path: read_exactly(path) for path in self.taken.files()}
        edited = {path: self.taken.give_back(path) for path in before}
        for path, content in edited.items():
            self.show(path, before[path], content)
        for service in self.taken.services:
            self.show(service, "disabled\n", "enabled\n")
        if not self.module.check_mode:
            try:
                # The pattern first: without a limit no helper may be started.
                set_live(wanted, tuple(reversed(NAMES)))
                self.put_boot(boot)
                for path, content in edited.items():
                    if content != before[path]:
                        self.write(path, content, "latin-1")
                for service in self.taken.services:
                    self.taken.enable(service)
                self.put(self.record, None)
            except (OSError, SettingError):
                self.take_back(before, [])
                raise
        return self.result(wanted, boot, None)

    def show(self, name: str, before: str, after: str) -> None:
        """Add a change to what --diff shows."""
        if before != after:
            self.diff.append({"before_header": name, "after_header": name, "before": before, "after": after})

    def result(self, live: dict[str, str], boot: dict[str, str | None], record: str | None) -> dict[str, object]:
        """Return what Ansible reports for these values."""
        if live != self.live:
            self.show(KERNEL, lines(self.live), lines(live))
        for path, content in boot.items():
            self.show(path, self.access[path] + (self.boot[path] or ""), content or "")
        self.show(self.record, self.access[self.record] + (self.recorded or ""), record or "")
        return {"changed": bool(self.diff), "diff": self.diff, "previous": self.previous, **self.found(), **live}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "pattern": {"type": "str"},
            "pipe_limit": {"type": "int"},
            "record": {"type": "str", "default": "/opt/lib/docker_core_helper/previous.json"},
            "sysctl_file": {"type": "str", "default": "/etc/sysctl.d/60-docker-core-helper.conf"},
            "conflicts": {"type": "str", "choices": ["fail", "take_over"], "default": "fail"},
        },
        required_if=[("state", "present", ["pattern", "pipe_limit"])],
        supports_check_mode=True,
    )
    settings = None
    try:
        settings = Settings(module)
        result = settings.present() if module.params["state"] == "present" else settings.absent()
    except ConflictError as error:
        module.fail_json(
            msg=f"at the next boot somebody else would win, nothing was changed: {error}", **settings.found()
        )
    except (SettingError, OSError) as error:
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        outcome, found = (settings.outcome(), settings.found()) if settings else ("nothing was changed", {})
        module.fail_json(msg=f"{what}; {outcome}", **found)
    module.exit_json(**result)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Ansible action: refuses variables of the role docker_core_helper that cannot work, in one line that says which and why.

Runs on the controller and connects to no host. The role's variables are those that have a default; any other one that begins
with ``docker_core_helper_`` must be mistyped. Returns ``state``, for the table of playbooks/verify.yml.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.release import __version__ as ansible_version

try:
    from ansible.template import trust_as_template
except ImportError:  # ansible-core before 2.19 has none, and run says so.
    trust_as_template = None

OLDEST_ANSIBLE = (2, 19)
PREFIX = "docker_core_helper_"
# The kernel splits the pattern at spaces and expands its %, so only characters that are harmless everywhere may be in a path.
PATH = re.compile(r"(/(?!\.\.?(/|\Z))[A-Za-z0-9._+-]+)+")
PATH_WORDS = "must be an absolute path of letters, digits and . _ + - only, not ending in /"
# The kernel keeps this many bytes of a pattern: CORENAME_MAX_SIZE of fs/coredump.c, without the byte that ends it.
PATTERN_BYTES = 127
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# The words that follow the helper; see parse_arguments of helper/core_helper/command_line.py.
OPTIONS = ("-F%F", "-I%I", "-s%s", "-t%t", "-d%d", "-c%c")
PROCESS = ["%P", "%u", "%g"]
# The helper takes no larger number; see MOST_DELIVERIES of helper/core_helper/configuration.py.
MOST_DELIVERIES = 16384
# The signals that leave a core; see SIGNALS of helper/core_helper/crash.py.
SIGNALS = ["SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGXCPU", "SIGXFSZ", "SIGSYS"]
# More processes than this cannot exist at a time: PID_MAX_LIMIT of include/linux/threads.h.
MOST_CRASHES = 4194304
# By which way the kernel gives cores to the helper.
MODES = ("pipe", "socket", "auto")
# The value of canary for a crash through the delegate itself.
KEEP, RELEASE = ("never", "undelivered", "always"), ("delivered", "kept")
REAL = "delegate"
# What the service of the sender does not see: ProtectHome and PrivateTmp of docker-core-helper-sender.service.
UNSEEN = re.compile(r"(file://)?/(home|root|run/user|tmp|var/tmp)(/|\Z)")
# What Ansible's filter bool understands.
YES_OR_NO = ("true", "false", "yes", "no", "on", "off", "1", "0")
# By the name of a variable: what its value looks like, as a pattern and in words.
FORMS = {
    "size_max": (r"[0-9]{1,15}[KMGT]?", "a number of bytes such as 10G, or 0"),
    "burst": (r"0|[1-9][0-9]{0,4}/[1-9][0-9]{0,9}[smhd]", "a number of cores and a time such as 5/1h, or 0"),
    "fallback_max": (
        r"0|[1-9][0-9]{0,4}/[1-9][0-9]{0,14}[KMGT]?",
        "a number of files and of bytes such as 16/8G, or 0",
    ),
    "keep_directory": (r"(/(?!\.\.?(/|$))[^/\x00-\x1f\x7f]+)+", "an absolute path without . and .."),
    "keep_max": (r"[1-9][0-9]{0,17}[KMGT]?", "a number of bytes, such as 500000000, 500M or 10G"),
}
# By the name of a variable: what its number is, the least and the most.
NUMBERS = {
    "timeout": ("a number of seconds", 1, 86400),
    "timeout_max": ("a number of seconds", 1, 86400),
    "pipe_limit": ("a number of deliveries", 1, MOST_DELIVERIES),
    "keep_free": ("a percentage", 0, 99),
    "keep_age": ("a number of days", 1, 36500),
}
# What core_helper fills in; see parse_configuration of helper/core_helper/configuration.py.
SPECIFIER = re.compile("%[PpugsteEh%]")
# What it fills in beside that in the words of a lent program.
VARIABLE = re.compile("%\\{[A-Za-z_][A-Za-z0-9_]*(#[^%}]*)?\\}")


def number(value: Any) -> int:
    """Return a number that may be written as a string, 0 if it is none."""
    try:
        return int(value)
    except (OverflowError, TypeError, ValueError):
        return 0


def problem_of_ansible(version: str) -> str:
    """Return why the role does not run with a version of ansible-core; "" if the role does."""
    if tuple(map(number, version.split(".")[:2])) >= OLDEST_ANSIBLE:
        return ""
    return f"ansible-core {version} is too old: 2.19 or newer is needed, such as by pip install ansible-core"


def shown(value: Any) -> str:
    """Return a value for a message, on one line, whatever somebody has written there."""
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError):
        return json.dumps(str(value))


def problems_of_names(defaults: dict[str, Any], defined: list[str]) -> Iterator[str]:
    """Yield a line for each defined variable that the role does not have."""
    for name in sorted(set(defined).difference(defaults)):
        (nearest,) = difflib.get_close_matches(name, list(defaults), n=1, cutoff=0)
        yield f"{PREFIX}{name} is no variable of this role: did you mean {PREFIX}{nearest}?"


def problems(defaults: dict[str, Any], known: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the values of the variables; one whose default is true or false must be one of these."""
    for name in defaults:
        if name not in known:
            yield f"{PREFIX}{name} is omitted: give it a value, or do not define it"
    for name in [name for name, default in defaults.items() if isinstance(default, bool)]:
        if name == "canary" and known[name] == REAL:
            continue
        if str(known[name]).lower() not in YES_OR_NO:
            words = f"true, false or {REAL}" if name == "canary" else "true or false"
            yield f"{PREFIX}{name} must be {words}: {shown(known[name])}"
    yield from problems_of_canary(known)
    yield from problems_of_keeping(known)
    yield from problems_of_sender(known)
    yield from problems_of_credentials(known["sender_environment"], known["sender"])
    names = known["container_environment"]
    if not isinstance(names, list) or not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)) for name in names):
        yield f"{PREFIX}container_environment must be a list of names of variables: {shown(names)}"
    yield from problems_of_filters(known["ignore_signals"], known["ignore_programs"])
    delegate, chain = known["delegate"], known["chain"]
    for name, reason in (("bin_dir", ", because the kernel splits its pattern at spaces"), ("lib_dir", "")):
        if not PATH.fullmatch(str(known[name])):
            yield f"{PREFIX}{name} {PATH_WORDS}{reason}: {shown(known[name])}"
    yield from problems_of_pattern(str(known["core_pattern"]), f"{known['bin_dir']}/docker_core_helper")
    yield from problems_of_mode(known["mode"], str(known["core_pattern"]), known["bin_dir"])
    yield from problems_of_forms(known)
    yield from problems_of_limits(known["pipe_limit"], known["kernel_limit"])
    if not isinstance(delegate, list):
        yield f"{PREFIX}delegate must be a list of words, such as [/opt/bin/uploader.sh, s3://cores/]: {shown(delegate)}"
    elif delegate:
        yield from problems_of_words("delegate", delegate, "an absolute path in the container")
        if any("%" in SPECIFIER.sub("", str(word)) for word in delegate):
            yield f"{PREFIX}delegate knows %P %p %u %g %s %t %e %h %E, and %% for a percent sign: {shown(delegate)}"
    yield from problems_of_lending(known["lend"])
    if isinstance(chain, list):
        yield from problems_of_words("chain", chain, "the absolute path of a program of the host")
    elif chain not in ("none", "previous"):
        yield (
            f"{PREFIX}chain must be none, previous or a list of words, such as [/usr/lib/systemd/systemd-coredump, '%P']:"
            f" {shown(chain)}"
        )
    if known["python"] and not re.fullmatch(r"/\S+", str(known["python"])):
        yield f"{PREFIX}python must be an absolute path without spaces: {shown(known['python'])}"


def problems_of_lending(words: Any) -> Iterator[str]:
    """Yield why no program could be lent. Whether that program is one, core_helper_files asks the host."""
    if not isinstance(words, list):
        yield f"{PREFIX}lend must be a list of words, such as [/opt/bin/rclone, rcat, 's3:%{{CORE_KEY}}']: {shown(words)}"
    elif words:
        yield from problems_of_words("lend", words, "the absolute path of a program of the host")
        if any("%" in SPECIFIER.sub("", VARIABLE.sub("", str(word))) for word in words):
            yield (
                f"{PREFIX}lend knows %P %p %u %g %s %t %e %h %E, %{{NAME}}, %{{NAME#PREFIX}}, and %% for a percent sign:"
                f" {shown(words)}"
            )


def problems_of_pattern(pattern: str, helper: str) -> Iterator[str]:
    """Yield why the kernel would not start the helper by a pattern."""
    value = shown(pattern)
    if not pattern.startswith("|/"):
        yield f"{PREFIX}core_pattern must begin with |/, a pipe to an absolute path: {value}"
    if not re.fullmatch(r"[ -~]*[!-~]", pattern):
        yield f"{PREFIX}core_pattern must be one line of printable ASCII characters that does not end in a space: {value}"
    if len(pattern) > PATTERN_BYTES:
        yield f"{PREFIX}core_pattern has {len(pattern)} bytes, and the kernel cuts it off after {PATTERN_BYTES}: {value}"
    words = pattern[1:].split()
    if helper not in words:
        yield f"{PREFIX}core_pattern must name {helper}, the helper that is installed: {value}"
        return
    words = words[words.index(helper) + 1 :]
    while words and words[0].startswith("-"):
        if words[0] == "--":
            words = words[1:]
            break
        if words[0] not in OPTIONS:
            yield f"{PREFIX}core_pattern: {helper} takes {' '.join(OPTIONS)}, and not {shown(words[0])}: {value}"
        words = words[1:]
    if words[:3] != PROCESS:
        yield f"{PREFIX}core_pattern must have {' '.join(PROCESS)} behind {helper} and its options, in this order: {value}"
    if words[3:] and not words[3].startswith("/"):
        yield f"{PREFIX}core_pattern must name the absolute path of the delegate behind %g: {value}"


def problems_of_forms(known: dict[str, Any]) -> Iterator[str]:
    """Yield which values are not written as FORMS says, or are not within the range that NUMBERS gives."""
    for name, (form, what) in FORMS.items():
        if not re.fullmatch(form, str(known[name])):
            yield f"{PREFIX}{name} must be {what}: {shown(known[name])}"
    for name, (what, least, most) in NUMBERS.items():
        if not least <= number(known[name]) <= most:
            yield f"{PREFIX}{name} must be {what} from {least} to {most}: {shown(known[name])}"


def problems_of_mode(mode: Any, pattern: str, bin_dir: Any) -> Iterator[str]:
    """Yield why the helper cannot get cores by a mode. Where that is a socket, nobody reads the words of the pattern."""
    if mode not in MODES:
        yield f"{PREFIX}mode must be pipe, socket or auto: {shown(mode)}"
    elif mode != "pipe":
        words = pattern[1:].split()
        if words[:1] != [f"{bin_dir}/docker_core_helper"] or words[-3:] != PROCESS:
            yield (
                f"{PREFIX}core_pattern names more than the helper and the process, of which {PREFIX}mode={mode} would know"
                f" nothing: leave it out, and use the other variables, such as {PREFIX}delegate: {shown(pattern)}"
            )


def problems_of_limits(deliveries: Any, limit: Any) -> Iterator[str]:
    """Yield what is wrong with the limit of crashes that the helper handles at a time, beside that of deliveries at once."""
    if number(limit) < 1:
        yield (
            f"{PREFIX}kernel_limit must be above 0, else the kernel does not wait for the helper and cores are lost:"
            f" {shown(limit)}"
        )
    if number(limit) > MOST_CRASHES:
        yield f"{PREFIX}kernel_limit must not be above {MOST_CRASHES}, as many as there can be processes: {shown(limit)}"
    if number(limit) < number(deliveries):
        yield (
            f"{PREFIX}kernel_limit must not be below {PREFIX}pipe_limit, else the kernel drops crashes that would be"
            f" delivered: {shown(limit)} is less than {shown(deliveries)}; raise {PREFIX}kernel_limit or leave it out,"
            f" or lower {PREFIX}pipe_limit"
        )


def problems_of_filters(signals: Any, programs: Any) -> Iterator[str]:
    """Yield what is wrong with the cores that nobody wants."""
    if not isinstance(signals, list) or any(name not in SIGNALS for name in signals):
        yield f"{PREFIX}ignore_signals must be a list of {', '.join(SIGNALS)}: {shown(signals)}"
    if not isinstance(programs, list) or not all(re.match("[/*]", str(path)) for path in programs):
        yield (
            f"{PREFIX}ignore_programs must be a list of paths, such as [/usr/bin/chrome, '/opt/*'], each beginning with"
            f" / or *: {shown(programs)}"
        )
    elif any(CONTROL.search(str(path)) for path in programs):
        yield f"{PREFIX}ignore_programs must not hold newlines or other control characters: {shown(programs)}"


def problems_of_keeping(known: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the words that say which cores the host keeps."""
    for name, words in (("keep", KEEP), ("release", RELEASE)):
        if known[name] not in words:
            yield f"{PREFIX}{name} must be {', '.join(words[:-1])} or {words[-1]}: {shown(known[name])}"


def problems_of_sender(known: dict[str, Any]) -> Iterator[str]:
    """Yield why no program could send the cores that the host keeps."""
    words = known["sender"]
    if not isinstance(words, list):
        example = '[/opt/lib/docker_core_helper/uploader.sh, "s3://cores/"]'
        yield f"{PREFIX}sender must be a list of words, such as {example}: {shown(words)}"
    elif words:
        yield from problems_of_words("sender", words, "the absolute path of a program of the host")
        paths = [("sender", word) for word in words]
        for name, path in (
            *paths,
            *((name, known[name]) for name in ("keep_directory", "bin_dir", "lib_dir", "python")),
        ):
            if UNSEEN.match(str(path)):
                yield (
                    f"{PREFIX}{name} must name nothing below /home, /root, /run/user, /tmp and /var/tmp, which the service of"
                    f" the sender does not see: {shown(path)}"
                )
        if known["keep"] == "never":
            yield (
                f"{PREFIX}sender sends the cores that the host keeps, and {PREFIX}keep is never: set {PREFIX}keep to"
                " undelivered or always, or leave the sender out"
            )


def problems_of_credentials(environment: Any, sender: Any) -> Iterator[str]:
    """Yield what is wrong with the variables of the sender. They are secret, so no message has a value."""
    name = f"{PREFIX}sender_environment"
    if not isinstance(environment, dict):
        yield f"{name} must be a mapping of names to values, and is not"
        return
    for key, value in environment.items():
        # Somebody may have written NAME=VALUE as the name.
        entry = shown(str(key).partition("=")[0])
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(key)):
            yield f"{name} must have names of letters, digits and _: {entry}"
        if str(key).startswith("CORE_"):
            yield f"{name} must not have {entry}: the helper itself says by CORE_ what is known of a core"
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            yield f"{name}: the value of {entry} must be a string, in quotes"
        elif re.search(r"[\x00-\x1f\x7f]", str(value)):
            yield f"{name}: the value of {entry} must not hold newlines or other control characters"
    if environment and not sender:
        yield f"{name} is for {PREFIX}sender, which is empty: name a program there, or leave the variables out"


def problems_of_canary(known: dict[str, Any]) -> Iterator[str]:
    """Yield why there can be no container for the canary."""
    image, options = known["canary_image"], known["canary_options"]
    if known["canary"] == REAL and not image:
        yield f"{PREFIX}canary: {REAL} needs {PREFIX}canary_image, the name of an image that has the delegate"
    # The engine would take it for one of its options.
    if not isinstance(image, str) or image.startswith("-"):
        yield f"{PREFIX}canary_image must be the name of an image: {shown(image)}"
    if not isinstance(options, list) or not all(isinstance(word, str) for word in options):
        example = '[--env, "CORE_DESTINATION=s3://cores/"]'
        yield f"{PREFIX}canary_options must be a list of words, such as {example}: {shown(options)}"


def problems_of_words(name: str, words: list[Any], first: str) -> Iterator[str]:
    """Yield why a list is no command line that the configuration can hold."""
    if not words or not str(words[0]).startswith("/"):
        yield f"{PREFIX}{name} must begin with {first}: {shown(words)}"
    for word in words:
        if CONTROL.search(str(word)):
            yield f"{PREFIX}{name} must not hold newlines or other control characters: {shown(word)}"


class ActionModule(ActionBase):
    """The check of the variables."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Fail at the first problem."""
        super().run(tmp, task_vars)
        problem = problem_of_ansible(ansible_version)
        if problem:
            raise AnsibleActionFail(problem)
        variables = task_vars or {}
        defaults = self.defaults()
        defined = [name[len(PREFIX) :] for name in map(str, variables) if name.startswith(PREFIX)]
        known = self.values(defaults)
        wrong = next(itertools.chain(problems_of_names(defaults, defined), problems(defaults, known)), None)
        state = str(known.get("state"))
        return {"changed": False, "state": state, **({"failed": True, "msg": wrong} if wrong else {})}

    def defaults(self) -> dict[str, Any]:
        """Return the variables of the role, without the prefix, with their defaults.

        Ansible has the defaults in memory. meta/argument_specs.yml has types, too, but to read that file for each host would
        cost the controller more time than a whole task.
        """
        role = self._task._role
        if role is None:
            raise AnsibleActionFail(
                "core_helper_preflight is a task of the role docker_core_helper, and of nothing else"
            )
        found = role.get_default_vars()
        return {name[len(PREFIX) :]: value for name, value in found.items() if name.startswith(PREFIX)}

    def values(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the values of the variables; one that is omitted has none."""
        values = self._templar.template({name: trust_as_template(f"{{{{ {PREFIX}{name} }}}}") for name in names})
        return dict(values)

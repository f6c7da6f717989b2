# SPDX-License-Identifier: Apache-2.0
"""Ansible action: the end of playbooks/verify.yml and playbooks/collect.yml, one table of the whole fleet.

Runs on the controller, once for all hosts, and connects to none: it reads what the role's ``tasks/inspect.yml`` has found, or
with ``table: cores`` what ``tasks/collect.yml`` has. Every host of the play is a row, also one that was unreachable, and a
host that keeps several cores is several rows. Writes the rows to the files ``json`` and ``html``, prints them as a table, and
fails if one host is not as it should be.

This is one file: in a clone, Ansible loads the action of a role into a package of Ansible's, which cannot import ours.
"""

from __future__ import annotations

import html
import json
import os
import re
import tempfile
import time
from typing import Any, Union

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

HELPER = "docker_core_helper"
# The name of the live values in what core_pattern shows.
KERNEL = "/proc/sys/kernel"
COLUMNS = {
    "host": "host",
    "kernel": "kernel",
    "engine": "engine",
    "version": "version",
    "pattern": "pattern",
    "next_boot": "next boot",
    "canary": "canary",
}
COLUMNS_OF_CORES = {
    "host": "host",
    "id": "id",
    "time": "time",
    "size": "size",
    "on_disk": "on disk",
    "signal": "signal",
    "program": "program",
    "container": "container",
    "state": "state",
    "collected": "collected",
}
# PR_SET_DUMPABLE(2const) lists when a process gets this value for its own; proc_sys_fs(5) says what it means.
# Most hosts have 0, the kernel's default, and lose nothing by it: no delegate ever gets such a core. It costs something where
# such programs run in containers, whose crashes nobody hears of, and where a previous handler would get those of the host.
UNDUMPABLE = (
    "fs.suid_dumpable is 0: in containers, {} would leave no core at all, and no line in the log: set-id, with file"
    " capabilities, or with a changed user; docs/troubleshooting.md says what to do"
)
UNHANDLED = (
    "fs.suid_dumpable is 0: set-id programs of the host leave no core at all. With 2 in /etc/sysctl.d the previous handler gets"
    " these; see docs/troubleshooting.md"
)
HAS_PREVIOUS = re.compile(r'^DOCKERCOREHELPER_CHAIN="?[^"\s]', re.MULTILINE)
# By the pattern of a socket, the server gets the cores.
SERVICE = "docker-core-helper.service"
SOCKET = "@@/run/docker_core_helper/core.sock"
RESTING = (
    "the server at the core-dump socket does not get the cores, so each crash starts a helper, as with docker_core_helper_mode="
    "pipe. The server does not run, or somebody has set the pattern of the pipe, as sysctl --system does: see systemctl status"
    " docker-core-helper.service; the next run of site.yml mends that"
)
UNHEARD = (
    "{} is {}, and the kernel sends each core to its socket, where no server takes it: see systemctl status {}; the next"
    " run of site.yml mends that"
)
# So many hosts are named in a line that is about many.
NAMED = 5
# A longer value is cut off on the terminal, not in the files.
WIDTH = 40
PAGE = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>docker_core_helper: {summary}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; }}
th, td {{ border: 1px solid #bbb; padding: .3em .6em; text-align: left; vertical-align: top; }}
tr.wrong td {{ background: #fdd; }}
code {{ word-break: break-all; }}
</style></head>
<body><h1>docker_core_helper: {summary}</h1><p>{time}</p>
<table><tr>{head}</tr>
{rows}</table></body></html>
"""


def as_wanted(value: str, wanted: str) -> str:
    """Return a value for the table, with two words in place of the wanted value, which is long and well known."""
    return f"as wanted{', socket' if value == SOCKET else ''}" if value and value == wanted else value


def with_owner(pattern: str, owner: str) -> str:
    """Return a core pattern for a message, and the program that gets the cores by it, if that is known."""
    return f"{pattern!r}, {owner}" if owner else repr(pattern)


def warnings_of(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each warning, with the hosts that it is about: most of a fleet may have the same one."""
    hosts: dict[str, list[str]] = {}
    for row in rows:
        for warning in row["warnings"]:
            hosts.setdefault(warning, []).append(row["host"])
    lines = []
    for warning, names in hosts.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        lines.append(visible(f"warning: {', '.join(names[:NAMED])}{more}: {warning}"))
    return lines


def text_of(problem: Any) -> str:
    """Return as one line the problem that a module has returned, or Ansible in its place."""
    line = " ".join((problem if isinstance(problem, str) else json.dumps(problem)).split())
    return line.removeprefix("Task failed: ")


class Row:
    """What is known of a host."""

    def __init__(self, host: str, known: dict[str, Any]) -> None:
        """Make the row from the results that the tasks have registered."""
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.values: dict[str, Any] = {**dict.fromkeys(COLUMNS, "-"), "host": host}
        snapshot = known.get("__docker_core_helper_snapshot") or {}
        if snapshot.get("unreachable"):
            self.problems.append(f"unreachable: {text_of(snapshot.get('msg', ''))}")
        elif not snapshot or snapshot.get("failed"):
            self.problems.append(text_of(snapshot.get("msg", "was not looked at")))
        else:
            self.add_findings(snapshot, known)
        self.values["ok"] = not self.problems
        self.values["problems"] = self.problems
        self.values["warnings"] = self.warnings

    def add_findings(self, snapshot: dict[str, Any], known: dict[str, Any]) -> None:
        """Add what the modules have found."""
        live = snapshot["snapshot"]["live"]
        files = known.get("__docker_core_helper_files") or {}
        kernel = known.get("__docker_core_helper_found") or {}
        owner = str(snapshot.get("owner", ""))
        # Few have seen a socket in a pattern yet.
        is_socket = owner and live["core_pattern"].startswith("@")
        self.values |= {
            "kernel": snapshot["kernel"],
            "engine": ", ".join(snapshot["engines"]) or "none",
            "version": snapshot["version"] or "not installed",
            "pattern": owner if is_socket else live["core_pattern"],
            "owner": owner,
            "pipe_limit": live["core_pipe_limit"],
            "python": f"{files.get('python', '')} {files.get('python_version', '')}".strip(),
        }
        variables = known.get("__docker_core_helper_preflight") or {}
        for result in (variables, files, kernel):
            if not result or result.get("skipped"):
                self.problems.append("was not compared with what the role would make of it")
            elif result.get("unreachable"):
                self.problems.append(f"unreachable: {text_of(result.get('msg', ''))}")
            elif result.get("failed"):
                self.problems.append(text_of(result.get("msg", "failed")))
        if variables.get("state") == "absent":
            self.problems += ["the helper is still installed"] if snapshot["installed"] else []
            if HELPER in live["core_pattern"]:
                self.problems.append(f"kernel.core_pattern still starts the helper: {live['core_pattern']!r}")
            steps = [*files.get("diff", []), *kernel.get("diff", [])]
            left = ", ".join(step["after_header"] for step in steps if step["after_header"] != KERNEL)
            if left or files.get("changed"):
                self.problems.append(f"a removal would still change: {left or 'the library'}")
        elif not snapshot["installed"]:
            self.problems.append("the helper is not installed")
        else:
            self.compare(snapshot["snapshot"], files, kernel)
            if snapshot.get("suid_dumpable") == "0":
                self.add_undumpable(snapshot)
        self.add_canary(known.get("__docker_core_helper_crash") or {})

    def add_undumpable(self, snapshot: dict[str, Any]) -> None:
        """Warn of cores that the kernel does not make and that somebody would get or miss."""
        programs = snapshot.get("undumpable") or []
        if programs:
            more = f" and {len(programs) - NAMED} more" if len(programs) > NAMED else ""
            self.warnings.append(UNDUMPABLE.format(", ".join(programs[:NAMED]) + more))
        if any(HAS_PREVIOUS.search(content or "") for content in snapshot["snapshot"]["files"].values()):
            self.warnings.append(UNHANDLED)

    def compare(self, snapshot: dict[str, Any], files: dict[str, Any], kernel: dict[str, Any]) -> None:
        """Compare the host with what the role would make of it."""
        if files.get("changed"):
            names = ", ".join(step["after_header"] for step in files.get("diff", [])) or "an owner or a mode"
            self.problems.append(f"the files are not those of this version: {names}")
        live = snapshot["live"]
        at_boot = str(kernel.get("core_pattern_at_boot", kernel.get("core_pattern", "")))
        for name, value in live.items():
            wanted = str(kernel.get(name, value))
            if value == wanted:
                continue
            if name == "core_pattern" and value == at_boot:
                self.warnings.append(RESTING)
                continue
            shown = with_owner(value, self.values["owner"]) if name == "core_pattern" else repr(value)
            # The file that the role has written for the next boot shows which value the role had set.
            was_set = any(f"kernel.{name} = {wanted}\n" in (content or "") for content in snapshot["files"].values())
            self.problems.append(
                f"drift: kernel.{name} is {shown}, somebody has changed it since the role set {wanted!r}"
                if was_set
                else f"kernel.{name} is {shown} instead of {wanted!r}"
            )
        pattern, is_unheard = live["core_pattern"], False
        for step in kernel.get("diff", []):
            if step["after_header"] in (*snapshot["files"], kernel.get("record")):
                self.problems.append(f"not as the role writes it: {step['after_header']}")
            elif step["after_header"] == SERVICE:
                state = step["before"].strip()
                is_unheard = pattern == SOCKET and "active" not in state.split(", ")
                if is_unheard:
                    self.problems.append(UNHEARD.format(SERVICE, state, SERVICE))
                elif re.search("disabled|version", state):
                    self.problems.append(f"{SERVICE} is {state}")
        if is_unheard:
            self.values["pattern"] = "no server"
        elif pattern == kernel.get("core_pattern"):
            self.values["pattern"] = as_wanted(pattern, pattern)
        elif pattern == at_boot:
            self.values["pattern"] = "pipe for now"
        if "next_boot" in kernel:
            # Without a value, a service decides.
            value, origin = kernel["next_boot"], kernel["next_boot_file"] or "the kernel's default"
            self.values["next_boot"] = as_wanted(value, at_boot) or origin
            self.values["next_boot_file"] = kernel["next_boot_file"]
            if value != at_boot:
                setting = with_owner(value, str(kernel.get("next_boot_owner", "")))
                what = f"sets kernel.core_pattern to {setting}" if value else "may set another kernel.core_pattern"
                self.problems.append(f"next boot: {origin} {what}")
        self.problems += [f"conflict: {text_of(conflict)}" for conflict in kernel.get("conflicts") or []]

    def add_canary(self, crash: dict[str, Any]) -> None:
        """Add what came of the crash, if there was one."""
        outcome = crash.get("outcome", "")
        if outcome == "delivered":
            self.values["canary"] = f"delivered in {crash['seconds']} s"
            self.values |= {"canary_size": crash["size"], "canary_seconds": crash["seconds"]}
            if "verdict" in crash:
                self.values["canary_verdict"] = text_of(crash["verdict"])
        elif not crash or crash.get("skipped"):
            self.values["canary"] = "not tried"
        elif outcome == "skipped" and not crash.get("failed"):
            self.values["canary"] = f"not tried: {text_of(crash.get('msg', ''))}"
        elif outcome == "skipped":
            self.values["canary"] = "not tried"
            self.problems.append(text_of(crash.get("msg", "the canary was not tried")))
        else:
            self.values["canary"] = "no set-up" if outcome == "setup" else "lost" if outcome == "lost" else "failed"
            self.problems.append(text_of(crash.get("msg", "the canary failed")))


def visible(text: str) -> str:
    """Return a host's text without characters that would control the terminal, or begin a line of their own."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def amount(number: int) -> str:
    """Return a number of bytes as people read it."""
    size = float(number)
    for unit in ("B", "K", "M", "G"):
        if size < 1024:
            return f"{size:.0f}{unit}" if unit == "B" or size >= 10 else f"{size:.1f}{unit}"
        size /= 1024
    return f"{size:.1f}T"


class Fleet:
    """The table of playbooks/verify.yml."""

    columns = COLUMNS
    prefix = "verify"

    def make(self, host: str, known: dict[str, Any]) -> dict[str, Any]:
        """Return what is known of a host."""
        return Row(host, known).values

    def empty(self, host: str) -> dict[str, Any]:
        """Return the row of a host of which nothing is known."""
        return {**dict.fromkeys(COLUMNS, "-"), "host": host, "warnings": []}

    def cells(self, row: dict[str, Any]) -> list[list[str]]:
        """Return the lines of the table for a host."""
        return [[str(row[key]) for key in COLUMNS]]

    def cells_of_page(self, row: dict[str, Any]) -> list[list[str]]:
        """Return the same for the page."""
        verdict = f": {row['canary_verdict']}" if "canary_verdict" in row else ""
        return [[f"{row[key]}{verdict if key == 'canary' else ''}" for key in COLUMNS]]

    def notes(self, rows: list[dict[str, Any]]) -> list[str]:
        """Return what stands between the table and the problems."""
        return [f"{row['host']}: {row['canary_verdict']}" for row in rows if "canary_verdict" in row]

    def summary(self, rows: list[dict[str, Any]]) -> str:
        """Return the last line."""
        return f"{sum(row['ok'] for row in rows)} of {len(rows)} hosts are as they should be"


class Cores:
    """The table of playbooks/collect.yml."""

    columns = COLUMNS_OF_CORES
    prefix = "collect"

    def make(self, host: str, known: dict[str, Any]) -> dict[str, Any]:
        """Return which cores a host keeps."""
        found = known.get("__docker_core_helper_cores") or {}
        problems = []
        if found.get("unreachable"):
            problems.append(f"unreachable: {text_of(found.get('msg', ''))}")
        elif found.get("problems"):
            problems += [text_of(problem) for problem in found["problems"]]
        elif not found or found.get("failed"):
            problems.append(text_of(found.get("msg", "was not asked")))
        asked = "cores" in found
        cores = list(found["cores"]) if asked else []
        return {"host": host, "asked": asked, "cores": cores, "ok": not problems, "problems": problems, "warnings": []}

    def empty(self, host: str) -> dict[str, Any]:
        """Return the row of a host of which nothing is known."""
        return {"host": host, "asked": False, "cores": [], "warnings": []}

    def cells(self, row: dict[str, Any]) -> list[list[str]]:
        """Return the lines of the table for a host: one for each core."""
        if not row["cores"]:
            empty = {**dict.fromkeys(COLUMNS_OF_CORES, "-"), "host": row["host"]}
            empty["state"] = "no core is kept" if row["asked"] else "unknown"
            return [list(empty.values())]
        sizes = [{name: amount(core[name]) for name in ("size", "on_disk")} for core in row["cores"]]
        shown = [{**core, **size, "host": row["host"]} for core, size in zip(row["cores"], sizes)]
        return [[str(core[key]) for key in COLUMNS_OF_CORES] for core in shown]

    cells_of_page = cells

    def notes(self, rows: list[dict[str, Any]]) -> list[str]:
        """Return what stands between the table and the problems: nothing."""
        return []

    def summary(self, rows: list[dict[str, Any]]) -> str:
        """Return the last line."""
        cores = [core for row in rows for core in row["cores"]]
        keeping = sum(bool(row["cores"]) for row in rows)
        counts = {
            "brought": sum(core["collected"] == "now" for core in cores),
            "there before": sum(core["collected"] == "before" for core in cores),
            "would be brought": sum(core["collected"] == "would be" for core in cores),
            "not brought": sum(core["collected"] == "failed" for core in cores),
            "deleted on their hosts": sum("removed" in core for core in cores),
        }
        more = "".join(f", {count} {what}" for what, count in counts.items() if count)
        silent = sum(not row["asked"] for row in rows)
        unknown = f"; {silent} of {len(rows)} hosts could not be asked" if silent else ""
        noun = "core" if len(cores) == 1 else "cores"
        return f"{len(cores)} {noun} on {keeping} of {len(rows)} hosts{more}{unknown}"


Kind = Union[Fleet, Cores]


def row_of(kind: Kind, host: str, known: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a host, even if somebody has taken the host over and it answers nonsense: the others need theirs."""
    try:
        row = kind.make(host, known)
        json.dumps(row, allow_nan=False)
        page(kind, [row])
        table(kind, [row])
        kind.summary([row])
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        problems = [f"its answer makes no sense: {type(error).__name__}: {error}"]
        return {**kind.empty(host), "ok": False, "problems": problems}
    return row


def table(kind: Kind, rows: list[dict[str, Any]]) -> str:
    """Return the rows for a terminal, and below them what is wrong."""

    def cell(value: str) -> str:
        value = visible(value)
        return value if len(value) <= WIDTH else f"{value[: WIDTH - 3]}..."

    lines = [list(kind.columns.values())]
    lines += [[cell(value) for value in cells] for row in rows for cells in kind.cells(row)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(kind.columns))]
    lines.insert(1, ["-" * width for width in widths])
    shown = ["  ".join(value.ljust(width) for value, width in zip(line, widths)).rstrip() for line in lines]
    notes = [visible(note) for note in kind.notes(rows)]
    problems = [visible(f"{row['host']}: {problem}") for row in rows for problem in row["problems"]]
    return "\n".join([*shown, "", *notes, *problems, *warnings_of(rows)])


def page(kind: Kind, rows: list[dict[str, Any]]) -> str:
    """Return the rows as a web page in a single file."""

    def lines(row: dict[str, Any]) -> str:
        problems = "<br>".join(html.escape(visible(problem)) for problem in row["problems"]) or "none"
        warnings = "".join(f"<br>warning: {html.escape(visible(warning))}" for warning in row["warnings"])
        begin = f"<tr{'' if row['ok'] else ' class=wrong'}><td>"
        filled = [
            [*(html.escape(visible(cell)) for cell in cells), problems + warnings] for cells in kind.cells_of_page(row)
        ]
        return "".join(f"{begin}{'</td><td>'.join(cells)}</td></tr>\n" for cells in filled)

    return PAGE.format(
        summary=html.escape(kind.summary(rows)),
        time=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        head="".join(f"<th>{title}</th>" for title in [*kind.columns.values(), "what is wrong"]),
        rows="".join(map(lines, rows)),
    )


def write(path: str, content: str) -> None:
    """Write a file in one step, over whatever has its name: no symbolic link that somebody has put there is followed."""
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(content)
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(descriptor, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


class ActionModule(ActionBase):
    """The report."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write and print it."""
        super().run(tmp, task_vars)
        variables = task_vars or {}
        kind = Cores() if self._task.args.get("table") == "cores" else Fleet()
        raw = variables["hostvars"].raw_get
        rows = [row_of(kind, host, raw(host)) for host in variables["ansible_play_hosts_all"]]
        wrong = [row["host"] for row in rows if not row["ok"]]
        summary = kind.summary(rows)
        paths = {name: os.path.abspath(self._task.args[name]) for name in ("json", "html")}
        files = {}
        for name, content in (("json", json.dumps(rows, indent=1) + "\n"), ("html", page(kind, rows))):
            try:
                os.makedirs(os.path.dirname(paths[name]), exist_ok=True)
                write(paths[name], content)
                files[name] = paths[name]
            except OSError as error:
                files[name] = (
                    f"not written: {paths[name]}: {error.strerror}, give another file with {kind.prefix}_{name}"
                )
        # The table comes first: it is what the user has asked for.
        Display().display(f"\n{table(kind, rows)}\n{summary}; {files['json']}, {files['html']}\n")
        problems = [f"wrong: {', '.join(wrong)}"] if wrong else []
        problems += [text for name, text in files.items() if text != paths[name]]
        message = "; ".join([summary, *problems])
        return {"changed": False, "msg": message, **({"failed": True} if problems else {})}

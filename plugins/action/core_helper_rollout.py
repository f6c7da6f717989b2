# SPDX-License-Identifier: Apache-2.0
"""Ansible action: the controller's part of a rollout, for playbooks/site.yml and playbooks/rollback.yml.

Keeps a record of which hosts a rollout has begun with and how each was before, and stops the rollout where it must not go on.
Runs on the controller, once for all hosts, and connects to none. ``touched`` in the record says whether a host was changed
(true) or not (false). It is null while the rollout has begun with the host and nobody knows; then rollback.yml restores the
host, too. The argument ``step`` is one of:

``start``
    A new run begins. Fails if a variable of the playbook is mistyped, is set where it does not count, or asks for a gate
    without canaries. Returns ``canaries``: the hosts of ``canaries`` (names of hosts and groups), or the first host.
``begin``
    A batch has been looked at and will now be changed: writes down how its hosts are, or fails if one of them is missing.
``gate``
    A batch has been changed: fails if any host of the play has failed, was unreachable, or hides a failure by a ``rescue``.
``finish``
    All batches are through.
``load``
    Returns ``hosts``: how each host was before the rollout that is not finished, or else before the last finished one.
``forget``
    The hosts of the play have been brought back: each that is now as it was before leaves the record. Fails if others are left.

The argument ``directory`` is where the record is: ``pending.json`` during a rollout, and after one that was stopped;
``finished.json`` after one that came to its end and changed anything. An older ``finished.json`` then becomes
``finished-TIME.json``. It does so, too, when rollback.yml has undone a stopped rollout: nobody shall go back further without
asking for it.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tempfile
import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

VARIABLES = ("canaries", "batches", "gate_seconds", "gate_command", "directory")
PREFIX = "rollout_"

SNAPSHOT = "__docker_core_helper_snapshot"
AFTER = "__docker_core_helper_after"
PREFLIGHT, FOUND = "__docker_core_helper_preflight", "__docker_core_helper_found"
DONE = ("__docker_core_helper_files", "__docker_core_helper_kernel")
TRY = "to try one on each, run playbooks/verify.yml -e docker_core_helper_canary=true"
REMEDY = "If it is your record, make it yours alone, by chown and chmod; else name another rollout_directory"
# The parts of a snapshot that the record keeps.
BEFORE = ("installed", "version", "snapshot")


def good(result: Any) -> bool:
    """Return whether a registered result is one of a task that has run and has not failed."""
    bad = ("failed", "unreachable", "skipped")
    return isinstance(result, dict) and not any(result.get(word) for word in bad)


def named(hosts: list[str]) -> str:
    """Return hosts for a message."""
    return ", ".join(hosts) or "none"


def there(files: dict[str, Any]) -> dict[str, Any]:
    """Return the files of a snapshot that are there."""
    return {path: content for path, content in files.items() if content is not None}


class ActionModule(ActionBase):
    """The steps of a rollout."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run one step."""
        super().run(tmp, task_vars)
        self.variables = task_vars or {}
        self.all: list[str] = list(self.variables["ansible_play_hosts_all"])
        self.alive: list[str] = list(self.variables["ansible_play_hosts"])
        directory = os.path.abspath(self._task.args["directory"])
        self.pending = os.path.join(directory, "pending.json")
        self.finished = os.path.join(directory, "finished.json")
        result: dict[str, Any] = getattr(self, self._task.args["step"])()
        return {"changed": False, **result}

    # -- what is known

    def known(self, host: str, name: str) -> Any:
        """Return a variable of a host, as it is."""
        # The record may name hosts that are not in the inventory any more.
        hostvars = self.variables["hostvars"]
        return hostvars.raw_get(host).get(name) if host in hostvars else None

    def read(self, path: str) -> dict[str, dict[str, Any]]:
        """Return the hosts of a record, none if there is no such file.

        rollback.yml writes the content of the record to the hosts, as root. So nobody else may have written the record: its
        directory is below the current one by default, and that may be /tmp.
        """
        try:
            with open(path, encoding="utf-8") as file:
                found = os.fstat(file.fileno())
                if found.st_uid not in (0, os.geteuid()):
                    raise AnsibleActionFail(
                        f"{path} belongs to user {found.st_uid}, so its content cannot be trusted. {REMEDY}"
                    )
                if found.st_mode & 0o022:
                    raise AnsibleActionFail(f"others can write {path}, so its content cannot be trusted. {REMEDY}")
                hosts: dict[str, dict[str, Any]] = json.load(file)["hosts"]
                return hosts
        except FileNotFoundError:
            return {}
        except (KeyError, TypeError, ValueError) as error:
            raise AnsibleActionFail(
                f"{path} is no record of a rollout any more: {error!r}: correct what was edited"
            ) from None

    def begun(self, path: str) -> dict[str, dict[str, Any]]:
        """Return the hosts of a record that were changed, or may have been."""
        return {host: entry for host, entry in self.read(path).items() if entry["touched"] is not False}

    def record_of_last(self) -> str:
        """Return the path of the record that rollback.yml goes by."""
        return self.pending if os.path.exists(self.pending) else self.finished

    def keep_finished(self) -> None:
        """Rename the record of the last finished rollout, so that it does not count as the last one any more."""
        if os.path.exists(self.finished) and not self._task.check_mode:
            ended = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(os.stat(self.finished).st_mtime))
            os.replace(self.finished, f"{self.finished[: -len('.json')]}-{ended}.json")

    def write(self, path: str, hosts: dict[str, dict[str, Any]]) -> None:
        """Write a record, in one step. Only its owner may read it, because it holds the configuration of the hosts."""
        if self._task.check_mode:
            return
        if not hosts:
            if os.path.exists(path):
                os.unlink(path)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump({"hosts": hosts}, file, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, path)
        except BaseException as error:
            os.unlink(temporary)
            if isinstance(error, OSError):
                error.filename = path  # A full disk names no file.
            raise

    def wrong(self, evidence: str) -> dict[str, str]:
        """Return the hosts after which the rollout must not go on, and why.

        That a play goes on with a host proves nothing: a rescue may have hidden a failure. So each host of the batch must have
        a result of its own under the name ``evidence``.
        """
        found = {host: "failed or unreachable" for host in self.all if host not in self.alive}
        for host in self.variables["ansible_play_batch"]:
            failure = self.known(host, "ansible_failed_result")
            if failure:
                found[host] = f"a rescue hides: {failure.get('msg', 'a failure')}"
            elif not good(self.known(host, evidence)):
                found[host] = "has not come to its end"
        return found

    def stop(self, why: dict[str, str], hint: str) -> None:
        """End the rollout, and say how far it came."""
        begun = list(self.begun(self.pending))
        reasons = "; ".join(f"{host}: {reason}" for host, reason in why.items())
        outcome = "Nothing was changed"
        if begun:
            outcome = (
                f"Changed so far, or begun with: {named(begun)}; {self.pending} holds how they were, and"
                " playbooks/rollback.yml brings them back"
            )
        raise AnsibleActionFail(f"the rollout stops here, {hint}: {reasons}. {outcome}")

    def refuse_variables(self) -> None:
        """Fail at a variable that does not do what its author expects: a mistyped gate would stop nothing."""
        # The variables of -e, and of a playbook that imports this one; other variables of the inventory do not matter here.
        extra = load_extra_vars(self._loader)
        ours = set(self.variables).difference(self.variables["hostvars"].raw_get(self.variables["inventory_hostname"]))
        given = [name for name in ours.union(extra) if str(name).startswith(PREFIX)]
        for name in sorted(name for name in given if name[len(PREFIX) :] not in VARIABLES):
            (nearest,) = difflib.get_close_matches(name[len(PREFIX) :], VARIABLES, n=1, cutoff=0)
            raise AnsibleActionFail(f"{name} is no variable of this playbook: did you mean {PREFIX}{nearest}?")
        # Variables of the inventory lose against the playbook's own.
        for name in (f"{PREFIX}{name}" for name in VARIABLES):
            hosts = [] if name in extra else [host for host in self.all if self.known(host, name) is not None]
            if hosts:
                raise AnsibleActionFail(
                    f"{name} does not count in an inventory, where {hosts[0]} has it: give it by -e"
                )
        for name in ("canaries", "gate_command"):
            value = self._task.args.get(name, [])
            if not isinstance(value, list):
                example = json.dumps({PREFIX + name: str(value).split()})
                raise AnsibleActionFail(f"{PREFIX}{name} must be a list, such as -e '{example}': {value!r}")
        seconds = str(self._task.args["gate_seconds"])
        if not re.fullmatch("[0-9]{1,7}", seconds):
            raise AnsibleActionFail(f"{PREFIX}gate_seconds must be a whole number of seconds: {seconds!r}")
        if self._task.args.get("canaries") == [] and (int(seconds) or self._task.args["gate_command"]):
            raise AnsibleActionFail(
                f"there is no gate without canaries: give {PREFIX}canaries hosts, or neither {PREFIX}gate_seconds nor"
                f" {PREFIX}gate_command"
            )

    # -- the steps

    def start(self) -> dict[str, Any]:
        """Begin a run. It carries on a record that an earlier run has left: the hosts of that are not yet as they should be."""
        self.refuse_variables()
        asked = self._task.args.get("canaries")
        if asked is None:
            return {"canaries": self.all[:1]}
        groups = self.variables["groups"]
        unknown = [name for name in asked if name not in groups and name not in groups["all"]]
        if unknown:
            raise AnsibleActionFail(f"rollout_canaries: {named(unknown)}: neither a host nor a group of the inventory")
        canaries = {host for name in asked for host in groups.get(name, [name])}
        chosen = [host for host in self.all if host in canaries]
        # With --limit there may be none of them: then the first host within the limit.
        return {"canaries": chosen or (self.all[:1] if asked else [])}

    def begin(self) -> dict[str, Any]:
        """Write down how the hosts of the batch are. What an earlier, stopped run has written about one of them stays."""
        missing = self.wrong(SNAPSHOT)
        if missing:
            self.stop(missing, "before anything of this batch was changed")
        hosts = self.read(self.pending)
        for host in self.variables["ansible_play_batch"]:
            before = {key: self.known(host, SNAPSHOT)[key] for key in BEFORE}
            if host not in hosts or hosts[host]["touched"] is False:
                hosts[host] = {"touched": None, "before": before}
        self.write(self.pending, hosts)
        return {}

    def gate(self) -> dict[str, Any]:
        """Let the next batch begin only if all hosts so far are as they should be."""
        wrong = self.wrong(AFTER)
        hosts = self.read(self.pending)
        for host, entry in hosts.items():
            after = self.known(host, AFTER) or {}
            changed = after.get("snapshot", entry["before"]["snapshot"]) != entry["before"]["snapshot"]
            refused = self.refused(host)
            # A host that failed may have been changed by the very task that has no result.
            if changed or (host in wrong and not refused):
                entry["touched"] = True
            # Not without a result, as for a host of an interrupted batch that this run has not reached.
            elif entry["touched"] is None and (refused or good(self.known(host, AFTER))):
                entry["touched"] = False
        # If no host was touched, there is nothing to carry on and nothing to undo.
        self.write(self.pending, hosts if any(entry["touched"] is not False for entry in hosts.values()) else {})
        if wrong:
            self.stop(wrong, "before the next batch")
        return {}

    def refused(self, host: str) -> bool:
        """Return whether the role has refused a host before it changed anything."""
        preflight, found = (self.known(host, name) or {} for name in (PREFLIGHT, FOUND))
        return bool(preflight.get("failed") or (found.get("failed") and preflight.get("state") == "present"))

    def did(self, host: str) -> bool:
        """Return whether the role has changed anything of a host, also what no snapshot tells."""
        results = (self.known(host, name) for name in DONE)
        return any(good(result) and result["changed"] for result in results)

    def finish(self) -> dict[str, Any]:
        """Close the record. After a run that has changed nothing, rollback.yml still goes by the record of the run before."""
        touched = self.begun(self.pending)
        if touched:
            self.keep_finished()
            self.write(self.finished, touched)
        self.write(self.pending, {})
        summary = f"{len(self.alive)} hosts are as they should be; changed: {named(list(touched))}"
        if not self._task.check_mode:
            beside = [host for host in self.alive if host not in touched and self.did(host)]
            if beside:
                summary += f"; changed in what rollback.yml leaves as it is, such as credentials: {named(beside)}"
            removed = all((self.known(host, PREFLIGHT) or {}).get("state") == "absent" for host in self.alive)
            hint = (
                "None of them has docker_core_helper"
                if removed
                else f"The kernel of each starts docker_core_helper at each crash; {TRY}"
            )
            # Ansible itself does not show the message of a successful task.
            Display().display(f"\n{summary}. {hint}\n")
        return {"msg": summary}

    def load(self) -> dict[str, Any]:
        """Return how the hosts to restore were before."""
        path = self.record_of_last()
        hosts = self.begun(path)
        if not hosts:
            reason = f"{path} has none" if os.path.exists(path) else f"there is neither {self.pending} nor {path}"
            raise AnsibleActionFail(f"no host is to be brought back: {reason}")
        return {
            "record": path,
            "hosts": {host: entry["before"] for host, entry in hosts.items() if host in self.all},
            "absent": [host for host in hosts if host not in self.all],
        }

    def is_as_before(self, host: str, hosts: dict[str, dict[str, Any]]) -> bool:
        """Return whether a host's files are again as the record says; with --check, whether they would be."""
        now, before = self.known(host, SNAPSHOT), hosts[host]["before"]
        if self._task.check_mode:
            return True
        if not before["installed"]:
            return not now["installed"]
        # An earlier version has recorded fewer files than this one looks at.
        return there(now["snapshot"]["files"]) == there(before["snapshot"]["files"])

    def forget(self) -> dict[str, Any]:
        """Remove the hosts that were brought back from the record."""
        path = self.record_of_last()
        wrong = self.wrong(SNAPSHOT)
        hosts = self.begun(path)
        back = [host for host in hosts if host in self.alive and host not in wrong and self.is_as_before(host, hosts)]
        left = {host: entry for host, entry in hosts.items() if host not in back}
        self.write(path, left)
        if back and path == self.pending:
            self.keep_finished()
        message = f"brought back: {named(back)}"
        if left:
            raise AnsibleActionFail(f"{message}; still to be brought back, in {path}: {named(list(left))}")
        return {"msg": message}

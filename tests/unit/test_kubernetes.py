"""examples/kubernetes: the schemas of Kubernetes, and that it says what the documents and tests/crash say."""

from __future__ import annotations

import re
import shlex
from typing import Any

import kubernetes_validate
import pytest
from core_helper import pattern, serve
from core_helper.configuration import DEFAULT_TIMEOUT, Configuration, parse_configuration
from support import serving
from support.project import PROJECT

# The first version that has all that the manifest says (appArmorProfile), one in between, and the newest that is known.
VERSIONS = ("1.30", "1.33", kubernetes_validate.latest_version())


def resource(kind: str) -> dict[str, Any]:
    (found,) = (one for one in serving.objects() if one["kind"] == kind)
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["ConfigMap", "DaemonSet"])
def test_the_manifest_is_of_the_schema(kind: str, version: str) -> None:
    assert version.startswith(kubernetes_validate.validate(resource(kind), version, strict=True))


def test_a_word_that_the_schema_does_not_have_is_found() -> None:
    wrong = resource("DaemonSet")
    wrong["spec"]["template"]["spec"]["hostPid"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_the_daemon_set_finds_its_pods_and_its_configuration() -> None:
    daemon_set, configuration = resource("DaemonSet"), resource("ConfigMap")
    labels = daemon_set["spec"]["template"]["metadata"]["labels"]
    assert daemon_set["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert daemon_set["metadata"]["namespace"] == configuration["metadata"]["namespace"]
    pod = serving.pod()
    (volume,) = pod["volumes"]
    assert volume == {"name": "configuration", "configMap": {"name": configuration["metadata"]["name"]}}
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert mount["name"] == volume["name"] and mount["mountPath"] == "/etc/docker_core_helper.conf"
    assert list(configuration["data"]) == [mount["subPath"]]
    found = Configuration()
    parse_configuration(configuration["data"][mount["subPath"]].encode(), mount["mountPath"], found)
    assert found.delegate and found.problems == []


def test_the_pod_has_what_crash_tests_give_a_container_and_nothing_of_the_node_besides() -> None:
    pod = serving.pod()
    words = serving.options()
    assert [word for word in words if word.startswith("--cap-add=")] == [
        f"--cap-add={name}" for name in serving.capabilities()
    ]
    assert not any(word.startswith(("--volume", "--privileged", "--device")) for word in words)
    assert pod["automountServiceAccountToken"] is False and "initContainers" not in pod
    assert pod["terminationGracePeriodSeconds"] > DEFAULT_TIMEOUT
    (container,) = pod["containers"]
    assert container["args"] == ["serve", "--pattern"]
    # A server that cannot start at the socket of another one must not be waited for.
    update = resource("DaemonSet")["spec"]["updateStrategy"]["rollingUpdate"]
    assert update == {"maxSurge": 0, "maxUnavailable": 1}


def test_ready_is_whom_the_kernel_sends_cores_to() -> None:
    words = serving.pod()["containers"][0]["readinessProbe"]["exec"]["command"]
    assert words == ["grep", "-qx", f"@@{serve.PATH}", pattern.FILE]


def test_the_page_starts_docker_with_the_options_of_the_manifest() -> None:
    page = (PROJECT / "docs/socket.md").read_text()
    (command,) = re.findall(r"^# (docker run .*?[^\\])$", page, re.M | re.S)
    words = shlex.split(command.replace("\\\n", " "))
    assert [word for word in serving.options() if word not in words] == []
    own = {"docker", "run", "--detach", "--name=docker-core-helper", "--restart=always", "--network=none"}
    own.add(f"--volume=/srv/docker_core_helper.conf:{serving.CONFIGURATION}:ro")
    assert set(words) - set(serving.options()) - own == {"docker-core-helper:1.0.0"}
    assert serving.pod()["containers"][0]["image"].endswith("/docker-core-helper:1.0.0")


def test_every_capability_has_its_reason() -> None:
    page = (PROJECT / "SECURITY.md").read_text().partition("\n## A server in a container\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", page, re.M)
    assert sorted(name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)) == sorted(serving.capabilities())

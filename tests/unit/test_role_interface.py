"""What users give to the role: its variables, what it refuses, and the configuration that it makes of them."""

from __future__ import annotations

import ast
import base64
import datetime
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from core_helper import serve
from core_helper.configuration import Configuration, parse_configuration
from core_helper.crash import SIGNALS
from core_helper.words import unquote
from support import project

PROJECT = Path(__file__).resolve().parents[2]
ROLE = PROJECT / "roles/docker_core_helper"
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
ROLES = ["docker_core_helper", "core_uploader"]
HELPER = "/opt/bin/docker_core_helper"
NAME = "docker_core_helper_"
SOCKET = "@@/run/docker_core_helper/core.sock"

# What must be quoted, and what no message may show.
SECRETS = {
    "AWS_ACCESS_KEY_ID": "not-to-be-shown",
    "items": 'not-to-be-shown "quotes" $HOME `x` \'y\' \\ \\$ \\" #z',
    "_port": 9000,
    "EMPTY": "",
    "BLANKS": " é ",
}
ACCEPTED: dict[str, dict[str, Any]] = {
    "defaults": {},
    "original": {"core_pattern": f"|{HELPER} %P %u %g /opt/bin/uploader.sh s3://my-bucket-for-cores/ %P %u %g"},
    "env": {"core_pattern": f"|/usr/bin/env DOCKERCOREHELPER_FALLBACK_CORE=1 {HELPER} %P %u %g"},
    "options": {"core_pattern": f"|{HELPER} -d%d -F%F -- %P %u %g"},
    "longest": {"core_pattern": f"|{HELPER} %P %u %g /".ljust(127, "x")},
    "strings": {"pipe_limit": "8", "timeout": "86400", "timeout_max": "7", "fallback_core": "true"},
    "many": {"pipe_limit": 16384},
    "kernel_limit": {"kernel_limit": 64},
    "kernel_limit_string": {"pipe_limit": "600", "kernel_limit": "1000"},
    "directories": {"bin_dir": "/srv/core_1.0/bin", "lib_dir": "/srv/core..x/lib"},
    "no_delegate": {"delegate": []},
    "lend": {"lend": ["/srv/a b", ":s3:%{CORE_DESTINATION#s3://}/%{CORE_KEY}", "%P", "100%%", 'say "$x" \\', "it's"]},
    "canary_true": {"canary": True},
    "canary_delegate": {"canary": "delegate", "canary_image": "shop:1.0", "canary_options": ["--env-file", "/etc/x"]},
    "variables": {"container_environment": ["CORE_DESTINATION", "AWS_REGION", "_x1"]},
    "no_variables": {"container_environment": []},
    "unwanted": {"ignore_signals": ["SIGQUIT", "SIGSYS"], "ignore_programs": ["/opt/a b/*", "*/it's", '/"$x`\\']},
    "bounds": {"size_max": "10G", "burst": "5/1h", "fallback_max": "3/5000"},
    "bounds_number": {"size_max": 5000, "burst": 0, "fallback_max": 0},
    "unlimited": {"obey_core_limit": False},
    "keep": {"keep": "undelivered", "keep_max": "500M", "keep_free": 0, "keep_age": "365", "release": "kept"},
    "keep_bytes": {"keep": "always", "keep_max": 5000000, "keep_directory": '/srv/a "b" \\c/cores'},
    "sender": {"keep": "always", "sender": ["/opt/lib/docker_core_helper/uploader.sh", "s3://cores/"]},
    "sender_quotes": {
        "keep": "undelivered",
        "sender": ["/srv/a b", 'say "hello"', "it's", "100%", "/mnt/c d", "file:///srv/x%"],
        "sender_environment": SECRETS,
    },
    "socket": {"mode": "socket", "bin_dir": "/srv/bin"},
    "auto": {"mode": "auto", "core_pattern": f"|{HELPER} -d%d -F%F -- %P %u %g"},
    "no_chain": {"chain": "none"},
    "chain": {"chain": ["/usr/share/apport/apport", "-p%p", "--", "%E"], "chain_containers": True},
    "chain_quotes": {"chain": ["/opt/a b", 'say "hello"', "it's", "%", "%x", ""]},
    "quotes": {"delegate": ["/opt/a b", 'say "hello"', "it's", 'back\\slash \\" $HOME `x`', "", "#no", "100%%", "é"]},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": (
        {"pipelimit": 8},
        "docker_core_helper_pipelimit is no variable of this role: did you mean docker_core_helper_pipe_limit?",
    ),
    "omitted": ({"conflicts": "{{ nowhere | default(omit) }}"}, "docker_core_helper_conflicts is omitted"),
    "unknown_2": ({"delegates": []}, "did you mean docker_core_helper_delegate?"),
    "unknown_3": ({"core_patern": ""}, "did you mean docker_core_helper_core_pattern?"),
    "too_long": (
        {"core_pattern": f"|{HELPER} %P %u %g /".ljust(128, "x")},
        "has 128 bytes, and the kernel cuts it off after 127",
    ),
    "directory_makes_too_long": ({"bin_dir": "/srv/" + "x" * 80}, "bytes, and the kernel cuts it off after 127"),
    "no_pipe": ({"core_pattern": "core.%p"}, "must begin with |/"),
    "relative_pipe": ({"core_pattern": "|docker_core_helper %P"}, "must begin with |/"),
    "newline": ({"core_pattern": f"|{HELPER} %P\n%u %g"}, "must be one line"),
    "space_at_end": ({"core_pattern": f"|{HELPER} %P %u %g "}, "does not end in a space"),
    "inner_pid": ({"core_pattern": f"|{HELPER} %p %u %g"}, f"must have %P %u %g behind {HELPER} and its options"),
    "no_group": ({"core_pattern": f"|{HELPER} -d%d %P %u"}, f"must have %P %u %g behind {HELPER} and its options"),
    "swapped": ({"core_pattern": f"|{HELPER} %P %g %u"}, "and its options, in this order"),
    "no_process": ({"core_pattern": f"|{HELPER}"}, f"must have %P %u %g behind {HELPER} and its options"),
    "unknown_option": ({"core_pattern": f"|{HELPER} -I%i %P %u %g"}, 'and not "-I%i"'),
    "relative_delegate": (
        {"core_pattern": f"|{HELPER} %P %u %g uploader.sh"},
        "must name the absolute path of the delegate",
    ),
    "mistyped_helper": ({"core_pattern": "|/opt/bin/docker_core_hepler %P %u %g"}, f"must name {HELPER}"),
    "bin_dir_space": ({"bin_dir": "/opt/my bin"}, "docker_core_helper_bin_dir must be an absolute path"),
    "bin_dir_relative": ({"bin_dir": "opt/bin"}, "docker_core_helper_bin_dir must be an absolute path"),
    "bin_dir_specifier": ({"bin_dir": "/opt/%h"}, "docker_core_helper_bin_dir must be an absolute path"),
    "bin_dir_newline": ({"bin_dir": "/opt/bin\n"}, "docker_core_helper_bin_dir must be an absolute path"),
    "bin_dir_number": ({"bin_dir": 7}, "docker_core_helper_bin_dir must be an absolute path"),
    "lib_dir_space": ({"lib_dir": "/opt/my lib"}, "docker_core_helper_lib_dir must be an absolute path"),
    "lib_dir_above": ({"lib_dir": "/opt/../etc"}, "docker_core_helper_lib_dir must be an absolute path"),
    "pipe_limit": ({"pipe_limit": 0}, "_pipe_limit must be a number of deliveries from 1 to 16384: 0"),
    "pipe_limit_string": ({"pipe_limit": "-1"}, "docker_core_helper_pipe_limit must be a number of deliveries"),
    "pipe_limit_infinite": ({"pipe_limit": float("inf")}, "docker_core_helper_pipe_limit must be a number of"),
    "pipe_limit_word": ({"pipe_limit": "many"}, "docker_core_helper_pipe_limit must be a number of deliveries"),
    "pipe_limit_large": ({"pipe_limit": 16385}, "docker_core_helper_pipe_limit must be a number of deliveries"),
    "pipe_limit_omitted": ({"pipe_limit": "{{ nowhere | default(omit) }}"}, "docker_core_helper_pipe_limit is omitted"),
    "kernel_limit_0": ({"kernel_limit": 0}, "docker_core_helper_kernel_limit must be above 0, else the kernel"),
    "kernel_limit_word": ({"kernel_limit": "many"}, "docker_core_helper_kernel_limit must be above 0"),
    "kernel_limit_large": ({"kernel_limit": 4194305}, "docker_core_helper_kernel_limit must not be above 4194304"),
    "kernel_limit_small": (
        {"kernel_limit": "63"},
        "docker_core_helper_kernel_limit must not be below docker_core_helper_pipe_limit, else the kernel drops crashes that"
        ' would be delivered: "63" is less than 64; raise docker_core_helper_kernel_limit or leave it out, or lower'
        " docker_core_helper_pipe_limit",
    ),
    "pattern_number": ({"core_pattern": 7}, "docker_core_helper_core_pattern must begin with |/"),
    "timeout_lines": ({"timeout": "x\ny"}, "docker_core_helper_timeout must be a number of seconds"),
    "timeout": ({"timeout": 86401}, "docker_core_helper_timeout must be a number of seconds"),
    "timeout_max": (
        {"timeout_max": 0},
        "docker_core_helper_timeout_max must be a number of seconds from 1 to 86400: 0",
    ),
    "timeout_max_word": ({"timeout_max": "long"}, "docker_core_helper_timeout_max must be a number of seconds"),
    "size_max": ({"size_max": "10GB"}, "docker_core_helper_size_max must be a number of bytes such as 10G, or 0"),
    "size_max_lines": ({"size_max": "1\n2"}, "docker_core_helper_size_max must be a number of bytes"),
    "burst": ({"burst": 5}, "docker_core_helper_burst must be a number of cores and a time such as 5/1h, or 0: 5"),
    "burst_none": ({"burst": "0/1h"}, "docker_core_helper_burst must be a number of cores and a time"),
    "fallback_max": (
        {"fallback_max": "16"},
        "_fallback_max must be a number of files and of bytes such as 16/8G, or 0",
    ),
    "fallback_max_none": ({"fallback_max": "0/8G"}, "docker_core_helper_fallback_max must be a number of files"),
    "delegate_string": ({"delegate": "/opt/bin/uploader.sh"}, "docker_core_helper_delegate must be a list of words"),
    "delegate_date": ({"delegate": datetime.date(2026, 1, 2)}, "docker_core_helper_delegate must be a list of words"),
    "delegate_mapping": ({"delegate": {datetime.date(2026, 1, 2): 7}}, "must be a list of words"),
    "delegate_number": ({"delegate": [7]}, "docker_core_helper_delegate must begin with an absolute path"),
    "delegate_relative": (
        {"delegate": ["uploader.sh"]},
        "docker_core_helper_delegate must begin with an absolute path",
    ),
    "delegate_newline": ({"delegate": ["/a", "b\nDOCKERCOREHELPER_TIMEOUT=1"]}, "must not hold newlines"),
    "delegate_specifier": ({"delegate": ["/a", "%P.%x"]}, "docker_core_helper_delegate knows %P"),
    "lend_string": ({"lend": "/opt/bin/rclone"}, "docker_core_helper_lend must be a list of words, such as [/opt/"),
    "lend_relative": (
        {"lend": ["rclone"]},
        "docker_core_helper_lend must begin with the absolute path of a program of",
    ),
    "lend_newline": ({"lend": ["/a", "b\nc"]}, "docker_core_helper_lend must not hold newlines"),
    "lend_specifier": ({"lend": ["/a", "%{A-B}"]}, "docker_core_helper_lend knows %P %p %u %g %s %t %e %h %E, %{NAME}"),
    "chain_string": ({"chain": "/bin/x %P"}, "docker_core_helper_chain must be none, previous or a list of words"),
    "chain_number": ({"chain": 7}, "docker_core_helper_chain must be none, previous or a list of words"),
    "chain_mapping": ({"chain": {"a": "b"}}, "docker_core_helper_chain must be none, previous or a list of words"),
    "chain_empty": ({"chain": []}, "docker_core_helper_chain must begin with the absolute path"),
    "chain_relative": ({"chain": ["systemd-coredump"]}, "docker_core_helper_chain must begin with the absolute path"),
    "chain_newline": ({"chain": ["/a", "b\nDOCKERCOREHELPER_TIMEOUT=1"]}, "docker_core_helper_chain must not hold"),
    "canary": ({"canary": "ture"}, 'docker_core_helper_canary must be true, false or delegate: "ture"'),
    "canary_short": ({"canary": "y"}, "docker_core_helper_canary must be true, false or delegate"),
    "canary_no_image": ({"canary": "delegate"}, "canary: delegate needs docker_core_helper_canary_image, the name of"),
    "canary_image": ({"canary_image": "--privileged"}, "docker_core_helper_canary_image must be the name of an image"),
    "canary_options": ({"canary_options": "--env A=b"}, "docker_core_helper_canary_options must be a list of words"),
    "canary_words": ({"canary_options": ["--cpus", 1]}, "docker_core_helper_canary_options must be a list of words"),
    "canary_pull": ({"canary_pull": "never"}, "docker_core_helper_canary_pull must be true or false"),
    "fallback_core": ({"fallback_core": 2}, "docker_core_helper_fallback_core must be true or false: 2"),
    "chain_containers": ({"chain_containers": []}, "docker_core_helper_chain_containers must be true or false"),
    "obey_core_limit": ({"obey_core_limit": "never"}, "docker_core_helper_obey_core_limit must be true or false"),
    "ignore_signals": ({"ignore_signals": ["QUIT"]}, "_ignore_signals must be a list of SIGQUIT, SIGILL, SIGTRAP"),
    "ignore_signals_string": ({"ignore_signals": "SIGQUIT"}, "docker_core_helper_ignore_signals must be a list of"),
    "keep_word": ({"keep": "sometimes"}, "docker_core_helper_keep must be never, undelivered or always"),
    "keep_no": ({"keep": False}, "docker_core_helper_keep must be never, undelivered or always"),
    "release": ({"release": "now"}, "docker_core_helper_release must be delivered or kept"),
    "keep_directory": ({"keep_directory": "cores"}, "docker_core_helper_keep_directory must be an absolute path"),
    "keep_directory_up": (
        {"keep_directory": "/srv/../etc"},
        "keep_directory must be an absolute path without . and ..",
    ),
    "keep_max": ({"keep_max": "10 GB"}, "docker_core_helper_keep_max must be a number of bytes"),
    "keep_max_0": ({"keep_max": 0}, "docker_core_helper_keep_max must be a number of bytes"),
    "keep_free": ({"keep_free": 100}, "docker_core_helper_keep_free must be a percentage from 0 to 99"),
    "keep_age": ({"keep_age": 0}, "docker_core_helper_keep_age must be a number of days from 1 to 36500"),
    "sender_string": (
        {"sender": "/opt/x s3://y/"},
        "docker_core_helper_sender must be a list of words, such as [/opt/",
    ),
    "sender_relative": ({"sender": ["uploader.sh"]}, "docker_core_helper_sender must begin with the absolute path of"),
    "sender_newline": (
        {"sender": ["/a", "b\nc"], "keep": "always"},
        "docker_core_helper_sender must not hold newlines",
    ),
    "sender_never": (
        {"sender": ["/a"]},
        "docker_core_helper_keep is never: set docker_core_helper_keep to undelivered or always, or leave the sender out",
    ),
    "sender_tmp": ({"sender": ["/a", "file:///tmp"], "keep": "always"}, "_sender must name nothing below /home, /root"),
    "sender_home": (
        {"sender": ["/a", "/b"], "keep": "always", "keep_directory": "/root/cores"},
        "keep_directory must name nothing below /home, /root, /run/user, /tmp and /var/tmp, which the service of the sender"
        ' does not see: "/root/cores"',
    ),
    "sender_environment": ({"sender_environment": ["A=not-to-be-shown"]}, "must be a mapping of names to values"),
    "sender_environment_text": ({"sender_environment": "A=not-to-be-shown"}, "must be a mapping of names to values"),
    "sender_environment_name": (
        {"sender_environment": {"A-B=not-to-be-shown": ""}},
        'docker_core_helper_sender_environment must have names of letters, digits and _: "A-B"',
    ),
    "sender_environment_core": (
        {"sender_environment": {"CORE_DESTINATION": "not-to-be-shown"}},
        'must not have "CORE_DESTINATION": the helper itself says by CORE_ what is known of a core',
    ),
    "sender_environment_newline": (
        {"sender_environment": {"A": "not-to-be-shown\nB=x"}},
        'the value of "A" must not hold newlines or other control characters',
    ),
    "sender_environment_bool": ({"sender_environment": {"A": True}}, 'the value of "A" must be a string, in quotes'),
    "sender_environment_list": (
        {"sender_environment": {"A": ["not-to-be-shown"]}},
        'the value of "A" must be a string',
    ),
    "sender_environment_alone": (
        {"sender_environment": {"A": "not-to-be-shown"}},
        "docker_core_helper_sender_environment is for docker_core_helper_sender, which is empty: name a program there",
    ),
    "container_environment": (
        {"container_environment": ["A=b"]},
        "docker_core_helper_container_environment must be a list of names of variables",
    ),
    "container_environment_string": ({"container_environment": "CORE_X"}, "_environment must be a list of names"),
    "container_environment_newline": ({"container_environment": ["A\nB"]}, "_environment must be a list of names"),
    "ignore_programs": ({"ignore_programs": ["chrome"]}, "_ignore_programs must be a list of paths, such as [/usr/"),
    "ignore_programs_string": ({"ignore_programs": "/x"}, "docker_core_helper_ignore_programs must be a list of paths"),
    "ignore_programs_newline": ({"ignore_programs": ["/a\nb"]}, "docker_core_helper_ignore_programs must not hold"),
    "mode": ({"mode": "sockets"}, 'docker_core_helper_mode must be pipe, socket or auto: "sockets"'),
    "mode_list": ({"mode": ["socket"]}, "docker_core_helper_mode must be pipe, socket or auto"),
    "mode_delegate": (
        {"mode": "auto", "core_pattern": f"|{HELPER} %P %u %g /opt/bin/uploader.sh"},
        "docker_core_helper_core_pattern names more than the helper and the process, of which docker_core_helper_mode=auto"
        " would know nothing: leave it out, and use the other variables, such as docker_core_helper_delegate",
    ),
    "mode_env": (
        {"mode": "socket", "core_pattern": f"|/usr/bin/env DOCKERCOREHELPER_FALLBACK_CORE=1 {HELPER} %P %u %g"},
        "docker_core_helper_core_pattern names more than the helper and the process",
    ),
    "python_number": ({"python": 3.12}, "docker_core_helper_python must be an absolute path"),
    "python": ({"python": "python3"}, "docker_core_helper_python must be an absolute path"),
}

# The role's own preflight and its template, and nothing that could change a host.
PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: docker_core_helper
        tasks_from: preflight.yml
        public: true
    - ansible.builtin.debug:
        msg: >-
          {{ lookup('ansible.builtin.template', templates ~ '/docker_core_helper.conf.j2') | b64encode }}
          {{ docker_core_helper_kernel_limit }}
          {{ lookup('ansible.builtin.template', templates ~ '/docker_core_helper.credentials.j2') | b64encode }}
          {{ lookup('ansible.builtin.template', templates ~ '/docker-core-helper-sender.service.j2') | b64encode }}
          {{ lookup('ansible.builtin.template', templates ~ '/docker-core-helper.service.j2') | b64encode }}
          {{ lookup('ansible.builtin.template', templates ~ '/docker-core-helper.socket.j2') | b64encode }}
          {{ __docker_core_helper_live_patterns | join(', ') | b64encode }}
"""


def load(path: str) -> Any:
    """Return what a YAML file of the role says."""
    return yaml.safe_load((ROLE / path).read_text())


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what one run of Ansible says for each case: every case is a host, so that the start is paid once."""
    directory = tmp_path_factory.mktemp("preflight")
    assert not ACCEPTED.keys() & REFUSED.keys()
    cases = {**ACCEPTED, **{name: variables for name, (variables, _) in REFUSED.items()}}
    hosts = {host: {NAME + key: value for key, value in variables.items()} for host, variables in cases.items()}
    inventory = {"all": {"hosts": hosts, "vars": {"ansible_connection": "local"}}}
    (directory / "inventory.yml").write_text(yaml.safe_dump(inventory))
    (directory / "play.yml").write_text(PLAY)
    environment = {**os.environ, "ANSIBLE_ROLES_PATH": str(ROLE.parent), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": ""}
    environment |= {"ANSIBLE_INJECT_FACT_VARS": "false", "ANSIBLE_HOME": str(directory)}
    words = [PLAYBOOK, "-i", "inventory.yml", "play.yml", "-e", f"templates={ROLE}/templates"]
    result = subprocess.run(words, env=environment, cwd=directory, stdout=subprocess.PIPE, text=True, check=False)
    said: dict[str, str] = {}
    for found in re.finditer(r"^(?:ok|fatal): \[(\w+)\](?:: FAILED!)? => (?=\{)", result.stdout, re.M):
        said[found[1]] = json.JSONDecoder().raw_decode(result.stdout, found.end())[0]["msg"]
    assert said.keys() == cases.keys(), result.stdout
    assert result.returncode == 2
    return said


@pytest.mark.parametrize("case", REFUSED)
def test_preflight_refuses_with_one_clear_line(messages: dict[str, str], case: str) -> None:
    assert REFUSED[case][1] in messages[case]
    assert "\n" not in messages[case]
    assert "not-to-be-shown" not in messages[case]


@pytest.mark.parametrize("case", ACCEPTED)
def test_the_helper_reads_in_the_configuration_what_the_user_has_written(messages: dict[str, str], case: str) -> None:
    configuration = Configuration()
    text = base64.b64decode(messages[case].split()[0])
    parse_configuration(text, "test", configuration)
    assert configuration.problems == []
    expected = ACCEPTED[case]
    words = [word.encode() for word in expected.get("delegate", ["/opt/bin/uploader.sh"])]
    assert configuration.delegate == words
    assert configuration.lend == [word.encode() for word in expected.get("lend", [])]
    assert configuration.timeout == float(expected.get("timeout", 300))
    assert configuration.timeout_max == float(expected.get("timeout_max", 3600))
    assert configuration.size_max == {"10G": 10 << 30, "5000": 5000}.get(str(expected.get("size_max")), 0)
    assert configuration.burst == ((5, 3600) if expected.get("burst") else (0, 0))
    bound = {"3/5000": (3, 5000), "0": (0, 0)}.get(str(expected.get("fallback_max")), (16, 8 << 30))
    assert configuration.fallback_max == bound
    assert configuration.fallback == bool(expected.get("fallback_core"))
    chain = expected.get("chain", "previous")
    assert configuration.chain == ([word.encode() for word in chain] if isinstance(chain, list) else [])
    assert configuration.chain_containers == bool(expected.get("chain_containers"))
    assert configuration.obey_core_limit == expected.get("obey_core_limit", True)
    names = [name.encode() for name in expected.get("container_environment", ["CORE_DESTINATION"])]
    assert configuration.container_environment == names
    assert [SIGNALS[number] for number in configuration.ignore_signals] == expected.get("ignore_signals", [])
    assert configuration.ignore_programs == [path.encode() for path in expected.get("ignore_programs", [])]
    assert configuration.keep == expected.get("keep", "never")
    assert configuration.keep_directory == expected.get("keep_directory", "/var/lib/docker_core_helper/cores")
    assert configuration.keep_max == {"500M": 500 << 20, "10G": 10 << 30}.get(expected.get("keep_max", "10G"), 5000000)
    assert configuration.keep_free == expected.get("keep_free", 15)
    assert configuration.keep_age == int(expected.get("keep_age", 14))
    assert configuration.release_kept == (expected.get("release") == "kept")
    keeps = expected.get("keep", "never") != "never"
    assert configuration.sender == [word.encode() for word in expected.get("sender", []) if keeps]
    assert configuration.pipe_limit == int(expected.get("pipe_limit", 64))


@pytest.mark.parametrize("case", ACCEPTED)
def test_the_kernel_lets_more_crashes_to_the_helper_than_are_delivered_at_once(
    messages: dict[str, str], case: str
) -> None:
    limits = ACCEPTED[case]
    expected = limits.get("kernel_limit", max(512, int(limits.get("pipe_limit", 64))))
    assert messages[case].split()[1] == str(expected)


def test_the_sender_gets_every_value_as_it_was_written(messages: dict[str, str]) -> None:
    lines = base64.b64decode(messages["sender_quotes"].split()[2]).decode().splitlines()
    found = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert {name: unquote(value.encode()).decode() for name, value in found.items()} == {
        name: str(value) for name, value in SECRETS.items()
    }


@pytest.mark.parametrize(
    ("case", "paths"),
    [
        ("sender", ["/var/lib/docker_core_helper/cores"]),
        ("sender_quotes", ["/var/lib/docker_core_helper/cores", "/mnt/c d", "/srv/x%%"]),
        ("keep_bytes", [r"/srv/a \"b\" \\c/cores"]),
    ],
)
def test_the_service_of_the_sender_may_write_where_cores_are_and_where_they_go(
    messages: dict[str, str], case: str, paths: list[str]
) -> None:
    unit = base64.b64decode(messages[case].split()[3]).decode()
    assert re.findall(r'^ReadWritePaths="-(.*)"$', unit, re.M) == paths
    assert f"\nExecStart={HELPER} cores send\n" in unit


@pytest.mark.parametrize(
    ("case", "entry", "patterns"),
    [
        ("defaults", HELPER, ["{pipe}"]),
        ("socket", "/srv/bin/docker_core_helper", [SOCKET]),
        ("auto", HELPER, [f"|{HELPER} -d%d -F%F -- %P %u %g", SOCKET]),
    ],
)
def test_the_units_of_the_resident_helper_start_it_and_set_what_the_role_looks_for(
    messages: dict[str, str], case: str, entry: str, patterns: list[str]
) -> None:
    service, socket, live = (base64.b64decode(word).decode() for word in messages[case].split()[4:7])
    assert f"\nExecStart={entry} serve --pattern\n" in service
    assert f"\nExecStopPost=-{entry} serve --restore\n" in service
    assert f"\nListenStream={SOCKET.removeprefix('@@')}\n" in socket
    pipe = f"|{HELPER} -F%F -I%I -s%s -t%t -d%d -c%c %P %u %g"
    assert live.split(", ") == [pattern.format(pipe=pipe) for pattern in patterns]
    # What the modules know as their own, and what the server itself has.
    assert project.load(PROJECT / "plugins/modules/core_pattern.py").SOCKET_PATTERN.removeprefix("@@") == serve.PATH
    assert project.load(PROJECT / "plugins/action/core_helper_report.py").SOCKET == SOCKET
    for unit in (service, socket):
        assert unit.startswith("# Written by the Ansible role docker_core_helper;")


def test_the_signals_that_leave_a_core_are_those_of_the_helper() -> None:
    pytest.importorskip("ansible.plugins.action")
    assert list(SIGNALS.values()) == project.load(PROJECT / "plugins/action/core_helper_preflight.py").SIGNALS


@pytest.mark.parametrize("version", ["2.9.27", "2.16.19", "2.18.0rc1", "2.19.0", "2.19.0b1", "2.21.3", "3.0"])
def test_an_ansible_core_that_is_too_old_is_refused(version: str) -> None:
    pytest.importorskip("ansible.plugins.action")
    problem = project.load(PROJECT / "plugins/action/core_helper_preflight.py").problem_of_ansible(version)
    old = version in ("2.9.27", "2.16.19", "2.18.0rc1")
    assert problem.startswith(f"ansible-core {version} is too old: 2.19 or newer is needed") is old


def test_the_oldest_ansible_core_is_the_same_everywhere() -> None:
    pytest.importorskip("ansible.plugins.action")
    oldest = project.load(PROJECT / "plugins/action/core_helper_preflight.py").OLDEST_ANSIBLE
    said = ".".join(map(str, oldest))
    assert f'requires_ansible: ">={said}.0"' in (PROJECT / "meta/runtime.yml").read_text()
    assert f"version('{said}.0', '<')" in (PROJECT / "playbooks/vars/hosts.yml").read_text()
    for meta in PROJECT.glob("roles/*/meta/main.yml"):
        assert f'min_ansible_version: "{said}"' in meta.read_text(), meta


def test_the_role_says_so_where_its_ansible_core_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a one lacks what the action imports; the message must not be about that."""
    errors = pytest.importorskip("ansible.errors")
    monkeypatch.delattr("ansible.template.trust_as_template")
    monkeypatch.setattr("ansible.release.__version__", "2.16.19")
    action = project.load(PROJECT / "plugins/action/core_helper_preflight.py")
    monkeypatch.setattr(action.ActionBase, "run", lambda *_: {})
    with pytest.raises(errors.AnsibleActionFail, match=r"ansible-core 2\.16\.19 is too old"):
        action.ActionModule.__new__(action.ActionModule).run(None, {})


@functools.cache
def load_plugins() -> None:
    """Let Ansible know where its own plugins are, which a program of Ansible does once at its beginning."""
    pytest.importorskip("ansible.plugins.loader").init_plugin_loader()


def value_of(name: str, **known: Any) -> Any:
    """Return a variable of playbooks/vars/hosts.yml."""
    load_plugins()
    template = pytest.importorskip("ansible.template")
    loader = pytest.importorskip("ansible.parsing.dataloader").DataLoader()
    variables = loader.load_from_file(str(PROJECT / "playbooks/vars/hosts.yml"), trusted_as_template=True)
    templar = template.Templar(loader, {**variables, **known})
    return templar.template(template.trust_as_template(f"{{{{ {name} }}}}"))


@pytest.mark.parametrize(("version", "refused"), [("2.14.18", True), ("2.18.16", True), ("2.19.0", False)])
def test_the_playbooks_refuse_it_too(version: str, refused: bool) -> None:
    known = {"ansible_version": {"full": version}, "groups": {"all": ["a"]}, "ansible_inventory_sources": ["a,"]}
    said = value_of("hosts_problem", **known)
    assert said.startswith(f"ansible-core {version} is too old: 2.19 or newer is needed") is refused, said


@pytest.mark.parametrize(
    ("user", "programs", "variables", "become"),
    [
        ("0", (), {}, False),
        ("1000", ("sudo",), {}, True),
        ("1000", (), {"ansible_become_method": "su"}, True),
        ("1000", (), {"ansible_connection": "ssh"}, True),
        ("1000", (), {}, None),
    ],
)
def test_who_is_not_root_and_has_no_sudo_is_told_so(
    user: str,
    programs: tuple[str, ...],
    variables: dict[str, str],
    become: bool | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in (("id", f"#!/bin/sh\necho {user}\n"), *((name, "") for name in programs)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    known = {"inventory_hostname": "shop-1", "ansible_connection": "local", **variables}
    if become is None:
        errors = pytest.importorskip("ansible.errors")
        with pytest.raises(errors.AnsibleError, match="this machine has no sudo: run ansible-playbook as root"):
            value_of("hosts_become", **known)
    else:
        assert value_of("hosts_become", **known) is become


def test_the_kernel_starts_the_helper_after_its_configuration_is_written() -> None:
    tasks = [task["ansible.builtin.import_tasks"] for task in load("tasks/main.yml")]
    assert tasks == [
        "preflight.yml",
        "restore_or_check_kernel.yml",
        "install_or_remove_files.yml",
        "set_kernel.yml",
    ]


# A new variable has a line in each of these places. The preflight learns its name from the defaults, and whether it is true or
# false; Ansible checks the choices of the specification. What else must be checked is a condition there, and a case of REFUSED
# here. These tests name what was forgotten.


def options(role: str) -> dict[str, Any]:
    """Return the variables of a role as its specification has them."""
    found: dict[str, Any] = yaml.safe_load((PROJECT / "roles" / role / "meta/argument_specs.yml").read_text())
    variables: dict[str, Any] = found["argument_specs"]["main"]["options"]
    return variables


def rows(role: str) -> dict[str, str]:
    """Return the variables of the table in the README of a role, with their defaults."""
    text = (PROJECT / "roles" / role / "README.md").read_text().replace("\\|", "|")
    return dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", text, re.M))


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_has_a_default_and_a_row_in_the_readme(role: str) -> None:
    defaults = yaml.safe_load((PROJECT / "roles" / role / "defaults/main.yml").read_text())
    for place, names in (("defaults/main.yml", list(defaults)), ("README.md", list(rows(role)))):
        missing = set(options(role)).difference(names)
        assert not missing, f"{place} of {role} lacks {', '.join(sorted(missing))}"
        assert names == list(options(role)), f"{place} of {role} has other variables, or another order"


def test_the_inventory_to_begin_with_has_variables_of_the_role_only() -> None:
    inventory = yaml.safe_load((PROJECT / "examples/inventory.yml").read_text())
    given = {name: value for name, value in inventory["all"]["vars"].items() if name.startswith(NAME)}
    assert given.keys() <= options(ROLE.name).keys()
    # What it says of the delegate is the default; what it changes is worth its line.
    defaults = load("defaults/main.yml")
    assert given[f"{NAME}delegate"] == defaults[f"{NAME}delegate"]
    assert given[f"{NAME}fallback_core"] != defaults[f"{NAME}fallback_core"]
    assert {"shop-1", "shop-2"} <= inventory["all"]["hosts"].keys()


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_used(role: str) -> None:
    places = [
        path
        for part in ("tasks", "templates", "vars", "handlers")
        for path in (PROJECT / "roles" / role).glob(f"{part}/*")
    ]
    text = "".join(path.read_text() for path in places)
    unused = [name for name in options(role) if not re.search(rf"\b{name}\b", text)]
    assert not unused, f"nothing in {role} uses {', '.join(unused)}"


def test_every_variable_that_may_be_wrong_has_a_value_that_is_refused() -> None:
    may_be_wrong = {NAME + key for variables, _ in REFUSED.values() for key in variables}
    for name, option in options(ROLE.name).items():
        assert "choices" in option or name in may_be_wrong, f"REFUSED has no case for {name}"


def test_the_defaults_are_those_of_the_specification() -> None:
    defaults = load("defaults/main.yml")
    for name, option in options(ROLE.name).items():
        # The canary is true, false or a word.
        assert isinstance(defaults[name], bool) == (option["type"] == "bool" or name == f"{NAME}canary"), name
        # The pattern is made of the directory: documented with a placeholder, written as a template.
        default = re.sub(r"\{\{ (\w+) \}\}", r"<\1>", str(defaults[name]))
        # The kernel's limit follows the other one: documented is what comes of the defaults.
        default = str(option["default"]) if name == f"{NAME}kernel_limit" else default
        assert str(option["default"]) == default, name


@pytest.mark.parametrize("role", ROLES)
def test_the_readme_has_the_defaults_of_the_specification(role: str) -> None:
    for name, default in rows(role).items():
        # The pattern is no YAML.
        documented = default if name == f"{NAME}core_pattern" else str(yaml.safe_load(default))
        assert documented == str(options(role)[name]["default"]), name


@pytest.mark.parametrize("path", sorted((PROJECT / "plugins").glob("module*/**/*.py")), ids=lambda path: path.stem)
def test_the_modules_run_on_python_3_8(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 8))

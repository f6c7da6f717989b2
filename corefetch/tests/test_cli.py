"""The habits of the command: help, exit codes, completion, and a clear line for every failure."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from corefetch import __version__
from corefetch.cli import parser
from corefetch.errors import Exit
from support import servers
from support.command import Desk
from support.cores import KEY, Shop
from support.servers import S3

PROJECT = Path(__file__).resolve().parents[2]
COMMANDS = ("list", "info", "get", "debug", "rm", "completion")


def test_the_version_is_that_of_the_project(desk: Desk) -> None:
    assert desk.good("--version").out == f"corefetch {__version__}\n"
    assert f"\nversion: {__version__}\n" in (PROJECT / "galaxy.yml").read_text()
    assert f'\n__version__ = "{__version__}"\n' in (PROJECT / "helper/core_helper/__init__.py").read_text()


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS)])
def test_help_has_80_columns(desk: Desk, words: tuple[str, ...]) -> None:
    done = desk.good(*words, "--help")
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_examples_that_are_read(desk: Desk, name: str) -> None:
    block = desk.good(name, "--help").out.partition("\nexamples:\n")[2]
    examples = re.findall(rf"^  corefetch ({name}\b.*?)(?:   .*| [|>].*)?$", block, re.M)
    assert examples
    for example in examples:
        words = shlex.split(example)
        end = words.index("--") if "--" in words else None
        assert parser().parse_args(words[:end]).command == name


def test_the_help_says_where_the_cache_is_and_how_it_is_emptied(desk: Desk) -> None:
    said = desk.good("--help").out
    assert "XDG_CACHE_HOME" in said and "COREFETCH_CACHE" in said and "rm -r ~/.cache/corefetch" in said


def test_no_word_leads_to_the_help(desk: Desk) -> None:
    done = desk.run()
    assert done.status == Exit.USAGE
    assert done.err.endswith("corefetch: error: no command: 'corefetch --help' shows all, and examples\n")


def test_every_command_and_every_exit_code_has_a_row(desk: Desk) -> None:
    page = (PROJECT / "docs/corefetch.md").read_text()
    rows = re.findall(r"^\| `?([^|`]+?)`? \|", page, re.M)
    said = desk.good("--help").out
    for name in COMMANDS:
        assert any(row.startswith(f"corefetch {name}") for row in rows), name
        assert re.search(rf"^    {name}\b", said, re.M)
    for code in Exit:
        assert str(int(code)) in rows, code
    for code in Exit:
        assert code == Exit.NOBODY_READS or re.search(rf"\b{int(code)}  \S", said), code


def test_every_option_is_in_the_page() -> None:
    page = (PROJECT / "docs/corefetch.md").read_text()
    commands = next(action for action in parser()._actions if action.dest == "command").choices
    assert isinstance(commands, dict)
    options = {
        name
        for one in commands.values()
        for action in one._actions
        for name in action.option_strings
        if name.startswith("--")
    }
    assert {name for name in options - {"--help"} if f"`{name}" not in page} == set()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], Exit.USAGE),
        (["nothing"], Exit.USAGE),
        (["list"], Exit.USAGE),
        (["list", "--from", "s3://"], Exit.USAGE),
        (["list", "--from", "ftp://x/y"], Exit.USAGE),
        (["list", "--from", "file://elsewhere/x"], Exit.USAGE),
        (["list", "--from", "/nowhere"], Exit.NOT_FOUND),
        (["list", "--from", ".", "--since", "soon"], Exit.USAGE),
        (["list", "--from", ".", "--limit", "-1"], Exit.USAGE),
        (["info", "--from", ".", "last"], Exit.NOT_FOUND),
        (["info", "/nowhere/x.core", "--from", "."], Exit.NOT_FOUND),
    ],
)
def test_a_failure_is_one_line_with_an_exit_code(desk: Desk, words: list[str], status: Exit) -> None:
    done = desk.run(*words)
    assert done.status == status
    assert done.out == ""
    assert done.err.splitlines()[-1].startswith("corefetch") and ": " in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, Exit.DENIED, "the store refuses these credentials"),
        ({"AWS_ACCESS_KEY_ID": "somebody-else"}, Exit.DENIED, "the store refuses these credentials"),
        ({"COREFETCH_FROM": "s3://no-such-bucket"}, Exit.NOT_FOUND, "there is no such bucket"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, Exit.UNREACHABLE, "the store does not answer"),
        ({"AWS_ENDPOINT_URL": "https://127.0.0.1:1"}, Exit.UNREACHABLE, "the store does not answer"),
        ({"COREFETCH_FROM": "az://cores"}, Exit.DENIED, "there are no credentials: set AZURE_STORAGE_ACCOUNT_NAME"),
    ],
)
def test_a_store_that_fails_is_one_line(
    desk: Desk, bucket: S3, changes: dict[str, str], status: Exit, said: str
) -> None:
    done = desk.run("list", **changes)
    assert done.status == status
    assert done.err.count("\n") == 1
    assert said in done.err


def test_no_credentials_are_one_line(desk: Desk, bucket: S3) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del desk.variables[name]
    done = desk.run("list")
    assert done.status == Exit.DENIED
    assert done.err.startswith("corefetch: s3://cores/shop: there are no credentials: set AWS_ACCESS_KEY_ID")
    # Those that the AWS tools keep are taken.
    file = desk.directory / ".aws" / "credentials"
    file.parent.mkdir()
    file.write_text(f"[work]\naws_access_key_id = {servers.KEY}\naws_secret_access_key = {servers.SECRET}\n")
    desk.good("list", AWS_PROFILE="work")
    assert desk.run("list", AWS_PROFILE="other").status == Exit.DENIED


@pytest.mark.parametrize("content", ["from = 1", "no toml", 'unknown = "x"', "stores = []", "cache_max_gib = true"])
def test_a_wrong_configuration_file_is_one_line(desk: Desk, content: str) -> None:
    file = desk.directory / "config.toml"
    file.write_text(content)
    done = desk.run("list", COREFETCH_CONFIG=str(file))
    assert done.status == Exit.USAGE
    assert done.err.startswith(f"corefetch: {file}: ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("value", ["inf", "nan", "-1", "1e300", "99999999999999999999"])
def test_a_cache_of_no_size_names_file_and_key(desk: Desk, value: str) -> None:
    file = desk.directory / "config.toml"
    file.write_text(f"cache_max_gib = {value}")
    done = desk.run("list", COREFETCH_CONFIG=str(file))
    assert done.status == Exit.USAGE
    assert done.err == f"corefetch: {file}: cache_max_gib is not a number from 0 to 8589934592: correct this file\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["last", "-batch", "-ex", "bt"],
            "words for the debugger come after --: corefetch debug CORE -- -batch -ex bt",
        ),
        (["last", "-ex", "info threads"], "corefetch debug CORE -- -ex 'info threads'"),
        (["-batch", "last"], "corefetch debug CORE -- -batch"),
    ],
)
def test_words_of_the_debugger_have_their_place(desk: Desk, words: list[str], said: str) -> None:
    done = desk.run("debug", *words)
    assert done.status == Exit.USAGE
    assert done.err.startswith("usage: corefetch debug ")
    assert done.err.splitlines()[-1].startswith("corefetch debug: error: ") and done.err.rstrip().endswith(said)


def test_a_strange_word_shows_the_usage_of_its_command(desk: Desk) -> None:
    done = desk.run("list", "--nothing")
    assert done.status == Exit.USAGE
    assert done.err.startswith("usage: corefetch list ") and "--nothing" in done.err.splitlines()[-1]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_the_shell(desk: Desk, shell: str) -> None:
    script = desk.good("completion", shell).out
    assert "--since" in script or "-l since" in script
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell} here")
    file = desk.directory / "completion"
    file.write_text(script)
    subprocess.run([shell, "-n", file], check=True)


def by_bash(desk: Desk, words: str) -> subprocess.CompletedProcess[str]:
    """Have bash run a line in the user's directory."""
    return subprocess.run(
        ["bash", "-c", words],
        cwd=desk.directory,
        env=desk.environment(),
        check=False,
        capture_output=True,
        text=True,
    )


def test_bash_completes_commands(desk: Desk) -> None:
    (desk.directory / "completion").write_text(desk.good("completion", "bash").out)
    words = "source ./completion; COMP_WORDS=(corefetch l); COMP_CWORD=1; _shtab_corefetch; echo ${COMPREPLY[@]}"
    done = by_bash(desk, words)
    assert (done.returncode, done.stdout.split()) == (0, ["list"])


def test_a_reader_that_has_had_enough_is_no_failure(desk: Desk) -> None:
    for number in range(2000):
        (desk.directory / f"a.b.c{number}.d.1.20261129T180000Z.{number:012x}.core").touch()
    command = " ".join(desk.words("list", "--limit", "0", "--from", "."))
    done = by_bash(desk, f"{command} | head -n 1; echo ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] in ("0", str(int(Exit.NOBODY_READS)))


FULL = [
    ("list",),
    ("list", "--json"),
    ("list", "--group"),
    ("info", "last"),
    ("info", "last", "--facts"),
    ("info", "last", "--json"),
    ("get", "last", "--force"),
    ("get", "last", "--output", "-"),
    ("debug", "last", "--print"),
    ("rm", "--yes", KEY),
    ("completion", "bash"),
    ("--help",),
    ("list", "--help"),
    ("--version",),
]


@pytest.mark.parametrize("words", FULL, ids=" ".join)
def test_a_full_disk_behind_standard_output_is_one_line(desk: Desk, shop: Shop, words: tuple[str, ...]) -> None:
    store = desk.directory / "cores"
    store.mkdir()
    shutil.copy(shop.core, store / f"{KEY}.core")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            desk.words(*words),
            cwd=desk.directory,
            env=desk.environment(COREFETCH_FROM=str(store)),
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == Exit.FAILED, done.stderr
    assert done.stderr.splitlines()[-1] == "corefetch: standard output: No space left on device: make room there"
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_a_standard_output_that_is_closed_is_one_line(desk: Desk) -> None:
    words = shlex.join(desk.words("list", "--from", "."))
    done = by_bash(desk, f"{words} >&-")
    assert (done.returncode, done.stderr.count("\n")) == (Exit.FAILED, 1)
    assert done.stderr.startswith("corefetch: standard output is closed: ")

"""README and docs/: what they link to exists, what they quote is said, what they show is run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from support.project import PROJECT, tracked

PAGES = sorted(name for name in tracked() if name.endswith(".md"))
MOST_LINES = 150


def anchors(page: Path) -> set[str]:
    """Return the names of the headings of a page, as the platforms make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_links_to_exists(name: str) -> None:
    page = PROJECT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name}: {target}"
        if anchor:
            assert anchor in anchors(linked), f"{name}: {target}"


def test_the_readme_is_short() -> None:
    assert len((PROJECT / "README.md").read_text().splitlines()) <= MOST_LINES


def commands(page: str) -> list[str]:
    """Return the lines of a page that are typed as an ordinary user or as root."""
    blocks = re.findall(r"^```console\n(.*?)^```", (PROJECT / page).read_text(), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if re.match(r"[$#] ", line)]


def test_what_the_readme_shows_is_in_the_pages_whose_commands_are_run() -> None:
    run = {
        line
        for page in ("docs/corefetch.md", "docs/fleet.md", "docs/hosts.md", "docs/images.md")
        for line in commands(page)
    }
    assert [line for line in commands("README.md") if line not in run and " make " not in f"{line} "] == []


@pytest.mark.parametrize("name", PAGES)
def test_no_example_has_the_host_name_twice_in_a_key(name: str) -> None:
    """The uploader puts it there by itself."""
    assert re.findall(r"s3://[^\s`\"']*%h", (PROJECT / name).read_text()) == []


@pytest.mark.parametrize(
    ("modules", "name", "page"),
    [("configuration", r"DOCKERCOREHELPER_\w+", "docs/hosts.md"), ("*", r"CORE_\w+", "docs/images.md")],
)
def test_every_key_and_variable_has_a_row(modules: str, name: str, page: str) -> None:
    source = "".join(path.read_text() for path in (PROJECT / "helper/core_helper").glob(f"{modules}.py"))
    known = set(re.findall(rf'b"({name})"', source))
    assert len(known) > 5
    rows = re.findall(r"^\| (`.*?) \|", (PROJECT / page).read_text(), re.M)
    assert known - {text for row in rows for text in re.findall(r"`([^`]+)`", row)} == set()


def texts() -> list[str]:
    """Return what the helper can say, with … for what differs, and the text of the uploader."""
    found = []
    for path in sorted((PROJECT / "helper/core_helper").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
    return [*found, (PROJECT / "container_scripts/uploader.sh").read_text()]


def test_the_lines_of_the_log_that_are_explained_are_those_that_are_said() -> None:
    page = (PROJECT / "docs/troubleshooting.md").read_text()
    rows = re.findall(r"^\| (.*?) \|", page, re.M)[2:]
    quoted = {
        text for row in rows if not row.startswith(("the kernel", "no line")) for text in re.findall(r"`([^`]+)`", row)
    }
    assert len(quoted) > 20
    said = "\n".join(texts())
    assert {text for text in quoted if text not in said} == set()


def test_every_test_that_a_page_names_is_there() -> None:
    tests = PROJECT / "tests"
    names = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (tests / "README.md").read_text())
    assert len(names) > 20
    for file, name in names:
        assert re.search(rf"^def {name}\(", (tests / file).read_text(), re.M), f"{file}: {name}"


OF_HOSTS = ("/", "~")


@pytest.mark.parametrize("name", [name for name in PAGES if not name.startswith("corefetch/")])
def test_every_file_of_the_project_that_a_page_names_is_there(name: str) -> None:
    known = tracked()
    text = re.sub(r"^```.*?^```", "", (PROJECT / name).read_text(), flags=re.M | re.S)
    for file in set(re.findall(r"`([\w./~-]+\.(?:py|sh|c|h|j2|yml|md))`", text)):
        found = any(f"/{path}".endswith(f"/{file.removeprefix('../')}") for path in known)
        assert found or file.startswith(OF_HOSTS), f"{name}: {file}"


NAMES = re.compile(r"((?:`[\w.]+`(?:, | and |, and | or )?)+) in `((?:[\w./]+/)?\w+\.py)`")


def names_in(file: Path) -> set[str]:
    """Return what a module defines or uses."""
    tree = list(ast.walk(ast.parse(file.read_text())))
    return {getattr(node, kind) for node in tree for kind in ("name", "id", "attr", "arg") if hasattr(node, kind)}


def test_what_a_page_says_is_in_a_module_is_there() -> None:
    known = [Path(name) for name in tracked() if name.endswith(".py")]
    seen = 0
    for page in ("SECURITY.md", "docs/contributing.md", "docs/how-it-works.md", "tests/README.md"):
        for names, file in NAMES.findall(" ".join((PROJECT / page).read_text().split())):
            modules = [path for path in known if f"/{path}".endswith(f"/{file}")]
            there = set().union(*(names_in(PROJECT / path) for path in modules))
            # What is a file here stands before another list of names.
            for name in re.findall(r"`([\w.]+)`", names):
                seen += 1
                assert name.endswith(".py") or set(name.split(".")) <= there, f"{page}: {name} in {file}"
    assert seen > 25

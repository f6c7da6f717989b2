"""roles/core_uploader and playbooks/images.yml on a directory, without root; Docker is replaced by a program of the test."""

from __future__ import annotations

import functools
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROLE = REPOSITORY / "roles" / "core_uploader"
UPLOADER = REPOSITORY / "container_scripts" / "uploader.sh"

# One image at most, whose id is the hash of its context; the order is that of `docker build --tag TAG CONTEXT`.
DOCKER = """#!/bin/sh
echo "$DOCKER_HOST" >"$STATE/host"
case "$1 $2" in
"version "*) [ ! -e "$STATE/down" ] || { echo "Cannot connect to the Docker daemon" >&2; exit 1; } ;;
"image inspect")
    id=$(cat "$STATE/$3") && echo "[{\\"Id\\": \\"$id\\", \\"Config\\": {\\"Env\\": [$(cat "$STATE/variables")]}}]" ;;
"container inspect")
    [ -e "$STATE/container/$3" ] || { echo "Error: No such container: $3" >&2; exit 1; }
    echo "[{\\"State\\": {\\"Running\\": true}, \\"Config\\": {\\"Env\\": null}}]" ;;
"cp "*:*) [ "$3" = - ] && cd "$(dirname "$STATE/container/${2#*:/}")" && tar -c -f - uploader.sh ;;
"cp "*)
    [ ! -e "$STATE/read-only" ] || { echo "Error: container rootfs is marked read-only" >&2; exit 1; }
    cp -r "$2" "$STATE/container/" ;;
"build --tag")
    [ ! -e "$STATE/broken" ] || { cat "$STATE/broken" >&2; exit 1; }
    (cd "$4" && stat -c '%A %n' opt opt/bin opt/bin/uploader.sh && cat Dockerfile) >"$STATE/context"
    (cd "$4" && cat Dockerfile opt/bin/uploader.sh) | sha256sum | cut -c 1-64 >"$STATE/$3"
    echo "$4" >"$STATE/directory"
    ;;
"run --rm" | "exec "*)
    echo "$*" >"$STATE/run"
    [ ! -e "$STATE/no-shell" ] || { printf 'docker: Error response\\nexec: /bin/sh: no such file\\n' >&2; exit 127; }
    [ ! -e "$STATE/endless" ] || exec cat /dev/zero
    echo /bin/sh
    cat "$STATE/client" 2>/dev/null || echo /usr/bin/rclone
    ;;
*) exit 99 ;;
esac
"""


@functools.cache
def ansible_playbook() -> str | None:
    for path in [str(Path(sys.executable).parent / "ansible-playbook"), shutil.which("ansible-playbook")]:
        if (
            path
            and os.access(path, os.X_OK)
            and subprocess.run([path, "--version"], capture_output=True).returncode == 0
        ):
            return path
    return None


def play(
    playbook: Path, *arguments: str, environment: Mapping[str, str] | None = None, cwd: Path = REPOSITORY
) -> subprocess.CompletedProcess[str]:
    program = ansible_playbook()
    if program is None:
        pytest.skip("no ansible-playbook: pip install ansible-core")
    return subprocess.run(
        [program, str(playbook), *arguments],
        cwd=cwd,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_INJECT_FACT_VARS": "false", **(environment or {})},
        capture_output=True,
        text=True,
    )


def counted(result: subprocess.CompletedProcess[str], what: str) -> int:
    found = re.search(rf"localhost .*{what}=(\d+)", result.stdout)
    assert found, result.stdout + result.stderr
    return int(found[1])


@pytest.fixture
def playbook(tmp_path: Path) -> Path:
    path = tmp_path / "play.yml"
    path.write_text(
        "- hosts: localhost\n"
        "  gather_facts: false\n"
        "  roles:\n"
        "    - role: core_uploader\n"
        f"      core_uploader_root: {tmp_path}/root\n"
    )
    return path


def test_the_script_comes_into_a_directory_that_stands_for_the_root_and_stays_as_it_is(
    playbook: Path, tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        result = play(playbook)
    finally:
        os.umask(before)
    assert counted(result, "changed") == 1
    script = tmp_path / "root/opt/bin/uploader.sh"
    assert script.read_bytes() == UPLOADER.read_bytes()
    assert script.stat().st_uid == os.getuid()
    for path in [script, script.parent, script.parent.parent]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o755

    # A second run changes nothing, and puts a changed script right.
    assert counted(play(playbook), "changed") == 0
    script.write_text("something else")
    script.chmod(0o600)
    assert counted(play(playbook), "changed") == 1
    assert script.read_bytes() == UPLOADER.read_bytes()
    assert stat.S_IMODE(script.stat().st_mode) == 0o755


def test_check_mode_shows_the_script_and_writes_nothing(playbook: Path, tmp_path: Path) -> None:
    result = play(playbook, "--check", "--diff")
    assert counted(result, "changed") == 1
    assert counted(result, "failed") == 0
    assert "+#!/bin/sh" in result.stdout
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("link", ["opt", "opt/bin"])
@pytest.mark.parametrize("words", [(), ("--check",)])
def test_no_link_in_the_directory_leads_out_of_it(
    playbook: Path, tmp_path: Path, link: str, words: tuple[str, ...]
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    path = tmp_path / "root" / link
    path.parent.mkdir(parents=True, mode=0o750)
    path.symlink_to(victim)
    result = play(playbook, *words)
    assert counted(result, "failed") == 1
    said = " ".join((result.stdout + result.stderr).split())
    assert f"{path} is a symbolic link, which is not followed" in said and "put a directory there, or build" in said
    assert (list(victim.iterdir()), stat.S_IMODE(victim.stat().st_mode)) == ([], 0o700)


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_what_has_the_name_of_the_script_is_replaced_and_not_followed(
    playbook: Path, tmp_path: Path, kind: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(UPLOADER.read_bytes())
    victim.chmod(0o755)
    script = tmp_path / "root/opt/bin/uploader.sh"
    script.parent.mkdir(parents=True)
    if kind == "link":
        script.symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(script)
    else:
        script.mkdir()
    result = play(playbook)
    if kind == "directory":
        assert f"{script} is a directory: remove it" in " ".join((result.stdout + result.stderr).split())
    else:
        assert script.read_bytes() == UPLOADER.read_bytes() and stat.S_ISREG(script.lstat().st_mode)
    assert [path.name for path in script.parent.iterdir()] == ["uploader.sh"]


def test_a_path_that_leads_out_of_the_directory_is_refused(playbook: Path, tmp_path: Path) -> None:
    result = play(playbook, "-e", "core_uploader_dest=/../uploader.sh")
    said = " ".join((result.stdout + result.stderr).split())
    assert "/../uploader.sh is no path of a program: correct core_uploader_dest" in said
    assert not (tmp_path / "uploader.sh").exists()


def test_the_script_may_have_another_place(playbook: Path, tmp_path: Path) -> None:
    play(playbook, "-e", "core_uploader_dest=/usr/local/libexec/cores")
    assert (tmp_path / "root/usr/local/libexec/cores").read_bytes() == UPLOADER.read_bytes()


def test_the_variables_of_the_argument_specification_are_those_of_the_defaults() -> None:
    yaml = pytest.importorskip("yaml")
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    options = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert defaults == {name: option["default"] for name, option in options.items()}
    assert set(re.findall(r"`(core_uploader_\w+)` \|", (ROLE / "README.md").read_text())) == set(defaults)


class Engine:
    """The program that the playbook takes for docker, and what it keeps."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.state.mkdir()
        (self.state / "variables").touch()
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        program = directory / "bin" / "docker"
        program.parent.mkdir()
        program.write_text(DOCKER)
        program.chmod(0o755)
        self.environment = {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "STATE": str(self.state),
            "TMPDIR": str(self.temporary),
            "DOCKER_HOST": "unix:///engine.sock",
        }

    def build(
        self, *arguments: str, base: str = "base:1", tag: str = "new:1", cwd: Path = REPOSITORY
    ) -> subprocess.CompletedProcess[str]:
        names = ["-e", f"images_base={base}", "-e", f"images_tag={tag}"]
        return play(REPOSITORY / "playbooks/images.yml", *names, *arguments, environment=self.environment, cwd=cwd)

    def said(self, name: str) -> str:
        return (self.state / name).read_text()


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


def changed_image(result: subprocess.CompletedProcess[str]) -> bool:
    _, _, last = result.stdout.partition("TASK [Compare the image")
    return "changed: [localhost]" in last.partition("TASK [")[0]


def test_an_image_is_its_base_and_the_uploader_built_from_any_directory(engine: Engine, tmp_path: Path) -> None:
    result = engine.build(cwd=tmp_path)
    assert changed_image(result)
    # It has a client of S3.
    assert warnings(result) == []
    assert not Path(engine.said("directory").strip()).exists(), "the temporary context is left"
    modes = "drwxr-xr-x opt\ndrwxr-xr-x opt/bin\n-rwxr-xr-x opt/bin/uploader.sh\n"
    assert engine.said("context") == f"{modes}FROM base:1\nCOPY opt/bin/uploader.sh /opt/bin/uploader.sh\n"
    assert engine.said("host") == "unix:///engine.sock\n"


CLASSIC = """Sending build context to Docker daemon  52.7kB
pull access denied for my-ap, repository does not exist or may require 'docker login': denied: requested access is denied
"""
BUILDKIT = """#3 ERROR: pull access denied
 > [internal] load metadata for docker.io/library/my-ap:1.0:
Dockerfile:1
   1 | >>> FROM my-ap:1.0
ERROR: failed to solve: my-ap:1.0: failed to resolve source metadata for docker.io/library/my-ap:1.0: pull access denied

View build details: docker-desktop://dashboard/build/default
"""


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (CLASSIC, "pull access denied for my-ap, repository does not exist or may require 'docker login': denied:"),
        (
            BUILDKIT,
            "ERROR: failed to solve: my-ap:1.0: failed to resolve source metadata for docker.io/library/my-ap:1.0:",
        ),
        ("something else\n", "something else."),
        ("", "no message."),
    ],
)
def test_a_mistyped_image_is_one_clear_line(engine: Engine, said: str, line: str) -> None:
    (engine.state / "broken").write_text(said)
    result = engine.build(base="my-ap:1.0")
    assert counted(result, "failed") == 1
    text = result.stdout + result.stderr
    assert f"new:1 was not built from my-ap:1.0: {line}" in text
    assert "Correct images_base or images_tag" in text
    assert '"cmd"' not in text and "stderr" not in text
    assert not list(engine.temporary.glob("images.*")), "the temporary context is left"


def warnings(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert counted(result, "failed") == 0
    return re.findall(r'"msg": "(Warning: .*)"', result.stdout)


def test_an_image_without_a_client_of_s3_is_built_with_a_warning(engine: Engine) -> None:
    (engine.state / "client").write_text("none\n")
    assert warnings(engine.build()) == [
        "Warning: new:1 has none of rclone, aws, s3cmd, curl, and the uploader needs one of them for a destination s3://:"
        " install one, or give the containers a directory as CORE_DESTINATION"
    ]
    assert engine.said("run").startswith(
        "run --rm --network=none --log-driver=none --entrypoint=/bin/sh new:1 -c echo /bin/sh;"
    )


def test_an_image_without_a_shell_is_built_with_a_warning(engine: Engine) -> None:
    (engine.state / "no-shell").touch()
    assert warnings(engine.build()) == [
        "Warning: new:1 cannot run /bin/sh, and without it there is no uploader: exec: /bin/sh: no such file"
    ]


@pytest.mark.parametrize(
    ("told", "variable", "client", "warned"),
    [
        (
            "gs://cores/",
            "",
            "/usr/bin/curl\n",
            "has none of rclone, and the uploader needs one of them for a destination gs://",
        ),
        ("", "azblob://cores/", "/usr/bin/aws\n", "the uploader needs one of them for a destination azblob://cores/"),
        ("/cores", "azblob://cores/", "", ""),
    ],
)
def test_the_warning_is_about_the_destination(
    engine: Engine, told: str, variable: str, client: str, warned: str
) -> None:
    (engine.state / "client").write_text(client)
    (engine.state / "variables").write_text(f'"CORE_DESTINATION={variable}"' if variable else "")
    found = warnings(engine.build("-e", f"images_destination={told}"))
    assert warned in "".join(found) and bool(found) is bool(warned)


# A running container, and a folder.


def put(engine: Engine, *arguments: str) -> subprocess.CompletedProcess[str]:
    return play(REPOSITORY / "playbooks/images.yml", *arguments, environment=engine.environment)


def test_a_running_container_gets_the_uploader_once(engine: Engine) -> None:
    (engine.state / "container/my-app").mkdir(parents=True)
    words = ("-e", "images_container=my-app")
    result = put(engine, *words)
    assert counted(result, "failed") == 0 and "changed: [localhost]" in result.stdout.partition("[Copy it into")[2]
    script = engine.state / "container/opt/bin/uploader.sh"
    assert script.read_bytes() == UPLOADER.read_bytes() and stat.S_IMODE(script.stat().st_mode) == 0o755
    assert engine.said("run").startswith("exec my-app /bin/sh -c echo /bin/sh; command -v rclone")
    again = put(engine, *words)
    assert "skipping: [localhost]" in again.stdout.partition("[Copy it into")[2].partition("TASK")[0]
    assert not list(engine.temporary.glob("images.*"))


@pytest.mark.parametrize("kind", ["directory", "sparse", "longer", "link"])
def test_whatever_a_container_has_in_its_place_is_bounded(engine: Engine, kind: str) -> None:
    script = engine.state / "container/opt/bin/uploader.sh"
    (script if kind == "directory" else script.parent).mkdir(parents=True)
    (engine.state / "container/my-app").mkdir()
    if kind in ("directory", "sparse"):
        large = script / "large" if kind == "directory" else script
        large.touch()
        os.truncate(large, 1 << 40)
    elif kind == "longer":
        script.write_bytes(UPLOADER.read_bytes() + b"#")
    else:
        script.symlink_to("/dev/zero")
    (engine.state / "endless").touch()
    result = put(engine, "-e", "images_container=my-app")
    said = " ".join((result.stdout + result.stderr).split())
    if kind == "directory":
        assert (
            counted(result, "failed") == 1 and "The uploader was not copied into my-app: cp: cannot overwrite" in said
        )
    else:
        assert counted(result, "failed") == 0 and "changed: [localhost]" in said.partition("[Copy it into")[2]
        assert "Warning: my-app cannot run /bin/sh, and without it there is no uploader: " in said
        assert len(said) < 16384
    assert not list(engine.temporary.glob("images.*"))


@pytest.mark.parametrize(
    ("name", "file", "line"),
    [
        ("my-ap", "", "my-ap is no running container: Error: No such container: my-ap. Correct images_container"),
        ("my-app", "read-only", "The uploader was not copied into my-app: Error: container rootfs is marked read-only"),
    ],
)
def test_a_container_that_cannot_have_it_is_one_clear_line(engine: Engine, name: str, file: str, line: str) -> None:
    (engine.state / "container/my-app").mkdir(parents=True)
    (engine.state / (file or "nothing")).touch()
    result = put(engine, "-e", f"images_container={name}")
    assert counted(result, "failed") == 1
    assert line in result.stdout + result.stderr
    assert '"cmd"' not in result.stdout


def test_a_folder_gets_the_uploader_and_nothing_in_it_is_executed(engine: Engine, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    words = ("-e", f"images_root={root}/")
    assert warnings(put(engine, *words)) == [
        f"Warning: {root}/ cannot run /bin/sh, and without it there is no uploader: it has no /bin/sh"
    ]
    assert (root / "opt/bin/uploader.sh").read_bytes() == UPLOADER.read_bytes()
    (root / "bin/sh").symlink_to("busybox")
    assert "has none of rclone, aws, s3cmd, curl" in "".join(warnings(put(engine, *words)))
    (root / "bin/curl").symlink_to("/nowhere")
    assert warnings(put(engine, *words)) == []
    assert "has none of rclone," in "".join(warnings(put(engine, *words, "-e", "images_destination=gs://cores/")))
    assert not (engine.state / "host").exists(), "docker was asked"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["images_root=/nowhere/at-all"],
            "/nowhere/at-all is no folder on localhost: correct images_root, an absolute",
        ),
        (["images_base=x", "images_tag=y", "images_container=z"], "Say which image to begin with"),
    ],
)
def test_a_wrong_place_is_one_clear_line(engine: Engine, words: list[str], line: str) -> None:
    result = put(engine, *(word for given in words for word in ("-e", given)))
    assert counted(result, "failed") == 1
    assert line in result.stdout + result.stderr


def test_the_clients_looked_for_are_those_that_the_uploader_takes() -> None:
    looked_for = re.findall(r"command -v (\w+)", (REPOSITORY / "playbooks/images.yml").read_text())
    assert looked_for == ["rclone", "aws", "s3cmd", "curl"]
    assert f"for client in {' '.join(looked_for)};" in (REPOSITORY / "playbooks/images.yml").read_text()
    assert f"clients='{' '.join(looked_for)}'" in UPLOADER.read_text()


def test_the_same_image_again_is_no_change(engine: Engine, tmp_path: Path) -> None:
    context = ("-e", f"images_context={tmp_path}/context", "-e", "images_docker_host=tcp://builder:2375")
    assert changed_image(engine.build(*context))
    assert engine.said("host") == "tcp://builder:2375\n", "the engine may be another one"
    assert counted(engine.build(*context), "changed") == 0
    assert changed_image(engine.build(*context, base="base:2"))
    assert (tmp_path / "context/Dockerfile").exists()


def test_check_mode_builds_nothing(engine: Engine) -> None:
    assert counted(engine.build("--check"), "failed") == 0
    assert not (engine.state / "new:1").exists()


@pytest.mark.parametrize(("base", "tag"), [("", "new:1"), ("base:1", "")])
def test_a_missing_name_is_one_clear_line(engine: Engine, base: str, tag: str) -> None:
    result = engine.build(base=base, tag=tag)
    assert counted(result, "failed") == 1
    assert "Say which image to begin with and how to name the new one" in result.stdout + result.stderr


def test_an_engine_that_is_down_is_one_clear_line(engine: Engine) -> None:
    (engine.state / "down").touch()
    result = engine.build()
    assert counted(result, "failed") == 1
    assert "No Docker engine answers: Cannot connect to the Docker daemon. Install" in result.stdout + result.stderr


def test_a_machine_without_docker_is_one_clear_line(engine: Engine, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ["chmod", "mkdir", "rm", "sh", "sleep"]:  # what Ansible itself needs
        (programs / name).symlink_to(shutil.which(name) or "")
    engine.environment["PATH"] = str(programs)
    result = engine.build()
    assert counted(result, "failed") == 1
    assert "No Docker engine answers" in result.stdout + result.stderr
    assert "set images_docker_host" in result.stdout + result.stderr

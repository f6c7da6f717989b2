"""The examples of docs/images.md, built as they stand there, from folders: a crash in such an image reaches the bucket."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from support import lab
from support.containers import MakeCrash
from support.records import is_whole
from support.tables import Row

PAGE = (lab.PROJECT / "docs/images.md").read_text()
EXAMPLES = dict(re.findall(r"^#### (.*?)\n.*?^```dockerfile\n(.*?)^```", PAGE, re.M | re.S))
pytestmark = pytest.mark.usefixtures("s3_server")


def empty_image(name: str) -> None:
    """An image like that of a static program: the program, no shell, and nothing else but libraries for busybox."""
    files = {"usr/bin/crash": lab.PROGRAMS / "crash"}
    # A busybox of Debian is static only where the package busybox-static is.
    libraries = lab.with_libraries({"bin/busybox": lab.which("busybox")})
    files |= {path: source for path, source in libraries.items() if path != "bin/busybox"}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as image:
        for directory in ("out", "tmp"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
            image.addfile(entry)
        for path, source in files.items():
            entry = tarfile.TarInfo(path)
            entry.mode, entry.size = 0o755, source.stat().st_size
            with source.open("rb") as content:
                image.addfile(entry, content)
    lab.command("docker", "import", "-", name, input=archive.getvalue(), stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the examples take their files from."""
    directory = tmp_path_factory.mktemp("context")
    shutil.copy(lab.PROJECT / "container_scripts/uploader.sh", directory)
    for name, source in (("rclone", Path(sys.executable).parent / "rclone"), ("busybox", lab.which("busybox"))):
        shutil.copy(source, directory / name)
    for path in directory.iterdir():
        path.chmod(0o755)
    return directory


OPTIONS = {
    "plain": (),
    "read-only": ("--read-only",),
    "nobody": ("--user=65534:65534", "--cap-drop=ALL"),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("example", ["An image with a shell", "An image without a shell"])
def test_a_crash_in_an_image_of_the_page_reaches_the_bucket(
    crash: MakeCrash, context: Path, example: str, options: str, row: Row
) -> None:
    name = "with" if example == "An image with a shell" else "without"
    base = f"core-lab/base-{name}"
    if name == "with":
        lab.command("docker", "tag", "core-lab/bare", base)
    else:
        empty_image(base)
    # Of the example, only the name of the image is not ours.
    containerfile = re.sub(r"(?m)^FROM .*", f"FROM {base}", EXAMPLES[example])
    (context / "Containerfile").write_text(containerfile)
    build = ("docker", "build", "--network=none", "--quiet", "--tag", f"core-lab/{name}", "--file")
    lab.command(*build, context / "Containerfile", context, stdout=subprocess.DEVNULL)
    variables = {**lab.S3_ENVIRONMENT, "CORE_DESTINATION": f"s3://{lab.BUCKET}/test/"}
    # The lab's delegate has another name than the uploader.
    delegate = f"--volume={context}/uploader.sh:/opt/bin/delegate:ro"
    words = (
        delegate,
        *lab.S3_OPTIONS,
        *(f"--env={name}={value}" for name, value in variables.items()),
        *OPTIONS[options],
    )
    container = crash("-m", "8", image=name, options=words)
    assert ": delivered " in container.log("pid="), container.log("pid=")
    names = lab.s3("lsf", lab.BUCKET).decode().splitlines()
    (core,) = (name for name in names if ".core" in name)
    assert core.rpartition(".core")[0] + ".json" in names
    stored = lab.s3("cat", f"{lab.BUCKET}/{core}")
    if core.endswith(".gz"):
        stored = subprocess.run(["gzip", "-d"], input=stored, check=True, capture_output=True).stdout
    assert is_whole(stored)
    row("images", f"{example}, {options}", "rclone", f"whole in the bucket, as .core{core.rpartition('.core')[2]}")

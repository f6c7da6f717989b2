"""The command ``docker_core_helper cores``: what the host keeps, for operators. Never imported at a crash."""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time

from core_helper import store
from core_helper.configuration import CONFIGURATION, read_configuration
from core_helper.crash import Refused
from core_helper.holes import BLOCK, runs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterable, Iterator

EXIT_OK, EXIT_FAILED = 0, 1
LONGEST_PROGRAM = 60
COLUMNS = ("ID", "TIME", "SIZE", "ON DISK", "SIGNAL", "PROGRAM", "CONTAINER", "STATE")


class Problem(Exception):
    """What cannot be done. The text names the object and the remedy."""


def run(arguments: "list[str]") -> int:
    """Do what the words after ``cores`` say, and return the exit code: 0 done, 1 failed, 2 wrong usage (by argparse)."""
    options = _parser().parse_args(arguments)
    try:
        if os.geteuid() != 0:
            raise Problem("only root may see the cores of this host: sudo docker_core_helper cores ...")
        configuration = options.configuration = read_configuration()
        path = options.directory or configuration.keep_directory
        if not os.path.isdir(path):
            hint = "" if configuration.keep != "never" else f": DOCKERCOREHELPER_KEEP in {CONFIGURATION} says never"
            if options.command is list_cores or (options.command is send_cores and not options.id):
                print("[]" if getattr(options, "json", False) else f"no core is kept in {path}{hint}")
                return EXIT_OK
            raise Problem(f"{path}: no core is kept here{hint}")
        kept_in = store.Store(path)
        try:
            options.command(kept_in, options)
        finally:
            kept_in.close()
    except (Problem, Refused, store.Unusable) as error:
        print(f"docker_core_helper: {error}", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # As at "cores list | head": nobody reads on.
        return EXIT_FAILED
    except OSError as error:
        print(f"docker_core_helper: {error.filename or path}: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="docker_core_helper cores",
        description="The cores that this host keeps.",
        epilog="exit codes: 0 done; 1 failed, or only in part; 2 wrong command line.",
    )
    parser.add_argument("--directory", metavar="DIR", help=f"where they are; as a rule {CONFIGURATION} says it")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        name: str, command: "Callable[[store.Store, argparse.Namespace], None]", text: str
    ) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=command)
        return added

    listing = add("list", list_cores, "show a table of the cores, the oldest first")
    listing.add_argument("--json", action="store_true", help="all that is known, for programs")
    for name, command, text in (
        ("info", show_core, "show all that is known of a core, as JSON"),
        ("get", get_core, "write a core to a file, decompressed and compared with its checksum"),
        ("remove", remove_cores, "delete cores"),
    ):
        added = add(name, command, text)
        several = name == "remove"
        added.add_argument(
            "id", metavar="ID", nargs="+" if several else None, help="an ID of the table, or a whole key"
        )
        if name == "get":
            added.add_argument("file", metavar="FILE", help="a new file, or - for standard output")
    sending = add("send", send_cores, "give the cores that no destination has taken to DOCKERCOREHELPER_SENDER")
    sending.add_argument(
        "id", metavar="ID", nargs="*", help="these cores, now; without any, those whose last try is long enough ago"
    )
    return parser


def list_cores(kept_in: store.Store, options: argparse.Namespace) -> None:
    """Print all cores, as a table or as JSON."""
    cores, damaged = cores_of(kept_in)
    if options.json:
        print(json.dumps(cores, indent=1, sort_keys=True))
    else:
        print_table(cores)
    refuse(damaged)


def print_table(cores: "list[dict[str, object]]") -> None:
    """Print a row for each core."""
    rows = [COLUMNS, *(row_of(core) for core in cores)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())


def show_core(kept_in: store.Store, options: argparse.Namespace) -> None:
    """Print all that is known of one core."""
    print(json.dumps(find(kept_in, options.id), indent=1, sort_keys=True))


def remove_cores(kept_in: store.Store, options: argparse.Namespace) -> None:
    """Delete the cores; if one is not there, none is deleted."""
    keys = [find(kept_in, name)["key"] for name in options.id]
    with kept_in.lock:
        for entry in kept_in.entries():
            if entry.key in keys:
                kept_in.delete(entry)


def send_cores(kept_in: store.Store, options: argparse.Namespace) -> None:
    """Give cores to the program that sends them, and remove those that it has taken, and before that those that are too old."""
    from core_helper import sender

    with kept_in.lock:
        kept_in.expire(options.configuration)
    cores, damaged = ([find(kept_in, name) for name in options.id], []) if options.id else cores_of(kept_in)
    sender.send(kept_in, cores, options.configuration, bool(options.id))
    refuse(damaged)


def get_core(kept_in: store.Store, options: argparse.Namespace) -> None:
    """Write one core to the file. Raises Problem if it is not what the helper has kept."""
    core = find(kept_in, options.id)
    path = str(core["path"])
    if options.file == "-":
        check(core, copy(read(path), 1, holes=False))
        return
    try:
        file = os.open(options.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Problem(f"{options.file}: exists already: nothing was written; give another name") from None
    try:
        check(core, copy(read(path), file, holes=True))
    except BaseException:
        os.unlink(options.file)  # Half a core never has the name of a whole one.
        raise
    os.close(file)


def check(core: "dict[str, object]", found: str) -> None:
    """Compare the checksum ``found`` with that of the ``core``, if the helper has noted one. Raises Problem."""
    if core.get("sha256") not in (None, found):
        raise Problem(f"{core['key']}: its checksum is wrong: the disk has lost a part of it")


def read(path: str) -> "Iterator[bytes]":
    """Yield the plain core in the file ``path``, by blocks. Raises Problem."""
    with open(path, "rb") as file:
        if not path.endswith(store.COMPRESSED):
            yield from _blocks(file.read)
            return
        try:
            zstd = subprocess.Popen(["zstd", "-d", "-q", "-c"], stdin=file, stdout=subprocess.PIPE)
        except FileNotFoundError:
            raise Problem(f"{path} is compressed, and there is no zstd in PATH: install zstd") from None
        assert zstd.stdout is not None
        with zstd:
            yield from _blocks(zstd.stdout.read)
        if zstd.returncode:
            raise Problem(f"{path}: zstd ended with exit code {zstd.returncode}")


def _blocks(function: "Callable[[int], bytes]") -> "Iterator[bytes]":
    while True:
        block = function(BLOCK)
        if not block:
            return
        yield block


def copy(blocks: "Iterable[bytes]", file: int, holes: bool) -> str:
    """Write ``blocks`` to the opened ``file``, pages of zeros as holes if that is a new one; return the checksum."""
    digest = hashlib.sha256()
    size = 0
    for block in blocks:
        digest.update(block)
        for begin, end in runs(block, len(block), size) if holes else [(0, len(block))]:
            part = memoryview(block)[begin:end]
            while part:
                written = os.pwrite(file, part, size + end - len(part)) if holes else os.write(file, part)
                part = part[written:]
        size += len(block)
    if holes:
        os.ftruncate(file, size)
        os.fsync(file)
    return digest.hexdigest()


def refuse(damaged: "list[str]") -> None:
    """Raise Problem if the JSON files of some cores are damaged, when the others have had what they should."""
    if damaged:
        raise Problem(f"{', '.join(damaged)}: damaged: delete it with its core")


def cores_of(kept_in: store.Store) -> "tuple[list[dict[str, object]], list[str]]":
    """Return what is known of each core, the oldest first, and the JSON files that nobody can read."""
    cores: list[dict[str, object]] = []
    damaged: list[str] = []
    with kept_in.lock:
        entries = kept_in.entries()
    for entry in sorted(entries, key=lambda entry: entry.time):
        if not entry.whole:
            continue
        directory = os.path.join(kept_in.path, entry.group)
        try:
            known = kept_in.known_of(entry)
        except FileNotFoundError:
            continue  # Deleted meanwhile.
        except (OSError, ValueError):
            damaged.append(f"{directory}/{entry.key}{store.JSON}")  # It must not cost the other cores anything.
            continue
        # The path is for playbooks/collect.yml, which fetches the file as it lies here.
        lies_at = os.path.join(directory, str(known["file"]))
        cores.append({**known, "bytes": entry.bytes, "id": entry.key.rpartition(".")[2], "path": lies_at})
    return cores, damaged


def find(kept_in: store.Store, name: str) -> "dict[str, object]":
    """Return what is known of the core whose id or key is ``name``. Raises Problem."""
    cores, damaged = cores_of(kept_in)
    found = [core for core in cores if name in (core["id"], core["key"])]
    if not found:
        refuse([path for path in damaged if f"{name}{store.JSON}" in path])
        raise Problem(f"{name}: there is no such core: see docker_core_helper cores list")
    if len(found) > 1:
        raise Problem(f"{name}: there are several such cores: give the whole key")
    return found[0]


def row_of(core: "dict[str, object]") -> "tuple[str, ...]":
    """Return the row of the table for one core."""
    facts = core["facts"]
    assert isinstance(facts, dict)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(facts["CORE_TIME"])))
    where = facts.get("CORE_CONTAINER_NAME") or str(core["group"])
    program = printable(facts["CORE_EXE"] or facts["CORE_COMM"])
    return (
        str(core["id"]),
        when,
        amount(core["size"]),
        amount(core["bytes"]),
        facts["CORE_SIGNAL_NAME"] or facts["CORE_SIGNAL"] or "-",
        # A long one would make the lines of all others long, too.
        program if len(program) <= LONGEST_PROGRAM else "..." + program[3 - LONGEST_PROGRAM :],
        printable(where if len(where) < 40 else where[:36] + "..."),
        "truncated" if core["truncated"] else "whole",
    )


def printable(text: str) -> str:
    """Return ``text``, which a container chose, without control characters: it must not steer the terminal."""
    return "".join(character if " " <= character <= "~" else ascii(character)[1:-1] for character in text)


def amount(number: object) -> str:
    """Return a number of bytes as people read it."""
    size = float(str(number))
    for unit in ("B", "K", "M", "G"):
        if size < 1024:
            return f"{size:.0f}{unit}" if unit == "B" or size >= 10 else f"{size:.1f}{unit}"
        size /= 1024
    return f"{size:.1f}T"

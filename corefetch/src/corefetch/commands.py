"""The commands, each with the words of its command line."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from corefetch import acquire, debugger, elfcore, keys, listing, report, sysroot, tables, text, ui
from corefetch.cache import Cache
from corefetch.config import Settings
from corefetch.debuginfod import Servers
from corefetch.errors import Exit, Failure
from corefetch.facts import Core, add_core
from corefetch.fetch import Fetched, fetch, pour
from corefetch.learn import Student
from corefetch.stores import Directory
from corefetch.tables import Column
from corefetch.text import plain
from rich.text import Text

Words = argparse.Namespace
STDOUT = "-"


def list_cores(words: Words, settings: Settings) -> int:
    """``list``: a table of cores, or of faults."""
    signals = None if words.signal is None else listing.signal_names(words.signal)
    cache = Cache(settings.cache)
    student = Student(settings.store(words.source), cache)
    choice = listing.Choice(
        host=words.host,
        container=words.container,
        program=words.program,
        signals=signals,
        since=text.read_time(words.since) if words.since else None,
        until=text.read_time(words.until) if words.until else None,
        truncated=words.truncated,
    )
    most = words.limit or None
    with ui.working("looking for cores") as progress:
        found = listing.chosen(
            student, choice, words.group, lambda number: progress(f"{number} cores seen") if number % 500 == 0 else None
        )
        if words.group:
            groups = listing.folded(found)
            cores: list[Core] = []
        else:
            groups = []
            cores = listing.newest(found, None if most is None else most + 1)
            # What does not fit any more is only counted.
            beyond = most is not None and len(cores) > most
            cores = cores[:most]
            # A file costs no request, so that a program gets all that it says.
            deep = words.json and isinstance(student.store, Directory)
            cores = list(student.of_many(cores, deep, wanted=lambda core: deep or not core.known))
    if words.json:
        ui.print_json([group.row() for group in groups[:most]] if words.group else [core.row() for core in cores])
    elif words.group:
        _show_groups(groups[:most])
        if most is not None and len(groups) > most:
            ui.say(f"the newest {most} of {len(groups)}; --limit 0 shows all")
    else:
        _show_cores(cores)
        if beyond:
            ui.say(f"the newest {most}; --limit 0 shows all")
    if not (groups or cores) and not words.json:
        given = " ".join(_filters(words))
        ui.say(f"no core{f' with {plain(given)}' if given else ''} in {plain(student.store.url)}")
    if student.problem:
        ui.say(f"some cores could not be read: {student.problem}")
    if student.store.problem:
        ui.say(str(student.store.problem))
    return Exit.DONE


def _filters(words: Words) -> list[str]:
    """Return the options that choose cores, as they were given."""
    names = ("host", "container", "program", "signal", "since", "until")
    found = [f"--{name} {shlex.quote(value)}" for name in names if (value := getattr(words, name)) is not None]
    return [*found, "--truncated"] if words.truncated else found


# The columns of a table: which are cut and which are left out first where the terminal is narrow.
CORES = (
    Column("ID"),
    Column("TIME (UTC)"),
    Column("SIGNAL"),
    Column("SIZE", right=True, rank=1),
    Column("PROGRAM", flexible=True, rank=3, telling=True),
    Column("CONTAINER", flexible=True),
    Column("HOST", flexible=True, rank=2),
)
GROUPS = (
    Column("N", right=True),
    Column("FIRST", rank=1),
    Column("LAST (UTC)"),
    Column("SIG"),
    Column("PROGRAM", flexible=True, rank=3, telling=True),
    Column("BUILD", rank=2),
    Column("FAULT", flexible=True, rank=4, telling=True),
    Column("NEWEST"),
)
# From this width on, a terminal may have room for seconds and whole words; below the other one, it has none for the year.
ROOMY, SLIM = 120, 60


def _show(columns: tuple[Column, ...], rows: Callable[[bool], list[list[str]]]) -> None:
    """Print a table with the ``rows`` whose words are long where there is room for them, else short."""
    console = ui.output()
    cells = rows(True) if console.width >= ROOMY else []
    if not (cells and tables.fits(columns, cells, console.width)):
        cells = rows(False)
    if cells and (left_out := tables.show(console, columns, cells)):
        ui.say(f"left out for want of room: {', '.join(left_out)}")


def _show_cores(cores: list[Core]) -> None:
    """Print a row for each core."""
    slim = ui.output().width < SLIM

    def row(core: Core, long: bool) -> list[str]:
        return [
            core.id[: None if long else 8] or core.key,
            text.moment(core.when, seconds=long)[5 if slim else 0 :],
            (core.signal if long else core.signal.removeprefix("SIG")) or "-",
            f"{text.size(core.stored)}{' cut' if core.truncated else ''}",
            core.program or "-",
            core.place or "-",
            core.node or core.host or "-",
        ]

    columns = (*CORES[:2], replace(CORES[2], name="SIG"), *CORES[3:]) if slim else CORES
    _show(columns, lambda long: [row(core, long) for core in cores])


def _show_groups(groups: list[listing.Group]) -> None:
    """Print a row for each fault."""

    def row(group: listing.Group, long: bool) -> list[str]:
        module, _, offset = group.fault.rpartition("+")
        return [
            str(group.count),
            text.moment(group.first, seconds=long)[0 if long else 5 :],
            text.moment(group.last, seconds=long)[0 if long else 5 :],
            (group.signal if long else group.signal.removeprefix("SIG")) or "-",
            (group.program if long else group.program.rpartition("/")[2]) or "-",
            group.build_id[:8] or "-",
            (group.fault if long else f"{module.rpartition('/')[2]}+{offset}") if module else "-",
            group.newest.id[: None if long else 8] or group.newest.key,
        ]

    _show(GROUPS, lambda long: [row(group, long) for group in groups])


def info(words: Words, settings: Settings) -> int:
    """``info``: the facts of a core, and its backtraces."""
    cache = Cache(settings.cache)
    student, core = acquire.resolve(settings, cache, words.source, words.core)
    student.from_json(core)
    found = report.Report(core)
    status = Exit.DONE
    if words.facts:
        found.said = student.from_beginning(core)
    else:
        with ready(words, settings, cache, student, core, found) as (path, gathered):
            if gathered.program and gathered.program.file is None:
                # gdb shows addresses then, and no function of the program.
                status = Exit.MISSING_PROGRAM
            if found.said is not None:
                try:
                    with ui.working("gdb reads the core"):
                        found.traces = debugger.backtraces(path, found.said, gathered)
                except Failure as failure:
                    status = failure.code
                    found.problems.append(str(failure))
                report.complete(found, gathered, path.absolute())
    if words.json:
        ui.print_json(found.row())
    else:
        report.show(found, ui.output())
    return status


@contextmanager
def ready(
    words: Words, settings: Settings, cache: Cache, student: Student, core: Core, found: report.Report
) -> Iterator[tuple[Path, sysroot.Gathered]]:
    """Yield the file of a core, and the files that it maps. Raises Failure."""
    with ui.progress() as progress:
        path = acquire.obtain(student.store, core, cache, settings, progress)
    try:
        found.said = elfcore.of_file(path)
    except ValueError as error:
        raise Failure(f"{plain(core.path)}: no core: {plain(str(error))}", "see file(1)", Exit.DAMAGED) from None
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", "", Exit.DENIED) from None
    add_core(core, found.said)
    if core.size is None:
        core.size = found.said.size
    if core.truncated or found.said.truncated:
        there = f"{text.size(found.said.size)} of {text.size(found.said.expected)}"
        found.problems.append(
            f"the core was cut off, {there} are there: frames and values that are missing cannot be shown"
        )
    sources = sysroot.Sources(
        sysroot=Path(words.sysroot).expanduser() if words.sysroot else settings.sysroot,
        image=words.image or core.image,
        named=bool(words.image),
        engine=words.engine or settings.engine,
        servers=Servers(settings.debuginfod, cache),
        symbols=[*(Path(one).expanduser() for one in words.symbols), *settings.symbols],
    )
    with ExitStack() as stack:
        with ui.working("looking for the program and its libraries") as step:
            gathered = stack.enter_context(sysroot.gathered(found.said, sources, cache, step))
        yield path, gathered


def get(words: Words, settings: Settings) -> int:
    """``get``: a core as a file."""
    cache = Cache(settings.cache)
    student, core = acquire.resolve(settings, cache, words.source, words.core)
    student.from_json(core)
    if words.output == STDOUT:
        return _pour(words, student, core)
    path = acquire.place_for(words.output, core, not words.packed)
    there = os.path.exists(path)
    if there and not path.is_file():
        raise Failure(f"{path}: no file", "say another by --output, or - for standard output", Exit.USAGE)
    if there and not words.force:
        raise Failure(f"{path}: exists already", "say --force, or another place by --output", Exit.USAGE)
    if not os.path.isdir(path.parent):
        raise Failure(f"{path.parent}: no such directory", "create it, or say another by --output", Exit.USAGE)
    with ui.progress() as progress:
        done = fetch(student.store, core, path, progress, unpack=not words.packed)
    if words.json:
        ui.print_json(
            {
                "path": str(done.path),
                "key": core.key,
                "size": done.size,
                "sha256": done.sha256,
                "verified": done.verified,
                "truncated": core.truncated or done.damaged,
            }
        )
    else:
        print(done.path)
        _say_of(done, core)
    if done.damaged:
        ui.say(f"{plain(core.path)}: its end is missing, what is there is in {done.path}")
        return Exit.DAMAGED
    return Exit.DONE


def _pour(words: Words, student: Student, core: Core) -> int:
    """``get --output -``: a core to standard output."""
    if words.json or words.force:
        raise Failure("--output - goes with neither --json nor --force", "leave one out", Exit.USAGE)
    if sys.stdout.isatty():
        raise Failure("a core is nothing for a terminal", "say --output FILE, or put a | after it", Exit.USAGE)
    with ui.progress() as progress:
        done = pour(student.store, core, sys.stdout.buffer, progress, unpack=not words.packed)
    _say_of(done, core)
    if done.damaged:
        ui.say(f"{plain(core.path)}: its end is missing, what is there is written")
        return Exit.DAMAGED
    return Exit.DONE


def _say_of(done: Fetched, core: Core) -> None:
    """Say what came."""
    if done.verified:
        note = "as it must be"
    elif not core.sha256:
        note = "not compared: no checksum is known of a core that was sent while it was written; hosts that keep cores give one"
    else:
        note = "not compared: the known checksum is that of the whole core, unpacked"
    ui.say(f"{text.size(done.size)}, sha256 {done.sha256}, {note}")
    if core.truncated:
        ui.say("the core was cut off when it was written: its end is missing")


def debug(words: Words, settings: Settings) -> int:
    """``debug``: a debugger with the right files."""
    cache = Cache(settings.cache)
    name = "lldb" if words.lldb else "gdb"
    debugger.need(name)
    student, core = acquire.resolve(settings, cache, words.source, words.core)
    student.from_json(core)
    found = report.Report(core)
    with ready(words, settings, cache, student, core, found) as (path, gathered):
        report.complete(found, gathered, path.absolute())
        if words.lldb:
            command = debugger.lldb(path.absolute(), gathered)
        else:
            command = debugger.gdb(
                path.absolute(), gathered, batch=False, directories=[Path(one) for one in words.source_directory]
            )
        command += words.words
        gathered.keep = words.json or words.print
        if words.json:
            ui.print_json({"command": command, "problems": found.problems, "hints": found.hints})
            return Exit.DONE
        if words.print:
            print(plain(shlex.join(command)))
            return Exit.DONE
        for problem in found.problems:
            ui.say(problem)
        for hint in found.hints:
            ui.say(hint)
        # Ctrl-C is for the debugger: only that stops what it does.
        with ui.without_interrupt():
            status = subprocess.run(command, check=False).returncode
    return status if status >= 0 else 128 - status


def remove(words: Words, settings: Settings) -> int:
    """``rm``: cores out of a store, and their JSON files."""
    cache = Cache(settings.cache)
    chosen = [acquire.resolve(settings, cache, words.source, one, delete=True) for one in dict.fromkeys(words.cores)]
    if not words.yes:
        if not sys.stdin.isatty():
            raise Failure("nothing is deleted without a question", "say --yes where nobody can answer", Exit.USAGE)
        for student, core in chosen:
            core.json = core.json or core.name.stem + keys.FACTS
            student.learn(core)
            known = [core.place, core.signal, f"{text.moment(core.when)} UTC", text.size(core.stored)]
            ui.errors().print(Text(plain(f"{core.path} ({', '.join(filter(None, known))})")))
        what = "this core" if len(chosen) == 1 else f"these {len(chosen)} cores"
        print(f"Delete {what}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Failure("nothing is deleted", "", Exit.FAILED)
    removed: list[dict[str, Any]] = []
    for student, core in chosen:
        # What was cut off may lie beside the whole core, whose JSON file that is then.
        wholes = [f"{core.name.stem}.core{packed}" for packed in keys.PACKED] if core.name.truncated else []
        stays = any(map(student.store.stat, wholes))
        # The core first: a JSON file alone is not listed, and is no secret.
        student.store.remove(core.path)
        if core.name.stem != core.path and not stays:
            student.store.remove(core.name.stem + keys.FACTS)
        removed.append({"key": core.key, "path": core.path})
        if not words.json:
            print(plain(core.path))
    if words.json:
        ui.print_json(removed)
    return Exit.DONE

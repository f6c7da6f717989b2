"""The command line."""

from __future__ import annotations

import argparse
import errno
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import shtab
from corefetch import __version__, ui
from corefetch.errors import Exit, Failure, Interrupted

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

LIMIT = 50
EPILOG = """\
A CORE is its ID, any other part of its key that no other core has, its path
or URL, 'last' (the newest), or a file.

exit codes:
  0  done                      5  no credentials, or the store refuses them
  1  failed                    6  the core is damaged
  2  wrong words               7  gdb, docker, or the program is missing
  3  no such core, or several  130  Ctrl-C
  4  the store does not answer

environment:
  COREFETCH_FROM    the store, in place of --from
  DEBUGINFOD_URLS   servers of programs and debug information
  AWS_ENDPOINT_URL  a server of S3 that is not Amazon's
  AWS_PROFILE or AWS_ACCESS_KEY_ID ..., GOOGLE_APPLICATION_CREDENTIALS,
  AZURE_STORAGE_ACCOUNT_NAME ...
                    credentials, as for the tools of that store

configuration file: ~/.config/corefetch/config.toml, or COREFETCH_CONFIG

cache: COREFETCH_CACHE, else corefetch in XDG_CACHE_HOME, or in ~/.cache
  It holds cores, which hold secrets, and programs and debug information. All of
  it comes again when it is needed. To empty it: rm -r ~/.cache/corefetch

examples:
  export COREFETCH_FROM=s3://my-bucket-for-cores/shop/
  corefetch list --since yesterday    what crashed
  corefetch list --group              one row for each fault
  corefetch info last                 where the newest one crashed: backtraces
  corefetch debug 0f3a9c27            gdb, with the files of the image

'corefetch COMMAND --help' says more of a command.
"""


# What the help of each command ends with.
ENDS = {
    "list": """\
examples:
  corefetch list --since yesterday
  corefetch list --container orders --signal segv
  corefetch list --group --since 7d            crash loops, a row for each
  corefetch list --json | jq -r '.[].path'
""",
    "info": """\
exit code 7: the backtraces are missing or name no functions, because gdb or the
program that crashed is missing: there is no docker, or it does not have the
image. All that is known is printed all the same, with what to do.

examples:
  corefetch info last
  corefetch info 0f3a9c27 --facts
  corefetch info ./orders.core --sysroot ./rootfs
  corefetch info last --json | jq .at          file, line and function
""",
    "get": """\
examples:
  corefetch get last
  corefetch get 0f3a9c27 --output /var/tmp/
  corefetch get 0f3a9c27 --packed --output - | zstd --decompress >orders.core
""",
    "debug": """\
More words for the debugger follow --.

examples:
  corefetch debug last
  corefetch debug last --source ~/src/orders
  corefetch debug last -- -batch -ex bt
""",
    "rm": """\
examples:
  corefetch rm 0f3a9c27
  corefetch rm --yes 0f3a9c27 83a83605
""",
    "completion": """\
where it goes:
  bash  ~/.local/share/bash-completion/completions/corefetch
  zsh   _corefetch in a directory of $fpath
  fish  ~/.config/fish/completions/corefetch.fish

examples:
  corefetch completion zsh >~/.zfunc/_corefetch
""",
}


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help of at most 80 columns, with less space for the names of options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=min(80, _columns()) - 1)


def _columns() -> int:
    """Return the width of the terminal."""
    try:
        return max(40, int(os.environ.get("COLUMNS", "") or os.get_terminal_size().columns))
    except (ValueError, OSError):
        return 80


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--from",
        dest="source",
        metavar="STORE",
        type=_word,
        help="s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, file:///DIRECTORY, a directory, or a name that "
        "the configuration file gives to one; else COREFETCH_FROM, the configuration file, or ./rollout/cores of collect.yml",
    )
    common.add_argument("--json", action="store_true", help="print JSON")

    whole = argparse.ArgumentParser(
        prog="corefetch",
        description="From 'it crashed last night' to the line of code: lists, fetches and reads\n"
        "the core dumps that docker-core-helper has put into a store.",
        epilog=EPILOG,
        formatter_class=_Formatter,
    )
    whole.add_argument("--version", action="version", version=f"corefetch {__version__}")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, help: str, function: str) -> argparse.ArgumentParser:
        found = commands.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}.",
            epilog=ENDS[name],
            parents=[common],
            formatter_class=_Formatter,
        )
        found.set_defaults(function=function)
        return found

    one = add("list", "list cores, the newest first", "list_cores")
    one.add_argument(
        "--host", metavar="NAME", type=_word, help="of this host (a part of its name, or a pattern with * and ?)"
    )
    one.add_argument("--container", "--pod", metavar="NAME", type=_word, help="of this container, pod or namespace")
    one.add_argument("--program", metavar="NAME", type=_word, help="of this program or thread")
    one.add_argument("--signal", metavar="NAME", help="of this signal: SIGSEGV, segv or 11")
    one.add_argument(
        "--since", metavar="TIME", help="not before: 2h, 3d, yesterday, 2026-11-29, 2026-11-29T18:00 (UTC)"
    )
    one.add_argument("--until", metavar="TIME", help="before that time")
    one.add_argument("--truncated", action="store_true", help="only cores that were cut off")
    one.add_argument(
        "--group", action="store_true", help="one row for each program, build, signal and place of the fault"
    )
    one.add_argument("--limit", metavar="N", type=_count, default=LIMIT, help=f"at most so many rows ({LIMIT}; 0: all)")

    one = add("info", "say all that is known of a core, with the backtraces of its threads", "info")
    _add_core(one)
    _add_sources(one)
    one.add_argument(
        "--facts", action="store_true", help="no backtraces: fetches nothing but the beginning of the core"
    )

    one = add("get", "fetch a core into a file, unpacked, and compare its checksum", "get")
    _add_core(one)
    output = one.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        type=_word,
        help="a file, a directory, or - for standard output (default: here)",
    )
    output.complete = shtab.FILE  # type: ignore[attr-defined]
    one.add_argument("--packed", action="store_true", help="as it is in the store, not unpacked")
    one.add_argument("--force", action="store_true", help="replace a file that exists")

    one = add("debug", "start gdb or lldb with a core and the files of its image", "debug")
    _add_core(one)
    _add_sources(one)
    one.add_argument("--lldb", action="store_true", help="lldb in place of gdb")
    one.add_argument(
        "--source",
        dest="source_directory",
        metavar="DIRECTORY",
        type=_word,
        action="append",
        default=[],
        help="where gdb finds the source code",
    )
    one.add_argument("--print", action="store_true", help="print the command, and do not start it")

    one = add("rm", "delete cores from the store", "remove")
    cores = one.add_argument(
        "cores", nargs="+", metavar="CORE", type=_word, help="an ID, a part of a key, a path, a URL, last, or a file"
    )
    cores.complete = shtab.FILE  # type: ignore[attr-defined]
    one.add_argument("--yes", action="store_true", help="do not ask")

    one = commands.add_parser(
        "completion", help="print the completion for a shell", formatter_class=_Formatter, epilog=ENDS["completion"]
    )
    one.add_argument("shell", choices=("bash", "zsh", "fish"))
    one.set_defaults(function="")
    return whole


def _add_core(one: argparse.ArgumentParser) -> None:
    """Add the word that names a core."""
    core = one.add_argument(
        "core", metavar="CORE", type=_word, help="an ID, a part of a key, a path, a URL, last, or a file"
    )
    core.complete = shtab.FILE  # type: ignore[attr-defined]


def _add_sources(one: argparse.ArgumentParser) -> None:
    """Add the options that say where the program and its libraries come from."""
    group = one.add_argument_group(
        "program and libraries",
        "found by their build ids, in this order: in the cache, in --sysroot, on this\n"
        "machine, in the image, by the debuginfod servers of DEBUGINFOD_URLS",
    )
    group.add_argument(
        "--image", metavar="NAME", type=_word, help="the image to copy them from (default: that of the facts)"
    )
    group.add_argument(
        "--engine", metavar="PROGRAM", type=_word, help="docker or podman (default: the first that is there)"
    )
    sysroot = group.add_argument(
        "--sysroot", metavar="DIRECTORY", type=_word, help="a directory with the container's files"
    )
    symbols = group.add_argument(
        "--symbols",
        metavar="DIRECTORY",
        type=_word,
        action="append",
        default=[],
        help="a directory with separate debug files, found by build id",
    )
    for option in (sysroot, symbols):
        option.complete = shtab.DIRECTORY  # type: ignore[attr-defined]


def _word(word: str) -> str:
    """Read a word that is not empty, as a variable of a shell may be that is not set: it would mean all, or another."""
    if not word:
        raise argparse.ArgumentTypeError("an empty word: see whether a variable is not set")
    return word


def _count(word: str) -> int:
    """Read a number of rows."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"no number: {word}")
    return int(word)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # What follows is the debugger's, also what looks like an option.
    end = given.index("--") if given[:1] == ["debug"] and "--" in given else len(given)
    if not given:
        parser().error("no command: 'corefetch --help' shows all, and examples")
    words, strange = (whole := parser()).parse_known_args(given[:end])
    if strange:
        _refuse(whole, words.command, strange)
    words.words = given[end + 1 :]
    if words.command == "completion":
        print(shtab.complete(parser(), shell=words.shell))
        return Exit.DONE
    # Libraries that this needs take longer to load than --help and completion may take.
    from corefetch import commands, config

    function: Callable[[argparse.Namespace, Any], int] = getattr(commands, words.function)
    return function(words, config.load())


def _refuse(whole: argparse.ArgumentParser, command: str, strange: list[str]) -> None:
    """End with the usage of the command, and not of all, where words are too many."""
    one: argparse.ArgumentParser = next(action for action in whole._actions if action.dest == "command").choices[
        command
    ]  # type: ignore[index]
    if command == "debug":
        words = shlex.join(strange)
        one.error(f"words for the debugger come after --: corefetch debug CORE -- {words}")
    one.error(f"unknown words: {shlex.join(strange)}")


def _interrupt(number: int, frame: object) -> None:
    """Make the end of a terminal or of a job clean up like Ctrl-C."""
    raise KeyboardInterrupt


class _Output(io.FileIO):
    """Standard output, whose errors are failures like others."""

    def write(self, data: ReadableBuffer) -> int:
        """Write. Raises Failure, and BrokenPipeError."""
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            _write_no_more()
            remedy = (
                "make room there"
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
                else "write to another place"
            )
            raise Failure(f"standard output: {error.strerror}", remedy) from None


def _output(known: TextIO) -> TextIO:
    """Return standard output as it is known, but for its errors. A path is printed as it is, also one that is no UTF-8."""
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(known.fileno(), "wb", closefd=False)),
        encoding=known.encoding,
        errors="surrogateescape",
        line_buffering=known.isatty(),
    )


def _write_no_more() -> None:
    """Have nothing written that is left: it would fail once more at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def program() -> None:
    """Run as a program: every end is an exit code, and every failure is one line."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        # Where it is closed, the first file that is opened would take its place.
        if sys.stdout is None:
            raise Failure("standard output is closed", "open it, or say >/dev/null")
        sys.stdout = _output(sys.stdout)
        try:
            status = main()
        except SystemExit as end:
            # --help, or wrong words.
            status = end.code if isinstance(end.code, int) else Exit.DONE
        sys.stdout.flush()
    except Failure as failure:
        ui.say(str(failure))
        status = failure.code
    except KeyboardInterrupt as interrupt:
        # Only the fetching of a core has more to say.
        ui.say(": ".join(["interrupted", *([str(interrupt)] if isinstance(interrupt, Interrupted) else [])]))
        status = Exit.INTERRUPTED
    except BrokenPipeError:
        # The program that reads the output has ended.
        _write_no_more()
        status = Exit.NOBODY_READS
    sys.exit(int(status))

"""The command line that the kernel makes of its core pattern; core(5)."""

from core_helper.crash import Crash
from core_helper.words import encode, shown

USAGE = """\
usage: docker_core_helper [OPTIONS] PID UID GID [DELEGATE [ARGUMENT...]]
       docker_core_helper cores list|info|get|send|remove ...   see docker_core_helper cores --help
       docker_core_helper serve [--pattern] [--socket=PATH]     see docker_core_helper serve --help

The kernel starts this program when a process crashes, with the core dump on standard input; see core(5). It runs DELEGATE
in the container of the process, at the privilege of the process, with the core dump on its standard input. To install:

  sysctl -w kernel.core_pipe_limit=512
  sysctl -w 'kernel.core_pattern=|/opt/bin/docker_core_helper %P %u %g /opt/bin/uploader.sh s3://bucket/ %P %u %g'

arguments, with the specifier of core(5) that fills each:
  PID %P, UID %u, GID %g   the faulting process, as the host sees it
  DELEGATE                 absolute path in the container; without it, DOCKERCOREHELPER_DELEGATE in
                           /etc/docker_core_helper.conf counts

options; each value may be empty, for kernels that do not know the specifier:
  -F%F  descriptor of the process     -I%I  faulting thread     -s%s  signal
  -t%t  time of the crash             -d%d  dumpable            -c%c  soft limit of the core's size
  --help, --version

exit codes: 0 delivered, or nothing to do; 1 not delivered, or only in part; 2 wrong command line.
One line in the host's log, identifier docker_core_helper, says what happened to the core.
"""
EXIT_OK, EXIT_NOT_DELIVERED, EXIT_USAGE = 0, 1, 2
OPTIONS = {"-F": "pidfd", "-I": "tid", "-s": "signal", "-t": "time", "-d": "dumpable", "-c": "limit"}


class UsageError(Exception):
    """The command line cannot be used; the text names the word and the remedy."""


def parse_arguments(words: "list[str]") -> "tuple[Crash, list[str]]":
    """Return the crash that the command line ``words`` announce, and a line for each word that is wrong and was ignored.

    Raises UsageError where the words do not say which process crashed: then nothing can be done.
    """
    problems = []
    values = {}
    position = 0
    while position < len(words) and words[position].startswith("-"):
        word = words[position]
        position += 1
        if word == "--":
            break
        name, value = OPTIONS.get(word[:2]), word[2:]
        if name is None:
            problems.append(f"unknown option {word!r}, ignored: see docker_core_helper --help")
        elif _is_number(value) or (name == "limit" and value == "-1"):
            values[name] = int(value)
        elif value:
            problems.append(f"option {word!r} ignored: {word[:2]} takes a number, correct kernel.core_pattern")
    numbers = words[position : position + 3]
    if len(numbers) < 3:
        raise UsageError(
            f"PID UID GID expected, found {numbers}: kernel.core_pattern must end in %P %u %g [DELEGATE ...]"
        )
    for name, number in zip(("PID", "UID", "GID"), numbers):
        if not _is_number(number):
            raise UsageError(f"{name} must be a number, found {number!r}: kernel.core_pattern must hold %P %u %g here")
    crash = Crash(*(int(number) for number in numbers))
    for option, announced in values.items():
        setattr(crash, option, announced)
    delegate = [encode(word) for word in words[position + 3 :]]
    if delegate and not delegate[0].startswith(b"/"):
        problems.append(f"delegate {shown(delegate[0])} ignored: kernel.core_pattern must name its absolute path")
    else:
        crash.delegate = delegate
    return crash, problems


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 20

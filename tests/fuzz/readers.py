"""What holds of each reader of foreign bytes, whatever they are: checked by hypothesis and by the fuzzer.

A check takes any bytes and raises AssertionError, or whatever the reader should not have raised. SEEDS are bytes that a
reader meets on a real machine.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from core_helper import (
    command_line,
    control_groups,
    corefile,
    journal,
    mount_table,
    procfs,
    record,
    relay,
    runtime,
    supervisor,
    unwanted,
    verification,
)
from core_helper.child import Result
from core_helper.configuration import LONGEST_TIMEOUT, Configuration, parse_configuration
from core_helper.crash import Refused
from core_helper.process import FACTS, Record
from core_helper.program import SCRIPT_LINE, parse_script_line
from core_helper.words import WordError, expand, harmless, split_words, unquote
from unit.helper.support import elf

LONGEST_PID = 9999999  # PID_MAX_LIMIT, include/linux/threads.h, has so many digits.
PRINTABLE = set(map(chr, range(32, 127)))


def status(data: bytes) -> None:
    """Fields are text; reading them again from what was found changes nothing."""
    fields = procfs.parse_status(data)
    assert all("\n" not in key + value and ":" not in key for key, value in fields.items())
    written = "\n".join(f"{key}:\t{value}" for key, value in fields.items()).encode("latin-1")
    assert procfs.parse_status(written) == fields


def stat(data: bytes) -> None:
    """Fields are words, and nothing before the last parenthesis is one."""
    fields = procfs.stat_fields(data)
    assert all(field and not field.isspace() and ")" not in field for field in fields)
    assert sum(map(len, fields)) <= len(data)


def limits(data: bytes) -> None:
    """Limits are pairs of numbers; what the kernel would never write is a ValueError and nothing worse."""
    try:
        found = procfs.parse_limits(data)
    except ValueError:
        return
    assert all(isinstance(soft, int) and isinstance(hard, int) for soft, hard in found.values())
    assert len(found) <= data.count(b"\n")


def cgroup(data: bytes) -> None:
    """Hierarchies are taken over unchanged, and the container's id is "" or 64 hexadecimal digits out of the paths."""
    groups = procfs.parse_cgroup(data)
    assert all(b":" not in controllers and b"\n" not in path for controllers, path in groups)
    assert procfs.parse_cgroup(b"\n".join(b"0:" + b":".join(group) for group in groups)) == groups
    name = runtime.container_id(groups)
    assert name == "" or (len(name) == 64 and set(name) <= set("0123456789abcdef"))
    assert any(name.encode() in path for _, path in groups) or not name


def environ(data: bytes) -> None:
    """Variables are such as execve(2) takes, at most 1 MiB of them, and come out of a second reading unchanged."""
    variables, cut = procfs.parse_environ(data)
    strings = [name + b"=" + value for name, value in variables.items()]
    assert all(
        name and b"=" not in name and b"\0" not in string for name, string in zip(variables, strings, strict=True)
    )
    assert all(len(string) + 1 <= 131072 for string in strings)
    assert sum(len(string) + 1 for string in strings) <= procfs.ENVIRON_LIMIT + 1
    assert set(strings) <= set(data.split(b"\0"))
    assert procfs.parse_environ(b"\0".join(strings)) == (variables, False)
    assert cut or set(variables) == {string.partition(b"=")[0] for string in data.split(b"\0") if string.find(b"=") > 0}


def auxv(data: bytes) -> None:
    """The vector says yes or no, or the crash is refused."""
    try:
        assert verification.secure_execution(data) in (True, False)
    except Refused:
        pass


def mountinfo(data: bytes) -> None:
    """Mount points are words of the text without their escapes, and the controllers stand there too."""
    mounts = control_groups.cgroup_mounts(data)
    escape = re.compile(rb"\\(040|011|012|134)")
    words = {escape.sub(lambda found: bytes([int(found[1], 8)]), word) for word in re.split(rb"[ \n]", data)}
    assert all(mount_point in words and controllers in data for controllers, mount_point in mounts.items())


def mounts(data: bytes) -> None:
    """A mount point is on the last mount there, and the root directory on those at it; whatever a mount point is called."""
    points = [b"/" + point.strip(b"/") for point in data.split(b"\n")]
    table = mount_table.Mounts(b"".join(mount_line(number, point) for number, point in enumerate(points, 1)))
    for number, point in enumerate(points, 1):
        assert number in table and table[number].point == point
        last = len(points) - points[::-1].index(point)
        assert table.place_of(point) == (b"0:%d" % last, b"/")
    assert [mount.device for mount in table.roots()] == [
        b"0:%d" % number for number, point in reversed([*enumerate(points, 1)]) if point == b"/"
    ]


def mount_line(number: int, point: bytes, options: bytes = b"rw") -> bytes:
    """A line of /proc/PID/mountinfo, names escaped as the kernel does; fs/proc_namespace.c, mangle."""
    point, options = (re.sub(rb"[ \t\n\\]", lambda found: b"\\%03o" % ord(found[0]), text) for text in (point, options))
    return b"%d 1 0:%d / %s rw - overlay overlay %s\n" % (number, number, point, options)


def layers(data: bytes) -> None:
    """The layers of an overlay are absolute paths, whatever its options say."""
    found = mount_table.layers_of(mount_table.Mount(mount_line(1, b"/run/merged", b"rw," + data).rstrip(b"\n")))
    assert all(path.startswith(b"/") for path in found)


def pattern(data: bytes) -> None:
    """A pattern of programs means what the same regular expression means."""
    text, _nul, wanted = data.partition(b"\0")
    parts = {ord("*"): b".*", ord("?"): b"."}
    expression = b"".join(parts.get(byte, re.escape(bytes([byte]))) for byte in re.sub(rb"\*+", b"*", wanted))
    found = unwanted.matches(text, wanted)
    if expression.count(b".*") <= 4:  # More would take the regular expression too long.
        assert found is (re.fullmatch(expression, text, re.S) is not None)


def script_line(data: bytes) -> None:
    """Interpreter and argument are what the kernel would take; they hold no NUL and fit into its buffer."""
    line = b"#!" + data
    found = parse_script_line(line)
    assert found == kernel_script_line(line)
    assert found is None or (len(found) <= 2 and sum(map(len, found)) <= SCRIPT_LINE - 3)


def kernel_script_line(line: bytes) -> list[bytes] | None:
    """Return what fs/binfmt_script.c makes of the first bytes of a script; written from the outcome and not step by step."""
    seen = line[:SCRIPT_LINE].partition(b"\0")[0]
    text, newline, _ = seen[2:].partition(b"\n")
    if not newline and len(seen) < SCRIPT_LINE - 1:
        # A NUL ends the line: blanks before it are not removed, so that an empty argument may be what follows them.
        name, blank, argument = _first_word(text.lstrip(b" \t"))
        return [name, argument] if blank else [name]
    if not newline and len(seen) == SCRIPT_LINE:
        # Nothing but a blank shows that the name is whole; the last byte of the buffer is then lost.
        if not _first_word(text.lstrip(b" \t"))[1]:
            return None
        text = text[:-1]
    name, _, argument = _first_word(text.strip(b" \t"))
    if not name:
        return None
    return [name, argument] if argument else [name]


def _first_word(text: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the first word, the blank that ends it, and what comes from the next word on."""
    word = text.replace(b"\t", b" ").partition(b" ")[0]
    return word, text[len(word) : len(word) + 1], text[len(word) :].lstrip(b" \t")


def arguments(data: bytes) -> None:
    """A command line announces a crash of plain numbers, or is told to be wrong; odd words of the delegate stay as they are."""
    words = [os.fsdecode(word) for word in data.split(b"\0")]
    try:
        crash, problems = command_line.parse_arguments(words)
    except command_line.UsageError:
        return
    numbers = (crash.pid, crash.uid, crash.gid, crash.tid, crash.signal, crash.time, crash.dumpable, crash.pidfd)
    assert all(number is None or 0 <= number < 10**20 for number in numbers)
    assert crash.limit is None or -1 <= crash.limit < 10**20
    assert isinstance(crash.signal_name(), str)
    given = data.split(b"\0")
    assert crash.delegate == [] or (crash.delegate[0][:1] == b"/" and given[-len(crash.delegate) :] == crash.delegate)
    assert all(isinstance(problem, str) for problem in problems) and len(problems) <= len(words)


def configuration(data: bytes) -> None:
    """Any text is a configuration that can be used, and at most one complaint a line that names it."""
    result = Configuration()
    parse_configuration(data, "conf", result)
    assert result.delegate == [] or result.delegate[0][:1] == b"/"
    assert all(expand(word, {}) is not None for word in result.delegate)
    assert 1 <= result.timeout <= LONGEST_TIMEOUT
    assert len(result.problems) <= data.count(b"\n") + 1
    assert all(problem.startswith("conf, line ") for problem in result.problems)


def words(data: bytes) -> None:
    """Words are split or a quote is told to be open; quoted, they are split into the same again."""
    for read in (split_words, unquote):
        try:
            found = read(data)
        except WordError:
            continue
        assert sum(map(len, found)) <= len(data) if isinstance(found, list) else len(found) <= len(data)
        if isinstance(found, list):
            quoted = " ".join(shlex.quote(word.decode("latin-1")) for word in found).encode("latin-1")
            assert split_words(quoted) == found


VALUES = {"P": b"1", "p": b"%P", "e": b"%", "h": b"a b", "E": b"\xff"}


def specifiers(data: bytes) -> None:
    """A word is expanded once, from the left to the right, or refused."""
    expected = bytearray()
    rest = data
    while rest:
        letter = rest[1:2].decode("latin-1")
        if rest[:1] != b"%":
            expected += rest[:1]
            rest = rest[1:]
        elif letter and letter in "%PpugsteEh":
            expected += b"%" if letter == "%" else VALUES.get(letter, b"")
            rest = rest[2:]
        else:
            break
    try:
        expanded = expand(data, VALUES)
    except WordError:
        assert rest, "refused without a reason"
    else:
        assert not rest, f"{rest[:2]!r} was not refused"
        assert expanded == expected


def escape(data: bytes) -> None:
    """Escaped bytes are printable, hold no quote, and tell the bytes."""
    text = journal.escape(data)
    assert set(text) <= PRINTABLE - {'"'} and len(text) <= 4 * len(data)
    assert text.encode().decode("unicode_escape").encode("latin-1") == data


def core(data: bytes) -> None:
    """The length that a dump announces does not depend on how it comes in, nor on what follows its headers."""
    at_once, one_by_one = corefile.Header(), corefile.Header()
    at_once.add(data)
    position = 0
    while one_by_one.wanted and position < len(data):
        # As the relay does, which never reads on.
        step = min(1 + position % 7, one_by_one.wanted - len(one_by_one.content))
        one_by_one.add(data[position : position + step])
        position += step
    assert (at_once.length, at_once.wanted) == (one_by_one.length, one_by_one.wanted)
    assert at_once.length is None or (0 <= at_once.length < 1 << 65 and at_once.wanted == 0)
    assert at_once.wanted <= corefile.LONGEST_HEADER


def output(data: bytes) -> None:
    """Of what a delegate says at most 64 KiB and 200 lines are logged, in order and unchanged."""
    logged: list[bytes] = []
    reading, writing = os.pipe2(os.O_NONBLOCK)
    child: Any = SimpleNamespace(stderr_read_end=reading, stdout_read_end=-1)
    taken = relay.Output(child, logged.append)
    try:
        for start in range(0, len(data), 50000):
            os.write(writing, data[start : start + 50000])
            taken.read(reading)
        os.close(writing)
        taken.finish()
    finally:
        os.close(reading)
    assert not any(b"\n" in line for line in logged)
    lines = data.split(b"\n")
    if len(data) < relay.OUTPUT_LIMIT and len(lines) <= relay.OUTPUT_LINES:
        assert logged == (lines if lines[-1] else lines[:-1])
    elif b"not logged" in logged[-1]:
        *logged, _ = logged
        assert len(logged) <= relay.OUTPUT_LINES and sum(map(len, logged)) <= relay.OUTPUT_LIMIT
        assert b"\n".join(lines).startswith(b"\n".join(logged))
    else:
        raise AssertionError("what was left out is not told")


def reports(data: bytes) -> None:
    """Whatever comes over the error pipe is taken over, in whatever parts it comes; a pid is one that a process can have."""
    outcomes = []
    # Only one that stays may be ready without being another process.
    for step, stays in ((len(data) or 1, True), (3, True), (3, False)):
        child: Any = SimpleNamespace(setup_pid=1, pid=0, reported_pid=0, reported=b"", stays=stays)
        result = Result()
        for start in range(0, len(data), step):
            child.reported += data[start : start + step]
            supervisor._read_reports(child, result)
        assert 0 <= child.reported_pid <= LONGEST_PID
        assert result.failure is None or isinstance(result.failure, str)
        assert stays or child.pid == 0
        outcomes.append((child.reported_pid, child.pid, child.reported, vars(result)))
    assert outcomes[0] == outcomes[1]


def bundle(data: bytes) -> None:
    """What an engine has written is damaged, or makes facts of one word each; what stands there is no reason to fail."""
    found = Record()
    try:
        # What runc has noted is such a text, too.
        state = record._parsed(data)
        groups = record._at(state, "cgroup_paths")
        with suppress(ValueError):
            assert record._bundle_of(state)[:1] == "/"
        record._read_bundle(data, "", "", found, groups)
    except ValueError:
        return
    assert set(found.facts) <= set(FACTS)
    assert all(0 < len(fact) <= record.LONGEST_FACT for fact in found.facts.values())
    assert all(32 < byte < 127 for fact in found.facts.values() for byte in fact)
    assert all(name and b"=" not in name and b"\0" not in name + text for name, text in found.environment.items())


def part(data: bytes) -> None:
    """A part of a name is no directory, no option and no hidden file, whatever it is made of, and made of itself it stays."""
    name = harmless(data, 64)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", name)
    assert harmless(name.encode(), 64) == name


READERS: dict[str, Callable[[bytes], None]] = {
    reader.__name__: reader
    for reader in (
        status,
        stat,
        limits,
        cgroup,
        environ,
        auxv,
        mountinfo,
        mounts,
        layers,
        pattern,
        script_line,
        arguments,
        configuration,
        words,
        specifiers,
        escape,
        core,
        output,
        reports,
        bundle,
        part,
    )
}


def _proc(name: str) -> bytes:
    with open(f"/proc/self/{name}", "rb") as file:
        return file.read()


ID = b"0123456789abcdef" * 4

SEEDS: dict[str, list[bytes]] = {
    "status": [_proc("status"), b"Name:\ta\\nUid:\t0\nTgid:\t7\nUid:\t1\t2\t3\t4\n"],
    "stat": [_proc("stat"), b"7 () R 1 () D 1 2 3\n"],
    "limits": [_proc("limits")],
    "cgroup": [
        _proc("cgroup"),
        b"0::/docker/" + ID + b"\n",
        b"3:cpu,cpuacct:/a/cri-containerd-" + ID + b".scope/init\n",
    ],
    "environ": [b"PATH=/usr/bin:/bin\0HOME=/root\0LANG=C.UTF-8\0_=/bin/sh\0", b"x=1\0" * 26, b"A=\0=\0B\0A=2"],
    "auxv": [_proc("auxv")],
    "mountinfo": [
        b"1 2 0:3 / /m rw - cgroup cgroup\n",
        _proc("mountinfo"),
        b"30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n31 23 0:27 / /c/cpu\\040x rw - cgroup cgroup rw,cpu,cpuacct\n",
    ],
    "mounts": [b"/\n/a\n/a b\n/a\n/a/\\040", b"/\n/\n/var/lib/docker/overlay2/" + ID + b"/merged"],
    "layers": [b"lowerdir=/a:/b\\:c,upperdir=l/X,workdir=w", b"lowerdir+=/a,datadir+=b"],
    "pattern": [b"/usr/bin/x\0/usr/*", b"/a/b\0*/?", b"/aab\0/*ab*"],
    "script_line": [b"/bin/sh -e\n", b" /usr/bin/env  python3 -u \n", b"/a \0", b" " * 200 + b"/a" * 27, b"/a" * 200],
    "arguments": [
        b"-F3\0-I12\0-s11\0-t1700000000\0-d1\0-c-1\x0012\x000\x000\0/opt/bin/uploader.sh\0s3://b/",
        b"-F\0-x\0--\x001\x002\x003",
    ],
    "configuration": [
        b'# comment\nDOCKERCOREHELPER_DELEGATE="/opt/bin/uploader.sh s3://bucket/ %P %u %g"\n'
        b"DOCKERCOREHELPER_FALLBACK_CORE=1\nDOCKERCOREHELPER_TIMEOUT=300\n",
        b"DOCKERCOREHELPER_DELEGATE='/a b' # c\nDOCKERCOREHELPER_TIMEOUT=\"7\"\nX\n",
    ],
    "words": [b'/a "b \\" c" \'d e\'f\\ g # h', b'"a\\\\"', b"'a' # b"],
    "specifiers": [b"%P.%u.%g-%%%%e", b"s3://%h/%E", b"%"],
    "escape": [b"server", b'\x1b[31m"\n\\\xff'],
    "core": [elf(bits, order, [(0x1000, 0x500), (0x1500, 0)]) for bits in (32, 64) for order in "<>"]
    + [elf(64, "<", [], corefile.PN_XNUM, 1 << 20)]
    # Its program headers stand at 1 TiB.
    + [elf(64, "<", [(0, 0)])[:32] + (1 << 40).to_bytes(8, "little") + elf(64, "<", [(0, 0)])[40:]],
    "output": [b"uploader.sh: no client\nbye", b"x\n" * 300],
    "bundle": [
        b'{"linux":{"cgroupsPath":"/a"},"process":{"env":["A=1"]},"root":{"path":"/a/overlay/b/merged"},"annotations":'
        b'{"io.kubernetes.cri.container-name":"a","io.kubernetes.cri-o.ContainerID":"b","io.kubernetes.container.name":"c"}}',
        b'{"linux":{"cgroupsPath":""},"mounts":[{"destination":"/etc/hosts","source":"/proc/a/b"}]}',
    ],
    "part": [b"../../etc", b"-rf", b"", b"web-1"],
    "reports": [b"note a\npid 12\n", b"ready \n", b"absent /a: No such file\n", b"crowded x\nfailed y\n"],
}

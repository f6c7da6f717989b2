"""configuration.read_configuration: /etc/docker_core_helper.conf."""

from __future__ import annotations

import contextlib
import fcntl
import os
import posix
import shlex
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from core_helper import configuration
from core_helper.configuration import Configuration, Watched, read_configuration
from core_helper.crash import Refused
from core_helper.words import WordError, expand, split_words
from support.leases import lease_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Owner = Callable[[int], None]
    Read = Callable[[bytes], Configuration]


@pytest.fixture(autouse=True)
def owner(monkeypatch: pytest.MonkeyPatch) -> Owner:
    """Have files belong to root, which a test without root cannot arrange; the fixture's value changes the owner."""
    real = posix.fstat

    def pretend(uid: int) -> None:
        def fstat(descriptor: int) -> os.stat_result:
            fields = list(real(descriptor))
            fields[4] = uid
            return os.stat_result(fields)

        monkeypatch.setattr(posix, "fstat", fstat)

    pretend(0)
    return pretend


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def write_and_read(text: bytes) -> Configuration:
        path = tmp_path / "helper.conf"
        path.write_bytes(text)
        path.chmod(0o644)
        return read_configuration(str(path))

    return write_and_read


def test_the_example_of_the_role_is_understood(read: Read) -> None:
    configuration = read(
        b"# Written by the role\n\n"
        b'DOCKERCOREHELPER_DELEGATE="/opt/bin/uploader.sh s3://bucket/ %P %u %g"\n'
        b"DOCKERCOREHELPER_FALLBACK_CORE=1\n"
        b"DOCKERCOREHELPER_TIMEOUT=120\n"
        b"DOCKERCOREHELPER_TIMEOUT_MAX=600\n"
    )
    assert configuration.delegate == [b"/opt/bin/uploader.sh", b"s3://bucket/", b"%P", b"%u", b"%g"]
    assert configuration.fallback is True
    assert (configuration.timeout, configuration.timeout_max) == (120.0, 600.0)
    assert configuration.problems == []


def test_a_missing_file_means_the_defaults(tmp_path: Path) -> None:
    configuration = read_configuration(str(tmp_path / "missing"))
    assert (configuration.delegate, configuration.fallback, configuration.timeout) == ([], False, 300.0)
    assert configuration.problems == []


def test_an_empty_file_means_the_defaults(read: Read) -> None:
    configuration = read(b"")
    assert configuration.timeout_max == 3600.0
    assert (configuration.delegate, configuration.fallback, configuration.timeout) == ([], False, 300.0)
    assert configuration.problems == []


def test_the_handler_from_before_is_split_as_a_shell_would_and_may_hold_any_specifier(read: Read) -> None:
    configuration = read(
        b"DOCKERCOREHELPER_CHAIN=\"/usr/lib/systemd/systemd-coredump %P 'a b' %z %\"\nDOCKERCOREHELPER_CHAIN_CONTAINERS=1\n"
    )
    assert configuration.chain == [b"/usr/lib/systemd/systemd-coredump", b"%P", b"a b", b"%z", b"%"]
    assert configuration.chain_containers is True
    assert configuration.problems == []


def test_the_program_that_sends_cores_is_split_as_a_shell_would(read: Read) -> None:
    assert read(b"").sender == []
    assert read(b"DOCKERCOREHELPER_SENDER=\"/opt/up 's3://a b/' %P\"\n").sender == [b"/opt/up", b"s3://a b/", b"%P"]
    configuration = read(b"DOCKERCOREHELPER_SENDER=uploader.sh s3://b/\n")
    assert configuration.sender == []
    assert "line 1 skipped: sender 'uploader.sh' must be an absolute path on the host" in configuration.problems[0]


def test_the_program_that_is_lent_may_name_variables(read: Read) -> None:
    assert read(b"").lend == []
    configuration = read(b"DOCKERCOREHELPER_LEND=\"/opt/up 'a b' %P %{CORE_KEY} :s3:%{CORE_DESTINATION#s3://}x\"\n")
    assert configuration.lend == [b"/opt/up", b"a b", b"%P", b"%{CORE_KEY}", b":s3:%{CORE_DESTINATION#s3://}x"]
    assert configuration.problems == []


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"up", "lent program 'up' must be an absolute path on the host"),
        (b"/up %x", "%x is not one of %P"),
        (b"/up %{CORE_KEY", "'%{CORE_KEY': %{NAME} or %{NAME#PREFIX} expected"),
        (b"/up %{}", "'%{}': %{NAME} or %{NAME#PREFIX} expected"),
        (b"/up %{A-B}", "%{NAME} or %{NAME#PREFIX} expected"),
        (b"/up %{A#%P}", "%{NAME} or %{NAME#PREFIX} expected"),
    ],
)
def test_a_wrong_program_is_not_lent(read: Read, value: bytes, problem: str) -> None:
    configuration = read(b'DOCKERCOREHELPER_LEND="' + value + b'"\n')
    assert configuration.lend == []
    assert "line 1 skipped: " in configuration.problems[0] and problem in configuration.problems[0]


def test_without_a_handler_nothing_is_passed_on(read: Read) -> None:
    configuration = read(b"")
    assert (configuration.chain, configuration.chain_containers) == ([], False)
    assert read(b'DOCKERCOREHELPER_CHAIN=""\n').chain == []


def test_a_handler_that_is_no_absolute_path_is_skipped(read: Read) -> None:
    configuration = read(b"DOCKERCOREHELPER_CHAIN=systemd-coredump %P\n")
    assert configuration.chain == []
    assert (
        "line 1 skipped: handler 'systemd-coredump' must be an absolute path on the host" in configuration.problems[0]
    )


@pytest.mark.parametrize(("value", "on"), [(b"1", True), (b'"1"', True), (b"0", False)])
def test_containers_are_passed_on_only_by_a_clear_word(read: Read, value: bytes, on: bool) -> None:
    configuration = read(b"DOCKERCOREHELPER_CHAIN_CONTAINERS=" + value)
    assert (configuration.chain_containers, configuration.problems) == (on, [])


@pytest.mark.parametrize("value", [b"", b"yes", b"true", b"10", b"2"])
def test_an_unclear_word_hands_no_container_on(read: Read, value: bytes) -> None:
    configuration = read(b"DOCKERCOREHELPER_CHAIN_CONTAINERS=" + value)
    assert configuration.chain_containers is False
    assert "must be 0 or 1" in configuration.problems[0]


@pytest.mark.parametrize(("value", "obey"), [(b"1", True), (b"0", False)])
def test_the_limit_of_core_files_is_not_obeyed_only_by_a_clear_word(read: Read, value: bytes, obey: bool) -> None:
    configuration = read(b"DOCKERCOREHELPER_OBEY_CORE_LIMIT=" + value)
    assert (configuration.obey_core_limit, configuration.problems) == (obey, [])


def test_cores_that_nobody_wants_are_named(read: Read) -> None:
    configuration = read(
        b"DOCKERCOREHELPER_IGNORE_SIGNALS='SIGQUIT SIGXCPU'\nDOCKERCOREHELPER_IGNORE_PROGRAMS=\"'/opt/a b/*' */chrome\"\n"
    )
    assert (configuration.ignore_signals, configuration.ignore_programs) == ([3, 24], [b"/opt/a b/*", b"*/chrome"])
    assert configuration.problems == []


def test_the_variables_of_the_engines_record_are_named(read: Read) -> None:
    assert read(b"").container_environment == [b"CORE_DESTINATION"]
    assert read(b'DOCKERCOREHELPER_CONTAINER_ENVIRONMENT="CORE_X _a1"').container_environment == [b"CORE_X", b"_a1"]
    assert read(b"DOCKERCOREHELPER_CONTAINER_ENVIRONMENT=").container_environment == []


@pytest.mark.parametrize("name", [b"A=b", b"1A", b"A-B", b"*", b"\xc3\xa9"])
def test_what_is_no_name_of_a_variable_changes_nothing(read: Read, name: bytes) -> None:
    configuration = read(b"DOCKERCOREHELPER_CONTAINER_ENVIRONMENT=" + name)
    assert "must be the name of a variable" in configuration.problems[0]
    assert configuration.container_environment == [b"CORE_DESTINATION"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"OBEY_CORE_LIMIT=no", "DOCKERCOREHELPER_OBEY_CORE_LIMIT='no' must be 0 or 1"),
        (b"IGNORE_SIGNALS=SIGTERM", "DOCKERCOREHELPER_IGNORE_SIGNALS: 'SIGTERM' must be one of SIGQUIT SIGILL"),
        (b"IGNORE_SIGNALS=SIGQUIT 6", "DOCKERCOREHELPER_IGNORE_SIGNALS: '6' must be one of SIGQUIT SIGILL"),
        (
            b"IGNORE_PROGRAMS=chrome",
            "DOCKERCOREHELPER_IGNORE_PROGRAMS: 'chrome' must be a path that begins with / or *",
        ),
    ],
)
def test_what_could_leave_out_the_wrong_cores_leaves_out_none(read: Read, line: bytes, problem: str) -> None:
    configuration = read(b"DOCKERCOREHELPER_" + line)
    assert problem in configuration.problems[0]
    assert (configuration.obey_core_limit, configuration.ignore_signals, configuration.ignore_programs) == (
        True,
        [],
        [],
    )


def test_what_the_host_keeps(read: Read) -> None:
    configuration = read(
        b"DOCKERCOREHELPER_KEEP=undelivered\nDOCKERCOREHELPER_KEEP_DIRECTORY='/srv/a b'\nDOCKERCOREHELPER_KEEP_MAX=3G\n"
        b"DOCKERCOREHELPER_KEEP_FREE=0\nDOCKERCOREHELPER_KEEP_AGE=365\nDOCKERCOREHELPER_RELEASE=kept\n"
    )
    assert configuration.problems == []
    assert (configuration.keep, configuration.keep_directory) == ("undelivered", "/srv/a b")
    assert (configuration.keep_max, configuration.keep_free, configuration.keep_age) == (3 << 30, 0, 365)
    assert configuration.release_kept


def test_nothing_is_kept_by_default(read: Read) -> None:
    configuration = read(b"")
    assert (configuration.keep, configuration.release_kept) == ("never", False)
    assert configuration.keep_directory == "/var/lib/docker_core_helper/cores"
    assert (configuration.keep_max, configuration.keep_free, configuration.keep_age) == (10 << 30, 15, 14)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"KEEP=yes", "DOCKERCOREHELPER_KEEP='yes' must be never, undelivered or always"),
        (b"KEEP_DIRECTORY=cores", "DOCKERCOREHELPER_KEEP_DIRECTORY='cores' must be an absolute path on the host"),
        (b"KEEP_DIRECTORY=/srv/../etc", "must be an absolute path on the host"),
        (
            b"KEEP_MAX=10GB",
            "DOCKERCOREHELPER_KEEP_MAX='10GB' must be a number of bytes, such as 500000000, 500M or 10G",
        ),
        (b"KEEP_MAX=G", "must be a number of bytes"),
        (b"KEEP_MAX=", "must be a number of bytes"),
        (b"KEEP_FREE=100", "DOCKERCOREHELPER_KEEP_FREE='100' must be a percentage from 0 to 99"),
        (b"KEEP_AGE=0", "DOCKERCOREHELPER_KEEP_AGE='0' must be a number of days from 1 to 36500"),
        (b"RELEASE=soon", "DOCKERCOREHELPER_RELEASE='soon' must be delivered or kept"),
    ],
)
def test_a_wrong_word_about_keeping_changes_nothing(read: Read, line: bytes, problem: str) -> None:
    configuration = read(b"DOCKERCOREHELPER_" + line)
    assert problem in configuration.problems[0]
    assert vars(configuration) == {**vars(read(b"")), "problems": configuration.problems}


@pytest.mark.parametrize("value", [b"", b"0", b"no", b'""'])
def test_the_fallback_counts_when_it_is_defined_whatever_its_value(read: Read, value: bytes) -> None:
    assert read(b"DOCKERCOREHELPER_FALLBACK_CORE=" + value).fallback is True


def test_a_commented_line_defines_nothing(read: Read) -> None:
    configuration = read(b"#DOCKERCOREHELPER_FALLBACK_CORE=1\n  # DOCKERCOREHELPER_TIMEOUT=1\n")
    assert (configuration.fallback, configuration.timeout, configuration.problems) == (False, 300.0, [])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"/d a  b\t c", [b"/d", b"a", b"b", b"c"]),
        (b'"/d a b"', [b"/d", b"a", b"b"]),
        (b"'/d a b'", [b"/d", b"a", b"b"]),
        (b'"/d \\"a b\\" c"', [b"/d", b"a b", b"c"]),
        (b"\"/d 'a b' c\"", [b"/d", b"a b", b"c"]),
        (b'"/d" "a b"', [b"/d", b"a b"]),
        (b"/d a\\ b '' \"\"", [b"/d", b"a b", b"", b""]),
        (b"/d a'b'\"c\"d", [b"/d", b"abcd"]),
        (b"/d 'a\"b' \"c'd\"", [b"/d", b'a"b', b"c'd"]),
        (b'/d "a\\"b\\\\c\\$d\\`e\\nf"', [b"/d", b'a"b\\c$d`e\\nf']),
        (b"/d 'a\\b'", [b"/d", b"a\\b"]),
        (b"/d # a comment's end", [b"/d"]),
        (b'"/d a" # a comment', [b"/d", b"a"]),
        (b"/d a#b", [b"/d", b"a#b"]),
        (b"  /d\t", [b"/d"]),
        (b"/d \xff\xc3\xa4 100%%", [b"/d", b"\xff\xc3\xa4", b"100%%"]),
        (b"/d a=b", [b"/d", b"a=b"]),
        (b"", []),
    ],
)
def test_the_delegate_is_split_as_a_shell_would(read: Read, value: bytes, words: list[bytes]) -> None:
    configuration = read(b"DOCKERCOREHELPER_DELEGATE=" + value + b"\n")
    assert configuration.problems == []
    assert configuration.delegate == words


@pytest.mark.parametrize(
    "text", ["a b", " a\tb ", "'a b' c", '"a b"c', "a\\ b", "''", 'a""b', "a'\"'b", '"a\\\\b\\"c\\d"', "a#b", ""]
)
def test_words_are_those_of_the_library_for_the_shells_rules(text: str) -> None:
    assert split_words(text.encode()) == [word.encode() for word in shlex.split(text)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"nonsense", "KEY=VALUE expected"),
        (b"=1", "unknown key"),
        (b"DOCKERCOREHELPER_TIMOUT=1", "unknown key"),
        (b"DOCKERCOREHELPER_TIMEOUT = 1", "unknown key"),
        (b"dockercorehelper_timeout=1", "unknown key"),
        (b"DOCKERCOREHELPER_TIMEOUT=", "number of seconds"),
        (b"DOCKERCOREHELPER_TIMEOUT=0", "number of seconds"),
        (b"DOCKERCOREHELPER_TIMEOUT=-1", "number of seconds"),
        (b"DOCKERCOREHELPER_TIMEOUT=1.5", "number of seconds"),
        (b"DOCKERCOREHELPER_TIMEOUT=1 2", "number of seconds"),
        (b"DOCKERCOREHELPER_TIMEOUT=86401", "number of seconds"),
        (b"DOCKERCOREHELPER_TIMEOUT=" + b"9" * 5000, "number of seconds"),
        (b"DOCKERCOREHELPER_TIMEOUT_MAX=0", "number of seconds"),
        (b"DOCKERCOREHELPER_TIMEOUT_MAX=86401", "number of seconds"),
        (b"DOCKERCOREHELPER_SIZE_MAX=", "number of bytes"),
        (b"DOCKERCOREHELPER_SIZE_MAX=10g", "number of bytes"),
        (b"DOCKERCOREHELPER_SIZE_MAX=G", "number of bytes"),
        (b"DOCKERCOREHELPER_SIZE_MAX=-1", "number of bytes"),
        (b"DOCKERCOREHELPER_SIZE_MAX=1.5G", "number of bytes"),
        (b"DOCKERCOREHELPER_SIZE_MAX=" + b"9" * 16, "number of bytes"),
        (b"DOCKERCOREHELPER_FALLBACK_MAX=16", "a number of files and of bytes"),
        (b"DOCKERCOREHELPER_FALLBACK_MAX=16/8X", "a number of files and of bytes"),
        (b"DOCKERCOREHELPER_FALLBACK_MAX=16/0", "a number of files and of bytes"),
        (b"DOCKERCOREHELPER_BURST=5", "a number of cores and a time"),
        (b"DOCKERCOREHELPER_BURST=5/", "a number of cores and a time"),
        (b"DOCKERCOREHELPER_BURST=/1h", "a number of cores and a time"),
        (b"DOCKERCOREHELPER_BURST=5/1w", "a number of cores and a time"),
        (b"DOCKERCOREHELPER_BURST=5/0s", "a number of cores and a time"),
        (b"DOCKERCOREHELPER_BURST=0/1h", "a number of cores and a time"),
        (b"DOCKERCOREHELPER_BURST=100000/1h", "a number of cores and a time"),
        (b"DOCKERCOREHELPER_DELEGATE=uploader.sh", "absolute path"),
        (b"DOCKERCOREHELPER_DELEGATE=\"''\"", "absolute path"),
        (b"DOCKERCOREHELPER_DELEGATE=/d %x", "%x is not one of"),
        (b"DOCKERCOREHELPER_DELEGATE=/d 100%", "% is not one of"),
        (b"DOCKERCOREHELPER_DELEGATE=/d %\xff", "is not one of"),
        (b'DOCKERCOREHELPER_DELEGATE="/d a', 'quote " is not closed'),
        (b"DOCKERCOREHELPER_DELEGATE=/d 'a", "quote ' is not closed"),
    ],
)
def test_a_wrong_line_is_told_with_its_number_and_only_it_is_skipped(read: Read, line: bytes, complaint: str) -> None:
    configuration = read(
        b"# first\nDOCKERCOREHELPER_DELEGATE=/before\n" + line + b"\nDOCKERCOREHELPER_FALLBACK_CORE=1\n"
    )
    assert (configuration.delegate, configuration.fallback, configuration.timeout) == ([b"/before"], True, 300.0)
    assert len(configuration.problems) == 1
    assert "helper.conf, line 3 skipped: " in configuration.problems[0] and complaint in configuration.problems[0]


@pytest.mark.parametrize(
    ("value", "size"),
    [(b"0", 0), (b"5000", 5000), (b"2K", 2048), (b"3M", 3 << 20), (b"10G", 10 << 30), (b"1T", 1 << 40)],
)
def test_a_size_may_have_a_unit(read: Read, value: bytes, size: int) -> None:
    configuration = read(b"DOCKERCOREHELPER_SIZE_MAX=" + value)
    assert (configuration.size_max, configuration.problems) == (size, [])


def test_the_bound_of_core_files_is_a_number_of_files_and_of_bytes(read: Read) -> None:
    assert read(b"").fallback_max == (16, 8 << 30)
    assert read(b"DOCKERCOREHELPER_FALLBACK_MAX=3/2M").fallback_max == (3, 2 << 20)
    assert read(b"DOCKERCOREHELPER_FALLBACK_MAX=0").fallback_max == (0, 0)


@pytest.mark.parametrize(
    ("value", "burst"),
    [(b"0", (0, 0)), (b"5/1h", (5, 3600)), (b"1/90s", (1, 90)), (b"9/2m", (9, 120)), (b"3/1d", (3, 86400))],
)
def test_a_burst_is_a_number_in_a_time(read: Read, value: bytes, burst: tuple[int, int]) -> None:
    configuration = read(b"DOCKERCOREHELPER_BURST=" + value)
    assert (configuration.burst, configuration.problems) == (burst, [])


def test_an_empty_delegate_in_quotes_turns_a_delegate_off(read: Read) -> None:
    configuration = read(b'DOCKERCOREHELPER_DELEGATE=/d\nDOCKERCOREHELPER_DELEGATE=""\n')
    assert (configuration.delegate, configuration.problems) == ([], [])


def test_the_last_of_two_lines_counts_and_line_ends_of_windows_do_not_hurt(read: Read) -> None:
    configuration = read(b"DOCKERCOREHELPER_TIMEOUT=1\r\nDOCKERCOREHELPER_TIMEOUT='86400'\r\n")
    assert (configuration.timeout, configuration.problems) == (86400.0, [])


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o620, 0o602, 0o777])
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "helper.conf"
    path.write_bytes(b"DOCKERCOREHELPER_FALLBACK_CORE=1\n")
    path.chmod(mode)
    configuration = read_configuration(str(path))
    assert configuration.fallback is False
    assert len(configuration.problems) == 1 and f"chmod 0644 {path}" in configuration.problems[0]


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o400, 0o755])
def test_a_file_that_only_root_can_write_is_read(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "helper.conf"
    path.write_bytes(b"DOCKERCOREHELPER_FALLBACK_CORE=1\n")
    path.chmod(mode)
    assert read_configuration(str(path)).fallback is True


def test_a_file_of_another_owner_is_refused(read: Read, owner: Owner) -> None:
    owner(1000)
    configuration = read(b"DOCKERCOREHELPER_FALLBACK_CORE=1\n")
    assert configuration.fallback is False
    assert len(configuration.problems) == 1 and "chown root" in configuration.problems[0]


def test_a_directory_or_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "fifo", tmp_path):
        configuration = read_configuration(str(path))
        assert len(configuration.problems) == 1 and "refused" in configuration.problems[0]


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    configuration = read_configuration(str(tmp_path / "loop"))
    assert configuration.problems == [
        f"{tmp_path}/loop: Too many levels of symbolic links: configuration ignored",
    ]


def test_a_file_of_64_KiB_is_read_and_a_longer_one_refused(read: Read) -> None:  # noqa: N802 (the unit's name)
    line = b"DOCKERCOREHELPER_FALLBACK_CORE=1\n"
    assert read(line + b"#" * (65536 - len(line))).fallback is True
    configuration = read(line + b"#" * (65537 - len(line)))
    assert configuration.fallback is False
    assert len(configuration.problems) == 1 and "65536 bytes" in configuration.problems[0]


VALUES = {name: b"<" + name.encode() + b">" for name in "PpugsteEh"}


@pytest.mark.parametrize(
    ("word", "expanded"),
    [
        (b"", b""),
        (b"%P", b"<P>"),
        (b"a%pb%uc%gd", b"a<p>b<u>c<g>d"),
        (b"%s%t%e%h%E", b"<s><t><e><h><E>"),
        (b"%%P", b"%P"),
        (b"%%%P", b"%<P>"),
        (b"%%%%", b"%%"),
        (b"100%%", b"100%"),
        (b"\xff%P\xfe", b"\xff<P>\xfe"),
    ],
)
def test_specifiers_are_expanded(word: bytes, expanded: bytes) -> None:
    assert expand(word, VALUES) == expanded


def test_an_expanded_value_is_not_expanded_again() -> None:
    assert expand(b"%e %P", {"e": b"%P %% $(id) '", "P": b"1"}) == b"%P %% $(id) ' 1"


def test_a_specifier_without_a_value_is_empty() -> None:
    assert expand(b"a%sb", {}) == b"ab"


@pytest.mark.parametrize("word", [b"%", b"a%", b"%%%", b"%I", b"%d", b"% P", b"%\xe4", b"%\0", b"%{CORE_KEY}"])
def test_an_unknown_specifier_is_refused(word: bytes) -> None:
    with pytest.raises(WordError, match="%P %p %u %g %s %t %e %h %E %%"):
        expand(word, VALUES)


def test_a_process_that_stays_reads_the_file_again_only_where_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "conf", []

    def count(patience: float = 0.0) -> Configuration:
        read.append(path.read_text() if path.exists() else "")
        return Configuration()

    monkeypatch.setattr(configuration, "CONFIGURATION", str(path))
    monkeypatch.setattr(configuration, "read_configuration", count)
    watched = Watched()
    assert watched.read() is watched.read()
    path.write_text("a")
    assert watched.read() is watched.read()
    other = tmp_path / "other"
    other.write_text("b")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.rename(path)
    watched.read()
    path.unlink()
    assert watched.read() is watched.read()
    assert read == ["", "a", "b", ""]


@pytest.fixture
def leased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A configuration on which a process has a lease, until the end of the test."""
    path = tmp_path / "conf"
    path.write_text("DOCKERCOREHELPER_TIMEOUT=7\n")
    monkeypatch.setattr(configuration, "CONFIGURATION", str(path))
    with lease_on(path):
        yield path


def test_a_configuration_under_a_lease_is_never_taken_for_none(leased: Path) -> None:
    told = f"^{leased}: a process has a lease on it, so it cannot be read: see /proc/locks$"
    with pytest.raises(Refused, match=told):
        read_configuration(patience=0.05)
    with pytest.raises(Refused, match=told):
        read_configuration(is_over=lambda: True)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_a_lease_that_is_taken_again_at_once_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = tmp_path / "conf"
    path.write_text("DOCKERCOREHELPER_TIMEOUT=7\n")
    taken, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        file = os.open(path, os.O_RDONLY)

        def take(*_: object) -> None:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            with contextlib.suppress(OSError):
                fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)

        signal.signal(signal.SIGIO, take)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        os.write(tell, b"x")
        while True:
            time.sleep(1)
    try:
        os.read(taken, 1)
        assert read_configuration(str(path), patience=20.0).timeout == 7.0
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(taken)
        os.close(tell)


def test_an_alarm_that_comes_once_the_file_is_open_ends_no_helper(
    leased: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = iter([True])

    def set_timer(which: int, seconds: float) -> None:
        if seconds == 0 and next(stops, False):
            os.kill(os.getpid(), signal.SIGALRM)

    def lease_is_there(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr("_signal.setitimer", set_timer)
    monkeypatch.setattr(configuration, "open_of_root", lease_is_there)
    with monkeypatch.context() as patch:
        patch.setattr(posix, "open", lambda *_: os.open(leased, os.O_PATH))
        descriptor = configuration.open_after_lease(str(leased), 0o022)
    assert os.readlink(f"/proc/self/fd/{descriptor}") == str(leased)
    assert not next(stops, False)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    os.close(descriptor)


def test_a_process_that_stays_goes_on_with_what_it_has_read_before_a_lease(
    leased: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configuration, "LEASE_PATIENCE", 0.01)
    with pytest.raises(Refused):
        Watched()  # Nothing was read before.
    monkeypatch.setattr(configuration, "LEASE_PATIENCE", 1000.0)
    hidden = leased.with_suffix(".hidden")
    leased.rename(hidden)
    leased.write_text("DOCKERCOREHELPER_TIMEOUT=9\n")
    watched = Watched()
    assert watched.read().timeout == 9.0
    hidden.rename(leased)
    assert watched.read().timeout == 9.0 == watched.read().timeout
    assert watched.read().problems == [f"{leased} cannot be read: what it said before counts"]
    os.utime(leased)
    other = leased.with_suffix(".new")
    other.write_text("DOCKERCOREHELPER_TIMEOUT=7\n")
    other.rename(leased)
    assert (watched.read().timeout, watched.read().problems) == (7.0, [])
    # Such as where no descriptor is free.
    other.symlink_to(leased)
    other.rename(leased)
    assert watched.read().timeout == 7.0
    assert watched.read().problems == [f"{leased} cannot be read: what it said before counts"]

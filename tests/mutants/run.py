"""Tries the unit tests of the helper: changes one thing at a time in a copy of it, and looks for a test that fails.

`make mutants`; README.md of this directory tells what it is for. The mutants come in an order that the seed decides, and as
many are tried as the time allows. Exit code 1: a mutant lived that README.md does not excuse, or an excuse is of no mutant.
"""

from __future__ import annotations

import argparse
import difflib
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cosmic_ray.plugins  # type: ignore[import-not-found]
import pytest
from cosmic_ray.commands.init import init  # type: ignore[import-not-found]
from cosmic_ray.mutating import mutate_code, use_mutation  # type: ignore[import-not-found]
from cosmic_ray.work_db import WorkDB, use_db  # type: ignore[import-not-found]
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult  # type: ignore[import-not-found]

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[0] = str(REPOSITORY / "tests")

from mutants import operators  # noqa: E402

CACHE = REPOSITORY / ".cache" / "mutants"
TREE = CACHE / "tree"
TESTS = "tests/unit/helper"
# What decides on refusals, privileges and descriptors, and the tests that are asked first.
MODULES = {
    "verification": ("verification", "examine"),
    "process": ("process", "examine"),
    "procfs": ("procfs", "process", "descriptors", "slots"),
    "privileges": ("privileges",),
    "container": ("container",),
    "control_groups": ("control_groups",),
    "mount_table": ("mount_table", "foreign_files", "strangers", "membership"),
    "apart": ("mount_table", "process"),
    "membership": ("membership", "foreign_files", "strangers"),
    "foreign_files": ("foreign_files", "membership"),
    "strangers": ("strangers", "foreign_files", "membership"),
    "tracing": ("tracing",),
    "first_process": ("first_process",),
    "runtime": ("runtime", "previous_handler", "holders"),
    "namespaces": ("namespaces", "holders", "first_process", "membership", "tracing", "strangers"),
    "joining": ("joining", "supervisor"),
    "status_pipe": ("joining", "supervisor"),
    "program": ("program",),
    "slots": ("slots_taken", "slots"),
    "holders": ("holders", "slots"),
    "table": ("table", "quota", "bounds"),
    "bounds": ("bounds",),
    "quota": ("quota",),
    "record": ("record",),
    "store": ("store", "custody"),
    "room": ("store", "custody"),
    "custody": ("custody", "store"),
    "finishing": ("custody", "build_ids"),
    "sender": ("sender",),
    "start": ("start", "main"),
    "source": ("source",),
    "fallback": ("joining", "fallback"),
    "unwanted": ("unwanted",),
    "seccomp": ("seccomp", "seccomp_flags"),
    "deliver": ("deliver", "main", "previous_handler"),
    "delivery": ("deliver", "main"),
    "linux": ("linux", "linux_flags", "descriptors", "start"),
}
# Tests that wait most of the time: what only they would notice should be noticed by a quick one.
SLOW = ("supervisor", "relay")
# Names that are 0, and what only a checker of types reads.
NOTHING = ("posix.O_RDONLY",)
TYPES = "TYPE_CHECKING"
ALONE = "MUTANTS_ALONE"
SHARED = "/dev/shm"
# The exit code of a run in which all tests have passed: a mutant that ends the process says 0.
PASSED = 42


class Mutant:
    """One change of one module."""

    def __init__(self, item: Any) -> None:
        """Take a work item of cosmic-ray, with one mutation."""
        (self.spec,) = item.mutations
        self.job = item.job_id
        self.module = self.spec.module_path.stem
        self.function = self.spec.definition_name or ""
        self.operator = cosmic_ray.plugins.get_operator(self.spec.operator_name)()
        source = self.spec.module_path.read_text()
        mutated = mutate_code(source, self.operator, self.spec.occurrence)
        changed = [line for line in difflib.ndiff(source.splitlines(), mutated.splitlines()) if line[0] in "-+"]
        self.before, self.after = (
            " ".join(" ".join(line[2:] for line in changed if line[0] == sign).split()) for sign in "-+"
        )
        self.line = self.spec.start_pos[0]

    def counts(self) -> bool:
        """Tell whether this change could make a difference in a function that is looked at."""
        if TYPES in self.before:
            return False
        return not any(self.before.replace(f"{name} | ", "") == self.after for name in NOTHING)

    def key(self) -> tuple[str, str, str, str]:
        """Return what an excuse names: lines of the source have no numbers there, which change."""
        return f"{self.module}.py", self.function, self.before, self.after

    def __str__(self) -> str:
        """Return file, line and the change."""
        return f"helper/core_helper/{self.module}.py:{self.line}: {self.function}: `{self.before}` -> `{self.after}`"


class Tests:
    """The unit tests, in a copy of the project. A process that has pytest loaded is forked for each run of them."""

    def __init__(self) -> None:
        """Make the copy."""
        shutil.rmtree(TREE, ignore_errors=True)
        ignore = shutil.ignore_patterns("__pycache__")
        for directory in ("helper", TESTS):
            shutil.copytree(REPOSITORY / directory, TREE / directory, ignore=ignore)
        shutil.copy(REPOSITORY / "pyproject.toml", TREE)
        self.limits: dict[str, float] = {}
        self.output = ""

    def pass_(self, words: list[str], limit: float, compiled: bool = False) -> bool:
        """Tell whether all tests that ``words`` name pass in ``limit`` seconds; ``compiled`` keeps their compiled code."""
        log = CACHE / "output"
        with open(log, "wb") as file:
            pid = os.fork()
            if pid == 0:
                try:
                    os.setsid()
                    null = os.open("/dev/null", os.O_RDONLY)
                    for number, source in enumerate((null, file.fileno(), file.fileno())):
                        os.dup2(source, number)
                    sys.path.remove(str(REPOSITORY / "tests"))
                    sys.dont_write_bytecode = not compiled
                    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
                    code = pytest.main(["-x", "-q", "--no-header", f"--rootdir={TREE}", *words])
                    os._exit(PASSED if code == pytest.ExitCode.OK else 1)
                finally:
                    os._exit(99)
        end = time.monotonic() + limit
        done, status = 0, 1
        while not done and time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            time.sleep(0 if done else 0.01)
        if not done:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.output = log.read_text(errors="replace")
        return done != 0 and status == PASSED << 8

    def stages(self, module: str) -> list[tuple[str, list[str]]]:
        """Return name and words of the runs that try a mutant of ``module``: its own tests, and then all others."""
        paths = [f"{TESTS}/test_{name}.py" for name in MODULES[module]]
        others = [f"--ignore={path}" for path in (*paths, *(f"{TESTS}/test_{name}.py" for name in SLOW))]
        return [(module, paths), ("others", [*others, TESTS])]

    def measure(self, modules: list[str]) -> None:
        """Set the limits of time by what nobody has changed. Ends the program where a test fails without any change."""
        # Compiled code is found by time and size of the source, which some mutants have in common: of tests alone it may stay.
        self.pass_(["--collect-only", TESTS], 600, compiled=True)
        for directory in (TREE / "helper").rglob("__pycache__"):
            shutil.rmtree(directory)
        for module in modules:
            for name, words in self.stages(module):
                if name not in self.limits:
                    began = time.monotonic()
                    if not self.pass_(words, 600):
                        sys.exit(f"the tests fail on what nobody has changed: {' '.join(words)}\n{self.output}")
                    self.limits[name] = 10 + 5 * (time.monotonic() - began)

    def kill(self, mutant: Mutant) -> bool:
        """Tell whether a test fails with ``mutant``, or takes for ever."""
        with use_mutation(mutant.spec.module_path, mutant.operator, mutant.spec.occurrence):
            return not all(self.pass_(words, self.limits[name]) for name, words in self.stages(mutant.module))


def excuses() -> dict[tuple[str, str, str, str], str]:
    """Return the mutants of README.md's table, and why each may live."""
    found = {}
    for line in (Path(__file__).parent / "README.md").read_text().splitlines():
        cells = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)]
        code = [re.sub(r"^(`+) ?(.*?) ?\1$", r"\2", cell) for cell in cells[1:5]]
        if len(cells) == 7 and cells[1].endswith(".py`"):
            found[code[0], code[1], code[2], code[3]] = cells[5]
    return found


def problem_of(excuse: str) -> str:
    """Return what is wrong with an ``excuse``, or ""."""
    if excuse.startswith("equivalent"):
        return ""
    named = re.findall(r"\btest_\w+", excuse)
    directories = [REPOSITORY / "tests" / name for name in ("hostile", "crash")]
    sources = "".join(path.read_text() for directory in directories for path in directory.glob("test_*.py"))
    missing = [name for name in named if f"def {name}(" not in sources]
    return "" if named and not missing else f"names no test of tests/hostile or tests/crash: {excuse!r}"


def collect(database: Any, modules: list[str]) -> list[Mutant]:
    """Return all mutants of ``modules``, as cosmic-ray finds them."""
    init([TREE / "helper" / "core_helper" / f"{module}.py" for module in modules], database, {})
    return [mutant for mutant in map(Mutant, database.work_items) if mutant.counts()]


def try_all(tests: Tests, database: Any, mutants: list[Mutant], seconds: float) -> dict[Mutant, bool]:
    """Try as many of ``mutants`` as there is time for, and return which of them were killed."""
    limit = time.monotonic() + seconds
    killed = {}
    for mutant in mutants:
        if time.monotonic() > limit:
            break
        killed[mutant] = tests.kill(mutant)
        outcome = TestOutcome.KILLED if killed[mutant] else TestOutcome.SURVIVED
        database.set_result(mutant.job, WorkResult(worker_outcome=WorkerOutcome.NORMAL, test_outcome=outcome))
        if not killed[mutant]:
            print(f"survived: {mutant}", flush=True)
    return killed


def report(modules: list[str], mutants: list[Mutant], excused: list[Mutant], killed: dict[Mutant, bool]) -> None:
    """Print the table."""
    print("\nmodule      | mutants | tried | killed | survived | excused")
    print("------------|---------|-------|--------|----------|--------")
    for name in [*modules, "all"]:
        of_it = [mutant for mutant in mutants if name in (mutant.module, "all")]
        tried = [killed[mutant] for mutant in of_it if mutant in killed]
        numbers = (len(of_it), len(tried), sum(tried), len(tried) - sum(tried), len([m for m in of_it if m in excused]))
        print(f"{name:11} | {numbers[0]:7} | {numbers[1]:5} | {numbers[2]:6} | {numbers[3]:8} | {numbers[4]:7}")


def main() -> int:
    """Try the tests, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900, help="for all of it; default 900")
    parser.add_argument("--seed", type=int, default=1, help="decides which mutants come first; default 1")
    parser.add_argument("--all", action="store_true", help="try the excused ones, too, and tell which a test kills")
    parser.add_argument("modules", nargs="*", help=f"of {' '.join(MODULES)}; default: all")
    options = parser.parse_args()
    modules = options.modules or list(MODULES)
    if os.getuid() == 0 and not os.environ.get(ALONE):
        # No mutant may signal a process of this machine, mount anything, or outlive its test.
        words = ["unshare", "--mount-proc", "--pid", "--fork", "--kill-child", "sh", "-c", '"$@"; exit $?', "sh"]
        os.environ[ALONE] = "1"
        os.execvp(words[0], [*words, sys.executable, *sys.argv])
    limit = time.monotonic() + options.seconds
    # A mutant may crash. With this limit the kernel starts no handler of crashes; core(5).
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    operators.check()
    operators.install()
    tests = Tests()
    os.chdir(TREE)
    # In memory where that is: most of the time goes into files of the tests.
    memory = SHARED if os.path.isdir(SHARED) and not os.statvfs(SHARED).f_flag & os.ST_NOEXEC else None
    session = str(CACHE / "session.sqlite")
    with tempfile.TemporaryDirectory(dir=memory) as temporary, use_db(session, WorkDB.Mode.create) as database:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = temporary
        mutants = collect(database, modules)
        known = excuses()
        problems = [f"{' '.join(key)}: {problem}" for key, excuse in known.items() if (problem := problem_of(excuse))]
        keys = {mutant.key() for mutant in mutants}
        of_these = [key for key in known if key[0][:-3] in modules]
        problems += [f"of no mutant: {' '.join(key)}" for key in of_these if key not in keys]
        excused = [mutant for mutant in mutants if mutant.key() in known]
        chosen = [mutant for mutant in mutants if options.all or mutant not in excused]
        random.Random(options.seed).shuffle(chosen)
        tests.measure(modules)
        killed = try_all(tests, database, chosen, limit - time.monotonic())
    report(modules, mutants, excused, killed)
    survivors = [mutant for mutant in killed if not killed[mutant] and mutant not in excused]
    print(f"\n{len(killed)} of {len(chosen)} mutants were tried, in the order of seed {options.seed}.")
    for mutant in sorted(survivors, key=lambda mutant: (mutant.module, mutant.line)):
        print(f"survived: {mutant}")
    for mutant in excused:
        if killed.get(mutant):
            print(f"needs no excuse: {mutant}")
    for problem in problems:
        print(f"tests/mutants/README.md: {problem}")
    return 1 if survivors or problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""Hands the core dump of a process to a delegate in the container of that process, at the privilege of that process.

A crash walks through the modules in one direction::

    main -> command -> slots -> handling -> victim -> membership -> child -(fork)-> delegate -> container -> privileges -> exec
                                                                       \\-> supervisor -> relay -> journal

The parent stays on the host as the supervisor. ``start`` is what the helper does to itself, ``linux`` holds system calls,
``procfs`` reads /proc, ``namespaces``, ``cgroups`` and ``first_process`` tell what belongs together, ``seccomp`` holds the
filter, ``quota`` rations the log, ``fallback`` writes the core file where there is no delegate, ``chain`` becomes the handler
that the host had before, for crashes outside of containers.

The package is imported at every crash, so it imports but modules that are built into the interpreter (``posix`` is what
``os`` is made of), and no ``__future__``: annotations that Python 3.8 cannot evaluate are quoted. What is not
needed before the delegate runs is imported after that.
"""

import marshal
import posix
import sys
from _frozen_importlib_external import MAGIC_NUMBER

__version__ = "1.0.0"


# What the installer put together and was not executed yet: name and code of each module.
_bundle: "list[tuple[str, bytes]]" = []


def _open_bundle() -> None:
    """Read the one file that the installer made of what every crash needs: half the time of a dozen imports.

    Where there is none for this very Python, the modules are imported as usual.
    """
    try:
        file = posix.open(f"{__path__[0]}/__pycache__/bundle.{sys.implementation.cache_tag}", posix.O_RDONLY)
    except FileNotFoundError:
        return
    content = posix.read(file, 1 << 24)
    posix.close(file)
    try:
        _bundle.extend(marshal.loads(content[16:]) if content[:4] == MAGIC_NUMBER else [])
    except (EOFError, TypeError, ValueError):
        pass  # Damaged, as by a full disk.


def load(last: "str | None" = None) -> None:
    """Execute the modules of the bundle, up to the ``last`` one: a crash that is refused at once pays for few."""
    while _bundle:
        name, code = _bundle.pop(0)
        if f"core_helper.{name}" not in sys.modules:
            module = globals()[name] = sys.modules[f"core_helper.{name}"] = type(sys)(f"core_helper.{name}")
            program = marshal.loads(code)
            module.__file__ = program.co_filename
            exec(program, module.__dict__)
        if name == last:
            return


_open_bundle()
load("main")

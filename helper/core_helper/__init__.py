"""Hands the core dump of a process to a delegate in the container of that process, at the privilege of that process.

A crash walks through the modules in one direction::

    main -> slots -> deliver -> verification -> membership -> child -(fork)-> joining -> container -> privileges -> program
                        |                                         \\-> supervisor -> relay
                        \\-> joining (the delegate), fallback (the core file), previous_handler

``main`` is the door: it knows the ``command_line``, reads the ``configuration``, makes the ``crash``, the ``source`` of the
core and the ``log``, and is protected by ``start``. ``deliver`` looks, chooses and tries. ``process`` is the faulting process;
``namespaces``, ``runtime`` and ``first_process`` say what belongs to which container. ``procfs`` reads /proc, ``corefile`` the
core, ``words`` splits what is written. ``linux`` holds system calls, ``seccomp`` the filter. ``journal`` writes the log,
``quota`` rations it, ``diagnosis`` explains why a process is not there.

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

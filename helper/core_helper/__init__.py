"""Hands the core dump of a process to a delegate in the container of that process, at the privilege of that process.

A crash walks through the modules in one direction::

    main -> command -> victim -> child -(fork)-> delegate -> container -> privileges -> exec
                                  \\-> supervisor -> relay -> journal

The parent stays on the host as the supervisor. ``linux`` holds system calls, ``seccomp`` the filter, ``fallback`` writes the
core file where there is no delegate, ``chain`` becomes the handler that the host had before, for crashes outside of containers.

The package is imported at every crash, so it imports but modules that are built into the interpreter (``posix`` is what
``os`` is made of), and no ``__future__``: annotations that Python 3.8 cannot evaluate are quoted. What is not
needed before the delegate runs is imported after that.
"""

import marshal
import posix
import sys
from _frozen_importlib_external import MAGIC_NUMBER

__version__ = "1.0.0"


def _load_bundle() -> None:
    """Load what every crash needs from the one file that the installer made of it: half the time of a dozen imports.

    Where there is none for this very Python, the modules are imported as usual.
    """
    try:
        file = posix.open(f"{__path__[0]}/__pycache__/bundle.{sys.implementation.cache_tag}", posix.O_RDONLY)
    except FileNotFoundError:
        return
    content = posix.read(file, 1 << 24)
    posix.close(file)
    try:
        bundle = marshal.loads(content[16:]) if content[:4] == MAGIC_NUMBER else []
    except (EOFError, TypeError, ValueError):
        return  # Damaged, as by a full disk.
    for name, code in bundle:
        module = globals()[name] = sys.modules[f"core_helper.{name}"] = type(sys)(f"core_helper.{name}")
        module.__file__ = code.co_filename
        exec(code, module.__dict__)


_load_bundle()

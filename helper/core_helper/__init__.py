"""Hands the core dump of a process to a delegate in the container of that process, at the privilege of that process.

The modules that a crash goes through, those that ``deliver`` calls from top to bottom::

    main -> command_line, configuration, slots -> holders, start (executes the helper again)
     \\-> deliver
           |-> verification -> process
           |-> membership -> first_process, foreign_files -> strangers
           |-> child -(fork)-> joining -> status_pipe, control_groups, then privileges and container in turn, program or lent
           |-> supervisor -> relay -> corefile, deadline, then family, if something must be ended
           |-> bounds, if there are any
           |-> custody -> room -> store, then finishing -> build_ids, if cores are kept; cores, sender: the operators' command
           \\-> fallback in place of joining; previous_handler in place of child and all that follows

At the kernel's core-dump socket, a crash first goes through these::

    main -> serve -> host, listening, pattern
              \\-> server -> notifier, kernel_socket, holders, waiting -> slots
                     \\-(fork)-> worker -> kernel_socket, slots, main.handle -> deliver

``main`` receives the crash: it parses the ``command_line``, reads the ``configuration``, makes the ``crash``, the ``source``
of the core and the ``log``, and has ``start`` protect the helper itself. ``serve`` starts the ``server``, which receives all
crashes of a host, lets them wait for slots, and has a ``worker`` for each; its ``notifier`` informs systemd. ``deliver``
examines the faulting process, chooses destinations for its core, and tries them; ``delivery`` is one core on its way to these;
``unwanted`` knows the cores that nobody wants, ``key`` names a core. ``process`` describes the faulting process;
``namespaces``, ``runtime`` and ``first_process`` say what belongs to which container, ``record`` what its engine has written of
it; ``foreign_files`` and ``strangers`` ask whose the files are, ``tracing`` whether a container could trace a process of ours.
``procfs`` reads /proc, ``mount_table`` the lists of mounts in it, ``corefile`` the first bytes of the core, which say how long
it must be. ``holes`` finds what of a core need not be stored. A child does ``apart`` what may last as long as a container
likes. ``control_groups`` joins the control groups of the process. ``words`` splits command lines. ``linux`` holds system calls,
``seccomp`` the filter. ``journal`` writes the log, ``quota`` limits it, ``diagnosis`` explains why a process is not there.
``slots``, ``quota`` and ``bounds`` count in a ``table`` each. ``host`` brings a server from its container to the host,
``pattern`` sets the kernel's pattern for it.

The package is imported at every crash. So it imports no module of the standard library that is written in Python (``posix`` is
what ``os`` is made of), and of those in C only some that load fast. Not even ``__future__``: annotations that Python 3.8
cannot evaluate are quoted. A module that is not needed before the delegate runs is imported after that.
"""

import marshal
import posix
import sys
from _frozen_importlib_external import MAGIC_NUMBER

__version__ = "1.0.0"


def load(start: str) -> None:
    """Execute a bundle: one file with the module ``start`` and all that it needs, in half the time of importing each.

    Where there is no bundle for this very Python, the modules are imported as usual. A crash that is refused at once pays for
    one bundle only, and one in a worker for none: there they were executed before.
    """
    if f"core_helper.{start}" in sys.modules:
        return
    path = f"{__path__[0]}/__pycache__/bundle.{start}.{sys.implementation.cache_tag}"
    try:
        file = posix.open(path, posix.O_RDONLY)
    except FileNotFoundError:
        return
    content = posix.read(file, 1 << 24)
    posix.close(file)
    try:
        modules = marshal.loads(memoryview(content)[16:]) if content[:4] == MAGIC_NUMBER else []
    except (EOFError, TypeError, ValueError):
        return  # Damaged, as by a full disk.
    for name, program in modules:
        if f"core_helper.{name}" not in sys.modules:
            module = globals()[name] = sys.modules[f"core_helper.{name}"] = type(sys)(f"core_helper.{name}")
            module.__file__ = program.co_filename
            exec(program, module.__dict__)


load("main")

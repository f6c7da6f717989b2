"""Hands the core dump of a process to a delegate in the container of that process, at the privilege of that process.

A crash walks through the modules in one direction::

    main -> command -> victim -> relay -(fork)-> delegate -> container -> privileges -> exec

The parent stays in ``relay`` on the host. ``linux`` holds system calls, ``journal`` what operators read, ``fallback``
the core file that is written where there is no delegate.

The package is imported at every crash, so it imports but modules that are built into the interpreter (``posix`` is what
``os`` is made of), and no ``__future__``: annotations that Python 3.8 cannot evaluate are quoted. What only the
supervisor needs is imported while the child is on its way.
"""

__version__ = "1.0.0"

"""Hands the core dump of a process to a delegate in the container of that process, at the privilege of that process.

A crash walks through the modules in one direction::

    main -> command -> victim -> child -(fork)-> delegate -> container -> privileges -> exec
                                  \\-> supervisor -> relay -> journal

The parent stays on the host as the supervisor. ``linux`` holds system calls, ``seccomp`` the filter, ``fallback`` writes the
core file where there is no delegate.

The package is imported at every crash, so it imports but modules that are built into the interpreter (``posix`` is what
``os`` is made of), and no ``__future__``: annotations that Python 3.8 cannot evaluate are quoted. What is not
needed before the delegate runs is imported after that.
"""

__version__ = "1.0.0"

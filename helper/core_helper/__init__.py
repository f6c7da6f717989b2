"""Hands the core dump of a process to a delegate in the container of that process, at the privilege of that process.

A crash walks through the modules in one direction::

    main -> command -> victim -> relay -(fork)-> delegate -> container -> privileges -> exec

The parent stays in ``relay`` on the host. ``linux`` holds system calls, ``journal`` what operators read, ``fallback``
the core file that is written where there is no delegate.

The whole package is imported at every crash, so imports are few: the standard library's ``signal``, ``socket``, ``re``,
``subprocess`` and ``logging`` cost more than the rest of the helper together.
"""

__version__ = "1.0.0"

"""From a core dump in a store to the line of code that crashed."""

# That of the whole project: galaxy.yml and helper/core_helper/__init__.py have the same, and a test compares them.
__version__ = "1.0.0"

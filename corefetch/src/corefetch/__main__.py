"""``python -m corefetch``."""

from corefetch.cli import program

program()

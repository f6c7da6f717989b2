# SPDX-License-Identifier: Apache-2.0
"""The versions of the helper's library on a host: each is a directory of its own, named after a hash of its content."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess

from ansible.module_utils.basic import AnsibleModule

from . import directories, files, usable_python
from .programs import last_line
from .usable_python import Python, UnusableError, run

PACKAGE = "core_helper"


def version_of(library: dict[str, str]) -> str:
    """Return the name of the library's version: it changes if any file changes."""
    digest = hashlib.sha256()
    for name, content in sorted(library.items()):
        digest.update(f"{name}\0{content}\0".encode())
    return digest.hexdigest()[:12]


def owner() -> tuple[int, int]:
    """Return the user and the group that own all files of the helper."""
    return usable_python.OWNER, usable_python.GROUP


def is_owned(path: str, mode: int) -> bool:
    """Return whether ``path`` has this mode, and the owner of all our files, and is no symbolic link."""
    found = os.lstat(path)
    is_link = stat.S_ISLNK(found.st_mode)
    return not is_link and (stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid)) == (mode, owner())


class Library:
    """The version of the library that shall be installed, next to those that are."""

    def __init__(self, module: AnsibleModule, lib_dir: str, sources: dict[str, str] | None) -> None:
        """Keep the directory of all versions, and name and content of each file; None if the library shall be removed."""
        self.module = module
        self.lib_dir = lib_dir
        self.sources = sources or {}
        self.version = os.path.join(lib_dir, version_of(self.sources))
        self.package = os.path.join(self.version, PACKAGE)

    def refuse(self) -> None:
        """Raise UnusableError if the library is not complete, or if somebody else could change it."""
        if "__init__.py" not in self.sources or any("/" in name for name in self.sources):
            raise UnusableError("the helper's library is not in what the role brought: is the role complete?")
        # In a sticky directory somebody else may have created this directory first: everybody can compute its name.
        danger = usable_python.changeable(os.path.join(self.package, "__pycache__"))
        if danger:
            raise UnusableError(f"{self.version} cannot hold what the kernel starts as root: {danger}; remove it")

    def is_damaged(self) -> bool:
        """Return whether this version is not on the host as it should be, whichever Python it is compiled for."""
        return bool(not os.path.isdir(self.package) or self.wrong_sources() or self.wrong_compiled())

    def wrong_sources(self) -> list[str]:
        """Return the files that are not in the package as they should be."""
        paths = {name: os.path.join(self.package, name) for name in sorted(self.sources)}
        return [
            name for name, path in paths.items() if files.read(path) != self.sources[name] or not is_owned(path, 0o644)
        ]

    def wrong_compiled(self) -> list[str]:
        """Return the compiled files in the package that do not belong to us, or have another mode."""
        cache = os.path.join(self.package, "__pycache__")
        paths = [os.path.join(cache, name) for name in sorted(os.listdir(cache))] if os.path.isdir(cache) else []
        return [path for path in paths if not os.path.isdir(path) and not is_owned(path, 0o644)]

    def install(self, python: Python, compiler: str) -> None:
        """Bring the whole version into place in one step, or repair what is wrong in an existing one file by file."""
        if os.path.isdir(self.package):
            for name in self.wrong_sources():
                self.write(self.package, name)
            for path in self.wrong_compiled():
                os.unlink(path)
            self.compile(python, compiler, self.package)
            return
        staged = os.path.join(self.lib_dir, f".new.{os.path.basename(self.version)}")
        for leftover in (staged, self.version):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            package = os.path.join(staged, PACKAGE)
            directories.create(self.module, [staged, package])
            for name in self.sources:
                self.write(package, name)
            self.compile(python, compiler, package)
            os.rename(staged, self.version)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def write(self, package: str, name: str) -> None:
        """Write one file of the library."""
        files.write(self.module, os.path.join(package, name), self.sources[name], 0o644, owner())

    def compile(self, python: Python, compiler: str, package: str) -> None:
        """Compile the files in ``package`` for the Python of the helper, under their later names. Raises UnusableError."""
        try:
            result = run(python.path, "-I", "-S", "-c", compiler, "compile", package, self.package)
        except subprocess.TimeoutExpired as error:
            raise UnusableError(
                f"{python.path} has not compiled the helper's library within {error.timeout:.0f} seconds:"
                " run this again when the host has less to do"
            ) from error
        if result.returncode:
            raise UnusableError(f"{python.path} cannot compile the helper's library: {last_line(result.stderr)}")

    def versions(self) -> list[str]:
        """Return the directories of the library's versions, and of those that an interrupted run has left.

        Others may keep directories with such names in the same place. Ours hold only the library.
        """
        names = sorted(os.listdir(self.lib_dir)) if os.path.isdir(self.lib_dir) else []
        paths = [os.path.join(self.lib_dir, name) for name in names if re.match(r"(\.new\.)?[0-9a-f]{12}\Z", name)]
        return [
            path
            for path in paths
            if os.path.isdir(path) and not os.path.islink(path) and not set(os.listdir(path)) - {PACKAGE}
        ]

    def prune(self, kept: set[str | None]) -> None:
        """Remove all versions except the ``kept`` ones."""
        for version in self.versions():
            if version not in kept:
                shutil.rmtree(version)

# SPDX-License-Identifier: Apache-2.0
"""Files of a host: what is in them, and writing one in one step."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator

from ansible.module_utils.basic import AnsibleModule


def read(path: str, encoding: str = "utf-8") -> str | None:
    """Return the content of a file, None if there is none. Bytes that are not text become escapes."""
    try:
        with open(path, encoding=encoding, errors="backslashreplace", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None


def read_exactly(path: str) -> str:
    """Return the content of somebody else's file so that writing it gives the same bytes again; empty if there is none.

    A directory, and a link that leads nowhere or in a circle, set nothing at boot either, so they are empty, too. So is a pipe,
    where a read would wait for ever.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        with open(path, encoding="latin-1", newline="") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return ""


def wrong_access(path: str, mode: int = 0o644) -> str:
    """Return mode and user of a file of ours for a diff; empty if they are right, or if there is no file."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return ""
    wrong = stat.S_ISLNK(found.st_mode) or (found.st_uid, stat.S_IMODE(found.st_mode)) != (os.geteuid(), mode)
    return f"# {stat.filemode(found.st_mode)}, user {found.st_uid}\n" if wrong else ""


@contextlib.contextmanager
def _removing_at_failure(temporary: str, path: str) -> Iterator[None]:
    """Remove a temporary file if what follows fails, and let an OSError name the file that was asked for."""
    try:
        yield
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError):
            error.filename = path  # A full disk names no file.
        raise


def write_beside(
    module: AnsibleModule,
    path: str,
    content: str,
    mode: int = 0o644,
    owner: tuple[int, int] | None = None,
    encoding: str = "utf-8",
) -> str:
    """Write the content of the future file ``path`` into a temporary file next to it, and return the name of that.

    ``owner`` is a user and a group; without it they are those of this process, or the group of a set-gid directory.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=os.path.dirname(path))
    with _removing_at_failure(temporary, path):
        with open(descriptor, "w", encoding=encoding, newline="") as file:
            file.write(content)
            if owner:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            file.flush()
            os.fsync(descriptor)
        module.set_context_if_different(temporary, module.selinux_default_context(path), False)
    return temporary


def write(
    module: AnsibleModule,
    path: str,
    content: str,
    mode: int = 0o644,
    owner: tuple[int, int] | None = None,
    encoding: str = "utf-8",
) -> None:
    """Write a file that after a crash of the host is either the old or the new one."""
    temporary = write_beside(module, path, content, mode, owner, encoding)
    with _removing_at_failure(temporary, path):
        os.replace(temporary, path)


def edit(module: AnsibleModule, path: str, content: str) -> None:
    """Change the content of somebody else's file, encoded as by read_exactly; its owner and its mode stay."""
    mode, owner = 0o644, None
    if os.path.exists(path):
        found = os.stat(path)
        mode, owner = stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid)
    write(module, path, content, mode, owner, "latin-1")


def write_or_remove(module: AnsibleModule, path: str, content: str | None) -> None:
    """Give a file of ours this content; None removes the file."""
    if content is None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        # No program on this host reads /etc/sysctl.d yet; one that is installed later may.
        os.mkdir(directory)
        os.chmod(directory, 0o755)
    write(module, path, content)


def diff_step(name: str, before: str | None, after: str | None) -> dict[str, str]:
    """Return a change as --diff shows it; None is a file that is not there."""
    return {"before_header": name, "after_header": name, "before": before or "", "after": after or ""}


def reason(error: Exception) -> str:
    """Return what went wrong: with an OSError it is a file."""
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)

#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: puts a program into a folder that stands for a root directory, and never anywhere else."""

from __future__ import annotations

DOCUMENTATION = r"""
module: core_helper_into
short_description: Puts a program into a folder that stands for a root directory
version_added: 1.1.0
description:
  - What is in the folder may be a container's choice. So no symbolic link in it is followed, which would lead elsewhere here
    than in the container. A link on the way is refused, and one in the place of the program is replaced.
options:
  root:
    description: The folder. It is created if it is not there.
    type: path
    required: true
  dest:
    description: The path of the program as the container sees it. Directories that are missing are created.
    type: str
    required: true
  content:
    description: What is in the program.
    type: str
    required: true
attributes:
  check_mode:
    support: full
    description: Tells what a run would change.
  diff_mode:
    support: full
    description: Shows the program.
author:
  - The docker-core-helper authors (@docker-core-helper)
"""

EXAMPLES = r"""
- name: Put the script into a build context
  dockercore.helper.core_helper_into:
    root: /srv/my-image
    dest: /opt/bin/uploader.sh
    content: "{{ lookup('ansible.builtin.file', 'uploader.sh', rstrip=false) }}"
"""

RETURN = r"""# """

import contextlib  # noqa: E402 (Ansible wants the documentation first)
import os  # noqa: E402
import stat  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

# Processes of every user execute the program.
MODE = 0o755
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class IntoError(Exception):
    """The program cannot be there; the text names the path and the remedy."""


class Folder:
    """A directory in the folder; all of it is done by its descriptor, which no link can lead elsewhere.

    So files.write, which other modules have, is of no use here: it goes by paths.
    """

    def __init__(self, root: str, check_mode: bool) -> None:
        """Open the folder itself, which is the operator's: its path may have links. Raises OSError."""
        self.path, self.check_mode, self.changed = os.path.normpath(root), check_mode, False
        self.descriptor: int | None = None
        if not os.path.isdir(root):
            self.changed = True
            if check_mode:
                return
            os.makedirs(root)
            os.chmod(root, MODE)
        self.descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def enter(self, name: str) -> None:
        """Go to a directory in this one, which is created if it is not there. Raises IntoError or OSError."""
        outer, self.path = self.descriptor, f"{self.path}/{name}"
        if outer is None:
            return
        try:
            found = os.stat(name, dir_fd=outer, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                raise IntoError(
                    f"{self.path} is {'a symbolic link' if stat.S_ISLNK(found.st_mode) else 'no directory'}, which is not"
                    " followed, as it leads elsewhere here than in the container: put a directory there, or build an image"
                    " with the uploader"
                )
        except FileNotFoundError:
            self.changed = True
            if self.check_mode:
                self.descriptor = None
                return
            os.mkdir(name, dir_fd=outer)
            self.descriptor = os.open(name, DIRECTORY, dir_fd=outer)
            self.open_to_all()
        else:
            self.descriptor = os.open(name, DIRECTORY, dir_fd=outer)
        os.close(outer)

    def open_to_all(self) -> None:
        """Give this directory the mode of those that everybody may enter."""
        if self.descriptor is None or stat.S_IMODE(os.fstat(self.descriptor).st_mode) == MODE:
            return
        self.changed = True
        if not self.check_mode:
            os.fchmod(self.descriptor, MODE)

    def read(self, name: str, most: int) -> bytes | None:
        """Return what is in a program here, at most so many bytes; None if there is none of the right mode."""
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.descriptor)
        except OSError:
            return None
        try:
            found = os.fstat(file)
            is_right = stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == MODE
            return os.pread(file, most, 0) if is_right else None
        finally:
            os.close(file)

    def write(self, name: str, content: bytes) -> None:
        """Put a program here, whole or not at all. Raises OSError."""
        new = f".{name}.{os.getpid()}"
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.descriptor)
        try:
            with open(file, "wb") as opened:
                opened.write(content)
                os.fchmod(file, MODE)
            os.replace(new, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new, dir_fd=self.descriptor)
            raise


def put(root: str, dest: str, content: str, check_mode: bool) -> dict[str, object]:
    """Put the program into the folder, and return the result for Ansible. Raises IntoError or OSError."""
    *parents, name = [part for part in dest.split("/") if part not in ("", ".")] or [""]
    if not name or ".." in (*parents, name):
        raise IntoError(f"{dest} is no path of a program: correct core_uploader_dest")
    folder = Folder(root, check_mode)
    for parent in parents:
        folder.enter(parent)
    if parents:
        folder.open_to_all()
    wanted = content.encode()
    found = folder.read(name, len(wanted) + 1) if folder.descriptor is not None else None
    if found == wanted:
        return {"changed": folder.changed}
    if not check_mode:
        try:
            folder.write(name, wanted)
        except IsADirectoryError:
            raise IntoError(f"{folder.path}/{name} is a directory: remove it") from None
    path, before = f"{folder.path}/{name}", (found or b"").decode(errors="backslashreplace")
    diff = {"before_header": path, "after_header": path, "before": before, "after": content}
    return {"changed": True, "diff": diff}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "dest": {"type": "str", "required": True},
            "content": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    words = module.params
    try:
        result = put(words["root"], words["dest"], words["content"], module.check_mode)
    except IntoError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{words['root']}{words['dest']}: {error.strerror}: see who owns the folder, and make room"
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()

"""The store: the directory of the host in which cores are kept. Imported only where cores are kept. ::

    DIRECTORY/GROUP/KEY.core             the core; KEY.core.zst if it is compressed
    DIRECTORY/GROUP/KEY.json             what is known of it: a core without this file is not listed
    DIRECTORY/GROUP/KEY.json.pending     the same of a core that is being delivered, in case its helper is killed
    DIRECTORY/.waiting                   locked by the process that waits until it may compress cores
    DIRECTORY/.finishing                 locked by the process that compresses cores
    DIRECTORY/.sending                   locked by the process that sends cores
    DIRECTORY/GROUP/.KEY.EXPECTED.part   a core that is being written, and how many bytes it may take

The process that writes a core holds a lock on its file until the JSON file is there. So a core that has neither was left behind
by a crash of the host or of the helper. It is listed if all of it had been written since the host's last start, and is deleted
otherwise. The lock on the directory is held while bounds are compared (room.py); flock(2).
"""

import fcntl
import posix
import time

from core_helper import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.configuration import Configuration

PART, JSON, PENDING, CORE, COMPRESSED = ".part", ".json", ".json.pending", ".core", ".core.zst"
BOOT = "/proc/sys/kernel/random/boot_id"
BLOCK = 512  # The unit of st_blocks; stat(2).
DAY = 86400
PATIENCE, PAUSE = 10.0, 0.005  # Seconds.
ENOENT, EAGAIN, ELOOP = 2, 11, 40
LONGEST_JSON = 1 << 24  # Bytes: the build ids of all the files that a process may have mapped.
MODE, MODE_WHEN_FINISHED, MODE_OF_DIRECTORY = 0o600, 0o400, 0o700
WAITING, FINISHING, SENDING = ".waiting", ".finishing", ".sending"  # Files whose locks say who does that.


class Unusable(Exception):
    """Cores cannot be kept here. The text names the directory and the remedy."""


class Entry:
    """A core in the store: ``group`` and ``key``, its ``files``, the bytes that these take, and when it was written.

    ``size`` are the bytes of the core as it can be read, holes included.
    """

    def __init__(self, group: str, key: str) -> None:
        """Start without files. ``whole`` says whether it is listed, ``expected`` what it may take if it is being written.

        ``finished`` says whether all that will be known of it is in its JSON file, ``held`` whether it is being delivered.
        """
        self.group = group
        self.key = key
        self.files: list[str] = []
        self.bytes = 0
        self.size = 0
        self.time = 0.0
        self.whole = False
        self.finished = False
        self.held = False
        self.expected = 0

    @property
    def claim(self) -> int:
        """The bytes that count for the bound."""
        return max(self.bytes, self.expected)


class Lock:
    """The lock of a store, for ``with``: nobody else compares bounds meanwhile."""

    def __init__(self, directory: int) -> None:
        """Take the opened directory of the store."""
        self.directory = directory

    def __enter__(self) -> None:
        """Wait until nobody else has the lock. Raises OSError where that takes long: any reader of the store can lock it."""
        limit = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(self.directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pass
            if time.monotonic() > limit:
                raise OSError(EAGAIN, f"somebody has had it locked for {PATIENCE:.0f} seconds")
            time.sleep(PAUSE)

    def __exit__(self, *failure: object) -> None:
        """Let others have it."""
        fcntl.flock(self.directory, fcntl.LOCK_UN)


class Store:
    """The opened directory ``path``, and its ``lock``."""

    def __init__(self, path: str) -> None:
        """Open it, and create it if it is not there. Raises Unusable."""
        self.path = path
        try:
            _create(path)
            self.directory = _open_directory(path)
        except (OSError, ValueError) as error:
            # A path with a zero byte is no path for Python.
            reason = error.strerror if isinstance(error, OSError) else "no path"
            raise Unusable(
                f"{ascii(path)[1:-1]}: {reason}: cores are not kept; correct docker_core_helper_keep_directory"
            ) from None
        found = posix.fstat(self.directory)
        if found.st_uid != 0 or found.st_mode & 0o077:
            posix.close(self.directory)
            raise Unusable(
                f"{path}: only root may enter it: cores are not kept; chown root {path} && chmod 0700 {path}"
            )
        self.lock = Lock(self.directory)

    def close(self) -> None:
        """Close the directory."""
        posix.close(self.directory)

    def group(self, name: str) -> int:
        """Open the directory of a group, which is created if it is not there. Raises OSError."""
        try:
            posix.mkdir(name, MODE_OF_DIRECTORY, dir_fd=self.directory)
        except FileExistsError:
            pass
        return _open_directory(name, self.directory)

    def entries(self) -> "list[Entry]":
        """Return what the store has, and list or delete what nobody writes any more. The lock must be held. Raises OSError."""
        entries = []
        for name in posix.listdir(self.directory):
            try:
                group = _open_directory(name, self.directory)
            except OSError:
                continue  # No directory, or deleted meanwhile.
            try:
                for entry in _entries_of(name, group).values():
                    if entry.whole or _is_being_written(group, entry) or _adopt(group, entry):
                        entries.append(entry)
                    else:
                        _unlink(group, entry)
            finally:
                posix.close(group)
        return entries

    def known_of(self, entry: Entry) -> "dict[str, object]":
        """Return what the JSON file of a core says. Raises OSError where it is gone, ValueError where it is damaged."""
        import json

        group = _open_directory(entry.group, self.directory)
        try:
            file = posix.open(entry.key + JSON, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=group)
        finally:
            posix.close(group)
        try:
            known: dict[str, object] = json.loads(procfs.read_all(file, LONGEST_JSON))
        finally:
            posix.close(file)
        return known

    def delete(self, entry: Entry) -> None:
        """Delete a core. Its JSON file goes first: what is half gone is not listed."""
        group = self.group(entry.group)
        _unlink(group, entry)
        posix.close(group)
        self._remove(entry.group)

    def forget_group(self, name: str) -> None:
        """Delete the directory of a group that has no core. Raises OSError."""
        with self.lock:
            self._remove(name)

    def _remove(self, group: str) -> None:
        try:
            posix.rmdir(group, dir_fd=self.directory)
        except OSError:
            pass  # It has other cores.

    def is_held(self, entry: Entry, lock: int = fcntl.LOCK_EX) -> bool:
        """Tell whether another process holds the lock of one of the files of the core. Raises OSError.

        With LOCK_SH, the process that finishes cores does not count.
        """
        group = _open_directory(entry.group, self.directory)
        try:
            return _is_being_written(group, entry, lock)
        finally:
            posix.close(group)

    def turn(self, name: str) -> "int | None":
        """Return a lock, to be closed; None if another process has it. ``name`` is FINISHING or SENDING. Raises OSError."""
        file = posix.open(
            name, posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600, dir_fd=self.directory
        )
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            posix.close(file)
            return None
        return file

    def expire(self, configuration: "Configuration") -> "list[Entry]":
        """Delete the cores that are too old, and return the others. The lock must be held. Raises OSError."""
        oldest = time.time() - configuration.keep_age * DAY
        left = []
        for entry in self.entries():
            if entry.whole and entry.time < oldest and not self.is_held(entry, fcntl.LOCK_SH):
                self.delete(entry)
            else:
                left.append(entry)
        return left


def create_file(group: int, name: str) -> int:
    """Create the file ``name`` in the opened directory ``group``, and lock it. Raises OSError."""
    file = posix.open(
        name, posix.O_RDWR | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC, MODE, dir_fd=group
    )
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def announce(group: int, key: str, facts: "dict[str, object]") -> None:
    """Write what the JSON file of a core will say if its helper is killed. Raises OSError."""
    import json

    file = create_file(group, key + PENDING)
    try:
        _write_all(file, json.dumps({**facts, "boot": _boot()}).encode())
    except OSError:
        posix.unlink(key + PENDING, dir_fd=group)  # Half of it would cost the core; another try may have room.
        raise
    finally:
        posix.close(file)


def _write_all(file: int, content: bytes) -> None:
    """Write all of it, or raise OSError: on a full disk, a single write(2) may take a part."""
    while content:
        content = content[posix.write(file, content) :]


def _boot() -> str:
    return procfs.read_path(BOOT).decode().strip()


def _adopt(group: int, entry: Entry) -> bool:
    """List a core whose helper was killed when the core was on the disk, and tell whether to leave it.

    What was written before the host's last start may not have reached the disk. Where it cannot be listed now, as on a full
    disk, it stays as it is.
    """
    if entry.key + PENDING not in entry.files:
        return False
    import json

    try:
        file = posix.open(entry.key + PENDING, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=group)
        try:
            known = json.loads(procfs.read_all(file, LONGEST_JSON))
        finally:
            posix.close(file)
        core = entry.key + CORE
        name = core if core in entry.files else next(name for name in entry.files if _is_part(name))
        file = posix.open(name, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=group)
        try:
            if known.pop("boot") != _boot() or known["size"] != posix.fstat(file).st_size:
                return False
            posix.fsync(file)
        finally:
            posix.close(file)
        posix.rename(name, core, src_dir_fd=group, dst_dir_fd=group)
        describe(group, entry.key, {**known, "file": core})
    except FileNotFoundError:
        return False
    except OSError:
        entry.expected = 0
        return True
    except (ValueError, LookupError, StopIteration):
        return False
    entry.files, entry.whole, entry.expected = [core, entry.key + JSON], True, 0
    return True


def _is_part(name: str) -> bool:
    """Tell whether this is the name of a core that is being written."""
    return name.endswith(PART) and not name.endswith(JSON + PART)


def describe(group: int, key: str, facts: "dict[str, object]") -> None:
    """Write the JSON file of a core, or replace it, while the store is locked. Raises OSError."""
    import json

    name = f".{key}{JSON}{PART}"
    try:
        posix.unlink(name, dir_fd=group)  # Of a process that was killed in the middle of this.
    except FileNotFoundError:
        pass
    file = create_file(group, name)
    try:
        _write_all(file, json.dumps(facts, indent=1, sort_keys=True).encode() + b"\n")
        posix.fsync(file)
        posix.rename(name, key + JSON, src_dir_fd=group, dst_dir_fd=group)
        try:
            posix.unlink(key + PENDING, dir_fd=group)
        except FileNotFoundError:
            pass
        posix.fsync(group)
    finally:
        posix.close(file)


def _open_directory(path: str, directory: "int | None" = None) -> int:
    """Open a directory to be listed, which is no symbolic link. Raises OSError."""
    return posix.open(path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=directory)


def _create(path: str) -> None:
    """Create the directory ``path``, and those above it that are not there. Raises OSError."""
    try:
        posix.mkdir(path, MODE_OF_DIRECTORY)
    except FileExistsError:
        pass
    except FileNotFoundError:
        parent = path.rstrip("/").rpartition("/")[0]
        if not parent:
            raise
        _create(parent)
        posix.mkdir(path, MODE_OF_DIRECTORY)


def _entries_of(name: str, group: int) -> "dict[str, Entry]":
    """Return the cores in the opened directory of the group ``name``, by their keys."""
    entries: dict[str, Entry] = {}
    for file in posix.listdir(group):
        try:
            found = posix.stat(file, dir_fd=group, follow_symlinks=False)
        except OSError:
            continue  # Deleted meanwhile.
        expected, key = 0, ""
        if file.endswith(JSON + PART):
            key = file[1 : -len(JSON + PART)]
        elif file.endswith(PART):
            key, _dot, number = file[1 : -len(PART)].rpartition(".")
            expected = int(number) if number.isdigit() else 0
        else:
            key = next((file[: -len(end)] for end in (PENDING, JSON, COMPRESSED, CORE) if file.endswith(end)), "")
        if not is_key(key[: -len(COMPRESSED)] if key.endswith(COMPRESSED) else key):
            continue  # No file of ours: somebody may have named a directory that has others, and those are never touched.
        entry = entries.setdefault(key, Entry(name, key))
        entry.files.append(file)
        entry.bytes += found.st_blocks * BLOCK
        if file != key + JSON:  # That one is replaced by each try to send the core.
            entry.time = max(entry.time, found.st_mtime)
            entry.size = max(entry.size, found.st_size)
        entry.whole = entry.whole or file == key + JSON
        # The mode of the file says that: to read the JSON files of all would take long; see finishing.py.
        core = file.endswith((CORE, COMPRESSED))
        entry.finished = entry.finished or (core and found.st_mode & 0o777 == MODE_WHEN_FINISHED)
        entry.expected = max(entry.expected, expected)
    return entries


def is_key(name: str) -> bool:
    """Tell whether a file may have this ``name`` from key.py: its last parts are a pid, a time and twelve random digits."""
    parts = name.split(".")
    if len(parts) < 7:
        return False
    pid, when, random = parts[-3:]
    return (
        pid.isdigit()
        and when[8:9] == "T"
        and when[-1:] == "Z"
        and (when[:8] + when[9:-1]).isdigit()
        and len(random) == 12
        and not random.strip("0123456789abcdef")
    )


def _is_being_written(group: int, entry: Entry, lock: int = fcntl.LOCK_EX) -> bool:
    """Tell whether another process holds the lock of one of the files."""
    for file in entry.files:
        try:
            opened = posix.open(
                file, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC, dir_fd=group
            )
        except OSError as error:
            if error.errno in (ENOENT, ELOOP):
                continue  # Deleted meanwhile, or a link.
            return True  # As without a free descriptor: nobody knows, and it may be a core that is being written.
        try:
            fcntl.flock(opened, lock | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            posix.close(opened)
    return False


def _unlink(group: int, entry: Entry) -> None:
    for file in sorted(entry.files, key=lambda file: not file.endswith((JSON, PENDING))):
        try:
            posix.unlink(file, dir_fd=group)
        except OSError:
            pass  # Deleted meanwhile.

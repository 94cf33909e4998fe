"""A disk that fails on command: every file operation below a folder is counted and can be struck.

It stands between Python's functions and the system, so nothing of what is tested knows about it.
"""

import builtins
import io
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
ONE_PATH = ("mkdir", "rmdir", "unlink", "remove", "truncate")
TWO_PATHS = ("rename", "replace", "link", "symlink")
BY_DESCRIPTOR = ("fsync", "fdatasync", "ftruncate", "write", "close", "posix_fallocate")
AUDITED = {
    "open": "open", "os.mkdir": "mkdir", "os.rmdir": "rmdir", "os.remove": "unlink",
    "os.rename": "rename", "os.link": "link", "os.symlink": "symlink", "os.truncate": "truncate",
}  # fmt: skip
REAL = {name: getattr(os, name) for name in (*ONE_PATH, *TWO_PATHS, *BY_DESCRIPTOR, "open")}


class Operation(NamedTuple):
    """One call that touches the disk."""

    kind: str  # of `os`; os.replace is "rename", os.remove is "unlink"
    path: str  # below the root
    target: str = ""  # of a rename
    size: int = 0  # of a write
    writing: bool = False  # of an open


class Strike(NamedTuple):
    """What happens, and when: before, within (half of a write is done) or after a call."""

    number: int
    moment: str
    action: Callable[[], None]


def moments(operations: list[Operation]) -> list[tuple[int, str]]:
    """Every number and moment at which a run with these operations can be struck.

    After one call is before the next one: the disk is the same.
    """
    found = []
    for number, operation in enumerate(operations):
        within = ["within"] if operation.kind == "write" and operation.size > 1 else []
        found += [(number, moment) for moment in ("before", *within)]
    return [*found, (len(operations) - 1, "after")]


class Disk:
    """Inside the `with`, the operations below `root` are counted; nothing is really synced."""

    def __init__(self, root: Path, strike: Strike | None = None) -> None:
        self.root = root.resolve()
        self.strike = strike
        self.operations: list[Operation] = []
        self.unsynced: set[int] = set()  # inodes

    def __enter__(self):
        self._open = io.open
        io.open = builtins.open = self._open_file
        os.open = self._open_descriptor
        for name in ONE_PATH:
            setattr(os, name, self._one_path(name))
        for name in TWO_PATHS:
            setattr(os, name, self._two_paths(name))
        for name in BY_DESCRIPTOR:
            setattr(os, name, self._by_descriptor(name))
        return self

    def __exit__(self, *error):
        io.open = builtins.open = self._open
        for name, function in REAL.items():
            setattr(os, name, function)

    def lose_power(self) -> None:
        """End the process; of every file that was not synced, half of the content is lost."""
        self.__exit__()
        for path in self.root.rglob("*"):
            if path.is_file() and path.stat().st_ino in self.unsynced:
                os.truncate(path, path.stat().st_size // 2)
        os._exit(9)

    def run(self, operation, call, half=None):
        """The result of the call, counted and struck if it is its turn."""
        number, strike = len(self.operations), self.strike
        self.operations.append(operation)
        moment = strike.moment if strike and strike.number == number else None
        if moment == "before":
            strike.action()
        try:
            return half() if moment == "within" else call()
        finally:
            if moment in ("within", "after"):
                strike.action()

    def below(self, path, dir_fd=None) -> str | None:
        """The path relative to the root, or None where it lies elsewhere."""
        if isinstance(path, int):
            full = Path(f"/proc/self/fd/{path}").readlink()
        else:
            full = Path.cwd() if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink()
            full /= os.fsdecode(path)
        return str(full.relative_to(self.root)) if full.is_relative_to(self.root) else None

    def _one_path(self, name):
        def counted(path, *args, dir_fd=None, **options):
            where = self.below(path, dir_fd)

            def call():
                given = {} if dir_fd is None else {"dir_fd": dir_fd}
                return REAL[name](path, *args, **given, **options)

            kind = {"remove": "unlink"}.get(name, name)
            return call() if where is None else self.run(Operation(kind, where), call)

        return counted

    def _two_paths(self, name):
        def counted(source, target, **options):
            where = self.below(source)

            def call():
                return REAL[name](source, target, **options)

            if where is None:
                return call()
            kind = {"replace": "rename"}.get(name, name)
            return self.run(Operation(kind, where, self.below(target) or ""), call)

        return counted

    def _by_descriptor(self, name):
        def counted(descriptor, *args):
            where = self.below(descriptor)
            if where is None:
                return REAL[name](descriptor, *args)
            if name == "write":
                return self.write(descriptor, *args)

            def call():
                if "sync" not in name:
                    return REAL[name](descriptor, *args)
                self.unsynced.discard(os.fstat(descriptor).st_ino)
                return None

            return self.run(Operation(name, where), call)

        return counted

    def _open_descriptor(self, path, flags, mode=0o777, *, dir_fd=None):
        where = self.below(path, dir_fd)

        def call():
            return REAL["open"](path, flags, mode, dir_fd=dir_fd)

        if where is None:
            return call()
        return self.run(Operation("open", where, writing=bool(flags & WRITING)), call)

    def _open_file(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None):
        where = None if isinstance(file, int) else self.below(file)
        if where is None or not set(mode) & set("wax+"):
            return self._open(file, mode, buffering, encoding, errors, newline)
        assert "+" not in mode, f"{file} is opened for both; this shim writes only"
        raw = self.run(
            Operation("open", where, writing=True),
            lambda: _CountedFile(self, file, mode.translate({ord("b"): None, ord("t"): None})),
        )
        if buffering == 0:
            return raw
        buffered = io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def write(self, descriptor, data) -> int:
        """One write call."""
        self.unsynced.add(os.fstat(descriptor).st_ino)
        operation = Operation("write", self.below(descriptor) or "", size=len(data))
        return self.run(
            operation,
            lambda: REAL["write"](descriptor, data),
            half=lambda: REAL["write"](descriptor, bytes(data)[: len(data) // 2]),
        )


class _CountedFile(io.FileIO):
    """An open file whose writes and close are counted, below Python's buffer."""

    def __init__(self, disk, path, mode):
        self.disk, self.path = disk, disk.below(path)
        super().__init__(path, mode)

    def write(self, data):
        return self.disk.write(self.fileno(), data)

    def close(self):
        if not self.closed:
            self.disk.run(Operation("close", self.path), super().close)


class Audit:
    """What Python itself reports of files below a folder being opened for writing, made or moved.

    An audit hook cannot be removed: it is silent outside the `with`.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.kinds: Counter[str] = Counter()
        self.active = False
        sys.addaudithook(self._hear)

    def __enter__(self):
        self.active = True
        return self

    def __exit__(self, *error):
        self.active = False

    def _hear(self, event, args):
        if not self.active or event not in AUDITED:
            return
        path, dir_fd = args[0], args[-1]
        reads = event == "open" and not args[2] & WRITING
        relative = event in ("os.remove", "os.rmdir", "os.mkdir") and dir_fd != -1
        if reads or not (relative or str(path).startswith(self.root)):
            return
        self.kinds[AUDITED[event]] += 1


def in_child(function: Callable[[], object]) -> int:
    """The exit code of a forked child that calls the function: 0, or 1 with a traceback."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

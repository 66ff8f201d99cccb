"""Waiting for files to appear or grow, by inotify(7): no polling, one kernel instance for a whole event loop.

The kernel gives a user 128 instances and many thousands of watches, so all waiters of a loop share one
instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path

# <sys/inotify.h>
IN_MODIFY = 0x002
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_MASK_ADD = 0x20000000
IN_IGNORED = 0x8000
_IN_NONBLOCK = 0o4000
_IN_CLOEXEC = 0o2000000

CREATED = IN_CREATE | IN_MOVED_TO
REMOVED = IN_DELETE  # from a directory (who is bound to a socket in one keeps its own end from being told)
_HEADER = struct.Struct("iIII")  # wd, mask, cookie, length of the name

_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """A watched path. `wait` returns once something has happened since the watch or the last wait began."""

    def __init__(self) -> None:
        self._happened = asyncio.Event()

    async def wait(self) -> None:
        await self._happened.wait()
        self._happened.clear()

    def tell(self) -> None:
        self._happened.set()


class Inotify:
    """One inotify instance and whoever waits on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watches: dict[int, set[Watch]] = {}
        self._descriptor = _checked(_libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC))
        loop.add_reader(self._descriptor, self._readable)

    @contextlib.contextmanager
    def watch(self, path: Path, mask: int) -> Iterator[Watch]:
        """Watch a path for the events of the mask while the context lasts. Raises OSError."""
        number = _checked(_libc.inotify_add_watch(self._descriptor, os.fsencode(path), mask | IN_MASK_ADD))
        watch = Watch()
        self._watches.setdefault(number, set()).add(watch)
        try:
            yield watch
        finally:
            fellows = self._watches.get(number, set())
            fellows.discard(watch)
            if not fellows and self._watches.pop(number, None) is not None:
                _libc.inotify_rm_watch(self._descriptor, number)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._descriptor, 65536)
            offset = 0
            while offset < len(data):
                number, mask, _cookie, length = _HEADER.unpack_from(data, offset)
                offset += _HEADER.size + length
                for watch in self._watches.get(number, ()):
                    watch.tell()
                if mask & IN_IGNORED:  # the path is gone, and with it the kernel's number
                    self._watches.pop(number, None)

    def close(self) -> None:
        if self._descriptor >= 0:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1


_OF_LOOP: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Inotify] = weakref.WeakKeyDictionary()


def watching(path: Path, mask: int) -> contextlib.AbstractContextManager[Watch]:
    """Watch a path in the running loop's instance."""
    loop = asyncio.get_running_loop()
    for other in [known for known in _OF_LOOP if known.is_closed()]:
        _OF_LOOP.pop(other).close()
    if loop not in _OF_LOOP:
        _OF_LOOP[loop] = Inotify(loop)
    return _OF_LOOP[loop].watch(path, mask)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result

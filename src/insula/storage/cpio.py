"""Writing an initramfs: a cpio archive in the "newc" format, deterministic, without root or files on disk.

Format: https://www.kernel.org/doc/html/latest/driver-api/early-userspace/buffer-format.html and cpio(5).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAGIC = b"070701"
TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """A file of the archive. path: relative, no leading '/'. mode: type and permissions as in stat(2).

    data: the content, or a symlink's target. device: (major, minor) of a device node. All belong to root.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, permissions: int = 0o755) -> Entry:
    return Entry(path, stat.S_IFDIR | permissions)


def file(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | permissions, data)


def symlink(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    return Entry(path, stat.S_IFCHR | permissions, b"", (major, minor))


def with_parents(entries: Iterable[Entry]) -> dict[str, Entry]:
    """The entries by path, later ones winning, with every directory that they need, sorted parents first."""
    chosen = {entry.path.strip("/"): entry for entry in entries}
    for path in list(chosen):
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            parent = "/".join(parts[:depth])
            chosen.setdefault(parent, directory(parent))
    return {path: chosen[path] for path in sorted(chosen)}


def write(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The archive in pieces. Inode numbers count up and times are 0, so equal entries give equal bytes."""
    number = 0
    for number, (path, entry) in enumerate(with_parents(entries).items(), start=1):
        yield from _record(path, entry, number)
    yield from _record(TRAILER, Entry(TRAILER, 0), number + 1)


def _record(path: str, entry: Entry, inode: int) -> Iterator[bytes]:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = [inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0]
    yield MAGIC + b"".join(b"%08X" % field for field in fields)
    yield name + bytes(-(len(MAGIC) + 8 * len(fields) + len(name)) % 4)
    yield entry.data + bytes(-len(entry.data) % 4)

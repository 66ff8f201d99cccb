"""Which file a disk of our own stands on, from its header alone, also while a machine has it open."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from insula.storage.formats import qcow2
from insula.storage.formats.header import Header

_LONGEST = 1023  # bytes of a backing file's name (docs/interop/qcow2.txt)


def read_backing(path: Path) -> str | None:
    """The backing file of a qcow2 disk as its header names it; None where it has none.

    Raises ImageDamaged when it is no qcow2 disk, or its header cannot be; OSError when it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        header = Header(descriptor, path.name)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not qcow2.matches(header):
            raise header.damaged("it does not begin as a qcow2 disk does")
        offset, length = header.unpack(">QI", 8)
        if not offset or not length:
            return None
        if length > _LONGEST:
            raise header.damaged(f"its backing file's name has {length} bytes")
        return os.fsdecode(header.at(offset, length))
    finally:
        os.close(descriptor)


def find_backing(path: Path, name: str) -> Path:
    """Where a backing file is that the disk at `path` names: relatively, or wholly."""
    return path.parent / name  # a whole path takes the place of what is before it

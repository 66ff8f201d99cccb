"""The disks of machines: copy-on-write overlays of an image's disk, in qcow2."""

from __future__ import annotations

import os
from pathlib import Path

from insula.kit.run import CommandFailed, run
from insula.storage.errors import disk_full, require_space

# What an empty overlay takes at most: header, refcounts and tables of the largest disk anyone has made here.
OVERLAY_BYTES = 2**20


async def create_overlay(
    path: Path, backing: Path, backing_format: str, size: int, *, beside: bool = False
) -> None:
    """Make an empty qcow2 disk of `size` bytes at path that reads what it has not got from `backing`.

    beside: name a backing file in the same directory relatively, so that the directory can be moved, and do
    not look into it, so that it may still be open for writing.

    Takes one process and some 200 kB. Replaces nothing: raises FileExistsError. Raises DiskFull, and
    CommandFailed for whatever else qemu-img said; nothing is left behind.
    """
    if path.exists():
        raise FileExistsError(path)
    what = f"the disk '{path.name}'"
    require_space(path, OVERLAY_BYTES, what)
    named = ["-u", "-b", backing.name] if beside else ["-b", str(backing.absolute())]
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *named, "-F", backing_format]
    try:
        await run([*argv, str(path), str(size)], env={**os.environ, "LC_ALL": "C"})
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, CommandFailed) and _is_full(str(error.evidence.get("stderr", ""))):
            raise disk_full(path, OVERLAY_BYTES, what) from error
        raise


def _is_full(stderr: str) -> bool:
    return "No space left on device" in stderr or "Disk quota exceeded" in stderr


async def remove(path: Path) -> None:
    """Remove a disk; one that is not there is no error."""
    path.unlink(missing_ok=True)

"""Disks in qcow2: machines' copy-on-write overlays of an image's disk, and volumes.

A disk appears under its name when it is whole: it is made beside it and renamed. qemu-img dies with the
daemon, and what it had begun is made anew. Half an overlay may well be a sound disk, with nothing below it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from insula.kit.run import CommandFailed, run, stream
from insula.storage.errors import disk_full, require_space

# What an empty overlay or volume takes at most: header, refcounts and tables of the largest disk made here.
OVERLAY_BYTES = 2**20
_ENVIRONMENT = {"LC_ALL": "C"}

log = logging.getLogger(__name__)

Report = Callable[[str, float | None], None]


async def create_overlay(
    path: Path,
    backing: Path,
    backing_format: str,
    size: int,
    *,
    beside: bool = False,
    made_as: Path | None = None,
) -> None:
    """Make an empty qcow2 disk of `size` bytes at path that reads what it has not got from `backing`.

    beside: name a backing file in the same directory relatively, so that the directory can be moved, and do
    not look into it, so that it may still be open for writing. made_as: what it is called until it is whole,
    where whoever does it again would not come by the same `path`.

    Takes one process and some 200 kB. Replaces nothing: raises FileExistsError. Raises DiskFull, and
    CommandFailed for whatever else qemu-img said; nothing is left behind.
    """
    if path.exists():
        raise FileExistsError(path)
    what = f"the disk '{path.name}'"
    require_space(path, OVERLAY_BYTES, what)
    new = _beside(path, made_as)
    named = ["-u", "-b", backing.name] if beside else ["-b", str(backing.absolute())]
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *named, "-F", backing_format]
    try:
        await run([*argv, str(new), str(size)], env={**os.environ, **_ENVIRONMENT})
        new.rename(path)
    except BaseException as error:
        new.unlink(missing_ok=True)
        if isinstance(error, CommandFailed) and _is_full(str(error.evidence.get("stderr", ""))):
            raise disk_full(path, OVERLAY_BYTES, what) from error
        raise


async def create_empty(path: Path, size: int, name: str) -> None:
    """Make an empty disk of `size` bytes; one that is there already is whole, and kept.

    name: of the volume, for messages. Raises DiskFull, CommandFailed; nothing is left behind.
    """
    if path.exists():
        return
    what = f"volume '{name}'"
    require_space(path, OVERLAY_BYTES, what)
    await _make(["create", "-q", "-f", "qcow2"], path, [str(size)], OVERLAY_BYTES, what)


async def copy_raw(source: Path, path: Path) -> None:
    """Make a disk of a raw file of this host's own, such as a firmware's; one that is there is whole, and
    kept. Raises DiskFull, CommandFailed; nothing is left behind."""
    if path.exists():
        return
    what = f"the disk '{path.name}'"
    needed = source.stat().st_size + OVERLAY_BYTES
    require_space(path, needed, what)
    words = ["convert", "-q", "-t", "writeback", "-f", "raw", "-O", "qcow2", str(source)]
    await _make(words, path, [], needed, what)


async def _make(words: list[str], path: Path, rest: list[str], needed: int, what: str) -> None:
    """Have qemu-img make a disk, called between these words by its name until it is whole."""
    new = _beside(path)
    try:
        await run(["qemu-img", *words, str(new), *rest], env={**os.environ, **_ENVIRONMENT})
        _publish(new, path)
    except BaseException as error:
        new.unlink(missing_ok=True)
        if says_full(error):
            raise disk_full(path, needed, what) from error
        raise


async def copy_whole(source: Path, path: Path, name: str, report: Report) -> None:
    """Make an independent, sparse copy of a disk that nobody writes meanwhile; one that is there is kept.

    name: of the new volume, for messages. report: (what is done, fraction). Raises DiskFull, CommandFailed;
    nothing is left behind. QEMU's lock on the source keeps every writer out as long as it is read.
    """
    if path.exists():
        return
    what = f"volume '{name}'"
    needed = source.stat().st_blocks * 512 + OVERLAY_BYTES
    require_space(path, needed, what)
    new = _beside(path)
    # -t writeback: the default for a target ignores flushes, and the copy would be in memory only.
    argv = ["qemu-img", "convert", "-p", "-t", "writeback", "-f", "qcow2", "-O", "qcow2"]
    argv += [str(source), str(new)]
    environment = {**os.environ, **_ENVIRONMENT}
    try:
        async for line in stream(argv, env=environment, separator=b"\r"):
            fraction = _fraction(line)
            if fraction is not None:
                report(f"Copying to volume '{name}'", fraction)
        _publish(new, path)
    except BaseException as error:
        new.unlink(missing_ok=True)
        if says_full(error):
            raise disk_full(path, needed, what) from error
        raise


async def grow(path: Path, size: int, name: str) -> None:
    """Let a disk that no machine has open grow to `size` bytes; one of that size is left as it is.

    Raises DiskFull, CommandFailed; then the disk has the size that it had.
    """
    if await virtual_size(path) >= size:
        return
    what = f"volume '{name}'"
    require_space(path, OVERLAY_BYTES, what)
    try:
        await run(
            ["qemu-img", "resize", "-q", "-f", "qcow2", str(path), str(size)],
            env={**os.environ, **_ENVIRONMENT},
        )
    except BaseException as error:
        if says_full(error):
            raise disk_full(path, OVERLAY_BYTES, what) from error
        raise


async def free_lost_clusters(path: Path) -> None:
    """Give back what a growth that was cut short had reserved; nothing else is touched."""
    argv = ["qemu-img", "check", "-q", "-f", "qcow2", "-r", "leaks", str(path)]
    done = await run(argv, check=False, env={**os.environ, **_ENVIRONMENT})
    if done.exit_status != 0:
        said = done.stderr.decode(errors="replace").strip()
        log.warning("what '%s' had reserved is not given back: %s", path, said or done.exit_status)


async def virtual_size(path: Path) -> int:
    """What a guest sees of a disk, in bytes; works while a machine has it open, too."""
    argv = ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", str(path)]
    return int(json.loads((await run(argv)).stdout)["virtual-size"])


def allocated_bytes(path: Path) -> int:
    """What a disk takes on the host; 0 when it is not there."""
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


async def remove(path: Path) -> None:
    """Remove a disk; one that is not there is no error."""
    path.unlink(missing_ok=True)


def _beside(path: Path, made_as: Path | None = None) -> Path:
    new = made_as or path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)  # a daemon died at it
    return new


def _publish(new: Path, path: Path) -> None:
    """Give a whole disk its name, so that after a power failure it is there whole or not at all."""
    for place in (new, new.parent):
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if place is new:
            new.rename(path)


def _fraction(line: str) -> float | None:
    """'    (12.34/100%)' as 0.1234."""
    head, slash, _ = line.strip().lstrip("(").partition("/100%")
    try:
        return float(head) / 100 if slash else None
    except ValueError:
        return None


def says_full(error: BaseException) -> bool:
    """Whether a tool failed for want of space."""
    return isinstance(error, CommandFailed) and _is_full(str(error.evidence.get("stderr", "")))


def _is_full(stderr: str) -> bool:
    return "No space left on device" in stderr or "Disk quota exceeded" in stderr

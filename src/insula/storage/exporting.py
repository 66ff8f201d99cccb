"""Exporting an image's disk to a file, in any format: sparse, and there all at once or not at all."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from insula.model.image import Image
from insula.storage.conversion import convert_disk
from insula.storage.errors import ImageHasNoDisk, TargetExists, UnusableTarget
from insula.storage.packages import Report

# What people say -> the format, and the options of the tool for it.
EXPORTS: dict[str, tuple[str, str]] = {
    "raw": ("raw", ""),
    "qcow2": ("qcow2", ""),
    "vmdk": ("vmdk", "subformat=monolithicSparse"),
    "vmdk-stream": ("vmdk", "subformat=streamOptimized"),
    # Otherwise the size would be rounded to what cylinders, heads and sectors can say.
    "vhd": ("vhd", "subformat=dynamic,force_size=on"),
    "vhdx": ("vhdx", "subformat=dynamic"),
    "vdi": ("vdi", ""),
    "qed": ("qed", ""),
    "parallels": ("parallels", ""),
}


def check_export(image: Image, path: Path, format: str, *, replace: bool) -> None:
    """Raises ImageHasNoDisk, UnusableTarget and TargetExists."""
    if image.disk is None:
        raise ImageHasNoDisk(
            f"Image '{image.name}' has no disk: it starts from a kernel, and lives in memory.",
            hint="Only images with a disk can be exported.",
        )
    if format not in EXPORTS:
        raise UnusableTarget(
            f"'{format}' is no format to export to.", hint=f"There are: {', '.join(EXPORTS)}."
        )
    if not path.is_absolute() or not path.name or not path.parent.is_dir():
        raise UnusableTarget(
            f"'{path}' is no place for a file: its directory is not there.",
            hint=f"Make it: mkdir -p {path.parent}",
        )
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise UnusableTarget(f"'{path}' is no regular file.", hint="Name a file that is to be made.")
    if os.path.lexists(path) and not replace:
        raise TargetExists(f"'{path}' is there already.", hint="To put the export in its place: --replace")


async def export_disk(
    image: Image,
    files: Path,
    path: Path,
    format: str,
    report: Report,
    *,
    replace: bool = False,
    whole: Callable[[list[int]], Awaitable[None]] | None = None,
) -> int:
    """Write the image's disk to `path`; the bytes it takes. files: the image's directory. whole: awaited
    with the identity of the file (see `is_file`) before it gets its name.

    The file has no name until it is whole, so nothing is left of an export that was cancelled or killed.
    Raises what `check_export` does, DiskFull and ConversionFailed.
    """
    check_export(image, path, format, replace=replace)
    assert image.disk is not None, "check_export sees to it"
    kind, options = EXPORTS[format]
    source = os.open(files / image.disk.file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        async with _nameless(path, replace) as target:
            await convert_disk(
                source,
                image.disk.format,
                target,
                kind,
                options,
                image.disk.virtual_size_bytes,
                image.name,
                report,
            )
            await asyncio.to_thread(os.fsync, target)
            if whole is not None:
                await whole(_identity(os.fstat(target)))
            return os.fstat(target).st_blocks * 512
    finally:
        os.close(source)


def is_file(path: Path, identity: list[int]) -> bool:
    """Whether the file of this name is the one that an earlier daemon had made whole."""
    try:
        return _identity(path.lstat()) == identity
    except OSError:
        return False


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


@asynccontextmanager
async def _nameless(path: Path, replace: bool) -> AsyncIterator[int]:
    """A file without a name (O_TMPFILE) that gets `path` as its name once the body has ended well."""
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UnusableTarget(
            f"No file can be made in '{path.parent}' for the export.",
            hint="It must be writable for the daemon's user, on a file system with O_TMPFILE (ext4, xfs, "
            "btrfs, tmpfs).",
        ) from error
    try:
        yield descriptor
        _give_name(descriptor, path, replace)
    finally:
        os.close(descriptor)


def _give_name(descriptor: int, path: Path, replace: bool) -> None:
    try:
        _link(descriptor, path)
    except FileExistsError:
        if not replace:
            raise TargetExists(
                f"'{path}' has come into being meanwhile.", hint="To put the export in its place: --replace"
            ) from None
        # Always the same name, so that what a crash leaves here goes when the operation is resumed.
        beside = path.with_name(f".{path.name}.insula-export")
        beside.unlink(missing_ok=True)
        _link(descriptor, beside)
        try:
            beside.replace(path)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOENT, errno.EACCES):
            raise
        raise UnusableTarget(f"The export cannot be named '{path}'.") from error


def _link(descriptor: int, path: Path) -> None:
    """linkat(2) with AT_SYMLINK_FOLLOW, as open(2) shows for O_TMPFILE; os.link uses it only with a
    directory."""
    os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)

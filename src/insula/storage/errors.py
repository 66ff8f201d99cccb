"""What may go wrong with images and volumes.

Unavailable
├── BuildToolsMissing   programs for building images are not installed
├── BuildFailed         a build began and could not be finished
├── DiskFull            too little space, with what is free and what is needed
├── ConversionFailed    an image could not be converted
├── DownloadFailed      no server gave the file
└── ChecksumMismatch    what came is not what the publisher says
Invalid
├── SourceUnreadable    a file to import is not there, or no regular file
├── UnknownFormat       no format that is known, or not the one that was named
├── ImageDamaged        truncated, or its header contradicts itself
├── ImageRefused        it names other files, is too large, or is encrypted
├── BadCatalogue        a catalogue that is not as documented
├── UnusableTarget      a file cannot be exported to this place
└── ImageHasNoDisk      nothing to export
NotFound
├── ImageNotFound       no image of this name or digest
└── NotInCatalogue      no catalogue has an image of this name
Conflict
├── ImageNameTaken      another image has the name
└── TargetExists        the file to export to is there already
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from insula.kit.errors import Conflict, Invalid, NotFound, Unavailable
from insula.kit.units import format_size


class BuildToolsMissing(Unavailable):
    """Programs for building images are not installed."""

    code = "build-tools-missing"


class BuildFailed(Unavailable):
    """An image could not be built."""

    code = "image-build-failed"


class DiskFull(Unavailable):
    """Too little space."""

    code = "disk-full"


class ImageNotFound(NotFound):
    """No image of this name or digest."""

    code = "image-not-found"


class ConversionFailed(Unavailable):
    """An image could not be converted; evidence: command, exit_status, stderr."""

    code = "image-conversion-failed"


class DownloadFailed(Unavailable):
    """A file could not be downloaded from any of its addresses; evidence: attempts."""

    code = "download-failed"


class ChecksumMismatch(Unavailable):
    """What was downloaded is not what its publisher's checksum says."""

    code = "checksum-mismatch"


class SourceUnreadable(Invalid):
    """A file to import that is not there, cannot be read, or is no regular file."""

    code = "image-source-unreadable"


class UnknownFormat(Invalid):
    """A file in no disk format that is known, or not in the one that was named."""

    code = "image-format-unknown"


class ImageDamaged(Invalid):
    """A disk image that is truncated, or whose header contradicts itself."""

    code = "image-damaged"


class ImageRefused(Invalid):
    """A disk image that names other files, is too large, encrypted, or changes while it is read."""

    code = "image-refused"


class BadCatalogue(Invalid):
    """A catalogue of images that is not as documented."""

    code = "bad-catalogue"


class UnusableTarget(Invalid):
    """A place that no file can be exported to."""

    code = "export-target-unusable"


class ImageHasNoDisk(Invalid):
    """The image has no disk that could be exported."""

    code = "image-has-no-disk"


class NotInCatalogue(NotFound):
    """No catalogue has an image of this name."""

    code = "not-in-catalogue"


class ImageNameTaken(Conflict):
    """Another image has the name."""

    code = "image-name-taken"


class TargetExists(Conflict):
    """The file to export to is there already."""

    code = "export-target-exists"


def existing_parent(path: Path) -> Path:
    """The nearest directory at or above the path that exists."""
    while not path.exists():
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """What this user may still write where the path is or would be."""
    return shutil.disk_usage(existing_parent(path)).free


def require_space(path: Path, needed: int, what: str) -> None:
    """Raises DiskFull when there is less than `needed` bytes for `what`."""
    if free_bytes(path) < needed:
        raise disk_full(path, needed, what)


@contextlib.contextmanager
def reserving(path: Path, needed: int, what: str) -> Iterator[None]:
    """For work that needs so much room for a file. Raises DiskFull when that is not there, or runs out."""
    require_space(path, needed, what)
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise disk_full(path, needed, what) from error


def disk_full(path: Path, needed: int, what: str) -> DiskFull:
    free = free_bytes(path)
    return DiskFull(
        f"There is too little space for {what}: {format_size(needed)} needed, {format_size(free)} free.",
        hint=f"Make room on the file system of {existing_parent(path)}, or keep images elsewhere: "
        "set INSULA_IMAGES or INSULA_HOME.",
        evidence={"path": os.fspath(path), "needed_bytes": needed, "free_bytes": free},
    )

"""What may go wrong with images and volumes.

Unavailable
├── BuildToolsMissing   programs for building images are not installed
├── BuildFailed         a build began and could not be finished
└── DiskFull            too little space, with what is free and what is needed
NotFound
└── ImageNotFound       no image of this name or digest
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from insula.kit.errors import NotFound, Unavailable
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


def disk_full(path: Path, needed: int, what: str) -> DiskFull:
    free = free_bytes(path)
    return DiskFull(
        f"There is too little space for {what}: {format_size(needed)} needed, {format_size(free)} free.",
        hint=f"Make room on the file system of {existing_parent(path)}, or keep images elsewhere: "
        "set INSULA_IMAGES or INSULA_HOME.",
        evidence={"path": os.fspath(path), "needed_bytes": needed, "free_bytes": free},
    )

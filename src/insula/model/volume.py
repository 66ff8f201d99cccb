"""Volumes: disks of a life of their own.

Which machine has a volume stands in the machine's document (a `Disk` with source 'volume'), and nowhere else.
Whoever changes that also writes the volume's document, at the revision that was read: of two who attach one
volume at the same time, one is refused.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from insula.model.base import Document, Name, Size, Value
from insula.model.device.disk import Bus

SMALLEST_VOLUME = 2**20
LARGEST_VOLUME = 2**44  # 16 TiB: what QEMU makes of a qcow2 file with clusters of 64 KiB stays well below
GRAIN = 512  # bytes of a sector: a disk is a whole number of them

VolumeSize = Annotated[Size, Field(ge=SMALLEST_VOLUME, le=LARGEST_VOLUME, multiple_of=GRAIN)]

_MOUNT = re.compile(r"(?P<volume>[^:]*)(?P<flags>(?::(?:ro|rw|scsi|virtio))*)")


class VolumeSpec(Value):
    """A volume as a user writes it. size: bytes, or text such as '10GiB'."""

    name: Name
    size: VolumeSize


class Volume(Document):
    """A disk that outlives machines. size_bytes: what a guest sees."""

    kind: ClassVar[str] = "volume"
    names_are_unique: ClassVar[bool] = True

    size_bytes: int
    format: Literal["qcow2"] = "qcow2"

    def next_generation(self, **fields: Any) -> Volume:
        """The document after a change."""
        return self.changed(generation=self.generation + 1, **fields)


class VolumeMount(Value):
    """A volume for a machine that is being made: 'data', 'data:ro', 'data:scsi', 'data:ro:scsi'."""

    volume: Name
    read_only: bool = False
    bus: Bus = "virtio"


def _parse_mount(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = _MOUNT.fullmatch(value)
    if found is None:
        raise ValueError(f"'{value}' is not VOLUME[:ro][:scsi], for example data or data:ro")
    flags = found["flags"].split(":")
    return {
        "volume": found["volume"],
        "read_only": "ro" in flags,
        "bus": "scsi" if "scsi" in flags else "virtio",
    }


VolumeMountText = Annotated[VolumeMount, BeforeValidator(_parse_mount)]

"""A disk: the machine's own, a volume, or a read-only medium such as the cloud-init seed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from insula.kit.paths import UEFI_VARIABLES
from insula.model.base import Size, Value
from insula.model.device.base import DeviceBase, register

Bus = Literal["virtio", "scsi"]
VARIABLES_ID = "uefi-vars"


class VolumeRef(Value):
    """Which volume a disk is. Its name is for people; it never changes."""

    uid: str
    name: str


@register
class Disk(DeviceBase):
    """A block device.

    source: 'image' (a copy-on-write overlay of the machine's image, made at creation), 'seed' (the cloud-init
    seed, read-only), 'firmware' (the variables of its UEFI), 'volume', or 'copy' (a fork's own, of a volume
    that the machine it was forked from wrote). file: its name in the machine's directory, or in the volume's.
    size_bytes: what the guest sees; None where the file says it. bus: a virtio-blk device, one on a
    virtio-scsi controller, or the board's flash memory. serial: by which the guest knows it, at most 20
    characters. slot: its place on its bus, which it keeps, whether it is plugged or launched with: what is
    saved of a machine fits no other.
    """

    device: Literal["disk"] = "disk"
    source: Literal["image", "seed", "firmware", "volume", "copy"]
    file: str
    format: Literal["qcow2", "raw"]
    size_bytes: Size | None = None
    read_only: bool = False
    serial: str = ""
    bus: Bus | Literal["flash"] = "virtio"
    volume: VolumeRef | None = None
    slot: int | None = None


MADE_WITH_MACHINE = frozenset({"image", "firmware"})  # sources: written by it alone, and gone with it

# Of volumes. PCI: below what has places of its own (drives, the scsi controller), above what a launch takes
# for the other devices, from the lowest on. SCSI: targets, of which the drive has the last.
SLOTS: dict[Bus, range] = {"virtio": range(0x1C, 0x0B, -1), "scsi": range(0, 64)}


def free_slot(bus: Bus, devices: Iterable[DeviceBase]) -> int | None:
    """The first place on a bus that none of these disks has; None when there is none."""
    taken = {device.slot for device in devices if isinstance(device, Disk) and device.bus == bus}
    return next((slot for slot in SLOTS[bus] if slot not in taken), None)


def volume_disk(volume: VolumeRef, file: str, *, read_only: bool, bus: Bus, slot: int | None = None) -> Disk:
    """The disk as which a machine has a volume. Its id and serial number are the volume's for good."""
    return Disk(
        id=f"vol-{volume.uid}",
        source="volume",
        file=file,
        format="qcow2",
        read_only=read_only,
        serial=volume.uid,
        bus=bus,
        volume=volume,
        slot=slot,
    )


def variables_disk() -> Disk:
    """What a machine's UEFI remembers, such as what to boot: a disk, so that it is kept as disks are."""
    return Disk(id=VARIABLES_ID, source="firmware", file=UEFI_VARIABLES, format="qcow2", bus="flash")


def copied_disk(disk: Disk, size_bytes: int) -> Disk:
    """What a fork gets in place of a volume: the same to its guest, of its own, and gone with it.

    Its layers have the names that they have with the volume, so they are in a directory of their own.
    """
    return disk.changed(source="copy", volume=None, file=f"{disk.id}/{disk.file}", size_bytes=size_bytes)

"""Disks: a named block graph node, and a virtio-blk device on it."""

from __future__ import annotations

from insula.engine.device.base import Fragment, Surroundings, launches, option
from insula.model.device.disk import Disk

SERIAL_LENGTH = 20  # VIRTIO 1.1, 5.2.6.1: VIRTIO_BLK_ID_BYTES


@launches("disk")
def launch(disk: Disk, surroundings: Surroundings) -> Fragment:
    """Writes go through the host's page cache, and a guest's flush reaches the medium (fdatasync).

    What the guest discards is given back to the host. A full or failing disk stops the vCPUs instead of
    telling the guest of an error its file system would not survive; they go on when the host is mended.
    """
    node = _nothing(disk) if surroundings.vessel else _medium(disk)
    pairs: dict[str, object] = {"id": disk.id, "drive": f"{disk.id}-node"}
    if disk.source == "image":
        pairs["bootindex"] = 1  # 0 is taken by -kernel, where there is one
    if disk.serial:
        pairs["serial"] = disk.serial[:SERIAL_LENGTH]
    return ("-blockdev", node, "-device", option("virtio-blk-pci", **pairs, werror="stop", rerror="stop"))


def _medium(disk: Disk) -> str:
    return option(
        f"driver={disk.format}",
        node_name=f"{disk.id}-node",
        read_only="on" if disk.read_only else "off",
        discard="unmap",
        cache__direct="off",
        cache__no_flush="off",
        file__driver="file",
        file__filename=disk.file,
        file__discard="unmap",
        file__cache__direct="off",
        file__cache__no_flush="off",
    )


def _nothing(disk: Disk) -> str:
    """A vessel never runs: only the device is there."""
    read_only = "on" if disk.read_only else "off"
    return option("driver=null-co", node_name=f"{disk.id}-node", read_only=read_only)

"""Disks: a named node of the block graph, and a virtio-blk or scsi device on it; at launch and while running.

Both faces are made of the same two dictionaries (`backend`, `frontend`): what is plugged is what a launch
would have made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from insula.engine.device.base import Fragment, Surroundings, escape, launches
from insula.model.device.base import DeviceBase
from insula.model.device.disk import Disk

SERIAL_LENGTH = 20  # VIRTIO 1.1, 5.2.6.1: VIRTIO_BLK_ID_BYTES; SCSI serials may be longer, ours are not
# One a machine, when it has something on it. Its place is fixed, so that it is where a launch would have put
# it when it is plugged, and moves no other device when it is launched: the state of a fork's devices is found
# by their places.
CONTROLLER = {"driver": "virtio-scsi-pci", "id": "scsi0", "addr": "0x1e"}


def node_of(disk_id: str) -> str:
    """The block node under a disk. QEMU's node names have at most 31 characters."""
    return f"{disk_id}-node"


def backend(disk: Disk) -> dict[str, Any]:
    """What `blockdev-add` takes.

    Writes go through the host's page cache, and a guest's flush reaches the medium (fdatasync): no-flush off.
    What the guest discards is given back to the host. QEMU's locks on the file stay on: a second writer,
    whoever starts it, is refused.
    """
    cache = {"direct": False, "no-flush": False}
    file = {"driver": "file", "filename": disk.file, "discard": "unmap", "cache": cache}
    return {
        "driver": disk.format,
        "node-name": node_of(disk.id),
        "read-only": disk.read_only,
        "discard": "unmap",
        "cache": cache,
        "file": file,
    }


def frontend(disk: Disk) -> dict[str, Any]:
    """What `device_add` takes.

    A full or failing disk stops the vCPUs instead of telling the guest of an error its file system would not
    survive; they go on when the host is mended.
    """
    pairs: dict[str, Any] = {"driver": "virtio-blk-pci", "id": disk.id, "drive": node_of(disk.id)}
    if disk.bus == "scsi":
        pairs |= {"driver": "scsi-hd", "bus": f"{CONTROLLER['id']}.0"}
    if disk.slot is not None:
        pairs |= {"scsi-id": disk.slot} if disk.bus == "scsi" else {"addr": f"{disk.slot:#x}"}
    if disk.source == "image":
        pairs["bootindex"] = 1  # 0 is taken by -kernel, where there is one
    if disk.serial:
        pairs["serial"] = disk.serial[:SERIAL_LENGTH]
    return {**pairs, "werror": "stop", "rerror": "stop"}


def needs_controller(devices: Iterable[DeviceBase]) -> bool:
    return any(getattr(device, "bus", "") == "scsi" for device in devices)


def launch_controllers(devices: Iterable[DeviceBase]) -> Fragment:
    """The scsi controller, before the disks and drives that sit on it; none where there are none."""
    return ("-device", line(CONTROLLER)) if needs_controller(devices) else ()


@launches("disk")
def launch(disk: Disk, surroundings: Surroundings) -> Fragment:
    """A vessel never runs, so that nothing is under its disks: only the devices are there.

    Flash memory is part of the board (`plan`), and as large as what is under it.
    """
    medium = backend(disk)
    if surroundings.vessel:
        medium = {"driver": "null-co", **{key: medium[key] for key in ("node-name", "read-only")}}
        if disk.bus == "flash":
            medium |= {"size": surroundings.variables_bytes, "read-zeroes": True}
    device = () if disk.bus == "flash" else ("-device", line(frontend(disk)))
    return ("-blockdev", line(flat(medium)), *device)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested pairs with dotted keys, as the command line has them."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def line(pairs: dict[str, Any]) -> str:
    """'driver,key=value,...' for -device, 'driver=qcow2,...' for -blockdev."""
    words = {
        key: ("on" if value else "off") if isinstance(value, bool) else value for key, value in pairs.items()
    }
    driver = str(words.pop("driver"))
    head = f"driver={driver}" if "node-name" in words else driver
    return ",".join([head, *(f"{key}={escape(value)}" for key, value in words.items())])

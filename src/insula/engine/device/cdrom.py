"""Drives for CDs and DVDs: a device with a tray, and under it a node for the medium, if there is one.

    bus    machine   device    on                     seen by
    ata    pc        ide-cd    PIIX3's second cable   every system (but micro, which carries no ATA drivers)
    ata    q35       ide-cd    an AHCI controller     every system; not Debian's cloud kernel, it has no AHCI
    scsi   both      scsi-cd   the virtio-scsi one    what has virtio drivers, such as all images built here

Only the last can be plugged into a machine that runs. All have fixed addresses: a drive that was plugged is
where a launch would have put it, so a fork of the machine finds its devices where their state says.

The node's name has the insertion's uid in it: what is in a drive can be asked of the monitor.
"""

from __future__ import annotations

from typing import Any

from insula.engine.device.base import Fragment, Surroundings, launches
from insula.engine.device.disk import CONTROLLER, flat, line
from insula.model.device.cdrom import Cdrom, Medium

_AHCI = {"driver": "ich9-ahci", "id": "ahci0", "addr": "0x1d"}
_TARGET = 255  # the last there is: disks on the same controller are numbered from the first
_AFTER_DISKS, _FIRST = 2, 0


def medium_node(drive_id: str, uid: str) -> str:
    """The block node of an insertion."""
    return f"{drive_id}-{uid}"


def medium_backend(drive_id: str, medium: Medium) -> dict[str, Any]:
    """What `blockdev-add` takes. The image's file is raw, and nobody ever writes to it."""
    return {
        "driver": "raw",
        "node-name": medium_node(drive_id, medium.uid),
        "read-only": True,
        "file": {"driver": "file", "filename": medium.file},
    }


def drive_frontend(drive: Cdrom, machine_type: str = "pc") -> dict[str, Any]:
    """What `device_add` takes. A medium that cannot be read on the host is an error to the guest, as a
    scratched one is: a file system that is only read loses nothing by it."""
    pairs: dict[str, Any] = {"driver": "ide-cd", "id": drive.id}
    if drive.bus == "scsi":
        pairs |= {"driver": "scsi-cd", "bus": f"{CONTROLLER['id']}.0", "scsi-id": _TARGET}
    elif machine_type == "q35":
        pairs |= {"bus": f"{_AHCI['id']}.0"}
    else:
        pairs |= {"bus": "ide.1", "unit": 0}
    if drive.medium is not None:
        pairs["drive"] = medium_node(drive.id, drive.medium.uid)
    return pairs


@launches("cdrom")
def launch(drive: Cdrom, surroundings: Surroundings) -> Fragment:
    """A vessel never runs, so that there is nothing on its medium."""
    words: list[str] = []
    if drive.bus == "ata" and surroundings.machine_type == "q35":
        words += ["-device", line(_AHCI)]
    if drive.medium is not None:
        medium = medium_backend(drive.id, drive.medium)
        if surroundings.vessel:
            medium = {"driver": "null-co", **{key: medium[key] for key in ("node-name", "read-only")}}
        words += ["-blockdev", line(flat(medium))]
    order = {"bootindex": _FIRST if surroundings.boots_from_cdrom else _AFTER_DISKS}
    return (*words, "-device", line({**drive_frontend(drive, surroundings.machine_type), **order}))

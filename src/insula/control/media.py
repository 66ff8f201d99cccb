"""Media at the desk: which images can be one, which drive a machine gets, and what a guest has thrown out."""

from __future__ import annotations

from collections.abc import Sequence

from insula.control.desk import Desk
from insula.kit.errors import Conflict, Invalid
from insula.model.base import new_uid
from insula.model.device.cdrom import CDROM, Cdrom, CdromBus, CdromSpec, Medium
from insula.model.event import Event
from insula.model.machine import Machine
from insula.model.observation import Observation
from insula.store.protocol import Change, Put, Stored


class NotAMedium(Invalid):
    """The image cannot be put into a drive."""

    code = "not-a-medium"


class NoDrive(Invalid):
    """The machine has no CD drive."""

    code = "no-cdrom"


class DriveHasOtherBus(Invalid):
    """The machine's drive is on another bus than was asked for."""

    code = "cdrom-has-other-bus"


class DriveBusy(Conflict):
    """Another operation works on the machine's drive."""

    code = "cdrom-busy"


def refuse_busy(desk: Desk, machine: Machine) -> None:
    """Raises DriveBusy: what an operation is to give back must be what was there."""
    for operation in desk.unfinished(machine.uid):
        if operation.verb.startswith("cdrom-"):
            raise DriveBusy(
                f"The drive of machine '{machine.name}' is busy: '{operation.verb}' works on it.",
                hint=f"Wait for it: insula op wait {operation.uid}",
            )


async def find_medium(desk: Desk, name: str) -> Medium:
    """A new insertion of the image. Raises ImageNotFound, NotAMedium."""
    image = desk.node.images.get(name)
    if image.disk is None or image.disk.format != "raw":
        what = "starts from a kernel, and has no disk" if image.disk is None else "is a disk to overlay"
        raise NotAMedium(
            f"Image '{name}' cannot be put into a drive: it {what}.",
            hint="A medium is made from an ISO file: insula image import FILE.iso --name NAME",
        )
    return Medium(uid=new_uid(), name=name, digest=image.digest, file=image.disk.file)


def default_bus(machine: Machine) -> CdromBus:
    """What its guest surely has a driver for: the kernels of images that boot directly were chosen here, and
    have virtio but perhaps no ATA; of all others nothing is known, and every system has ATA."""
    return "scsi" if machine.boot == "direct" else "ata"


async def with_cdrom(desk: Desk, machine: Machine, spec: CdromSpec | None) -> Machine:
    """A new machine with the drive that was asked for. Raises ImageNotFound, NotAMedium."""
    if spec is None:
        return machine
    medium = await find_medium(desk, spec.image) if spec.image is not None else None
    drive = Cdrom(id=CDROM, bus=spec.bus or default_bus(machine), medium=medium)
    return machine.changed(devices=machine.with_cdrom(drive))


def ejection(
    desk: Desk, machine: Stored[Machine], seen: Stored[Observation]
) -> tuple[Sequence[Change], Sequence[Event]] | None:
    """What follows from a guest's having thrown out its medium: its drive is wanted empty; None if nothing.

    Insertions have names of their own, so the same image inserted again since is not meant.
    """
    drive = machine.document.cdrom
    if drive is None or drive.medium is None or drive.medium.uid != seen.document.ejected:
        return None
    devices = machine.document.with_cdrom(drive.changed(medium=None))
    wanted = machine.document.next_generation(devices=devices)
    event = desk.event("cdrom.ejected", wanted, image=drive.medium.name, by_guest=True)
    return (Put(wanted, machine.revision),), (event,)

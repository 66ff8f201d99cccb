"""cdrom-insert: an image becomes the medium in a machine's drive, at once when it runs.

From the intent on the machine's document has it, so that the image's files stay; if the work fails, the drive
is again as it was before.
"""

from __future__ import annotations

from typing import Any

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.media import DriveHasOtherBus, default_bus, find_medium, refuse_busy
from insula.control.request import VerbRequest
from insula.model.base import parse
from insula.model.device.cdrom import CDROM, Cdrom, Insertion, Medium
from insula.model.machine import Machine
from insula.model.operation import Operation
from insula.store.protocol import Change, Put


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, ImageNotFound, NotAMedium, DriveHasOtherBus, DriveBusy, WrongPhase,
    StaleGeneration.

    parameters: image, bus.
    """
    said = parse(Insertion, request.parameters, "insertion")
    machine = desk.find(request.project, request.name).document
    refuse_busy(desk, machine)
    before = machine.cdrom
    if before is not None and said.bus not in (None, before.bus):
        raise DriveHasOtherBus(
            f"The drive of machine '{machine.name}' is on the bus '{before.bus}', not '{said.bus}'.",
            hint="Leave out --bus: a machine has one drive, and it stays where it is.",
        )
    medium = await find_medium(desk, said.image)
    present = before.medium if before is not None else None
    if present is not None and present.digest == medium.digest and not _was_ejected(desk, machine, present):
        medium = present  # it is in already: nobody takes it out to put it in
    bus = before.bus if before is not None else said.bus or default_bus(machine)
    drive = Cdrom(id=CDROM, bus=bus, medium=medium)
    parameters = {
        "image": said.image,
        "bus": bus,
        "drive": drive.model_dump(mode="json"),
        "before": before.model_dump(mode="json") if before is not None else None,
    }
    asked = VerbRequest("cdrom-insert", request.project, request.name, parameters, request.if_generation)
    return desk.machine_intent(asked, devices=machine.with_cdrom(drive))


def _was_ejected(desk: Desk, machine: Machine, medium: Medium) -> bool:
    """Whether the guest has thrown it out, and the document does not say so yet."""
    return desk.state(machine).observation.ejected == medium.uid


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    drive, before = operation.parameters["drive"], operation.parameters["before"]
    if succeeded:
        told = desk.event("cdrom.inserted", operation, image=operation.parameters["image"])
        # Its guest may have thrown the same medium out just before, and the document have followed that.
        return Conclusion(_with_drive(desk, operation, drive), (told,))
    # A step that could not be undone: the guest holds on to the medium already, so it is in the drive.
    stays = any(record.name == "insert" and record.state != "undone" for record in operation.steps)
    return NOTHING if stays else Conclusion(_with_drive(desk, operation, before))


def _with_drive(desk: Desk, operation: Operation, said: dict[str, Any] | None) -> tuple[Change, ...]:
    """The change that gives the machine this drive, or none; nothing where it has it so."""
    stored = desk.store.get(Machine, operation.target)
    if stored is None:
        return ()
    machine = stored.document
    if said is not None:
        devices = machine.with_cdrom(Cdrom.model_validate(said))
    else:
        devices = tuple(device for device in machine.devices if not isinstance(device, Cdrom))
    if devices == machine.devices:
        return ()
    return (Put(machine.next_generation(devices=devices), stored.revision),)

"""cdrom-insert: an image becomes the medium in a machine's drive, at once when it runs.

From the intent on the machine's document has it, so that the image's files stay; if the work fails, the drive
is again as it was before.
"""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.media import DriveHasOtherBus, default_bus, find_medium
from insula.control.request import VerbRequest
from insula.model.base import parse
from insula.model.device.cdrom import CDROM, Cdrom, Insertion, Medium
from insula.model.machine import Machine
from insula.model.operation import Operation
from insula.store.protocol import Put


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, ImageNotFound, NotAMedium, DriveHasOtherBus, WrongPhase, StaleGeneration.

    parameters: image, bus.
    """
    said = parse(Insertion, request.parameters, "insertion")
    machine = desk.find(request.project, request.name).document
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
        "medium_uid": medium.uid,
        "before": before.model_dump(mode="json") if before is not None else None,
    }
    asked = VerbRequest("cdrom-insert", request.project, request.name, parameters, request.if_generation)
    return desk.machine_intent(asked, devices=machine.with_cdrom(drive))


def _was_ejected(desk: Desk, machine: Machine, medium: Medium) -> bool:
    """Whether the guest has thrown it out, and the document does not say so yet."""
    return desk.state(machine).observation.ejected == medium.uid


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    if succeeded:
        return Conclusion(
            events=(desk.event("cdrom.inserted", operation, image=operation.parameters["image"]),)
        )
    # A step that could not be undone: the guest holds on to the medium already, so it is in the drive.
    stays = any(record.name == "insert" and record.state != "undone" for record in operation.steps)
    stored = desk.store.get(Machine, operation.target)
    if stays or stored is None or stored.document.cdrom is None:
        return NOTHING
    medium, before = stored.document.cdrom.medium, operation.parameters["before"]
    if medium is None or medium.uid != operation.parameters["medium_uid"]:
        return NOTHING
    if before is None:
        devices = tuple(device for device in stored.document.devices if not isinstance(device, Cdrom))
    else:
        devices = stored.document.with_cdrom(Cdrom.model_validate(before))
    if devices == stored.document.devices:
        return NOTHING
    return Conclusion((Put(stored.document.next_generation(devices=devices), stored.revision),))

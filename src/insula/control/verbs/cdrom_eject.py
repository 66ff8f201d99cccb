"""cdrom-eject: the drive of a machine is empty. Until its guest has given the medium out, it is in there."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.media import NoDrive, refuse_busy
from insula.control.request import VerbRequest
from insula.model.machine import Machine
from insula.model.operation import Operation
from insula.store.protocol import Put


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, NoDrive, DriveBusy, WrongPhase, StaleGeneration. parameters: force."""
    machine = desk.find(request.project, request.name).document
    if machine.cdrom is None:
        raise NoDrive(
            f"Machine '{machine.name}' has no CD drive.",
            hint=f"It gets one with its first medium: insula cdrom insert {machine.name} IMAGE",
        )
    refuse_busy(desk, machine)
    medium = machine.cdrom.medium
    parameters = {
        "force": bool(request.parameters.get("force")),
        "image": medium.name if medium is not None else None,
        "medium_uid": medium.uid if medium is not None else None,
    }
    asked = VerbRequest("cdrom-eject", request.project, request.name, parameters, request.if_generation)
    return desk.machine_intent(asked)


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    # What the guest has given out is no more in its drive, also where a later step failed.
    if not succeeded and not operation.remembered.get("released"):
        return NOTHING
    stored = desk.store.get(Machine, operation.target)
    drive = stored.document.cdrom if stored is not None else None
    if stored is None or drive is None or drive.medium is None:
        return NOTHING
    if drive.medium.uid != operation.parameters["medium_uid"]:
        return NOTHING
    devices = stored.document.with_cdrom(drive.changed(medium=None))
    event = desk.event("cdrom.ejected", operation, image=drive.medium.name, by_guest=False)
    return Conclusion((Put(stored.document.next_generation(devices=devices), stored.revision),), (event,))

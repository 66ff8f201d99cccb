"""attach: a machine gets a volume, at once when it runs.

From the intent on the machine's document has the disk, so that nobody else can take the volume; if the work
fails, it loses it again.
"""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.control.volumes import disk_of, find_volume, refuse_sharing, untouched, volume_of
from insula.model.base import parse
from insula.model.machine import Machine
from insula.model.operation import Operation
from insula.model.volume import VolumeMount
from insula.store.protocol import Put


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, VolumeNotFound, VolumeInUse, VolumeBusy, WrongPhase, StaleGeneration.

    parameters: volume, read_only, bus.
    """
    mount = parse(VolumeMount, request.parameters, "attachment")
    machine = desk.find(request.project, request.name).document
    stored = find_volume(desk, request.project, mount.volume)
    volume = stored.document
    refuse_sharing(desk, volume, machine.name, read_only=mount.read_only)
    disk = disk_of(volume, machine.devices, read_only=mount.read_only, bus=mount.bus)
    parameters = {**mount.model_dump(mode="json"), "volume_uid": volume.uid}
    asked = VerbRequest("attach", request.project, request.name, parameters, request.if_generation)
    intent = desk.machine_intent(asked, devices=(*machine.devices, disk))
    return Intent(intent.operation, (*intent.changes, untouched(stored)))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    if succeeded:
        told = {key: operation.parameters[key] for key in ("volume", "read_only")}
        return Conclusion(events=(desk.event("volume.attached", operation, **told),))
    # A step that could not be undone: the guest has not let go of the disk, so the machine still has it.
    stays = any(record.name == "plug" and record.state != "undone" for record in operation.steps)
    return NOTHING if stays else forget(desk, operation)


def forget(desk: Desk, operation: Operation) -> Conclusion:
    """The machine's document without the volume that the operation is about."""
    stored = desk.store.get(Machine, operation.target)
    if stored is None:
        return NOTHING
    uid, before = operation.parameters["volume_uid"], stored.document.devices
    devices = tuple(d for d in before if (volume := volume_of(d)) is None or volume.uid != uid)
    if devices == before:
        return NOTHING
    machine = stored.document.next_generation(devices=devices)
    event = desk.event("volume.detached", operation, volume=operation.parameters["volume"])
    return Conclusion((Put(machine, stored.revision),), (event,))

"""volume-resize: a volume grows, also under a machine that runs. It never shrinks."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.control.volumes import (
    VolumeCannotShrink,
    attachments,
    find_volume,
    refuse_busy,
    refuse_use,
    untouched,
    volume_operation,
)
from insula.model.base import format_size, parse
from insula.model.operation import Operation
from insula.model.volume import Volume, VolumeSpec
from insula.store.protocol import Put


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises VolumeNotFound, BadDocument, VolumeCannotShrink, VolumeBusy, VolumeInUse (others read it), and
    WrongPhase for the machine that has it. parameters: size.

    A volume that a machine has for writing is grown by the machine's actor, whether it runs or not: so
    nobody starts it in the middle.
    """
    stored = find_volume(desk, request.project, request.name)
    volume = stored.document
    size = parse(VolumeSpec, {"name": volume.name, **request.parameters}, "volume").size
    if size < volume.size_bytes:
        raise VolumeCannotShrink(
            f"Volume '{volume.name}' is {format_size(volume.size_bytes)}; it cannot shrink to "
            f"{format_size(size)}, for the guest's data may lie in what would be cut off.",
            hint="Make a smaller volume, and copy in a machine what is to be kept.",
        )
    refuse_busy(desk, volume)
    users = attachments(desk, volume.uid)
    refuse_use(desk, volume, "resize", having=[user for user in users if user.disk.read_only])
    if not users:
        return Intent(volume_operation(request, volume, size=size), (untouched(stored),))
    parameters = {"size": size, "volume": volume.name, "volume_uid": volume.uid}
    machine = users[0].machine
    intent = desk.machine_intent(VerbRequest(request.verb, machine.project, machine.name, parameters))
    return Intent(intent.operation, (*intent.changes, untouched(stored)))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    """The size that was reached is the truth, also where a later step failed."""
    uid = operation.parameters.get("volume_uid") or operation.target
    stored = desk.store.get(Volume, uid)
    size = operation.remembered.get("size_bytes")
    if stored is None or size is None or stored.document.size_bytes == size:
        return NOTHING
    volume = stored.document.next_generation(size_bytes=size)
    event = desk.event("volume.resized", operation, volume=volume.name, size_bytes=size)
    return Conclusion((Put(volume, stored.revision),), (event,))

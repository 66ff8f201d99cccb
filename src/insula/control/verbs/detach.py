"""detach: a machine gives a volume back. Until its guest has let go of it, it is the machine's."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.control.verbs.attach import forget
from insula.control.volumes import (
    VolumeNotAttached,
    attachments,
    find_volume,
    refuse_busy,
    untouched,
)
from insula.model.operation import Operation


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, VolumeNotFound, VolumeNotAttached, VolumeBusy, WrongPhase, StaleGeneration.

    parameters: volume.
    """
    machine = desk.find(request.project, request.name).document
    stored = find_volume(desk, request.project, str(request.parameters.get("volume", "")))
    volume = stored.document
    users = [user.machine.name for user in attachments(desk, volume.uid)]
    if machine.name not in users:
        raise VolumeNotAttached(
            f"Volume '{volume.name}' is not attached to machine '{machine.name}'.",
            hint=f"It is attached to: {', '.join(users)}." if users else "It is attached to no machine.",
        )
    refuse_busy(desk, volume)
    parameters = {"volume": volume.name, "volume_uid": volume.uid}
    asked = VerbRequest("detach", request.project, request.name, parameters, request.if_generation)
    intent = desk.machine_intent(asked)
    return Intent(intent.operation, (*intent.changes, untouched(stored)))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    # What its guest has let go of is no more the machine's, also where a later step failed.
    return forget(desk, operation) if succeeded or operation.remembered.get("released") else NOTHING

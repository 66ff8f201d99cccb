"""volume-clone: a whole, independent copy of a volume. request.name is the source, `name` the new volume."""

from __future__ import annotations

from insula.control.desk import Desk, Intent
from insula.control.request import VerbRequest
from insula.control.verbs import volume_create
from insula.control.volumes import (
    VolumeInUse,
    attachments,
    find_volume,
    refuse_busy,
    refuse_taken_name,
    untouched,
)
from insula.model.base import require_name

conclude = volume_create.conclude


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises BadName, VolumeNotFound, VolumeNameTaken, VolumeBusy, VolumeInUse (a machine may be writing)."""
    name = require_name(str(request.parameters.get("name", "")), "volume")
    source = find_volume(desk, request.project, request.name)
    refuse_taken_name(desk, request.project, name)
    refuse_busy(desk, source.document)
    for user in attachments(desk, source.document.uid):
        wanted_on = user.machine.power == "on" or desk.busy_with(user.machine.uid) is not None
        has_process = desk.state(user.machine).observation.phase.has_process
        if not user.disk.read_only and (has_process or wanted_on):
            raise VolumeInUse(
                f"Cannot clone volume '{source.document.name}': machine '{user.machine.name}' may be writing "
                "to it, and a copy would be of no one moment.",
                hint=f"Stop the machine (insula stop {user.machine.name}), or detach the volume: "
                f"insula volume detach {source.document.name} {user.machine.name}",
                evidence={"machines": [user.machine.name]},
            )
    asked = VerbRequest(request.verb, request.project, name)
    intent = volume_create.new_volume(
        desk, asked, source.document.size_bytes, source=request.name, source_uid=source.document.uid
    )
    return Intent(intent.operation, (*intent.changes, untouched(source)), intent.events)

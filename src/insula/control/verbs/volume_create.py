"""volume-create: an empty volume."""

from __future__ import annotations

from insula.control.desk import Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.control.volumes import refuse_taken_name, volume_operation
from insula.kit.clock import utc_now
from insula.model.base import new_uid, parse, require_name
from insula.model.operation import Operation
from insula.model.volume import Volume, VolumeSpec
from insula.store.protocol import Delete, Put


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises BadName, BadDocument, VolumeNameTaken. parameters: size."""
    require_name(request.name, "volume")
    spec = parse(VolumeSpec, {"name": request.name, **request.parameters}, "volume")
    refuse_taken_name(desk, request.project, spec.name)
    return new_volume(desk, request, spec.size)


def new_volume(desk: Desk, request: VerbRequest, size: int, **parameters: object) -> Intent:
    """The document of a volume that does not exist yet, and the operation that makes it."""
    volume = Volume(
        uid=new_uid(), project=request.project, name=request.name, created=utc_now(), size_bytes=size
    )
    operation = volume_operation(request, volume, size=size, **parameters)
    return Intent(operation, (Put(volume, expect=0),), (desk.event("volume.created", operation),))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    if succeeded:
        return Conclusion()
    gone = desk.event("volume.removed", operation, reason="creation failed")
    return Conclusion((Delete(Volume, operation.target),), (gone,))

"""volume-rm: a volume and all that is on it are to go; nobody may have it."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.control.snapshots import refuse_kept_volume
from insula.control.volumes import find_volume, refuse_busy, refuse_use, untouched, volume_operation
from insula.model.operation import Operation
from insula.model.volume import Volume
from insula.store.protocol import Delete


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises VolumeNotFound, VolumeInUse, VolumeBusy, VolumeInSnapshot."""
    stored = find_volume(desk, request.project, request.name)
    refuse_use(desk, stored.document, "remove")
    refuse_busy(desk, stored.document)
    refuse_kept_volume(desk, stored.document.uid, stored.document.name)
    return Intent(volume_operation(request, stored.document), (untouched(stored),))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    if not succeeded:
        return NOTHING
    return Conclusion((Delete(Volume, operation.target),), (desk.event("volume.removed", operation),))

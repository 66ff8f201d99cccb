"""snapshot-restore: the machine becomes what it was; what it is now is lost. Asking for it is the consent.

Its document has the snapshot's devices from the intent on, so that nobody else takes a volume that is to be
restored; if the work fails, it has those it had before.
"""

from __future__ import annotations

from typing import Any

from insula.control.desk import Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.control.snapshots import find_whole
from insula.control.volumes import VolumeNotFound, attachments, refuse_busy, refuse_use, untouched, volume_of
from insula.model.base import new_uid
from insula.model.machine import Machine, Power
from insula.model.operation import Operation
from insula.model.snapshot import Snapshot
from insula.model.volume import Volume
from insula.planner.admission import admit
from insula.store.protocol import Change, Put, Stored


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, SnapshotNotFound, SnapshotUnfinished, VolumeNotFound, VolumeInUse, VolumeBusy,
    WrongPhase, StaleGeneration.

    parameters: name; start: also where no memory was kept; disks_only: leave the memory that was kept.
    """
    machine = desk.find(request.project, request.name).document
    stored = find_whole(desk, machine, request.parameters["name"])
    snapshot = stored.document
    volumes = _claim_volumes(desk, machine, snapshot)
    disks_only, start = bool(request.parameters.get("disks_only")), bool(request.parameters.get("start"))
    runs = start or (snapshot.memory is not None and not disks_only)
    if runs:
        admit(snapshot.machine, await desk.node.host_facts())
    parameters: dict[str, Any] = {"snapshot": snapshot.uid, "name": snapshot.name}
    parameters |= {"start": start, "disks_only": disks_only}
    asked = VerbRequest(request.verb, request.project, request.name, parameters, request.if_generation)
    wanted = {"devices": _devices(snapshot), "power": Power.ON if runs else Power.OFF}
    before = {
        "devices": [device.model_dump(mode="json") for device in machine.devices],
        "power": machine.power,
    }
    intent = desk.machine_intent(asked, **wanted)
    operation = intent.operation.changed(remembered={"before": before})
    changes = (*intent.changes, Put(snapshot, stored.revision), *(untouched(volume) for volume in volumes))
    return Intent(operation, changes)


def _devices(snapshot: Snapshot) -> tuple[Any, ...]:
    """As they were; what is in the drive is put in anew, whatever the guest has thrown out since."""
    machine = snapshot.machine
    drive = machine.cdrom
    if drive is None or drive.medium is None:
        return machine.devices
    return machine.with_cdrom(drive.changed(medium=drive.medium.changed(uid=new_uid())))


def _claim_volumes(desk: Desk, machine: Machine, snapshot: Snapshot) -> list[Stored[Volume]]:
    """The volumes that the snapshot's machine had: there, and nobody else's. Raises as `intend`."""
    claimed = []
    for device in snapshot.machine.devices:
        reference = volume_of(device)
        if reference is None:
            continue
        stored = desk.store.get(Volume, reference.uid)
        if stored is None:
            raise VolumeNotFound(
                f"Snapshot '{snapshot.name}' cannot be restored: volume '{reference.name}', which machine "
                f"'{machine.name}' had then, is not there any more.",
                hint="Nothing of it is kept: it was attached for reading only.",
            )
        refuse_busy(desk, stored.document)
        others = [user for user in attachments(desk, reference.uid) if user.machine.uid != machine.uid]
        read_only = bool(getattr(device, "read_only", False))
        refuse_use(
            desk,
            stored.document,
            "restore",
            having=[user for user in others if not (read_only and user.disk.read_only)],
        )
        claimed.append(stored)
    return claimed


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    if not succeeded and not operation.remembered.get("committed"):
        before = operation.remembered["before"]
        stored = desk.store.get(Machine, operation.target)
        if stored is None:
            return Conclusion()
        restored = Machine.model_validate({**stored.document.model_dump(mode="json"), **before})
        has_process = desk.state(stored.document).observation.phase.has_process
        power = before["power"] if has_process else Power.OFF
        return Conclusion((Put(restored.next_generation(power=power), stored.revision),))
    outcome = dict(operation.outcome or {})
    changes: list[Change] = []
    for uid, size in outcome.pop("sizes", {}).items():
        stored_volume = desk.store.get(Volume, uid)
        if stored_volume is not None and stored_volume.document.size_bytes != size:
            volume = stored_volume.document.next_generation(size_bytes=size)
            changes.append(Put(volume, stored_volume.revision))
    uid = operation.parameters["snapshot"]
    changes += desk.change_machine(operation.target, snapshot=uid, unmerged=True)
    event = desk.event("snapshot.restored", operation, snapshot=operation.parameters["name"])
    return Conclusion(tuple(changes), (event,), outcome)

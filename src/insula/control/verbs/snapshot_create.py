"""snapshot-create: a machine's disks, or disks and memory, as they are at one moment."""

from __future__ import annotations

from insula.control.desk import Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.control.snapshots import choose_name
from insula.kit.clock import utc_now
from insula.kit.errors import Invalid
from insula.model.base import new_uid, parse, require_name
from insula.model.machine import Machine
from insula.model.observation import Phase
from insula.model.operation import Operation
from insula.model.snapshot import Snapshot, SnapshotSpec
from insula.store.protocol import Delete, Put


class NothingToKeep(Invalid):
    """A snapshot that would hold nothing, or that contradicts itself."""

    code = "bad-snapshot"


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, BadDocument, BadName, SnapshotNameTaken, NothingToKeep, WrongPhase,
    StaleGeneration. parameters: SnapshotSpec.
    """
    raw = request.parameters
    if isinstance(raw.get("name"), str):
        require_name(raw["name"], "snapshot")
    spec = parse(SnapshotSpec, raw, "snapshot")
    stored = desk.find(request.project, request.name)
    machine = stored.document
    _refuse_empty(desk, machine, spec)
    snapshot = Snapshot(
        uid=new_uid(),
        project=machine.project,
        name=choose_name(desk, machine, spec.name),
        created=utc_now(),
        machine_uid=machine.uid,
        machine=machine,
        parent=machine.snapshot,
        description=spec.description,
    )
    parameters = {
        "snapshot": snapshot.uid,
        "name": snapshot.name,
        "memory": spec.memory,
        "quiesce": spec.quiesce,
    }
    asked = VerbRequest(request.verb, request.project, request.name, parameters, request.if_generation)
    intent = desk.machine_intent(asked)
    untouched = Put(machine, stored.revision)  # two of one name: one of the commits is judged anew
    return Intent(intent.operation, (*intent.changes, untouched, Put(snapshot, expect=0)))


def _refuse_empty(desk: Desk, machine: Machine, spec: SnapshotSpec) -> None:
    phase = desk.state(machine).observation.phase
    if phase is Phase.SUSPENDED:
        return  # refused for that, whatever it has (planner.lifecycle)
    live = phase.has_process
    if spec.memory and spec.quiesce:
        raise NothingToKeep(
            "A snapshot with memory is not quiesced: the guest's file systems go on from it as they were.",
            hint="Leave out one of --memory and --quiesce.",
        )
    has_disk = any(
        device.device == "disk"
        and getattr(device, "source", "") != "seed"
        and not getattr(device, "read_only", False)
        for device in machine.devices
    )
    if spec.memory and not live:
        raise NothingToKeep(
            f"Machine '{machine.name}' does not run, so it has no memory to keep.",
            hint="Leave out --memory." if has_disk else f"Start it: insula start {machine.name}",
        )
    if not has_disk and not spec.memory:
        raise NothingToKeep(
            f"Machine '{machine.name}' has no disk that it writes: a snapshot without memory is empty.",
            hint="Keep its memory while it runs: --memory."
            if live
            else f"Start it, and keep its memory (--memory): insula start {machine.name}",
        )


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    uid = operation.parameters["snapshot"]
    if not succeeded:
        unmerged = desk.change_machine(operation.target, unmerged=True) if operation.steps else ()
        return Conclusion((Delete(Snapshot, uid), *unmerged))
    outcome = dict(operation.outcome or {})
    snapshot = Snapshot.model_validate(outcome.pop("snapshot"))
    told = {"name": snapshot.name, "uid": uid, "stood_seconds": snapshot.stood_seconds}
    outcome |= told | {"quiesced": snapshot.quiesced, "memory": snapshot.memory is not None}
    changes = (Put(snapshot), *desk.change_machine(operation.target, snapshot=uid))
    event = desk.event(
        "snapshot.created", operation, snapshot=snapshot.name, memory=snapshot.memory is not None
    )
    return Conclusion(changes, (event,), outcome)

"""snapshot-restore: the disks stand on a snapshot's layers again; with its memory the machine goes on there.

    prepare      new layers beside the disks, on the snapshot's          undone: they are gone
    end          the process, and with it what it has in memory: that is what was consented to
    swap         the disks are the new layers                            undone: they are the old ones
    start        with memory, or because that was asked for              undone: see `start`
    let go       of what the old disks wrote

All that can be refused is refused in `prepare`. Until `let go` the old disks are whole.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence

from insula.kit.errors import Conflict
from insula.model.observation import Phase
from insula.model.snapshot import Snapshot, SnapshotDisk
from insula.node import suspension
from insula.node.context import MachineContext
from insula.node.disks import KeptDisk
from insula.node.procedure import Step
from insula.node.procedures import start
from insula.node.procedures.kill import kill
from insula.storage import chain
from insula.storage.layers import top_name

Undo = Callable[[MachineContext], Awaitable[None]]


class SnapshotDamaged(Conflict):
    """Files of a snapshot are missing, so that it cannot be restored."""

    code = "snapshot-damaged"


def _snapshot(context: MachineContext) -> Snapshot:
    return context.rooms.snapshots.find(context.parameters["snapshot"])


def _pairs(context: MachineContext) -> list[tuple[KeptDisk, SnapshotDisk]]:
    """Each disk of the machine with what was kept of it."""
    kept = {disk.id: disk for disk in _snapshot(context).disks}
    disks = context.rooms.snapshots.kept_disks(context.machine)
    return [(disk, kept[disk.disk.id]) for disk in disks if disk.disk.id in kept]


def _fresh(context: MachineContext, disk: KeptDisk) -> str:
    """The name of a disk's new layer; no two disks have it, though the files of volumes are called alike."""
    tag = hashlib.sha256(f"{context.operation.uid} {disk.disk.id}".encode()).hexdigest()[:12]
    return chain.layer_name(disk.file, tag)


async def prepare(context: MachineContext) -> None:
    await _require_fit(context)
    directory = context.rooms.snapshots.directory(context.parameters["snapshot"])
    before = {}
    for disk, kept in _pairs(context):
        frozen = directory / kept.file
        if not frozen.exists():
            raise SnapshotDamaged(
                f"Snapshot '{context.parameters['name']}' of machine '{context.machine.name}' cannot be "
                f"restored: '{frozen.name}' is missing.",
                hint="See what else is: insula system check",
                evidence={"path": str(frozen)},
            )
        before[disk.disk.id] = top_name(disk.directory, disk.file)
        chain.link(frozen.parent, disk.directory, frozen.name)
        fresh = disk.directory / _fresh(context, disk)
        if not fresh.exists():
            await chain.create_layer(disk.directory, disk.file, fresh.name, frozen.name, kept.size_bytes)
    await context.journal.remember(tops=before)


async def _require_fit(context: MachineContext) -> None:
    """Memory that cannot be loaded here is refused before anything is lost."""
    snapshot = _snapshot(context)
    if snapshot.memory is None or context.parameters.get("disks_only"):
        return
    engine = context.rooms.engine
    memory = context.rooms.snapshots.memory(snapshot)
    plan = engine.plan(context.machine, context.boot_files(), context.directory, await engine.facts(), memory)
    suspension.require_fit(
        snapshot.memory,
        plan,
        "Its disks can be restored without its memory: insula snapshot restore --disks-only "
        f"{context.machine.name} {snapshot.name}",
    )


async def undo_prepare(context: MachineContext) -> None:
    """Only what stands nowhere: the swap is undone by now, or was never made."""
    for disk, _ in _pairs(context):
        fresh = _fresh(context, disk)
        if top_name(disk.directory, disk.file) != fresh:
            (disk.directory / fresh).unlink(missing_ok=True)
            chain.clear(disk.directory, disk.file)
            if context.instance is None:
                chain.sweep(disk.directory, disk.file)


async def swap(context: MachineContext) -> None:
    for disk, _ in _pairs(context):
        chain.point(disk.directory, disk.file, _fresh(context, disk))
    suspended = context.directory
    suspension.set_aside(suspended)
    seen = context.observer.seen
    if seen is not None and seen.phase is Phase.SUSPENDED:
        await context.observer.see(phase=Phase.STOPPED, reason="A snapshot is being restored.")


async def undo_swap(context: MachineContext) -> None:
    tops: dict[str, str] = context.journal.remembered.get("tops", {})
    for disk, _ in _pairs(context):
        chain.point(disk.directory, disk.file, tops[disk.disk.id])
    if suspension.put_back(context.directory):
        await context.observer.see(phase=Phase.SUSPENDED, reason="Its memory is on the disk.")


async def let_go(context: MachineContext) -> None:
    """From here on there is no way back, whatever fails."""
    await context.journal.remember(committed=True)
    for disk, _ in _pairs(context):
        chain.sweep(disk.directory, disk.file)
    suspension.remove(context.directory)
    await asyncio.to_thread(context.rooms.images.hold, context.machine.digests, context.directory)
    context.keep_document()
    if context.instance is None:
        await context.observer.see(phase=Phase.STOPPED, reason="A snapshot was restored.")
    context.outcome.update(
        running=context.instance is not None,
        sizes={disk.disk.volume.uid: kept.size_bytes for disk, kept in _pairs(context) if disk.disk.volume},
    )


async def stand(context: MachineContext) -> None:
    """The machine was paused when its memory was kept, and is again: it is itself, and may be resumed."""
    context.seat.waking, context.seat.stale = False, True
    instance = context.instance
    if instance is not None:
        await context.observer.see(
            phase=Phase.PAUSED,
            reason="Paused, as it was when the snapshot was taken.",
            process=instance.identity,
            accelerator=instance.plan.accelerator,
            engine_version=instance.plan.engine_version,
        )


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    stored = _snapshot(context)
    first = [
        Step("prepare", prepare, _until_committed(undo_prepare)),
        Step("end the process", kill),
        Step("swap", swap, _until_committed(undo_swap)),
    ]
    last = Step("let go", let_go)
    with_memory = stored.memory is not None and not context.parameters.get("disks_only")
    if with_memory and stored.phase == "paused":
        begun = [step for step in start.steps(context) if step.name != "run"]
        return [*first, *_renamed(begun), Step("stand", stand), last]
    if with_memory or context.parameters.get("start"):
        return [*first, *_renamed(start.steps(context)), last]
    return [*first, last]


def _until_committed(undo: Undo | None) -> Undo | None:
    if undo is None:
        return None

    async def undo_unless_committed(context: MachineContext) -> None:
        if not context.journal.remembered.get("committed"):
            await undo(context)

    return undo_unless_committed


def _renamed(steps_of_start: Sequence[Step[MachineContext]]) -> list[Step[MachineContext]]:
    """Two steps of one operation cannot share a name."""
    return [
        Step(f"start: {step.name}", step.do, _until_committed(step.undo), step.at_most_once)
        for step in steps_of_start
    ]

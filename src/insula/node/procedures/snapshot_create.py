"""snapshot-create: the disks go on in new layers at one moment, and the frozen ones are kept; so is memory.

What was begun of a snapshot when a daemon died is begun anew: it has changed nothing but that a disk may
stand on one more layer, which is merged some time (`merge`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence

from insula.engine.errors import EngineLost
from insula.engine.protocol import DiskSwitch, Instance
from insula.kit.clock import utc_now
from insula.kit.errors import InsulaError
from insula.kit.paths import SNAPSHOT_STATE
from insula.model.observation import Phase
from insula.model.snapshot import Snapshot
from insula.node.context import MachineContext
from insula.node.disks import KeptDisk
from insula.node.mending import mend
from insula.node.procedure import Step
from insula.node.standing import let_run, remember_running, require_savable
from insula.node.suspension import describe_state
from insula.storage import chain
from insula.storage.errors import reserving

AGENT_PATIENCE = 5.0  # seconds for an agent that was there to answer
FREEZE_LIMIT = 10.0  # seconds, then a guest goes on by itself, whatever has become of us
_PHASES = {Phase.RUNNING: "running", Phase.PAUSED: "paused"}


async def take(context: MachineContext) -> None:
    await take_back(context)
    if context.parameters["memory"]:
        await require_savable(context)
    await mend(context)
    snapshots, uid = context.rooms.snapshots, context.parameters["snapshot"]
    document = snapshots.find(uid)
    instance = context.instance
    directory = snapshots.directory(uid)
    directory.mkdir(parents=True, mode=0o700)
    await asyncio.to_thread(context.rooms.images.hold, context.machine.digests, directory)
    disks, switches = [], []
    for disk in snapshots.kept_disks(context.machine):
        tag = _tag(context, disk, context.operation.recovered)
        frozen = await chain.freeze(disk.directory, disk.file, tag)
        disks.append(snapshots.link(uid, disk, frozen))
        layer = chain.layer_name(disk.file, tag)
        switches.append(DiskSwitch(disk.disk.id, disk.switch_file(layer)))
    changes: dict[str, object] = {"disks": tuple(disks), "phase": _PHASES.get(context.observer.phase, "off")}
    if instance is not None:
        changes |= await _take_live(context, instance, switches)
    _keep(context, document.changed(**changes, taken=utc_now(), whole=True))


async def _take_live(
    context: MachineContext, instance: Instance, switches: Sequence[DiskSwitch]
) -> dict[str, object]:
    """Switch the disks of a live machine, and save its memory if that was asked for; what is to be told."""
    if not context.parameters["memory"]:
        async with _quiesced(context, instance) as quiesced:
            await instance.disks.freeze(switches)
        return {"quiesced": quiesced.was_kept}
    path = context.rooms.snapshots.directory(context.parameters["snapshot"]) / SNAPSHOT_STATE
    context.progress("Saving memory")
    context.seat.capturing = True
    await remember_running(context)
    try:
        with reserving(path, await instance.saved_bytes(), f"the memory of machine '{context.machine.name}'"):
            stood = await context.rooms.engine.save(instance, path, switches)
    finally:
        await let_run(context)
        context.seat.capturing = False
    memory = describe_state(path, instance.plan)
    return {"memory": memory, "stood_seconds": round(stood, 4)}


class _Quiesced:
    """frozen: how many file systems were brought to rest; thawed: how many of them still were at the end."""

    frozen: int | None = None
    thawed: int = 0

    @property
    def was_kept(self) -> bool:
        return self.frozen is not None and self.thawed == self.frozen


@contextlib.asynccontextmanager
async def _quiesced(context: MachineContext, instance: Instance) -> AsyncIterator[_Quiesced]:
    """The guest's file systems are at rest meanwhile, where that was asked for and its agent can do it."""
    found = _Quiesced()
    asked, phase = context.parameters["quiesce"], context.observer.phase
    if not asked or phase is not Phase.RUNNING:
        if asked:
            context.note(f"The guest was not quiesced: it is {phase}.")
        yield found
        return
    try:
        agent = await instance.agent(AGENT_PATIENCE)
        found.frozen = await agent.freeze(FREEZE_LIMIT)
    except InsulaError as error:
        context.note(f"The guest was not quiesced: {error.message}")
        yield found
        return
    try:
        yield found
    finally:
        try:
            found.thawed = await agent.thaw()
        except InsulaError as error:
            context.note(f"The guest was quiesced, and goes on by itself: {error.message}")
    if not found.was_kept:
        context.note("The guest went on before the snapshot was taken; its file systems may not be clean.")


def _keep(context: MachineContext, document: Snapshot) -> None:
    context.rooms.snapshots.keep(document)
    context.outcome["snapshot"] = document.model_dump(mode="json")


async def take_back(context: MachineContext) -> None:
    """Nothing is left of what was begun, but layers that the machine writes already."""
    await let_run(context)
    for attempt in range(context.operation.recovered + 1):
        for disk in context.rooms.snapshots.kept_disks(context.machine):
            chain.clear(disk.directory, disk.file)
            await _thaw(context, disk, _tag(context, disk, attempt))
    await context.rooms.snapshots.remove(context.parameters["snapshot"])


async def _thaw(context: MachineContext, disk: KeptDisk, tag: str) -> None:
    """Of a machine that has ended nobody knows what it wrote; the layer stays, and is merged some time."""
    layer = chain.layer_name(disk.file, tag)
    instance = context.instance
    if instance is not None and (disk.directory / layer).exists():
        with contextlib.suppress(EngineLost):
            if not await instance.disks.has_layer(disk.switch_file(layer)):
                chain.thaw(disk.directory, disk.file, tag)


def _tag(context: MachineContext, disk: KeptDisk, attempt: int) -> str:
    """Of the layer that an attempt makes of a disk: the same for whoever looks for it later.

    No two disks have it: the files of all volumes are called alike, and layers are known by their names.
    """
    made_of = f"{context.operation.uid} {attempt} {disk.disk.id}"
    return hashlib.sha256(made_of.encode()).hexdigest()[:12]


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("take", take, take_back)]

"""The actor of one volume that no machine has: makes, copies, grows and removes it, one at a time.

volume-create, volume-clone   directory, disk           undo: the directory is gone
volume-resize                 grow                      (nothing shrinks: what was reached is recorded)
volume-rm                     one rename, then all gone
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insula.kit.paths import VOLUME_DISK, VOLUME_DOCUMENT, write_atomically
from insula.model.operation import Operation, Progress
from insula.model.volume import Volume
from insula.node import removal
from insula.node.journal import OperationJournal
from insula.node.machine_actor import GivenUp
from insula.node.mailbox import Actor
from insula.node.procedure import MOST_RECOVERIES, Step, perform
from insula.node.rooms import Rooms
from insula.planner.lifecycle import ACCEPT, JOIN, QUEUE, Cancelled, Verdict


@dataclass
class VolumeContext:
    """One performance of an operation on one volume."""

    rooms: Rooms
    operation: Operation
    journal: OperationJournal

    @property
    def directory(self) -> Path:
        return self.rooms.home.volume(self.operation.target)

    @property
    def size(self) -> int:
        return int(self.operation.parameters["size"])


async def make_directory(context: VolumeContext) -> None:
    context.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    stored = context.rooms.store.get(Volume, context.operation.target)
    if stored is not None:
        text = stored.document.model_dump_json(indent=1)
        write_atomically(context.directory / VOLUME_DOCUMENT, text)


async def remove_directory(context: VolumeContext) -> None:
    await removal.remove_directory(context.directory)


async def make_disk(context: VolumeContext) -> None:
    from insula.storage.volumes import create_empty

    await create_empty(context.directory / VOLUME_DISK, context.size, context.operation.name)


async def copy_disk(context: VolumeContext) -> None:
    from insula.storage.volumes import copy_whole

    def report(message: str, fraction: float | None) -> None:
        context.journal.progress(Progress(message=message, fraction=fraction))

    source = context.rooms.home.volume(context.operation.parameters["source_uid"]) / VOLUME_DISK
    await copy_whole(source, context.directory / VOLUME_DISK, context.operation.name, report)


async def grow_disk(context: VolumeContext) -> None:
    from insula.storage.volumes import free_lost_clusters, grow

    path = context.directory / VOLUME_DISK
    try:
        await grow(path, context.size, context.operation.name)
    finally:
        await free_lost_clusters(path)  # also what a killed one, an earlier daemon's, has left
    await context.journal.remember(size_bytes=context.size)


_CREATE = Step("make directory", make_directory, remove_directory)
_STEPS: dict[str, Sequence[Step[VolumeContext]]] = {
    "volume-create": [_CREATE, Step("make disk", make_disk)],
    "volume-clone": [_CREATE, Step("copy disk", copy_disk)],
    "volume-resize": [Step("grow disk", grow_disk)],
    "volume-rm": [Step("remove files", remove_directory)],
}


class VolumeActor(Actor):
    """uid is the volume's."""

    def __init__(self, uid: str, rooms: Rooms) -> None:
        super().__init__(uid, rooms.store)
        self.rooms = rooms

    def judge(self, operation: Operation, busy: str | None) -> Verdict:
        if busy is None:
            return ACCEPT
        return JOIN if busy == operation.verb == "volume-rm" else QUEUE

    async def perform_operation(self, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
        context = VolumeContext(self.rooms, operation, journal)
        backwards: GivenUp | Cancelled | None = None
        if operation.recovered and operation.cancel_requested:
            backwards = Cancelled(f"The operation '{operation.verb}' was cancelled and undone.")
        elif operation.recovered > MOST_RECOVERIES:
            backwards = GivenUp(
                f"The daemon ended {operation.recovered} times while it was at '{operation.verb}' of "
                f"'{operation.name}'; the operation was undone.",
                hint="Please report it with the daemon's log (insula daemon status names it).",
            )
        steps = _STEPS[operation.verb]
        await perform(operation.verb, steps, context, journal, self.rooms.faults, backwards=backwards)
        return {"name": operation.name, "uid": operation.target}

"""The actor of one image: builds, imports, pulls, exports and removes it, one at a time."""

from __future__ import annotations

from typing import Any

from insula.model.operation import Operation
from insula.node.image_work import find_work
from insula.node.journal import OperationJournal
from insula.node.mailbox import Actor
from insula.node.procedure import Step, perform
from insula.node.rooms import Rooms
from insula.planner.lifecycle import ACCEPT, JOIN, QUEUE, Verdict


class ImageActor(Actor):
    """uid is 'image:NAME'; 'image:*' is for what concerns all."""

    def __init__(self, uid: str, rooms: Rooms) -> None:
        super().__init__(uid, rooms.store)
        self.rooms = rooms

    def judge(self, operation: Operation, busy: str | None) -> Verdict:
        current = self._current
        if busy is None or current is None:
            return ACCEPT
        same = current.operation.verb == operation.verb
        # Only what would do the very same: an import of another file is another thing.
        return JOIN if same and current.operation.parameters == operation.parameters else QUEUE

    async def perform_operation(self, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
        work = find_work(operation.verb)
        outcome: dict[str, Any] = {}

        async def do(_: None) -> None:
            outcome.update(await work(self.rooms, operation, journal))
            # Nobody can be launched any more from an image that has just lost its name to a newer one.
            await self.rooms.templates.keep_images({image.digest for image in self.rooms.images.list()})

        # None has an undo; image_work says why.
        steps = [Step[None](operation.verb, do)]
        await perform(operation.verb, steps, None, journal, self.rooms.faults)
        return outcome

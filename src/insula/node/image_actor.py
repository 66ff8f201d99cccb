"""The actor of one image: builds, imports, pulls, exports and removes it, one at a time."""

from __future__ import annotations

from typing import Any

from insula.model.operation import Operation
from insula.node.image_work import find_work
from insula.node.journal import OperationJournal
from insula.node.one_step import OneStepActor
from insula.planner.lifecycle import JOIN, Verdict


class ImageActor(OneStepActor):
    """uid is 'image:NAME'; 'image:*' is for what concerns all. None has an undo; `image_work` says why."""

    def judge(self, operation: Operation, busy: str | None) -> Verdict:
        current = self._current.operation if self._current is not None else None
        # Only what would do the very same: an import of another file is another thing.
        if current is not None and (current.verb, current.parameters) == (
            operation.verb,
            operation.parameters,
        ):
            return JOIN
        return super().judge(operation, busy)

    async def work(self, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
        outcome = await find_work(operation.verb)(self.rooms, operation, journal)
        # Nobody can be launched any more from an image that has just lost its name to a newer one.
        await self.rooms.templates.keep_images({image.digest for image in self.rooms.images.list()})
        return outcome

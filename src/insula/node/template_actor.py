"""The actor of this host's templates: lets go of them. They are made by the launches that need them."""

from __future__ import annotations

from typing import Any

from insula.kit.clock import utc_now
from insula.model.operation import Operation
from insula.node.journal import OperationJournal
from insula.node.one_step import OneStepActor


class TemplateActor(OneStepActor):
    """uid is 'template:all': one for all, since an image's name may mean several of them.

    No undo: a template that is gone is made again by the next launch that wants it.
    """

    async def work(self, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
        removed, freed = [], 0
        for key in self._meant(operation):
            freed += await self.rooms.templates.remove(key)
            removed.append(key)
        return {"removed": removed, "freed_bytes": freed}

    def _meant(self, operation: Operation) -> list[str]:
        if operation.verb == "template-rm":
            keys: list[str] = operation.parameters["keys"]
            return keys
        now, unused_for = utc_now(), operation.parameters["unused_for"]
        views = self.rooms.templates.all()
        return [view.key for view in views if (now - view.last_used).total_seconds() >= unused_for]

"""The end of operations: what the node performed becomes `done`, `failed` or `cancelled`, in one commit."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from insula.control.desk import Conclusion, Desk
from insula.control.verbs import find_verb
from insula.kit.clock import utc_now
from insula.model.operation import Operation, OperationState
from insula.store.protocol import Change, Commit, Delete, Put, RevisionConflict
from insula.store.room import when_there_is_room

log = logging.getLogger(__name__)

KEPT_OPERATIONS = 500  # finished operations kept for whoever asks later
KEPT_EVENTS = 20_000
CANCELLATIONS = ("cancelled", "superseded")  # error codes that mean: undone because somebody wanted so


class Concluder:
    """Follows the store and concludes each operation that was performed."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def conclude_all(self) -> list[str]:
        """What an earlier daemon left performed but not concluded."""
        told = []
        for stored in self._desk.store.all(Operation):
            operation = stored.document
            if operation.state is OperationState.PERFORMED:
                await self.conclude(operation)
                told.append(f"Operation '{operation.verb}' of '{operation.name}' was concluded.")
        await self._forget_old()
        return told

    async def follow(self, watch: AsyncIterator[Commit]) -> None:
        async for commit in watch:
            for change in commit.changes:
                document = change.document if isinstance(change, Put) else None
                if isinstance(document, Operation) and document.state is OperationState.PERFORMED:
                    await self._conclude_safely(document)
            if commit.revision % 200 == 0:
                await self._forget_old()

    async def _conclude_safely(self, operation: Operation) -> None:
        try:
            await when_there_is_room(lambda: self.conclude(operation))
        except Exception:
            log.exception("operation %s %s could not be concluded", operation.verb, operation.name)

    async def conclude(self, operation: Operation) -> None:
        """Write the end of one operation and what it changes in documents."""
        store = self._desk.store
        for attempt in range(5):
            stored = store.get(Operation, operation.uid)
            if stored is None or stored.document.state is not OperationState.PERFORMED:
                return
            performed = stored.document
            ended = self._ended(performed)
            succeeded = ended.state is OperationState.DONE
            extra: Conclusion = find_verb(ended.verb).conclude(self._desk, ended, succeeded)
            if extra.outcome is not None:
                ended = ended.model_copy(update={"outcome": extra.outcome})
            event = self._desk.event(
                f"operation.{ended.state}",
                ended,
                operation=ended.uid,
                verb=ended.verb,
                **({"code": ended.problem.get("code")} if ended.problem else {}),
                **({"notes": list(ended.notes)} if ended.notes else {}),
            )
            try:
                await store.commit([Put(ended, stored.revision), *extra.changes], [*extra.events, event])
            except RevisionConflict:
                if attempt == 4:
                    raise
                continue
            for uid in (ended.target, *extra.nudges):
                self._desk.node.nudge(uid)
            for change in extra.changes:
                if isinstance(change, Delete):
                    self._desk.node.release(change.uid)
            return

    @staticmethod
    def _ended(performed: Operation) -> Operation:
        if performed.problem is None:
            state = OperationState.DONE
        elif performed.problem.get("code") in CANCELLATIONS:
            state = OperationState.CANCELLED
        else:
            state = OperationState.FAILED
        return performed.model_copy(update={"state": state, "finished": utc_now(), "progress": None})

    async def _forget_old(self) -> None:
        store = self._desk.store
        finished = [s.document for s in store.all(Operation) if s.document.state.is_final]
        old: list[Change] = [Delete(Operation, o.uid) for o in finished[:-KEPT_OPERATIONS]]
        if old:
            await store.commit(old)
        await store.forget_events(KEPT_EVENTS)

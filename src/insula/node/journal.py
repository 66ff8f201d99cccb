"""An operation's record in the ledger, as the node writes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from insula.kit.aio import Crew
from insula.kit.clock import monotonic, utc_now
from insula.kit.errors import InsulaError
from insula.model.operation import Operation, OperationState, Progress, StepRecord
from insula.store.protocol import Store
from insula.store.room import when_there_is_room

PROGRESS_INTERVAL = 0.2  # seconds between records of progress: each is a durable write


class OperationJournal:
    """Implements `procedure.Journal` on the store; one object per performance of an operation."""

    def __init__(self, store: Store, operation: Operation, crew: Crew) -> None:
        self._store = store
        self._uid = operation.uid
        self._records = operation.steps
        self._notes: list[str] = list(operation.notes)
        self._crew = crew
        self.abandoned = False
        self.remembered = operation.remembered
        self._last_progress = float("-inf")

    def records(self) -> tuple[StepRecord, ...]:
        return self._records

    def note(self, text: str) -> None:
        self._notes.append(text)

    async def begin(self) -> Operation:
        """Record that the operation is being performed; a second time means that a daemon died in it."""

        def change(operation: Operation) -> Operation:
            again = operation.state is OperationState.RUNNING
            return operation.model_copy(
                update={
                    "state": OperationState.RUNNING,
                    "started": operation.started or utc_now(),
                    "recovered": operation.recovered + (1 if again else 0),
                }
            )

        return await self._update(change)

    async def record(self, records: tuple[StepRecord, ...]) -> None:
        """Raises LedgerFull, but not of a step that was undone: the undo of the others must go on."""
        self._records = records

        async def write() -> None:
            await self._update(lambda o: o.model_copy(update={"steps": records, "notes": tuple(self._notes)}))

        if any(record.state == "undone" for record in records):
            await when_there_is_room(write)
        else:
            await write()

    async def remember(self, **values: Any) -> None:
        """Record JSON values that an undo will need, durably, before what they describe is changed."""
        operation = await self._update(
            lambda o: o.model_copy(update={"remembered": {**values, **o.remembered}})
        )
        self.remembered = operation.remembered

    def progress(self, progress: Progress) -> None:
        """Record how far it is, at most every PROGRESS_INTERVAL seconds, without making the work wait."""
        now = monotonic()
        if now - self._last_progress < PROGRESS_INTERVAL:
            return
        self._last_progress = now
        self._crew.start(self._record_progress(progress), f"progress of {self._uid}")

    async def _record_progress(self, progress: Progress) -> None:
        await self._update(lambda o: o if o.state.is_final else o.model_copy(update={"progress": progress}))

    async def succeed(self, outcome: dict[str, Any]) -> None:
        await self._perform(outcome=outcome)

    async def fail(self, error: InsulaError) -> None:
        await self._perform(problem=error.to_problem())

    async def _perform(self, **fields: Any) -> None:
        # A record of "started" whose work is done means the last step: the end of the operation records it.
        records = tuple(
            record.model_copy(update={"state": "done"})
            if record.state == "started" and "outcome" in fields
            else record
            for record in self._records
        )
        done = {"state": OperationState.PERFORMED, "steps": records, "notes": tuple(self._notes), **fields}
        await when_there_is_room(
            lambda: self._update(lambda o: o if o.state.is_final else o.model_copy(update=done))
        )

    async def _update(self, change: Callable[[Operation], Operation]) -> Operation:
        return await self._store.update(Operation, self._uid, change)

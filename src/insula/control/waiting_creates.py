"""Creates whose image must be built first: each waits for the build, shows its progress, then goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from insula.control.desk import Desk
from insula.control.verbs.create import resume_after_build
from insula.kit.aio import Crew
from insula.kit.clock import utc_now
from insula.kit.errors import InsulaError, error_from_problem
from insula.model.operation import Operation, OperationState, Progress
from insula.planner.lifecycle import Cancelled
from insula.storage.errors import BuildFailed
from insula.store.protocol import Put


class WaitingCreates:
    """One task for each create that waits; after a restart of the daemon they begin anew from the ledger."""

    def __init__(self, desk: Desk, crew: Crew) -> None:
        self._desk = desk
        self._crew = crew
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def resume_all(self) -> None:
        for stored in self._desk.store.all(Operation):
            operation = stored.document
            if operation.parameters.get("awaiting") and not operation.state.is_final:
                self.begin(operation)

    def begin(self, operation: Operation) -> None:
        task = self._crew.start(self._wait(operation), f"create {operation.name} waits for its image")
        self._tasks[operation.uid] = task
        task.add_done_callback(lambda _: self._tasks.pop(operation.uid, None))

    def cancel(self, operation: Operation) -> bool:
        """Whether the operation was waiting here (it ends as cancelled then)."""
        task = self._tasks.get(operation.uid)
        if task is None:
            return False
        self._crew.start(self._cancel(operation, task), f"cancel create {operation.name}")
        return True

    async def _cancel(self, operation: Operation, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        build = self._find_build(operation)
        if build is not None and not self._others_wait_for(operation):
            await self._desk.store.update(
                Operation, build.uid, lambda o: o.model_copy(update={"cancel_requested": True})
            )
            self._desk.node.nudge(build.target)
        error = Cancelled(f"Creating '{operation.name}' was cancelled while its image was being built.")
        await self._end(operation, error, OperationState.CANCELLED)

    def _others_wait_for(self, operation: Operation) -> bool:
        return any(uid != operation.uid for uid in self._tasks)

    def _find_build(self, operation: Operation) -> Operation | None:
        target = f"image:{operation.parameters['spec']['image']}"
        builds = [o for o in self._desk.unfinished(target) if o.verb == "image-build"]
        return builds[0] if builds else None

    async def _wait(self, operation: Operation) -> None:
        try:
            await self._build_image(operation)
            await self._go_on(operation)
        except InsulaError as error:
            await self._end(operation, error, OperationState.FAILED)

    async def _build_image(self, operation: Operation) -> None:
        store = self._desk.store
        image = operation.parameters["spec"]["image"]
        build = self._find_build(operation)
        if build is None:
            build = self._desk.image_operation("image-build", image)
            await store.commit([Put(build, expect=0)])
            self._desk.node.nudge(build.target)
        shown = None
        while not build.state.is_final:
            if build.progress != shown:
                shown = build.progress
                await store.update(Operation, operation.uid, _with_progress(shown))
            changed = await store.wait(Operation, build.uid, _differs_from(build))
            if changed is None:
                break
            build = changed
        if build.problem is not None:
            cause = error_from_problem(build.problem)
            raise BuildFailed(
                f"Image '{image}' could not be built.", hint=cause.hint, evidence=cause.evidence
            ) from cause

    async def _go_on(self, operation: Operation) -> None:
        intent = await resume_after_build(self._desk, operation)
        await self._desk.store.commit([*intent.changes, Put(intent.operation)], intent.events)
        self._desk.node.nudge(operation.target)

    async def _end(self, operation: Operation, error: InsulaError, state: OperationState) -> None:
        fields = {"state": state, "problem": error.to_problem(), "finished": utc_now(), "progress": None}
        event = self._desk.event(
            f"operation.{state}", operation, operation=operation.uid, verb="create", code=error.code
        )
        await self._desk.store.update(
            Operation, operation.uid, lambda o: o.model_copy(update=fields), events=[event]
        )


def _with_progress(progress: Progress | None) -> Callable[[Operation], Operation]:
    return lambda operation: operation.model_copy(update={"progress": progress})


def _differs_from(before: Operation) -> Callable[[Operation | None], bool]:
    return lambda now: now is None or now.state.is_final or now.progress != before.progress

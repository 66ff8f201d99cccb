"""resume: the vCPUs of a paused machine run again."""

from __future__ import annotations

from collections.abc import Sequence

from insula.model.observation import Phase
from insula.node.context import MachineContext
from insula.node.procedure import Step
from insula.node.waking import refresh


async def resume(context: MachineContext) -> None:
    if context.instance is not None and await context.instance.state() != "running":
        await context.instance.resume()
    await context.wait_phase(Phase.RUNNING)
    if context.seat.stale and context.instance is not None:
        context.outcome["renewed"] = await refresh(context, context.instance)
        context.seat.stale = False


async def undo_resume(context: MachineContext) -> None:
    if context.instance is not None and await context.instance.state() == "running":
        await context.instance.pause()
        await context.wait_phase(Phase.PAUSED)


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("resume", resume, undo_resume)]

"""pause: the vCPUs stand, memory and devices stay."""

from __future__ import annotations

from collections.abc import Sequence

from insula.model.observation import Phase
from insula.node.context import MachineContext
from insula.node.procedure import Step


async def pause(context: MachineContext) -> None:
    if context.instance is not None and await context.instance.state() == "running":
        await context.instance.pause()
    if context.instance is not None:
        await context.observer.see(phase=Phase.PAUSED, reason="Paused.")


async def undo_pause(context: MachineContext) -> None:
    if context.instance is not None and await context.instance.state() == "paused":
        await context.instance.resume()
        await context.wait_phase(Phase.RUNNING)


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("pause", pause, undo_pause)]

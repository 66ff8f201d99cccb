"""reset: like the reset button. Not repeated when the daemon died in it: the guest may have been reset."""

from __future__ import annotations

from collections.abc import Sequence

from insula.node.context import MachineContext
from insula.node.procedure import Step


async def reset(context: MachineContext) -> None:
    if context.instance is not None:
        await context.instance.reset()


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("reset", reset, at_most_once=True)]

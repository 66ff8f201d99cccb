"""kill: end the process at once, as pulling the plug."""

from __future__ import annotations

from collections.abc import Sequence

from insula.node.context import MachineContext
from insula.node.procedure import Step


async def kill(context: MachineContext) -> None:
    if context.instance is not None:
        await context.instance.kill()
    await context.wait_ended()


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("kill", kill)]

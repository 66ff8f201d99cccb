"""restart: stop as `stop` does, then start; a machine without a process is just started."""

from __future__ import annotations

from collections.abc import Sequence

from insula.node.context import MachineContext
from insula.node.procedure import Step
from insula.node.procedures import start, stop


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [*stop.steps(context), *start.steps(context)]

"""rm: no process, no socket, no file, no lock is left. What was begun is finished, never undone."""

from __future__ import annotations

from collections.abc import Sequence

from insula.node.context import MachineContext
from insula.node.procedure import Step
from insula.node.procedures.create import remove_directory
from insula.node.procedures.kill import kill


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("end the process", kill), Step("remove files", remove_directory)]

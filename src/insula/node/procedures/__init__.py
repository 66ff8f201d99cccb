"""What a node does for each verb: a module a verb, found by its name, with `steps(context)`.

    create  directory, disks, seed, (start's steps)     undo: all of it gone
    start   prepare, launch, run                        undo: no process, phase as before
    stop    ask, wait (force after the timeout)         nothing to undo
    ...

A module of this package named like the verb ('-' as '_') is the verb's; there is no list to keep.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, cast

from insula.node.context import MachineContext
from insula.node.procedure import Step


class ProcedureModule(Protocol):
    def steps(self, context: MachineContext) -> Sequence[Step[MachineContext]]: ...


def find_steps(verb: str, context: MachineContext) -> Sequence[Step[MachineContext]]:
    """The steps of a verb on a machine."""
    module = importlib.import_module(f"{__name__}.{verb.replace('-', '_')}")
    return cast(ProcedureModule, module).steps(context)

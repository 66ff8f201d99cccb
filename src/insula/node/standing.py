"""Machines whose vCPUs stand for a moment of ours."""

from __future__ import annotations

import contextlib

from insula.engine.errors import EngineLost, EngineRefused
from insula.kit.errors import Conflict
from insula.node.context import MachineContext


class NotSavable(Conflict):
    """A machine has devices that its document does not tell of, so its memory would fit no other launch."""

    code = "not-savable"


async def require_savable(context: MachineContext) -> None:
    """Before memory is saved or captured. Raises NotSavable."""
    instance, engine = context.instance, context.rooms.engine
    if instance is None:
        return
    plan = engine.plan(context.placed, context.boot_files(), context.directory, await engine.facts())
    strange = await engine.find_unsavable(instance, plan)
    if strange:
        raise NotSavable(
            f"The memory of machine '{context.machine.name}' cannot be kept: it has other devices than "
            f"another launch would give it ({', '.join(strange)}).",
            hint="A scsi controller stays when the last volume on it is detached and the guest does not let "
            f"go of it. Attach one again, or restart the machine: insula restart {context.machine.name}",
        )


async def remember_running(context: MachineContext) -> None:
    """Record durably whether the machine runs now, for `let_run`; the first record counts."""
    instance = context.instance
    await context.journal.remember(runs=instance is not None and await instance.state() == "running")


async def let_run(context: MachineContext) -> None:
    """A machine that ran before runs, whatever stopped us or a daemon before us."""
    instance = context.instance
    if instance is None or not context.journal.remembered.get("runs"):
        return
    with contextlib.suppress(EngineLost, EngineRefused):
        if await instance.state() == "paused":
            await instance.resume()

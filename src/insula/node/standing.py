"""Machines whose vCPUs stand for a moment of ours."""

from __future__ import annotations

import contextlib

from insula.engine.errors import EngineLost, EngineRefused
from insula.node.context import MachineContext


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

"""start: prepare the directory, launch the process with its vCPUs standing, let them run.

A fork of a template wakes up as its template. Until it has renewed its identity it stays `starting`, and
nobody but us may speak to it. What it wakes up with, if with anything: `waking`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from insula.engine.errors import TemplateGone
from insula.engine.protocol import BootFiles, LaunchPlan, Memory
from insula.kit.clock import utc_now
from insula.kit.paths import LATE_INITRD, LATE_KERNEL
from insula.model.observation import Observation, Phase
from insula.node import suspension
from insula.node.context import MachineContext
from insula.node.mending import mend
from insula.node.procedure import Step
from insula.node.renewal import renew
from insula.node.waking import begin_resume, find_memory, find_suspended, refresh
from insula.storage import late_boot


async def prepare(context: MachineContext) -> None:
    """What the launch needs is there; how the machine ended last time stops being its present state."""
    context.keep_document()
    context.boot_files()
    # Also lets go of a medium that the guest threw out while it ran last.
    await asyncio.to_thread(context.rooms.images.hold, context.machine.digests, context.directory)
    seen = context.observer.seen
    by_repair = context.parameters.get("by") == "repair"
    restarts = (seen.restarts if seen else 0) + 1 if by_repair else 0
    if context.instance is None:
        if seen is not None and seen.phase is not Phase.STARTING:
            await context.journal.remember(seen=seen.model_dump(mode="json"))
        await context.observer.see(phase=Phase.STARTING, reason="", restarts=restarts)


async def undo_prepare(context: MachineContext) -> None:
    """What was seen before is seen again, with the evidence of the exit before."""
    remembered = context.journal.remembered.get("seen")
    if remembered is None or context.instance is not None:
        return
    before = Observation.model_validate(remembered)
    await context.observer.see(
        phase=before.phase,
        reason="The last start did not succeed.",
        last_exit=before.last_exit,
        process=None,
        accelerator=before.accelerator,
    )


async def launch(context: MachineContext) -> None:
    """The process lives, its vCPUs stand. One that lives already (a daemon died here) is kept."""
    if context.instance is not None:
        return
    # A process that an earlier daemon had launched for us may have been seen to end with it.
    await context.observer.see(phase=Phase.STARTING, reason="")
    await context.take_turn()
    engine = context.rooms.engine
    facts = await engine.facts()
    memory = find_memory(context)
    if memory.saved is None or context.operation.verb == "snapshot-restore":
        await mend(context)  # suspended memory is of its disks as they are; nobody may write them
    try:
        files = _boot_files(context, memory)
        plan = engine.plan(context.placed, files, context.directory, facts, memory)
        _require_fit(context, plan)
        instance = await engine.launch(plan)
    except TemplateGone:
        if context.is_sibling:
            raise  # what it was to go on with is lost; a boot would not be that
        # It gave way to another one just now. Its disks stayed, so the machine can boot from them.
        plan = engine.plan(context.placed, context.boot_files(), context.directory, facts)
        instance = await engine.launch(plan)
    context.seat.waking = plan.memory.wakes
    context.attach(instance)


def _require_fit(context: MachineContext, plan: LaunchPlan) -> None:
    """Raises StateDoesNotFit for suspended memory of a machine that is another one by now."""
    found = find_suspended(context) if plan.memory.saved is not None else None
    if found is not None and context.operation.verb != "snapshot-restore":
        hint = f"Boot it without that memory: insula start --cold {plan.name}"
        suspension.require_fit(found.memory, plan, hint)


def _boot_files(context: MachineContext, memory: Memory) -> BootFiles:
    """A fork has long booted; it takes files that cost it nothing until its guest reboots."""
    files = context.boot_files()
    if memory.template is None or not late_boot.link(memory.template, context.directory):
        late_boot.drop(context.directory)
        return files
    return BootFiles(Path(LATE_KERNEL), Path(LATE_INITRD), files.arguments)


async def undo_launch(context: MachineContext) -> None:
    context.seat.waking = False
    instance = context.instance
    if instance is None:
        # It may live unseen: launched, and the daemon or we ended before it was attached.
        instance = await context.rooms.engine.adopt(context.directory)
        if instance is not None:
            context.attach(instance)
    if instance is not None:
        await instance.kill()
        await context.wait_ended()
    context.rooms.engine.forget(context.directory)


async def run(context: MachineContext) -> None:
    """The vCPUs run, and it is recorded that they do; of a fork, once it is itself."""
    instance = context.instance
    if instance is None:
        return
    memory = instance.plan.memory
    context.seat.waking = memory.wakes
    if await instance.state() != "running":
        begin_resume(context, instance)
        await instance.resume()
    asked = (utc_now() - context.operation.created).total_seconds()
    context.outcome["running_after_seconds"] = round(asked, 4)
    if memory.wakes:
        told = renew if memory.template is not None else refresh
        context.outcome["renewed"] = await told(context, instance)
        context.seat.waking = False
    context.end_turn()
    suspension.remove(context.directory)
    if context.instance is None:
        return  # it has ended again already; its end was seen and is the truth
    context.outcome["booted"] = "" if memory.wakes else _why_booted(context)
    seen = context.observer.seen
    await context.observer.see(
        phase=Phase.RUNNING if seen is None or seen.phase is Phase.STARTING else seen.phase,
        process=instance.identity,
        accelerator=instance.plan.accelerator,
        engine_version=instance.plan.engine_version,
    )
    context.outcome.update(pid=instance.identity.pid, accelerator=instance.plan.accelerator.name)


def _why_booted(context: MachineContext) -> str:
    remembered = context.journal.remembered
    if remembered.get("template"):
        return f"Machine '{context.machine.name}' booted: its template went before it was launched."
    why: str = remembered.get("why_booted", "")
    return why


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("prepare", prepare, undo_prepare), Step("launch", launch, undo_launch), Step("run", run)]

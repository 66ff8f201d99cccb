"""create: the machine's directory with its disks and seed; started at once when that was asked.

A machine that is started at once is a fork of its kind's template where it can be one (`templates`), with
disks that stand on the template's. The template is chosen once: a daemon that dies leaves the choice in the
operation's record, and the disks that were made agree with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from insula.model.observation import Phase
from insula.model.template import NAME
from insula.node import removal
from insula.node.context import MachineContext
from insula.node.disks import make_forks, make_overlays, make_seeds, template_layers
from insula.node.firmware import find_uefi, make_variables
from insula.node.procedure import Step
from insula.node.procedures import pause, start
from insula.node.templates import TemplateFailed


async def make_directory(context: MachineContext) -> None:
    context.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    context.keep_document()
    # Its images' files stay as long as this directory does, whatever becomes of the images' names.
    await asyncio.to_thread(context.rooms.images.hold, context.machine.digests, context.directory)


async def remove_directory(context: MachineContext) -> None:
    """See `removal`; then nobody sees the machine any more."""
    await removal.remove_directory(context.directory)
    await context.observer.forget()


async def find_template(context: MachineContext) -> None:
    """Choose what the machine is forked from, and make it if it is the first of its kind."""
    if "template" in context.journal.remembered or context.is_sibling:
        return
    key, why = "", "it was asked for."
    if not context.parameters.get("cold"):
        try:
            files = context.boot_files(NAME)
            key = await context.rooms.templates.find_or_make(context.machine, files, context.progress)
            why = ""
        except TemplateFailed as error:
            why = error.message
    await context.journal.remember(template=key, why_booted=why)


async def make_disks(context: MachineContext) -> None:
    remembered = context.journal.remembered
    key, captured = remembered.get("template"), remembered.get("captured")
    if captured:
        captures = context.rooms.captures
        source, layers = captures.directory(captured), captures.layers(captured)
        await make_forks(context.machine, source, layers, context.directory, keep_seed=True)
        return
    if key:
        try:
            source, layers = context.rooms.templates.directory(key), template_layers(context.machine, key)
            await make_forks(context.machine, source, layers, context.directory)
            return
        except FileNotFoundError:
            pass  # it gave way to another one just now: `launch` sees that, and boots
    image, blob = context.image()
    await make_overlays(context.machine, image, blob, context.directory)
    await make_variables(context.machine, find_uefi(context.rooms.engine, context.machine), context.directory)


async def make_seed(context: MachineContext) -> None:
    image, _ = context.image()
    await make_seeds(context.machine, image, context.hostname, context.directory)


async def record(context: MachineContext) -> None:
    if context.observer.seen is None:
        await context.observer.see(phase=Phase.CREATED)
    context.outcome.update(name=context.machine.name, uid=context.machine.uid)


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    starts = bool(context.parameters.get("start"))
    made = [
        Step("make directory", make_directory, remove_directory),
        *([Step("find template", find_template)] if starts else []),
        Step("make disks", make_disks),
        Step("make seed", make_seed),
        Step("record", record),
    ]
    if not starts:
        return made
    then = pause.steps(context) if context.parameters.get("paused") else ()
    return [*made, *start.steps(context), *then]

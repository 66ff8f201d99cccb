"""cdrom-insert: a medium is put into the drive, at once when the machine runs, else at its next start."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from insula.engine.errors import EngineLost
from insula.kit.errors import Bug
from insula.kit.paths import MACHINE_DOCUMENT, write_atomically
from insula.model.device.cdrom import Cdrom
from insula.node.context import MachineContext
from insula.node.media import place_drive
from insula.node.procedure import Step
from insula.node.procedures.detach import has_ended

PATIENCE = 5.0  # seconds for a guest to give out a medium it has locked; one that polls its drive takes 2


def find_drive(context: MachineContext) -> Cdrom:
    """The machine's drive."""
    drive = context.machine.cdrom
    if drive is None:
        raise Bug(f"Machine '{context.operation.name}' has lost its drive.")
    return drive


async def insert(context: MachineContext) -> None:
    """The guest finds the medium in its drive. One that is in already (a daemon died here) is kept."""
    images, drive = context.rooms.images, find_drive(context)
    held = context.machine.digests | _digests_before(context)
    await asyncio.to_thread(images.hold, held, context.directory)
    if context.instance is not None:
        await context.instance.drive.insert(place_drive(drive, images), PATIENCE)
    context.keep_document()
    await asyncio.to_thread(images.hold, context.machine.digests, context.directory)
    context.outcome.update(image=context.parameters["image"], bus=drive.bus)


async def take_back(context: MachineContext) -> None:
    """The drive as it was before: with another medium, empty, or not there."""
    before = _drive_before(context)
    held = {context.machine.image.digest} | _digests_before(context)
    await asyncio.to_thread(context.rooms.images.hold, held, context.directory)
    if context.instance is not None:
        drive = context.instance.drive
        try:
            if before is None:
                await drive.unplug(find_drive(context), PATIENCE)
            elif before.medium is None:
                await drive.eject(before, PATIENCE)
            else:
                await drive.insert(place_drive(before, context.rooms.images), PATIENCE)
        except EngineLost:
            if not await has_ended(context):
                raise
    machine = context.machine
    devices = (
        tuple(device for device in machine.devices if not isinstance(device, Cdrom))
        if before is None
        else machine.with_cdrom(before)
    )
    text = machine.changed(devices=devices).model_dump_json(indent=1)
    write_atomically(context.directory / MACHINE_DOCUMENT, text)


def _drive_before(context: MachineContext) -> Cdrom | None:
    before = context.parameters["before"]
    return Cdrom.model_validate(before) if before is not None else None


def _digests_before(context: MachineContext) -> set[str]:
    before = _drive_before(context)
    return {before.medium.digest} if before is not None and before.medium is not None else set()


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("insert", insert, take_back)]

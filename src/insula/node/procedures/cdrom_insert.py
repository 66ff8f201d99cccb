"""cdrom-insert: a medium is put into the drive, at once when the machine runs, else at its next start."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from insula.engine.errors import EngineLost
from insula.kit.paths import MACHINE_DOCUMENT, write_atomically
from insula.model.device.cdrom import Cdrom
from insula.node.context import MachineContext
from insula.node.media import place_drive
from insula.node.procedure import Step
from insula.node.procedures.detach import has_ended

PATIENCE = 5.0  # seconds for a guest to give out a medium it has locked; one that polls its drive takes 2


async def insert(context: MachineContext) -> None:
    """The guest finds the medium in its drive. One that is in already (a daemon died here) is kept."""
    images, drive = context.rooms.images, _wanted(context)
    digests = {context.machine.image.digest, *_digests(drive)}
    await asyncio.to_thread(images.hold, digests | _digests(_before(context)), context.directory)
    if context.instance is not None:
        await context.instance.drive.insert(place_drive(drive, images), PATIENCE)
    seen = context.observer.seen
    if seen is not None and drive.medium is not None and seen.ejected == drive.medium.uid:
        await context.observer.see(ejected="")  # thrown out just before, and in again
    _keep_document(context, drive)
    await asyncio.to_thread(images.hold, digests, context.directory)
    context.outcome.update(image=context.parameters["image"], bus=drive.bus)


async def take_back(context: MachineContext) -> None:
    """The drive as it was before: with another medium, empty, or not there."""
    before, images = _before(context), context.rooms.images
    held = {context.machine.image.digest, *_digests(before)}
    await asyncio.to_thread(images.hold, held, context.directory)
    if context.instance is not None:
        drive = context.instance.drive
        try:
            if before is None:
                await drive.unplug(_wanted(context), PATIENCE)
            elif before.medium is None:
                await drive.eject(before, PATIENCE)
            else:
                await drive.insert(place_drive(before, images), PATIENCE)
        except EngineLost:
            if not await has_ended(context):
                raise
    _keep_document(context, before)


def _keep_document(context: MachineContext, drive: Cdrom | None) -> None:
    """The copy from which a lost ledger is made again, with this drive."""
    machine = context.machine
    without = tuple(device for device in machine.devices if not isinstance(device, Cdrom))
    devices = machine.with_cdrom(drive) if drive is not None else without
    text = machine.changed(devices=devices).model_dump_json(indent=1)
    write_atomically(context.directory / MACHINE_DOCUMENT, text)


def _wanted(context: MachineContext) -> Cdrom:
    return Cdrom.model_validate(context.parameters["drive"])


def _before(context: MachineContext) -> Cdrom | None:
    said = context.parameters["before"]
    return Cdrom.model_validate(said) if said is not None else None


def _digests(drive: Cdrom | None) -> set[str]:
    return {drive.medium.digest} if drive is not None and drive.medium is not None else set()


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("insert", insert, take_back)]

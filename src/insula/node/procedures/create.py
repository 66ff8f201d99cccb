"""create: the machine's directory with its disks and seed; started at once when that was asked."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence

from insula.model.device.disk import Disk
from insula.model.machine import Machine
from insula.model.observation import Phase
from insula.node.context import MachineContext
from insula.node.procedure import Step
from insula.node.procedures import start


async def make_directory(context: MachineContext) -> None:
    context.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    context.keep_document()
    # The image's files stay as long as this directory does, whatever becomes of the image's name.
    await asyncio.to_thread(context.rooms.images.claim, context.machine.image.digest, context.directory)


async def remove_directory(context: MachineContext) -> None:
    """The directory and all in it are gone; a crash in the middle leaves it under a name that says so."""
    directory = context.directory
    doomed = directory.with_name(f".removing-{directory.name}")
    if directory.exists():
        if doomed.exists():
            await asyncio.to_thread(shutil.rmtree, doomed)
        directory.rename(doomed)
    if doomed.exists():
        await asyncio.to_thread(shutil.rmtree, doomed)
    await context.observer.forget()


def _disks(machine: Machine, source: str) -> list[Disk]:
    return [device for device in machine.devices if isinstance(device, Disk) and device.source == source]


async def make_disks(context: MachineContext) -> None:
    """A copy-on-write overlay of the image for each disk; one that is there already is complete and kept."""
    machine = context.machine
    for disk in _disks(machine, "image"):
        target = context.directory / disk.file
        if target.exists():
            continue
        from insula.storage.volumes import create_overlay

        image, directory = context.image()
        assert image.disk is not None, "resolve() gives a disk only to machines of images that have one"
        size = disk.size_bytes or image.disk.virtual_size_bytes
        await create_overlay(target, directory / image.disk.file, image.disk.format, size)


async def make_seed(context: MachineContext) -> None:
    """The cloud-init seed, made once: cloud-init takes a new instance-id for a new machine."""
    machine = context.machine
    if machine.cloud_init is None:
        return
    from insula.storage.seed import write_seed

    image, _ = context.image()
    for disk in _disks(machine, "seed"):
        await asyncio.to_thread(
            write_seed,
            context.directory / disk.file,
            machine.cloud_init,
            hostname=context.hostname,
            instance_id=machine.uid,
            default_user=image.default_user,
        )


async def record(context: MachineContext) -> None:
    if context.observer.seen is None:
        await context.observer.see(phase=Phase.CREATED)
    context.outcome.update(name=context.machine.name, uid=context.machine.uid)


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    made = [
        Step("make directory", make_directory, remove_directory),
        Step("make disks", make_disks),
        Step("make seed", make_seed),
        Step("record", record),
    ]
    return [*made, *start.steps(context)] if context.parameters.get("start") else made

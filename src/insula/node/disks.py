"""The disks a machine gets when it is made, in its directory or a template's."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from insula.model.cloudinit import CloudInit
from insula.model.device.disk import Disk
from insula.model.image import Image
from insula.model.machine import Machine


def disks_of(machine: Machine, source: str) -> list[Disk]:
    """The machine's disks of that source."""
    return [device for device in machine.devices if isinstance(device, Disk) and device.source == source]


async def make_overlays(machine: Machine, image: Image, blob: Path, directory: Path) -> None:
    """A copy-on-write overlay of the image for each disk; one that is there already is complete and kept."""
    from insula.storage.volumes import create_overlay

    for disk in disks_of(machine, "image"):
        target = directory / disk.file
        if target.exists():
            continue
        assert image.disk is not None, "resolve() gives a disk only to machines of images that have one"
        size = disk.size_bytes or image.disk.virtual_size_bytes
        await create_overlay(target, blob / image.disk.file, image.disk.format, size)


async def make_forks(
    machine: Machine, source: Path, tag: str, directory: Path, *, keep_seed: bool = False
) -> None:
    """Each disk as it was frozen under `tag` in the directory `source`, a template's or a captured machine's.

    keep_seed: the seed is the fork's too; to cloud-init it stays the machine that it was.
    """
    from insula.storage.chain import fork

    for disk in disks_of(machine, "image"):
        assert disk.size_bytes is not None, "resolve() fills in the size"
        await fork(source, directory, disk.file, tag, disk.size_bytes)
    for disk in disks_of(machine, "seed"):
        if keep_seed and not (directory / disk.file).exists():
            os.link(source / disk.file, directory / disk.file)


def stand_on(machine: Machine, template: Path, tag: str, directory: Path) -> bool:
    """Whether the machine's disks stand on those of the template as it is now.

    It may have been removed since, and even made anew: what its guest then has in memory is of other disks.
    """
    from insula.storage.chain import frozen_name

    try:
        return all(
            (directory / frozen_name(disk.file, tag)).samefile(template / frozen_name(disk.file, tag))
            for disk in disks_of(machine, "image")
        )
    except FileNotFoundError:
        return False


async def make_seeds(machine: Machine, image: Image, hostname: str, directory: Path) -> None:
    """The cloud-init seed, made once: cloud-init takes a new instance-id for a new machine."""
    if machine.cloud_init is None:
        return
    from insula.storage.seed import write_seed

    told: CloudInit = machine.cloud_init
    for disk in disks_of(machine, "seed"):
        if (directory / disk.file).exists():
            continue
        await asyncio.to_thread(
            write_seed,
            directory / disk.file,
            told,
            hostname=hostname,
            instance_id=machine.uid,
            default_user=image.default_user,
        )

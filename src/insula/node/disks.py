"""The disks a machine gets when it is made, in its directory or a template's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from insula.kit.paths import Home
from insula.model.cloudinit import CloudInit
from insula.model.device.disk import MADE_WITH_MACHINE, Disk
from insula.model.image import Image
from insula.model.machine import Machine
from insula.storage.merging import Stand, stand_of


def disks_of(machine: Machine, source: str) -> list[Disk]:
    """The machine's disks of that source."""
    return [device for device in machine.devices if isinstance(device, Disk) and device.source == source]


def made_with(machine: Machine) -> list[Disk]:
    """The machine's disks that it alone writes, and that a template has too."""
    found = [device for device in machine.devices if isinstance(device, Disk)]
    return [disk for disk in found if disk.source in MADE_WITH_MACHINE]


@dataclass(frozen=True)
class KeptDisk:
    """A disk that a machine writes: what its forks and its snapshots have of it.

    directory, file: where all call it so; the layers of each disk but the first are in one of their own.
    """

    disk: Disk
    directory: Path
    file: str

    @property
    def stand(self) -> Stand:
        return stand_of(self.directory, self.file)

    @property
    def place(self) -> Path:
        """Where its layers are in a snapshot or a capture, relative to its directory."""
        return Path() if self.disk.source == "image" else Path(self.disk.id)

    def switch_file(self, layer: str) -> str:
        """A layer as the machine's monitor is to name it."""
        return str(self.directory / layer) if self.disk.volume else str(Path(self.disk.file).with_name(layer))


def kept_disks(home: Home, machine: Machine) -> list[KeptDisk]:
    """The machine's own disks, and the volumes that it writes."""
    found = [device for device in machine.devices if isinstance(device, Disk)]
    return [
        KeptDisk(disk, home_of_disk(home, machine.uid, disk), Path(disk.file).name)
        for disk in found
        if not disk.read_only and disk.source != "seed"
    ]


def home_of_disk(home: Home, uid: str, disk: Disk) -> Path:
    """The directory of a disk of machine `uid`: in the machine's, or the volume's."""
    own = home.machine(uid) if disk.volume is None else home.volume(disk.volume.uid)
    return (own / disk.file).parent


def place_disk(home: Home, uid: str, disk: Disk) -> Disk:
    """The disk with the file that is written now, by its name for good: relative to the machine's directory,
    absolute for a volume. One whose file is missing is left as it is; who opens it will say so."""
    directory, name = home_of_disk(home, uid, disk), Path(disk.file).name
    if disk.source != "seed" and (directory / name).exists():
        from insula.storage.chain import settle

        name = settle(directory, name)
    file = str(Path(disk.file).with_name(name)) if disk.volume is None else str(directory / name)
    return disk if file == disk.file else disk.changed(file=file)


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


def template_layers(machine: Machine, key: str) -> dict[str, str]:
    """The frozen layers of a template's disks: id of the disk -> name."""
    from insula.storage.chain import layer_name

    return {disk.id: layer_name(disk.file, key) for disk in made_with(machine)}


async def make_forks(
    machine: Machine, source: Path, layers: Mapping[str, str], directory: Path, *, keep_seed: bool = False
) -> None:
    """Each disk as its frozen layer in the directory `source`, a template's or a captured machine's.

    layers: id of the disk -> the layer, relative to the source. keep_seed: the seed is the fork's too; to
    cloud-init it stays the machine that it was. Raises FileNotFoundError when a layer is gone.
    """
    from insula.storage.chain import fork

    for disk in (*made_with(machine), *disks_of(machine, "copy")):
        target, layer = directory / disk.file, source / layers[disk.id]
        target.parent.mkdir(mode=0o700, exist_ok=True)
        await fork(layer.parent, target.parent, target.name, layer.name)
    for disk in disks_of(machine, "seed"):
        if keep_seed and not (directory / disk.file).exists():
            os.link(source / disk.file, directory / disk.file)


def stand_on(machine: Machine, template: Path, key: str, directory: Path) -> bool:
    """Whether the machine's disks stand on those of the template as it is now.

    It may have been removed since, and even made anew: what its guest then has in memory is of other disks.
    """
    try:
        layers = template_layers(machine, key).values()
        return all((directory / layer).samefile(template / layer) for layer in layers)
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

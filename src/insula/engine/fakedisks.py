"""The disks of a fake machine: which files it has open, as the host's locks on them would know."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from insula.engine.errors import DiskFileInUse, DiskNotReleased, EngineRefused, MergeFailed
from insula.engine.protocol import DiskSwitch, LaunchPlan
from insula.kit.units import format_duration
from insula.model.device.disk import Disk

_NODE = re.compile(r"node-name=(?P<id>[^,]+)-node,read-only=(?P<ro>on|off),.*file\.filename=(?P<file>[^,]+)")

_HEADER = struct.Struct(">4xIQI")  # of qcow2: version, backing file's name: offset, length


def _backing(file: Path) -> Path | None:
    """What a file stands on; None where that is nothing, or the file none of qcow2 (a test may have any)."""
    try:
        with file.open("rb") as stream:
            _, offset, length = _HEADER.unpack(stream.read(_HEADER.size))
            stream.seek(offset)
            return file.parent / stream.read(length).decode() if offset else None
    except (OSError, struct.error, ValueError):
        return None


@dataclass
class OpenDisk:
    """A file that a fake machine has open."""

    file: Path
    read_only: bool
    size_bytes: int | None = None


@dataclass
class FakeDisks:
    """See `Disks`. others: what every machine of the world has open.

    heeds: whether the guest takes up a disk that it gets, and lets go of one that it is asked for.
    """

    plan: LaunchPlan
    others: Callable[[], list[OpenDisk]]
    heeds: Callable[[], bool]
    check_living: Callable[[], object]
    open: dict[str, OpenDisk] = field(default_factory=dict)

    def open_launched(self) -> None:
        """What the machine was launched with. Raises DiskFileInUse."""
        for word in self.plan.argv:
            if (found := _NODE.search(word)) is not None:
                self._open(found["id"], Path(found["file"]), read_only=found["ro"] == "on")

    def _open(self, name: str, file: Path, *, read_only: bool) -> None:
        file = self.plan.directory / file
        for other in self.others():
            if other.file == file and not (other.read_only and read_only):
                raise DiskFileInUse(f"The file of disk '{name}' is in use by another process.")
        self.open[name] = OpenDisk(file, read_only)

    async def attach(self, disk: Disk) -> None:
        self.check_living()
        if disk.id in self.open:
            return
        if not (self.plan.directory / disk.file).exists():
            raise EngineRefused(f"The monitor of machine '{self.plan.name}' refused the disk '{disk.id}'.")
        self._open(disk.id, Path(disk.file), read_only=disk.read_only)

    async def wait_seen(self, disk: Disk, timeout: float) -> bool:
        self.check_living()
        return disk.id in self.open and self.heeds()

    async def detach(self, disk: Disk, timeout: float) -> None:
        self.check_living()
        if disk.id in self.open and not self.heeds():
            await asyncio.sleep(0)
            raise DiskNotReleased(
                f"The guest of machine '{self.plan.name}' did not let go of disk '{disk.id}' within "
                f"{format_duration(timeout)}; it still has it."
            )
        self.open.pop(disk.id, None)

    async def grow(self, disk: Disk, size_bytes: int) -> None:
        self.check_living()
        if disk.id not in self.open:
            raise EngineRefused(f"Machine '{self.plan.name}' has no disk '{disk.id}'.")
        self.open[disk.id].size_bytes = size_bytes

    async def freeze(self, disks: Sequence[DiskSwitch]) -> None:
        self.check_living()
        wanted = [disk for disk in disks if self.plan.directory / disk.file not in self._layers()]
        for disk in wanted:
            if disk.id not in self.open:
                raise EngineRefused(f"The machine has no disk '{disk.id}'.")
            if not (self.plan.directory / disk.file).exists():
                raise EngineRefused(f"The monitor of machine '{self.plan.name}' refused '{disk.file}'.")
        for disk in wanted:
            self.open[disk.id].file = self.plan.directory / disk.file

    async def has_layer(self, file: str) -> bool:
        self.check_living()
        return self.plan.directory / file in self._layers()

    def _layers(self) -> set[Path]:
        """All files that are open, also below those that are written."""
        found = set()
        for disk in self.open.values():
            file: Path | None = disk.file
            while file is not None:
                found.add(file)
                file = _backing(file)
        return found

    async def merge(self, disk: Disk, onto: str, base: str | None, report: Callable[[float], None]) -> None:
        """As the real one leaves it, by the tool for disks that nobody has open."""
        from insula.kit.run import CommandFailed, run

        self.check_living()
        layer = self.plan.directory / onto
        if not layer.exists():
            raise MergeFailed(
                f"Machine '{self.plan.name}' does not have the layers open that are to be merged."
            )
        report(0.5)
        named = ["-b", base, "-F", "qcow2"] if base is not None else ["-b", ""]
        try:
            await run(["qemu-img", "rebase", "-q", "-f", "qcow2", *named, layer.name], cwd=layer.parent)
        except CommandFailed as error:
            raise MergeFailed(f"The layers of disk '{disk.id}' could not be merged.") from error

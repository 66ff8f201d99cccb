"""The disks of a live machine: plugged, unplugged and grown by its monitor.

    attach   add the node, (add the controller,) add the device      undone: the node is removed
             and look whether the guest reads it
    detach   ask the guest, wait for its word, remove the node       no word: DiskNotReleased, all stays
             (and the controller, if nothing is left on it)
    grow     resize the node; the guest is told by the device
    freeze, merge   see `layers`

What is there is asked of the monitor, never remembered: a daemon that died in the middle goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from insula.engine.controller import ScsiController
from insula.engine.device.disk import backend, frontend, node_of
from insula.engine.errors import DiskFileInUse, DiskNotReleased, EngineRefused, UnsupportedDevice
from insula.engine.layers import Execute, Merges, Report, find_top, nodes_by_file, place, switch
from insula.engine.protocol import DiskSwitch, LaunchPlan
from insula.kit.aio import Cell
from insula.kit.units import format_duration
from insula.model.device.disk import Disk

_LOOK = 0.02  # seconds between looks whether the guest reads a disk


class QemuDisks:
    """See `Disks`. execute: a request to the machine's monitor, whichever session it has now."""

    def __init__(self, plan: LaunchPlan, execute: Execute, controller: ScsiController) -> None:
        self._plan = plan
        self._execute = execute
        self._controller = controller
        self._released: Cell[frozenset[str]] = Cell(frozenset())
        self._turn = asyncio.Lock()
        self.merges = Merges(plan.name, plan.directory, execute)

    def hear_released(self, device: str) -> None:
        """The guest has let go of a device, and it is gone."""
        self._released.set(self._released.value | {device})

    async def attach(self, disk: Disk) -> None:
        async with self._turn:
            if disk.id in await self._devices():
                return
            if await self._node(node_of(disk.id)) is None:
                await self._open(disk)
            try:
                await self._plug(disk)
            except BaseException:
                with contextlib.suppress(EngineRefused):
                    await self._execute("blockdev-del", node_name=node_of(disk.id))
                raise

    async def _open(self, disk: Disk) -> None:
        try:
            await self._execute("blockdev-add", **backend(disk))
        except EngineRefused as error:
            said = str(error.evidence.get("answer", ""))
            if "lock" not in said:
                raise
            raise DiskFileInUse(
                f"The file of disk '{_name(disk)}' is in use by another process, so machine "
                f"'{self._plan.name}' cannot have it.",
                hint="See which: fuser FILE, with the file of the evidence.",
                evidence={"file": disk.file, "answer": said},
            ) from error

    async def _plug(self, disk: Disk) -> None:
        try:
            async with self._controller.in_place() if disk.bus == "scsi" else contextlib.nullcontext():
                await self._execute("device_add", **frontend(disk))
        except EngineRefused as error:
            if "does not support hotplugging" not in str(error.evidence.get("answer", "")):
                raise
            # q35 takes PCI devices while running only behind root ports, and it is launched without any.
            raise UnsupportedDevice(
                f"Machine '{self._plan.name}' is of a type that takes disk '{_name(disk)}' only while off.",
                hint=f"Stop it (insula stop {self._plan.name}), attach the volume, and start it again.",
            ) from error

    async def wait_seen(self, disk: Disk, timeout: float) -> bool:
        # No event tells; but whatever takes up a disk reads its beginning. Linux has made the device's file
        # by then (block/genhd.c, device_add_disk: it scans for partitions last).
        clock = asyncio.get_running_loop().time
        end = clock() + timeout
        while not await self._reads(disk):
            if clock() >= end:
                return False
            await asyncio.sleep(_LOOK)
        return True

    async def _reads(self, disk: Disk) -> bool:
        return any(
            disk.id in entry.get("qdev", "").split("/") and entry["stats"]["rd_operations"] > 0
            for entry in await self._execute("query-blockstats")
        )

    async def detach(self, disk: Disk, timeout: float) -> None:
        async with self._turn:
            if disk.id in await self._devices():
                await self._ask_to_release(disk)
                await self._wait_released(disk, timeout)
            if await self._node(node_of(disk.id)) is not None:
                await self._execute("blockdev-del", node_name=node_of(disk.id))
        if disk.bus == "scsi":
            await self._controller.leave_if_empty()

    async def _ask_to_release(self, disk: Disk) -> None:
        self._released.set(self._released.value - {disk.id})
        try:
            await self._execute("device_del", id=disk.id)
        except EngineRefused as error:
            if "in the process of unplug" not in str(error.evidence.get("answer", "")):
                raise  # else it has been asked before, and its word is still awaited

    async def _wait_released(self, disk: Disk, timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._released.wait_until(lambda released: disk.id in released)
                return
        if disk.id not in await self._devices():  # said while the monitor's session was broken
            return
        raise DiskNotReleased(
            f"The guest of machine '{self._plan.name}' did not let go of disk '{_name(disk)}' within "
            f"{format_duration(timeout)}; it still has it.",
            hint="Unmount what is on it in the guest and try again; a guest that boots has not heard it. "
            f"Or stop the machine first: insula stop {self._plan.name}",
        )

    async def grow(self, disk: Disk, size_bytes: int) -> None:
        async with self._turn:
            top = await find_top(self._execute, disk.id)
            node = await self._node(top) if top is not None else None
            if node is None or node["image"]["virtual-size"] < size_bytes:
                await self._execute("block_resize", node_name=top or node_of(disk.id), size=size_bytes)

    async def freeze(self, disks: Sequence[DiskSwitch]) -> None:
        async with self._turn:
            await switch(self._execute, self._plan.directory, disks)

    async def has_layer(self, file: str) -> bool:
        directory = self._plan.directory
        return place(directory, file) in await nodes_by_file(self._execute, directory)

    async def merge(self, disk: Disk, onto: str, base: str | None, report: Report) -> None:
        await self.merges.merge(disk.id, onto, base, report)

    async def _devices(self) -> frozenset[str]:
        """The ids of all devices that have one."""
        found = await self._execute("qom-list", path="/machine/peripheral")
        return frozenset(str(entry["name"]) for entry in found)

    async def _node(self, name: str) -> dict[str, Any] | None:
        nodes: list[dict[str, Any]] = await self._execute("query-named-block-nodes", flat=True)
        return next((node for node in nodes if node["node-name"] == name), None)


def _name(disk: Disk) -> str:
    return disk.volume.name if disk.volume is not None else disk.id

"""The layers under a live machine's disks: going on in new ones, and merging those that nobody needs.

    switch   every disk goes on in an empty layer on the one it has, all at one moment (a transaction)
    merge    a layer takes over what is in those below it, down to one that stays; then it stands on that

Nodes of the block graph are found by the names of their files, which are for good (`DiskSwitch`), so that
whatever an earlier daemon had done is seen. No reader ever sees anything else through a layer than before: a
merge may end at any moment, by whatever cause, and is begun again.

    copy ──> pending ──flush──> finalize (the layer's header names another one below it) ──flush──> over

What was copied is in the file before the header says so: the monitor keeps the tables that find it in its own
memory, and does not write them down before it changes the header. Killed then, it would leave a layer that
has lost what it took over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from insula.engine.errors import EngineLost, EngineRefused, MergeFailed
from insula.engine.protocol import DiskSwitch
from insula.kit.aio import Cell

Execute = Callable[..., Awaitable[Any]]
Report = Callable[[float], None]

_NODE = re.compile(r"(\.[0-9a-f]{8}|-node)$")
_FLASH = "/machine/system.flash"
_LOOK = 0.5  # seconds between looks at how far a merge is; its end is told
_TABLES = 40 * 2**20  # bytes: at most 32 MiB of L2 tables, and some of refcounts


def disk_of_node(node: str) -> str:
    """The disk's id by its node's name, whatever layer it has gone on in."""
    return _NODE.sub("", node)


async def find_top(execute: Execute, disk: str) -> str | None:
    """The node that a disk's device stands on now; None when there is no such disk."""
    for entry in await execute("query-block"):
        if "inserted" not in entry:
            continue
        node = str(entry["inserted"]["node-name"])
        # A scsi disk is told by its id, one on virtio by the path of what is in the device of that id; flash
        # memory is the board's, and has none.
        path = str(entry.get("qdev", ""))
        if f"/{disk}/" in f"/{path}/" or (path.startswith(_FLASH) and disk_of_node(node) == disk):
            return node
    return None


async def switch(execute: Execute, directory: Path, disks: Sequence[DiskSwitch]) -> None:
    """Have every disk go on in its new layer: all or none. Raises EngineRefused."""
    present = await nodes_by_file(execute, directory)
    actions = []
    for disk in disks:
        if place(directory, disk.file) in present:
            continue  # an earlier daemon has had it done
        node = await find_top(execute, disk.id)
        if node is None:
            raise EngineRefused(f"The machine has no disk '{disk.id}'.")
        actions.append(_snapshot(disk, node))
    if actions:
        await execute("transaction", actions=actions)


async def flush(execute: Execute) -> None:
    """Have all that the disks were given in their files, for good. Raises EngineLost when that fails.

    Neither does `stop` tell how that went, nor has a monitor a request that does. But one that is to go on in
    another layer flushes the disk before it looks for that layer's file (external_snapshot_prepare,
    blockdev.c); so it is asked to do so in a file that is not there, which changes nothing.
    """
    nowhere = f"{secrets.token_hex(8)}.absent"
    for entry in await execute("query-block"):
        found = entry.get("inserted", {"ro": True})
        if found["ro"]:
            continue
        node = str(found["node-name"])
        request = _snapshot(DiskSwitch(disk_of_node(node), nowhere), node)
        try:
            await execute("transaction", actions=[request])
        except EngineRefused as error:
            if nowhere not in str(error.evidence.get("answer", "")):
                raise EngineLost(
                    f"What disk '{disk_of_node(node)}' was given could not be written to its file.",
                    hint="Is the host's disk full, or does it fail?",
                    evidence=error.evidence,
                ) from error


def _snapshot(disk: DiskSwitch, node: str) -> dict[str, Any]:
    data = {
        "node-name": node,
        "snapshot-node-name": f"{disk.id}.{secrets.token_hex(4)}",
        "snapshot-file": disk.file,
        "format": "qcow2",
        "mode": "existing",
    }
    return {"type": "blockdev-snapshot-sync", "data": data}


async def nodes_by_file(execute: Execute, directory: Path) -> dict[Path, dict[str, Any]]:
    """The nodes that understand a format, by the places of the files under them.

    Their plain names would not do: layers of all disks of a machine that were made at one moment have the
    same tag, and every volume's file has the same name but for that.
    """
    nodes = await execute("query-named-block-nodes", flat=True)
    return {place(directory, str(node["file"])): node for node in nodes if node["drv"] != "file"}


def place(directory: Path, file: str) -> Path:
    """Where a file is, by what QEMU calls a node's file, or we do (`DiskSwitch`), in the machine's directory.

    That is a path, or, where a layer's header names the one below otherwise than by the path it was opened
    with, 'json:' and the options that it was opened with.
    """
    if file.startswith("json:"):
        options = json.loads(file.removeprefix("json:"))
        file = str(options.get("file", options).get("filename", ""))
    path = directory / file
    return path.parent.resolve() / path.name


def _stands_on(node: dict[str, Any], base: Path | None) -> bool:
    """By plain names: of one disk's layers they differ, and what is below may be named relatively."""
    backing = node.get("backing_file")
    return backing is None if base is None else place(Path(), str(backing)).name == base.name


class Merges:
    """Merges in one machine, one at a time a disk. directory: in which its process works."""

    def __init__(self, name: str, directory: Path, execute: Execute) -> None:
        self._name = name
        self._directory = directory
        self._execute = execute
        self._heard: Cell[int] = Cell(0)

    def hear(self) -> None:
        """A job is over, or waits to be finalized."""
        self._heard.set(self._heard.value + 1)

    async def merge(self, disk: str, onto: str, base: str | None, report: Report) -> None:
        """See `Disks.merge`.

        Raises MergeFailed, EngineLost; the disk is whole then, and can be merged again.
        """
        job, layer = f"merge-{disk}", place(self._directory, onto)
        below = None if base is None else place(layer.parent, base)
        if await self._find(job) is None:
            await self._begin(job, layer, below, base)
        try:
            await self._see_through(job, layer, report)
        except (asyncio.CancelledError, MergeFailed):
            with contextlib.suppress(EngineLost, EngineRefused):
                await self._execute("block-job-cancel", device=job, force=True)
                await self._wait_ended(job)
            raise
        node = (await self._nodes()).get(layer)
        if node is None or not _stands_on(node, below):
            raise MergeFailed(
                f"The layers of disk '{disk}' of machine '{self._name}' could not be merged.",
                hint="Is the host's disk full? It is tried again later; nothing is lost.",
                evidence={"layer": onto, "onto": base},
            )
        await self._flush(layer)
        await self._close_unused(disk)

    async def _nodes(self) -> dict[Path, dict[str, Any]]:
        return await nodes_by_file(self._execute, self._directory)

    async def _begin(self, job: str, layer: Path, below: Path | None, base: str | None) -> None:
        """base: what the layer is to call the one below it."""
        nodes = await self._nodes()
        node, lower = nodes.get(layer), None if below is None else nodes.get(below)
        if node is None or (below is not None and lower is None):
            raise MergeFailed(
                f"Machine '{self._name}' does not have the layers open that are to be merged.",
                hint="They are merged when it is stopped.",
                evidence={"layer": str(layer), "onto": base},
            )
        if _stands_on(node, below):
            return
        onto_base = {} if lower is None else {"base_node": lower["node-name"], "backing_file": base}
        await self._execute(
            "block-stream", job_id=job, device=node["node-name"], auto_finalize=False, **onto_base
        )

    async def _see_through(self, job: str, layer: Path, report: Report) -> None:
        while (entry := await self._find(job)) is not None:
            heard = self._heard.value
            if entry["status"] == "pending":
                await self._flush(layer)
                with contextlib.suppress(EngineRefused):  # an earlier daemon's request has been heard
                    await self._execute("job-finalize", id=job)
            elif entry["len"]:
                report(float(entry["offset"]) / float(entry["len"]))
            if await self._find(job) == entry:
                await self._wait_heard(heard)

    async def _wait_ended(self, job: str) -> None:
        while await self._find(job) is not None:
            await self._wait_heard(self._heard.value)

    async def _wait_heard(self, before: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK):
                await self._heard.wait_until(lambda heard: heard > before)

    async def _find(self, job: str) -> dict[str, Any] | None:
        for entry in await self._execute("query-block-jobs"):
            if entry["device"] == job:
                return dict(entry)
        return None

    async def _flush(self, layer: Path) -> None:
        """Have all of a layer in its file. Raises MergeFailed.

        There is no other request for it, and this one does not tell of failure; so there must be room for all
        that the monitor may have to write (the tables that it keeps in memory: docs/qcow2-cache.txt).
        """
        node = (await self._nodes()).get(layer)
        if node is None:
            return
        found = os.statvfs(layer.parent)
        if found.f_bavail * found.f_frsize < _TABLES:
            raise MergeFailed(
                f"Layers of a disk of machine '{self._name}' could not be merged: the host's disk is full.",
                hint="It is tried again later; nothing is lost.",
                evidence={"layer": str(layer), "free_bytes": found.f_bavail * found.f_frsize},
            )
        line = f'qemu-io {node["node-name"]} "flush"'
        await self._execute("human-monitor-command", command_line=line)

    async def _close_unused(self, disk: str) -> None:
        """Let go of the disk's nodes that nothing stands on any more: they keep removed files open.

        The monitor refuses those that are in use.
        """
        for node in await self._execute("query-named-block-nodes", flat=True):
            name = str(node["node-name"])
            if node["drv"] != "file" and disk_of_node(name) == disk:
                with contextlib.suppress(EngineRefused):
                    await self._execute("blockdev-del", node_name=name)

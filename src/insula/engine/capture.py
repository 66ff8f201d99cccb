"""A live machine as it is at one moment, memory and disks, while it goes on after a blink.

    vCPUs stand: disks go on in overlays, devices are written down ── run again
                          memory is written to a stream ──────────────────────── whole ──> vessel ──> frozen

The vessel is a process with the machine's shape and memory to be shared, which never runs: what is loaded
into it becomes a template. It has no disks of its own; the state of a disk's device says nothing of what is on it.

The stream is memory without a name, not a pipe: a guest that writes to a page which is not saved yet waits
until it is, so a reader that is slow, or hangs, would hold up the machine (and its monitor with it).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Sequence
from typing import Any

from insula.engine import frozen
from insula.engine.errors import EngineLost, EngineRefused
from insula.engine.instance import QemuInstance
from insula.engine.protocol import DiskSwitch
from insula.engine.qmp import Monitor
from insula.kit.clock import monotonic


async def capture(machine: QemuInstance, vessel: QemuInstance, disks: Sequence[DiskSwitch]) -> float:
    """Copy the machine into the vessel, which has not begun. Returns the seconds in which its vCPUs stood.

    Raises EngineLost and EngineRefused; then the machine runs as it did before.
    """
    stream = os.memfd_create("insula-stream", os.MFD_CLOEXEC)
    try:
        if machine.plan.memory.template is not None:
            await asyncio.to_thread(frozen.touch_all, machine.identity.pid)
        runs = await machine.state() == "running"
        stood = await _send(machine, stream, disks, runs)
        await machine.transfer.wait_sent()
        os.lseek(stream, 0, os.SEEK_SET)
        await vessel.transfer.receive(stream)
    finally:
        os.close(stream)
    return stood


async def _send(machine: QemuInstance, stream: int, disks: Sequence[DiskSwitch], runs: bool) -> float:
    """One that stood already has time: it is sent as it stands, and nobody lets it run for a moment."""
    began = monotonic()
    if runs:
        await machine.pause()
    try:
        await switch_disks(machine.transfer.monitor, disks)
        in_background = await machine.transfer.send(stream, in_background=runs)
        if not in_background:
            await machine.transfer.wait_sent()
    except BaseException:
        with contextlib.suppress(EngineLost, EngineRefused):
            await machine.transfer.cancel()
        raise
    finally:
        if runs:
            await machine.resume()
    return monotonic() - began if runs else 0.0


async def switch_disks(monitor: Monitor, disks: Sequence[DiskSwitch]) -> None:
    """Have every disk go on in its overlay, all at one moment: all or none. Raises EngineRefused."""
    if not disks:
        return
    found = await monitor.execute("query-block")
    actions = [_snapshot(disk, _top_node(found, disk.id)) for disk in disks]
    await monitor.execute("transaction", actions=actions)


def _top_node(found: Sequence[dict[str, Any]], disk: str) -> str:
    """What the disk's device stands on now: after a switch it is another node than at launch."""
    for entry in found:
        if f"/{disk}/" in f"{entry.get('qdev', '')}/" and "inserted" in entry:
            return str(entry["inserted"]["node-name"])
    raise EngineRefused(f"The machine has no disk '{disk}'.")


def _snapshot(disk: DiskSwitch, node: str) -> dict[str, Any]:
    data = {
        "node-name": node,
        "snapshot-node-name": f"{disk.id}-{secrets.token_hex(4)}",
        "snapshot-file": disk.file,
        "format": "qcow2",
        "mode": "existing",
    }
    return {"type": "blockdev-snapshot-sync", "data": data}

"""A live machine as it is at one moment, memory and disks, by a copy of its memory, while it goes on.

    memory is copied ──> vCPUs stand: disks go on in overlays, devices are written down,
                                      what it has written is copied once more ──> run again ──> sealed, held

Few forks of a machine that has itself been forked get the memory that it shares with others, and a state with
the pages that are its own; many forks a memory that has all, which they share.

Nothing else runs for it, and it takes a fifth of the time of the other way (`background`). That one is for
machines that have written too much for this: a gigabyte would make them stand for a quarter of a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from insula.engine import blocks, devicestate, frozen
from insula.engine.copying import MemoryCopy
from insula.engine.instance import QemuInstance
from insula.engine.layers import switch
from insula.engine.plan import MEMORY
from insula.engine.protocol import DiskSwitch
from insula.kit.aio import to_thread_end
from insula.kit.clock import monotonic
from insula.kit.paths import DEVICE_STATE

# Bytes that a machine may have written to be captured so: 25 ms of standing here; the other way takes 30.
# Pages that lie far from each other count for more. To find them among all its memory takes the time of
# copying the 64th part of it.
_MOST_OWN = 96 * 2**20
_LOOKING = 64
_LOADING = 2  # a page that a fork loads costs as much as two that are copied for all of them


async def capture(
    machine: QemuInstance, directory: Path, disks: Sequence[DiskSwitch], forks: int
) -> float | None:
    """Make a template of the machine, in the directory; returns the seconds in which its vCPUs stood.

    forks: how many will be made of it. None: it cannot be done so here, or the machine would stand for long;
    nothing has happened then. Raises EngineLost, EngineRefused, OSError; then the machine runs as it did
    before, and `discard` is called for.
    """
    await machine.settle()
    runs = await machine.state() == "running"
    try:
        begun = await _begin(machine)
    except PermissionError:  # this user may not look into the process
        return None
    if begun is None:
        return None
    copy, firmware = begun
    try:
        if runs and _is_much(machine, copy):
            return None
        whole = copy.base is None or copy.own_bytes() * _LOADING * forks > copy.base_bytes()
        try:
            await to_thread_end(partial(copy.prepare, whole=whole))
        except PermissionError:
            return None
        if runs and _is_much(machine, copy):
            return None
        stood, devices = await _stand(machine, copy, disks, runs=runs)
        compose = partial(
            devicestate.compose,
            devices,
            machine.plan.shape["machine type"],
            firmware,
            machine.plan.memory_bytes,
        )
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if whole:
            await _hold_all(directory, copy, compose())
        else:
            await _hold_difference(directory, copy, compose(copy.own_pages()))
    finally:
        copy.close()
    return stood


async def _hold_all(directory: Path, copy: MemoryCopy, state: Iterable[bytes | memoryview]) -> None:
    """Keep the copy, and a state without memory in a file."""
    frozen.seal(copy.memory)
    (directory / DEVICE_STATE).write_bytes(b"".join(state))
    await frozen.hold(directory, copy.memory)


async def _hold_difference(directory: Path, copy: MemoryCopy, pieces: Iterable[bytes | memoryview]) -> None:
    """Keep what the machine shares with others, and beside it a state that has the rest."""
    assert copy.base is not None, "there is something that it shares"
    state = await to_thread_end(frozen.create_state, pieces)
    try:
        (directory / DEVICE_STATE).touch(mode=0o600)  # it is a frozen machine's directory; nothing to load
        await frozen.hold(directory, copy.base, state)
    finally:
        os.close(state)


def _is_much(machine: QemuInstance, copy: MemoryCopy) -> bool:
    return copy.standing_bytes() + machine.plan.memory_bytes // _LOOKING > _MOST_OWN


async def _begin(machine: QemuInstance) -> tuple[MemoryCopy, devicestate.Firmware] | None:
    """The copy, and the machine's firmware. None when it cannot be done. Raises EngineLost and OSError."""
    monitor, pid = machine.transfer.monitor, machine.identity.pid
    if (await monitor.execute("query-migrate")).get("blocked-reasons"):
        return None  # it has a device whose state cannot be written down; who asks in earnest is told which
    firmware = await devicestate.read_firmware(monitor, pid, machine.plan.memory_bytes)
    address = await blocks.locate(monitor, MEMORY, 0)
    if address is None or firmware is None:
        return None
    base = machine.open_memory() if machine.plan.memory.template is not None else None
    try:
        return MemoryCopy(pid, address, machine.plan.memory_bytes, base), firmware
    except BaseException:
        if base is not None:
            os.close(base)
        raise


async def _stand(
    machine: QemuInstance, copy: MemoryCopy, disks: Sequence[DiskSwitch], *, runs: bool
) -> tuple[float, bytes]:
    """Seconds that it stood, and its devices as they were. One that stood already stands for as long as it
    takes, and nobody lets it run for a moment."""
    began = monotonic()
    if runs:
        await machine.pause()
    try:
        monitor = machine.transfer.monitor
        await switch(monitor.execute, machine.plan.directory, disks)
        devices = await devicestate.write(monitor)
        if runs:
            await to_thread_end(copy.finish)
    finally:
        if runs:
            await machine.resume()
    return monotonic() - began if runs else 0.0, devices

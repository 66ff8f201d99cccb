"""A template of a live machine as it is at one moment, memory and disks, by a copy of its memory.

    `outside`: the machine stands ──> devices, memory ──> sealed, held; the machine goes on

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

from insula.engine import frozen
from insula.engine.copying import MemoryCopy
from insula.engine.instance import QemuInstance
from insula.engine.outside import Sight, look
from insula.engine.protocol import DiskSwitch
from insula.kit.aio import to_thread_end
from insula.kit.paths import DEVICE_STATE

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
    sight = await look(machine)
    if sight is None:
        return None
    try:
        if runs and sight.is_much():
            return None
        copy = MemoryCopy(sight.memory)
        try:
            return await _capture(sight, copy, directory, disks, forks, runs=runs)
        finally:
            copy.close()
    finally:
        sight.close()


async def _capture(
    sight: Sight, copy: MemoryCopy, directory: Path, disks: Sequence[DiskSwitch], forks: int, *, runs: bool
) -> float | None:
    memory = sight.memory
    whole = memory.base is None or memory.own_bytes() * _LOADING * forks > memory.base_bytes()
    try:
        await to_thread_end(partial(copy.prepare, whole=whole))
    except PermissionError:
        return None
    if runs and sight.is_much():
        return None
    # One that stood already has been copied as it is, and nobody lets it run for a moment.
    stood, devices = await sight.stand(disks, copy.finish) if runs else (0.0, await sight.write_down(disks))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if whole:
        await _hold_all(directory, copy.memory, sight.compose(devices))
    else:
        assert memory.base is not None, "there is something that it shares"
        await _hold_difference(directory, memory.base, sight.compose(devices, copy.own_pages()))
    return stood


async def _hold_all(directory: Path, memory: int, state: Iterable[bytes | memoryview]) -> None:
    """Keep the copy, and a state without memory in a file."""
    frozen.seal(memory)
    (directory / DEVICE_STATE).write_bytes(b"".join(state))
    await frozen.hold(directory, memory)


async def _hold_difference(directory: Path, base: int, pieces: Iterable[bytes | memoryview]) -> None:
    """Keep what the machine shares with others, and beside it a state that has the rest."""
    state = await to_thread_end(frozen.create_state, pieces)
    try:
        (directory / DEVICE_STATE).touch(mode=0o600)  # it is a frozen machine's directory; nothing to load
        await frozen.hold(directory, base, state)
    finally:
        os.close(state)

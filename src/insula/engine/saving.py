"""A live machine's memory and devices, as they are at one moment, in a file that needs nothing but itself.

    it runs, and has written little    `outside`: stands for a moment, and is written from a copy of its pages
    it stands, or will from then on    written straight from its process, however much it has
    it has written much, or nobody     `background`: its monitor does it
    may look into its process

Whoever does it, the file is what QEMU calls a migration's stream. From outside only what is there is read,
its template's memory with it. A monitor reads every page, also those that neither the machine nor its
template ever used, and these are the template's from then on (`guestmemory`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from insula.engine import background
from insula.engine.copying import MemoryCopy
from insula.engine.errors import EngineLost, EngineRefused
from insula.engine.instance import QemuInstance
from insula.engine.layers import flush
from insula.engine.outside import Sight, look
from insula.engine.protocol import DiskSwitch
from insula.kit.aio import to_thread_end
from insula.kit.run import CommandFailed, run

_BUFFER = 2**20  # bytes written at a time


async def save(machine: QemuInstance, path: Path, disks: Sequence[DiskSwitch], *, stay: bool) -> float:
    """See `Engine.save`."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        await machine.settle()
        runs = await machine.state() == "running"
        if runs and stay:
            await machine.pause()
        try:
            await _reserve(path, await machine.saved_bytes())
            stood = await _save(machine, target, disks, runs=runs and not stay, stay=stay)
            os.ftruncate(target, os.fstat(target).st_size)  # gives back what was reserved beyond its end
            await to_thread_end(os.fsync, target)
            if not stay:
                await machine.settle()
        except BaseException:
            with contextlib.suppress(EngineLost, EngineRefused):
                await machine.settle()
                if runs and stay:
                    await machine.resume()
            raise
    finally:
        os.close(target)
    return stood


async def _reserve(path: Path, size: int) -> None:
    """Make sure of the room for a file before anything depends on it. Raises OSError when there is none.

    A background save that fails for want of room leaves memory write-protected, and the machine hangs for
    good (`state`). Where a file system cannot reserve, the room was at least there a moment ago.
    """
    try:
        await run(["fallocate", "--keep-size", "--length", str(size), str(path)])
    except CommandFailed as error:
        if "No space left" in str(error.evidence.get("stderr", "")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


async def _save(
    machine: QemuInstance, target: int, disks: Sequence[DiskSwitch], *, runs: bool, stay: bool
) -> float:
    """runs: it is to run on. stay: its process will be ended with nothing but the file left of it."""
    sight = await look(machine)
    if sight is not None:
        try:
            stood = await (
                _save_running(sight, target, disks)
                if runs
                else _save_standing(sight, target, disks, flushed=stay)
            )
        finally:
            sight.close()
        if stood is not None:
            return stood
    return await background.save(machine, target, disks, runs=runs)


async def _save_running(sight: Sight, target: int, disks: Sequence[DiskSwitch]) -> float | None:
    """None: it would stand for long, or may not be read after all; nothing has happened then."""
    if sight.is_much():
        return None
    copy = MemoryCopy(sight.memory)
    try:
        try:
            await to_thread_end(partial(copy.prepare, whole=False))
        except PermissionError:
            return None
        if sight.is_much():
            return None
        stood, devices = await sight.stand(disks, copy.finish)
        await _write(target, sight.compose(devices, copy.pages(), whole=True))
    finally:
        copy.close()
    return stood


async def _save_standing(sight: Sight, target: int, disks: Sequence[DiskSwitch], *, flushed: bool) -> float:
    """flushed: what the guest has written must be in the disks' files; a migration would see to that."""
    if flushed:
        await flush(sight.machine.transfer.monitor.execute)
    devices = await sight.write_down(disks)
    await _write(target, sight.compose(devices, sight.memory.pages(), whole=True))
    return 0.0


async def _write(target: int, pieces: Iterable[bytes | memoryview]) -> None:
    """Raises OSError. Cancelled, it ends at once, with whatever is in the file by then."""
    given_up = threading.Event()

    def write() -> None:
        with os.fdopen(os.dup(target), "wb", buffering=_BUFFER) as stream:
            for piece in pieces:
                if given_up.is_set():
                    return
                stream.write(piece)

    await to_thread_end(write, give_up=given_up.set)

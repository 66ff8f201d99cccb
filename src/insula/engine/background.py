"""A live machine as it is at one moment, memory and disks, by its monitor's own means, while it goes on.

    vCPUs stand: disks go on in overlays, devices are written down ── run again
                          memory is written to a stream ──relay──> vessel, frozen once all is there

The vessel is a process with the machine's shape and memory to be shared, which never runs: what is loaded
into it becomes a template. It has no disks of its own: the state of a disk's device says nothing of what is
on the disk.

The stream is memory without a name, and a thread of ours carries it on. A pipe from one monitor to the other
would do, but a guest that writes to a page which is not saved yet waits until it is: a reader that is slow,
or hangs, would hold up the machine, and its monitor with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import threading
from collections.abc import Sequence

from insula.engine import frozen
from insula.engine.errors import EngineLost, EngineRefused
from insula.engine.instance import QemuInstance
from insula.engine.layers import switch
from insula.engine.plan import MEMORY
from insula.engine.protocol import DiskSwitch
from insula.engine.stream import ZeroFilter
from insula.kit.clock import monotonic

_LOOK = 0.005  # seconds between looks at how far the stream has grown
_CHUNK = 2**20  # bytes carried at a time; also the most that a pipe of a plain user's holds (pipe(7))


async def touch(machine: QemuInstance) -> None:
    """What may be done before `fill` or `save`, so that the machine stands for a shorter time."""
    if machine.plan.memory.template is not None:
        await asyncio.to_thread(frozen.touch_all, machine.identity.pid)


async def fill(machine: QemuInstance, vessel: QemuInstance, disks: Sequence[DiskSwitch]) -> float:
    """Copy the machine into the vessel, which has not begun. Returns the seconds in which its vCPUs stood.

    Raises EngineLost and EngineRefused; then the machine runs as it did before.
    """
    await machine.settle()
    stream = os.memfd_create("insula-stream", os.MFD_CLOEXEC)
    whole = threading.Event()
    try:
        runs = await machine.state() == "running"
        stood = await _send(machine, stream, disks, runs)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        relaying = asyncio.ensure_future(asyncio.to_thread(_relay, stream, writer, whole))
        try:
            try:
                receiving = asyncio.ensure_future(vessel.transfer.receive(reader))
                await machine.transfer.wait_sent()
                await machine.settle()
            finally:
                whole.set()
            await receiving
            if not await relaying:
                await frozen.dig_holes(vessel.identity.pid)
        finally:
            receiving.cancel()
            os.close(reader)  # ends the relay, should the vessel have died
            await asyncio.gather(relaying, receiving, return_exceptions=True)
    finally:
        os.close(stream)
    return stood


async def save(machine: QemuInstance, target: int, disks: Sequence[DiskSwitch], *, runs: bool) -> float:
    """Write the machine to a file. Returns the seconds in which its vCPUs stood; the file is whole then.

    runs: it does, and is to go on. Raises EngineLost and EngineRefused.
    """
    if runs:
        await touch(machine)
    stood = await _send(machine, target, disks, runs)
    await machine.transfer.wait_sent()
    return stood


def _relay(stream: int, writer: int, whole: threading.Event) -> bool:
    """Carry what is in the stream to the pipe, but for pages of zeros, until it is whole; closes the pipe.

    Returns whether all of these were left out. Raises OSError.
    """
    zeros, sent = ZeroFilter(MEMORY), 0
    try:
        with contextlib.suppress(OSError):  # beyond what this user's pipes may hold together: it stays small
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _CHUNK)
        while True:
            ended = whole.is_set()  # asked before the reading, so that nothing is missed
            while chunk := os.pread(stream, _CHUNK, sent):
                sent += len(chunk)
                for piece in zeros.feed(chunk):
                    _write(writer, piece)
            if ended:
                _write(writer, memoryview(zeros.end()))
                return zeros.thorough
            whole.wait(_LOOK)
    finally:
        os.close(writer)


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


async def _send(machine: QemuInstance, stream: int, disks: Sequence[DiskSwitch], runs: bool) -> float:
    """One that stood already has time: it is sent as it stands, and nobody lets it run for a moment."""
    began = monotonic()
    if runs:
        await machine.pause()
    try:
        await switch(machine.transfer.monitor.execute, machine.plan.directory, disks)
        in_background = await machine.transfer.send(stream, in_background=runs)
        if not in_background:
            await machine.transfer.wait_sent()
    except BaseException:
        with contextlib.suppress(EngineLost, EngineRefused):
            await machine.settle()
        raise
    finally:
        if runs:
            await machine.resume()
    return monotonic() - began if runs else 0.0

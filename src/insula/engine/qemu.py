"""QemuEngine: what `Engine` promises, put together from the modules of this room."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

from insula.engine import console, evidence, frozen, process
from insula.engine.background import fill, touch
from insula.engine.capture import capture
from insula.engine.errors import (
    EngineLost,
    EngineMissing,
    EngineRefused,
    LaunchFailed,
    MachineDirectoryBusy,
    TemplateGone,
)
from insula.engine.firmware import find_uefi
from insula.engine.inotify import CREATED, Watch, watching
from insula.engine.instance import QemuInstance
from insula.engine.plan import choose_accelerator, launched_ids, plan_from_json, plan_to_json, render
from insula.engine.probe import connect_when_listening, load_facts
from insula.engine.process import Process
from insula.engine.protocol import (
    OWN_MEMORY,
    BootFiles,
    DiskSwitch,
    EngineFacts,
    Instance,
    LaunchPlan,
    Memory,
    Uefi,
)
from insula.engine.qmp import Monitor
from insula.engine.saving import save
from insula.kit.aio import cancel_and_wait
from insula.kit.paths import (
    AGENT_SOCKET,
    COMMAND,
    DEVICE_STATE,
    EXIT_STATUS,
    LAUNCH_PLAN,
    PID_FILE,
    QGA_SOCKET,
    QMP_SOCKET,
    RUN_LOCK,
    SERIAL_SOCKET,
)
from insula.kit.run import CommandMissing, find_program, render_command
from insula.model.machine import Machine
from insula.model.observation import ExitEvidence

BINARY = "qemu-system-x86_64"
_SOCKETS = (QMP_SOCKET, AGENT_SOCKET, QGA_SOCKET, SERIAL_SOCKET)
_LAUNCH_TIMEOUT = 30.0  # seconds from spawn to the monitor's greeting; 0.05 s on an idle host
_ADOPT_TIMEOUT = 5.0  # seconds for a living monitor's greeting; 2 ms unless somebody else is connected
_SETTLE = 2.0  # seconds for a launch by somebody else to write its PID file, or for an end to be written down


class QemuEngine:
    """Machines as QEMU processes of this host. host_facts: where the answers of the probes are kept."""

    def __init__(self, host_facts: Path | None = None, binary: Path | None = None) -> None:
        self._host_facts = host_facts
        self._binary = binary
        self._facts: EngineFacts | None = None
        self._facts_lock = asyncio.Lock()
        self._live: dict[Path, QemuInstance] = {}
        self._turns: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()

    async def facts(self) -> EngineFacts:
        async with self._facts_lock:
            if self._facts is None:
                self._facts = await load_facts(self._find_binary(), self._host_facts)
            return self._facts

    def find_uefi(self, machine_type: str) -> Uefi | None:
        return find_uefi(machine_type)

    def _find_binary(self) -> Path:
        if self._binary is not None:
            return self._binary
        try:
            return Path(find_program(BINARY))
        except CommandMissing as error:
            raise EngineMissing("QEMU is not installed.", hint=error.hint) from error

    def plan(
        self,
        machine: Machine,
        files: BootFiles,
        directory: Path,
        facts: EngineFacts,
        memory: Memory = OWN_MEMORY,
    ) -> LaunchPlan:
        return render(machine, files, directory, facts, choose_accelerator(machine, facts), memory)

    async def launch(self, plan: LaunchPlan) -> QemuInstance:
        async with self._turn(plan.directory):
            plan.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = process.take_lock(plan.directory)
            while lock is None:
                living = await self._adopt(plan.directory)
                if living is not None:
                    return living
                lock = process.take_lock(plan.directory)
            try:
                memory = _open_memory(plan)
            except BaseException:
                os.close(lock)
                raise
            try:
                return await self._start(plan, lock, memory)
            finally:
                if memory is not None:
                    os.close(memory)

    async def freeze(self, instance: Instance) -> None:
        assert isinstance(instance, QemuInstance), "an instance of another engine"
        directory = instance.plan.directory
        memory = instance.open_memory()
        try:
            await instance.save_and_end(directory / DEVICE_STATE)
            frozen.seal(memory)
            self.forget(directory)
            await frozen.hold(directory, memory)
        finally:
            os.close(memory)

    async def capture(
        self, instance: Instance, vessel: LaunchPlan, disks: Sequence[DiskSwitch], *, forks: int = 1
    ) -> float:
        assert isinstance(instance, QemuInstance), "an instance of another engine"
        try:
            stood = await capture(instance, vessel.directory, disks, forks)
            if stood is None:
                stood = await self._capture_in_background(instance, vessel, disks)
        except BaseException:
            await self.discard(vessel.directory)
            raise
        return stood

    async def _capture_in_background(
        self, instance: QemuInstance, vessel: LaunchPlan, disks: Sequence[DiskSwitch]
    ) -> float:
        touching = asyncio.create_task(touch(instance), name=f"touch memory of {instance.plan.name}")
        try:
            taker = await self.launch(vessel)
            await touching
            stood = await fill(instance, taker, disks)
            await self.freeze(taker)
        finally:
            await cancel_and_wait(touching)
        return stood

    async def find_unsavable(self, instance: Instance, plan: LaunchPlan) -> list[str]:
        assert isinstance(instance, QemuInstance), "an instance of another engine"
        return sorted(await instance.device_ids() ^ launched_ids(plan))

    async def save(
        self, instance: Instance, path: Path, disks: Sequence[DiskSwitch], *, stay: bool = False
    ) -> float:
        assert isinstance(instance, QemuInstance), "an instance of another engine"
        return await save(instance, path, disks, stay=stay)

    def frozen_bytes(self, directory: Path) -> int | None:
        if not (directory / DEVICE_STATE).exists():
            return None
        return frozen.held_bytes(directory)

    async def discard(self, directory: Path) -> None:
        await frozen.release(directory)
        (directory / DEVICE_STATE).unlink(missing_ok=True)

    async def adopt(self, directory: Path) -> QemuInstance | None:
        async with self._turn(directory):
            if (directory / DEVICE_STATE).exists():
                return None  # a template: the process that lives there keeps its memory, and is no machine
            return await self._adopt(directory)

    def read_exit(self, directory: Path) -> ExitEvidence | None:
        identity = process.read_identity(directory)
        if identity is None or process.is_locked(directory):
            return None
        return evidence.collect(directory, process.read_exit_status(directory), identity=identity)

    def forget(self, directory: Path) -> None:
        """Raises MachineDirectoryBusy while a process lives there."""
        if process.is_locked(directory):
            raise MachineDirectoryBusy(
                f"A process still runs in {directory}.", hint="End the machine first: insula kill."
            )
        for name in (*_SOCKETS, PID_FILE, EXIT_STATUS, RUN_LOCK):
            (directory / name).unlink(missing_ok=True)

    def follow_log(self, directory: Path, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        return console.follow_log(directory, follow=follow, tail=tail)

    async def close(self) -> None:
        """Detach from every machine; they live on."""
        living = [instance for instance in self._live.values() if instance.is_live]
        self._live.clear()
        await asyncio.gather(*(instance.detach() for instance in living))

    @contextlib.asynccontextmanager
    async def _turn(self, directory: Path) -> AsyncIterator[None]:
        """One launch or adoption of a directory at a time, as the lock on disk does between processes."""
        lock = self._turns.setdefault(directory, asyncio.Lock())
        async with lock:
            yield

    # Launch

    async def _start(self, plan: LaunchPlan, lock: int, memory: int | None) -> QemuInstance:
        try:
            with watching(plan.directory, CREATED) as created:
                try:
                    _prepare(plan)
                    child = await process.start(plan.argv, plan.directory, lock, _LAUNCH_TIMEOUT, memory)
                except BaseException:
                    os.close(lock)
                    await process.wait_unlocked(plan.directory, _SETTLE)
                    raise
                os.close(lock)  # QEMU and the supervisor hold it now; ours would outlive them
                if child is None:
                    raise EngineLost("QEMU ended at once.")
                try:
                    instance = QemuInstance(plan, child, await _first_contact(plan, child, created))
                except BaseException:
                    await child.end()
                    raise
            try:
                if plan.memory.wakes:
                    state = _open_state(plan)
                    try:
                        await instance.wake(state, whole=plan.memory.saved is not None)
                    finally:
                        os.close(state)
            except BaseException:
                await instance.kill()
                raise
        except (EngineLost, EngineRefused, TimeoutError, OSError) as error:
            raise self._explain(plan, error) from error
        self._live[plan.directory] = instance
        return instance

    def _explain(self, plan: LaunchPlan, error: Exception) -> LaunchFailed:
        status = process.read_exit_status(plan.directory)
        found = evidence.collect(plan.directory, status)
        for name in (*_SOCKETS, PID_FILE, EXIT_STATUS):
            (plan.directory / name).unlink(missing_ok=True)
        if isinstance(error, TimeoutError):
            how = f"did not answer within {_LAUNCH_TIMEOUT:.0f}s"
        else:
            how = f"ended with status {status}" if status is not None else "could not be started"
        return LaunchFailed(
            f"Machine '{plan.name}' could not be launched: QEMU {how}.",
            hint=_hint(found.stderr),
            evidence={
                "exit_status": status,
                "command": found.command,
                "stderr": found.stderr,
                "serial": found.serial,
            },
        )

    # Adoption

    async def _adopt(self, directory: Path) -> QemuInstance | None:
        known = self._live.get(directory)
        if known is not None and known.is_live:
            return known
        self._live.pop(directory, None)
        child = await _find_process(directory)
        if child is None:
            return None
        try:
            plan = plan_from_json((directory / LAUNCH_PLAN).read_text(), directory)
            monitor = await _contact(directory / QMP_SOCKET, plan.name, child)
            if monitor is None:
                return None
            instance = QemuInstance(plan, child, monitor)
        except (OSError, ValueError, EngineLost, TimeoutError) as error:
            child.close()
            raise MachineDirectoryBusy(
                f"Process {child.identity.pid} lives in {directory}, and its monitor cannot be spoken to.",
                hint="Another daemon may hold it. Stop that one, or end the process.",
                evidence={"pid": child.identity.pid},
            ) from error
        except BaseException:
            child.close()
            raise
        with contextlib.suppress(EngineLost):
            if plan.memory.wakes and await instance.lacks_state():
                # Who launched it died before it had what it was to wake up with. Let run, it would never do
                # anything; nothing has run in it yet, so nothing is lost with it.
                await instance.kill()
                self.forget(directory)
                return None
            await instance.synchronise()
        self._live[directory] = instance
        return instance


def _open_memory(plan: LaunchPlan) -> int | None:
    """The memory that a machine shares, new or a template's, to be closed once it is launched."""
    if plan.memory.template is not None:
        found = frozen.open_memory(plan.memory.template)
        if found is None:
            raise _template_gone(plan)
        return found
    return frozen.create_memory(plan.memory_bytes) if plan.memory.shareable else None


def _open_state(plan: LaunchPlan) -> int:
    """What a machine that goes on with something is to load, to be closed. Raises TemplateGone, OSError."""
    template, saved = plan.memory.template, plan.memory.saved
    if saved is not None:
        return os.open(saved.path, os.O_RDONLY | os.O_CLOEXEC)
    assert template is not None, "nothing else goes on with something"
    if not frozen.keeps_state(template):
        return os.open(template / DEVICE_STATE, os.O_RDONLY | os.O_CLOEXEC)
    kept = frozen.open_state(template)
    if kept is None:
        raise _template_gone(plan)
    return kept


def _template_gone(plan: LaunchPlan) -> TemplateGone:
    return TemplateGone(
        f"Machine '{plan.name}' cannot be a fork: the memory of its template is not there any more.",
        hint="Try again: a new template is made. Or boot it: --cold.",
    )


async def _find_process(directory: Path) -> Process | None:
    """The live process of a directory; None when none lives.

    Raises MachineDirectoryBusy when the one that lives is not the one that the PID file names.
    """
    if not process.is_locked(directory):
        return None
    child = Process.open(directory)
    if child is None and not await process.wait_unlocked(directory, _SETTLE):
        child = Process.open(directory)
        if child is None:
            raise MachineDirectoryBusy(
                f"A process holds the lock in {directory}, and the PID file there does not name it.",
                hint=f"See which: fuser {directory / RUN_LOCK}",
            )
    return child


async def _contact(path: Path, name: str, child: Process) -> Monitor | None:
    """The monitor of a process that runs already; None when the process ends meanwhile."""
    connecting = asyncio.create_task(Monitor.connect(path, name, _ADOPT_TIMEOUT), name="connect")
    ending = asyncio.create_task(child.wait(), name="end")
    try:
        await asyncio.wait({connecting, ending}, return_when=asyncio.FIRST_COMPLETED)
        if connecting.done() and connecting.exception() is None:
            return connecting.result()
        if connecting.done():  # a dying process closes its sockets before its pidfd tells
            await asyncio.wait({ending}, timeout=0.2)
        if ending.done():
            await child.exit_status()
            child.close()
            return None
        return await connecting
    finally:
        await cancel_and_wait(connecting, ending)


async def _first_contact(plan: LaunchPlan, child: Process, created: Watch) -> Monitor:
    """The monitor of a process that was just spawned. Raises EngineLost if it ends, and TimeoutError."""
    ending = asyncio.create_task(child.wait(), name="end")
    connecting = asyncio.create_task(_await_monitor(plan, created), name="connect")
    try:
        async with asyncio.timeout(_LAUNCH_TIMEOUT):
            await asyncio.wait({connecting, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not connecting.done():
            raise EngineLost("QEMU ended before its monitor answered.")
        return connecting.result()
    finally:
        await cancel_and_wait(connecting, ending)


async def _await_monitor(plan: LaunchPlan, created: Watch) -> Monitor:
    """QEMU binds its sockets early and greets once it can be spoken to, so connecting early loses no time."""
    path = plan.directory / QMP_SOCKET
    while not path.exists():
        await created.wait()
    return await connect_when_listening(path, plan.name, _LAUNCH_TIMEOUT)


def _prepare(plan: LaunchPlan) -> None:
    """Write down what is about to run, and clear away what ran before. Only with the lock in hand."""
    for name in (*_SOCKETS, PID_FILE, EXIT_STATUS):
        (plan.directory / name).unlink(missing_ok=True)
    _replace(plan.directory / LAUNCH_PLAN, plan_to_json(plan), 0o600)
    command = render_command(plan.argv, plan.directory)
    script = f"#!/bin/sh\n# How the machine '{plan.name}' was started.\n{command}\n"
    _replace(plan.directory / COMMAND, script, 0o700)


def _replace(path: Path, text: str, mode: int) -> None:
    """Replace a file without waiting for the disk (10 ms and more): if the host goes, QEMU goes too."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.chmod(mode)
    temporary.replace(path)


def _hint(stderr: str) -> str:
    """What to do about the commonest refusals, by QEMU's own words (7.2 to 10.0)."""
    if "Could not set up host forwarding rule" in stderr:
        return "A published port is taken on the host: choose another one."
    if "Cannot allocate memory" in stderr or "cannot set up guest memory" in stderr:
        return "The host has not enough free memory: stop a machine, or give this one less."
    if 'Failed to get "write" lock' in stderr or "Failed to get shared" in stderr:
        return "Another process uses the disk's file."
    if "Permission denied" in stderr:
        return "Check who may read the files named in the evidence."
    return "The evidence has QEMU's own words and the command to try by hand."

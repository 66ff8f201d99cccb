"""A live machine: its monitor's events as ours, its requests, and how it ended. Its guest: `ports`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from insula.engine import evidence
from insula.engine.agent.protocol import Agent
from insula.engine.cdrom import QemuDrive
from insula.engine.controller import ScsiController
from insula.engine.disks import QemuDisks
from insula.engine.errors import EngineLost
from insula.engine.layers import disk_of_node
from insula.engine.plan import MEMORY_DESCRIPTOR
from insula.engine.ports import GuestPorts, Situation
from insula.engine.process import Process, read_stat, resident_bytes
from insula.engine.protocol import (
    AgentPortChanged,
    Console,
    EngineEvent,
    Exited,
    GuestPanicked,
    GuestReset,
    LaunchPlan,
    Paused,
    Resumed,
    RunState,
    ShuttingDown,
    TrayMoved,
)
from insula.engine.qmp import Event, Monitor
from insula.engine.state import StateTransfer
from insula.kit.aio import Cell, Crew
from insula.kit.clock import monotonic
from insula.kit.paths import QMP_SOCKET
from insula.model.observation import ExitEvidence, ProcessIdentity

_log = logging.getLogger(__name__)

_DEVICES_AT_MOST = 32 * 2**20  # bytes of a state beside memory: devices, firmware, video
_DYING = 0.2  # seconds between the end of a process' connections and the news of its own, at most
_DRAIN = 0.5  # seconds the monitor's last events get to arrive once the process has ended
_FIRMWARE_RESETS = (
    1.0  # seconds after a reset in which SeaBIOS resets once or twice more, to find itself clean
)
_RECONNECT = 5.0  # seconds between attempts to reach a monitor whose session broke while it lives

# qapi/run-state.json, RunState: why the vCPUs stand, in words.
_WHY_PAUSED = {
    "paused": "Paused by request.",
    "io-error": "A disk cannot be written or read on the host.",
    "internal-error": "The virtual processor met something that the accelerator cannot run.",
    "guest-panicked": "The guest's kernel has panicked.",
    "watchdog": "The guest's watchdog ran out.",
    "suspended": "The guest has suspended itself to memory.",
    "shutdown": "The guest has shut down.",
    "save-vm": "The machine is being saved.",
    "postmigrate": "The machine has been moved.",
}


class QemuInstance:
    """See `Instance`. Made by `QemuEngine`; owns the process's descriptors and the monitor's session."""

    def __init__(self, plan: LaunchPlan, process: Process, monitor: Monitor) -> None:
        self.plan = plan
        self.identity: ProcessIdentity = process.identity
        self._process = process
        self._monitor = monitor
        self.transfer = StateTransfer(monitor, plan.name, process.identity.pid, by_path=plan.state_files)
        self._events: asyncio.Queue[EngineEvent | None] = asyncio.Queue()
        self._situation = Cell(Situation())
        self._shutdown: Mapping[str, Any] | None = None
        self._io_error: str = ""
        self._last_reset = -_FIRMWARE_RESETS
        self._killed = False
        self._woken = False  # a fork that was given its state, and has not run yet
        self._untold: Counter[str] = Counter()  # events that are of our own making
        self._was_resumed = False  # QEMU calls a machine that was reset while paused 'prelaunch' again
        self._ports = GuestPorts(plan, self._situation, self._is_dying)
        self._controller = ScsiController(plan.name, self._execute)
        self.disks = QemuDisks(plan, self._execute, self._controller)
        self.drive = QemuDrive(plan, self._execute, self._controller)
        self._crew = Crew(self._failed)
        self._pump = self._crew.start(self._pump_events(), f"events of {plan.name}")
        self._watcher = self._crew.start(self._watch_exit(), f"exit of {plan.name}")

    def _failed(self, task: str, error: BaseException) -> None:
        _log.error("A task of the engine failed: %s", task, exc_info=error)

    # What it tells

    async def events(self) -> AsyncIterator[EngineEvent]:
        while (event := await self._events.get()) is not None:
            yield event
            if isinstance(event, Exited):
                return

    async def state(self) -> RunState:
        status = str((await self._execute("query-status"))["status"])
        if not self._was_resumed and (status in ("prelaunch", "inmigrate") or self._woken):
            return "prepared"
        return "running" if status == "running" else "paused"

    async def lacks_state(self) -> bool:
        """Whether it has not been given all of what it was to wake up with. Raises EngineLost."""
        return bool((await self._execute("query-status"))["status"] == "inmigrate")

    async def synchronise(self) -> None:
        """Learn what events would have told, had we been there. Raises EngineLost."""
        state = await self.state()
        self._was_resumed = state != "prepared"
        port_open = False
        # QEMU calls its side of a virtio-serial port's socket open once the guest has opened the port.
        if self.plan.agent is not None:
            sockets = await self._execute("query-chardev")
            name = self._ports.agent_socket
            port_open = any(entry["frontend-open"] for entry in sockets if name in entry["filename"])
        self._situation.set(replace(self._situation.value, running=state == "running", port_open=port_open))

    async def wake(self, state: int, *, whole: bool = False) -> None:
        """Take the state of a frozen machine; learn how that one was. whole: with its memory.

        Raises EngineLost, EngineRefused, OSError.
        """
        await self._ports.reserve()
        await self.transfer.load(state, whole=whole)
        self._woken = True
        await self.synchronise()
        if self._situation.value.port_open:
            self._tell(AgentPortChanged(open=True))

    async def _pump_events(self) -> None:
        """Translate until the process ends; a session that breaks before is opened again."""
        while True:
            async for event in self._monitor.events():
                with contextlib.suppress(EngineLost):
                    await self._translate(event)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN):
                    await self._process.wait()
            while not self._process.has_ended and not self._monitor.is_open:
                await self._reconnect()
            if self._process.has_ended:
                return

    async def _reconnect(self) -> None:
        await self._monitor.close()
        try:
            path = self.plan.directory / QMP_SOCKET
            self._monitor = await Monitor.connect(path, self.plan.name, _RECONNECT)
            self.transfer.monitor = self._monitor
            self._untold.clear()
            await self.synchronise()
            _log.warning("The monitor of machine '%s' was lost and found again", self.plan.name)
        except (EngineLost, TimeoutError):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RECONNECT):
                    await self._process.wait()

    async def _translate(self, event: Event) -> None:
        data = event.get("data", {})
        situation = self._situation.value
        if self._untold[event["event"]] > 0:
            self._untold[event["event"]] -= 1
            return
        match event["event"]:
            case "RESUME":
                self._io_error, self._was_resumed = "", True
                self._situation.set(replace(situation, running=True))
                self._tell(Resumed())
            case "STOP" if self._shutdown is None:  # a monitor that ends stops its vCPUs too
                self._situation.set(replace(situation, running=False))
                self._tell(await self._why_paused())
            case "BLOCK_IO_ERROR":
                full = "is full" if data.get("nospace") else f"fails ({data.get('reason', 'unknown')})"
                named = data.get("device") or disk_of_node(str(data.get("node-name", "?")))
                self._io_error = f"The host's storage under disk '{named}' {full}."
            case "RESET":
                await self._was_reset(by_guest=bool(data.get("guest")))
            case "SHUTDOWN":
                self._shutdown = data
                self._tell(ShuttingDown(by_guest=bool(data.get("guest"))))
            case "GUEST_PANICKED":
                self._tell(GuestPanicked())
            case "DEVICE_DELETED" if "device" in data:
                self.disks.hear_released(str(data["device"]))
                self._controller.hear_released(str(data["device"]))
                self.drive.hear()
            case "DEVICE_TRAY_MOVED":
                self.drive.hear()
                self._tell(TrayMoved(open=bool(data["tray-open"])))
            case "MIGRATION":
                self.transfer.heard(event)
            case "BLOCK_JOB_PENDING" | "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED":
                self.disks.merges.hear()
            case "VSERPORT_CHANGE":
                await self._port_changed(bool(data["open"]))

    async def _why_paused(self) -> Paused:
        status = str((await self._execute("query-status"))["status"])
        if status == "io-error":
            return Paused(self._io_error or _WHY_PAUSED[status], io_error=True)
        if status == "running":  # resumed since
            status = "paused"
        return Paused(_WHY_PAUSED.get(status, f"The virtual processors stand ({status})."))

    async def _was_reset(self, by_guest: bool) -> None:
        """A reset closes the agent's port; VSERPORT_CHANGE may say so a second late (see `_port_changed`)."""
        now = monotonic()
        if by_guest and now - self._last_reset < _FIRMWARE_RESETS:
            return
        self._last_reset = now
        await self._port_changed(False)
        self._tell(GuestReset(by_guest=by_guest))

    async def _port_changed(self, is_open: bool) -> None:
        """QEMU tells of one change a second and keeps the last: 'open' twice hides a 'closed' between."""
        if not is_open and not self._situation.value.port_open:
            return
        if is_open:
            await self._ports.drop_agent()
        self._situation.set(replace(self._situation.value, port_open=is_open))
        if not is_open:
            await self._ports.drop_agent()
        self._tell(AgentPortChanged(open=is_open))

    def _tell(self, event: EngineEvent) -> None:
        self._events.put_nowait(event)

    # What is asked of it

    async def resume(self) -> None:
        await self._execute("cont")

    async def pause(self) -> None:
        await self._execute("stop")

    async def reset(self) -> None:
        await self._execute("system_reset")

    async def press_power_button(self) -> None:
        await self._execute("system_powerdown")

    async def processor_seconds(self) -> float:
        stat = read_stat(self.identity.pid)
        return stat.processor_seconds if stat is not None else 0.0

    async def saved_bytes(self) -> int:
        """What is in use of its memory, its own and what it shares, and a mark for each page that is not."""
        used = resident_bytes(self.identity.pid)
        with contextlib.suppress(OSError):
            used += Path(f"/proc/{self.identity.pid}/fd/{MEMORY_DESCRIPTOR}").stat().st_blocks * 512
        whole = self.plan.memory_bytes
        return min(used, whole) + whole // 256 + _DEVICES_AT_MOST

    async def settle(self) -> None:
        """Give up what is under way of its state; one that was saved as it stood is a paused one again.

        QEMU takes it to have moved away (postmigrate): it is not saved a second time, its disks are nobody's,
        and to change one ends the monitor (an assertion in 7.2). Only `cont` brings it back, so both requests
        are made at once; the guest runs for a fraction of a millisecond. Nobody is told.
        """
        await self.transfer.cancel()
        if (await self._execute("query-status"))["status"] == "postmigrate":
            self._untold.update(("RESUME", "STOP"))
            await asyncio.gather(self.resume(), self.pause())

    async def device_ids(self) -> frozenset[str]:
        """The ids of all devices that have one."""
        found = await self._execute("qom-list", path="/machine/peripheral")
        return frozenset(str(entry["name"]) for entry in found if str(entry["type"]).startswith("child<"))

    async def _execute(self, command: str, **arguments: Any) -> Any:
        return await self._monitor.execute(command, **arguments)

    # Freezing it

    def open_memory(self) -> int:
        """A descriptor of the memory of a machine launched with shareable memory. Raises EngineLost."""
        try:
            return os.open(f"/proc/{self.identity.pid}/fd/{MEMORY_DESCRIPTOR}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise EngineLost(f"Machine '{self.plan.name}' ended before it could be frozen.") from error

    async def save_and_end(self, path: Path) -> None:
        """Stop the vCPUs for good, write the state of the devices to `path`, and end the process."""
        await self._ports.drop_agent()
        await self.pause()
        await self.transfer.save(path)
        await self._execute("quit")
        await self.wait_exit()

    # Its end

    async def kill(self) -> ExitEvidence:
        self._killed = True
        self._process.kill()
        return await self.wait_exit()

    async def wait_exit(self) -> ExitEvidence:
        ended = await self._situation.wait_until(lambda situation: situation.exit is not None)
        assert ended.exit is not None
        return ended.exit

    async def _watch_exit(self) -> None:
        await self._process.wait()
        await asyncio.wait({self._pump}, timeout=_DRAIN)
        status = await self._process.exit_status()
        found = evidence.collect(
            self.plan.directory,
            status,
            killed=self._killed,
            shutdown=self._shutdown,
            identity=self.identity,
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN):
                await self._close_connections()
        self._process.close()
        self.transfer.lost()
        self._situation.set(Situation(exit=found))
        self._tell(Exited(found))

    async def detach(self) -> None:
        if self._process.has_ended:  # let the watcher close what it is closing
            await asyncio.wait({self._watcher}, timeout=2 * _DRAIN)
        await self._crew.close()
        await self._close_connections()
        self._process.close()
        self._events.put_nowait(None)

    @property
    def is_live(self) -> bool:
        """Whether it has neither ended nor been detached."""
        return not self._watcher.done()

    async def _close_connections(self) -> None:
        await self._ports.close()
        await self._monitor.close()

    # Its agent and console

    async def agent(self, timeout: float) -> Agent:
        return await self._ports.agent(timeout)

    async def console(self) -> Console:
        return await self._ports.console()

    async def _is_dying(self) -> bool:
        """A dying process closes its sockets before its pidfd tells."""
        await asyncio.wait({self._watcher}, timeout=_DYING)
        return self._process.has_ended

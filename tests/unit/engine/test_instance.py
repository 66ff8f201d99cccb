"""What a monitor says, as the engine's events: against a monitor of a few lines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from insula.engine import instance as instance_module
from insula.engine.errors import EngineRefused
from insula.engine.instance import QemuInstance
from insula.engine.protocol import (
    AgentPortChanged,
    EngineEvent,
    Exited,
    GuestPanicked,
    GuestReset,
    LaunchPlan,
    Paused,
    Resumed,
    ShuttingDown,
)
from insula.engine.qmp import Monitor
from insula.kit.aio import Cell
from insula.kit.paths import EXIT_STATUS, QMP_SOCKET
from insula.model.observation import AcceleratorFact, ProcessIdentity


class ScriptedMonitor:
    """Answers each command from `answers`, else with nothing; sends the events it is told to."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"query-status": {"status": "running"}}
        self.asked = Cell("")  # the last command that was answered
        self._writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
        self._send({"QMP": {"version": version, "capabilities": []}})
        while data := await reader.read(65536):
            request = json.loads(data)  # one request at a time, and no newline after it
            answer = self.answers.get(request["execute"], {})
            if isinstance(answer, Exception):
                self._send({"error": {"class": "GenericError", "desc": str(answer)}, "id": request.get("id")})
            else:
                self._send({"return": answer, "id": request.get("id")})
            self.asked.set(request["execute"])
        writer.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._writer is not None
        message = {key: value for key, value in message.items() if value is not None}
        self._writer.write(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: Any) -> None:
        self._send({"event": name, "data": data, "timestamp": {"seconds": 0, "microseconds": 0}})

    def hang_up(self) -> None:
        assert self._writer is not None
        self._writer.close()


class StubProcess:
    """A process that ends when told to."""

    def __init__(self, directory: Path) -> None:
        self.identity = ProcessIdentity(pid=1, start_time=1, boot_id="other")
        self.directory = directory
        self._ended = asyncio.Event()

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    async def wait(self) -> None:
        await self._ended.wait()

    async def exit_status(self) -> int | None:
        return 0

    def kill(self) -> None:
        self._ended.set()

    def close(self) -> None:
        pass


class Stage:
    def __init__(self, monitor: ScriptedMonitor, instance: QemuInstance, process: StubProcess) -> None:
        self.monitor = monitor
        self.instance = instance
        self.process = process
        self.events = instance.events()

    async def next(self) -> EngineEvent:
        async with asyncio.timeout(5):
            return await anext(self.events)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    monitor = ScriptedMonitor()
    server = await asyncio.start_unix_server(monitor.serve, tmp_path / QMP_SOCKET)
    tcg = AcceleratorFact(name="tcg", reason="")
    plan = LaunchPlan("u", "web", tmp_path, ("qemu",), tcg, "7.2.0", "insula", False)
    process = StubProcess(tmp_path)
    session = await Monitor.connect(tmp_path / QMP_SOCKET, "web", 5)
    instance = QemuInstance(plan, process, session)  # type: ignore[arg-type]
    yield Stage(monitor, instance, process)
    await instance.detach()
    server.close()


async def test_simple_events(stage: Stage) -> None:
    stage.monitor.event("RESUME")
    assert await stage.next() == Resumed()
    stage.monitor.event("GUEST_PANICKED", action="pause")
    assert await stage.next() == GuestPanicked()
    stage.monitor.event("SHUTDOWN", guest=True, reason="guest-shutdown")
    assert await stage.next() == ShuttingDown(by_guest=True)
    stage.monitor.event("SOMETHING_NEW", x=1)
    stage.monitor.event("RESUME")
    assert await stage.next() == Resumed()


async def test_a_full_disk_is_named(stage: Stage) -> None:
    stage.monitor.answers["query-status"] = {"status": "io-error"}
    stage.monitor.event(
        "BLOCK_IO_ERROR", device="", qom_path="/x", nospace=True, reason="No space left on device"
    )
    stage.monitor.event("STOP")
    paused = await stage.next()
    assert isinstance(paused, Paused)
    assert paused.io_error
    assert "is full" in paused.reason


@pytest.mark.parametrize(
    ("status", "words", "io_error"),
    [("paused", "request", False), ("internal-error", "cannot run", False), ("io-error", "disk", True)],
)
async def test_why_it_stands(stage: Stage, status: str, words: str, io_error: bool) -> None:
    stage.monitor.answers["query-status"] = {"status": status}
    stage.monitor.event("STOP")
    paused = await stage.next()
    assert isinstance(paused, Paused)
    assert words in paused.reason
    assert paused.io_error is io_error


async def test_the_stop_of_an_ending_monitor_is_no_pause(stage: Stage) -> None:
    stage.monitor.event("SHUTDOWN", guest=False, reason="host-signal")
    stage.monitor.event("STOP")
    stage.monitor.event("RESUME")
    assert [await stage.next(), await stage.next()] == [ShuttingDown(by_guest=False), Resumed()]


async def test_a_reset_closes_the_agents_port_and_the_firmwares_own_are_not_told(stage: Stage) -> None:
    stage.monitor.event("VSERPORT_CHANGE", id="agent0", open=True)
    stage.monitor.event("RESET", guest=False, reason="host-qmp-system-reset")
    stage.monitor.event("RESET", guest=True, reason="guest-reset")
    stage.monitor.event("VSERPORT_CHANGE", id="agent0", open=False)
    stage.monitor.event("VSERPORT_CHANGE", id="agent0", open=True)
    assert [await stage.next() for _ in range(4)] == [
        AgentPortChanged(open=True),
        AgentPortChanged(open=False),
        GuestReset(by_guest=False),
        AgentPortChanged(open=True),
    ]


async def test_a_reset_by_the_guest_itself(stage: Stage) -> None:
    stage.monitor.event("RESET", guest=True, reason="guest-reset")
    assert await stage.next() == GuestReset(by_guest=True)


async def test_a_refusal_carries_request_and_answer(stage: Stage) -> None:
    stage.monitor.answers["cont"] = RuntimeError("Resetting the Virtual Machine is required")
    with pytest.raises(EngineRefused) as caught:
        await stage.instance.resume()
    assert caught.value.evidence["request"]["execute"] == "cont"
    assert "is required" in caught.value.evidence["answer"]


async def test_a_broken_session_is_opened_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_module, "_DRAIN", 0.01)
    stage.monitor.answers["query-chardev"] = []
    stage.monitor.hang_up()
    async with asyncio.timeout(5):
        await stage.monitor.asked.wait_until(lambda command: command == "query-chardev")
    stage.monitor.event("RESUME")
    assert await stage.next() == Resumed()
    assert await stage.instance.state() == "running"


async def test_events_that_come_with_the_end_are_told_before_it(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / EXIT_STATUS).write_text("0\n")
    stage.monitor.event("SHUTDOWN", guest=True, reason="guest-shutdown")
    stage.monitor.hang_up()
    stage.process.kill()
    assert await stage.next() == ShuttingDown(by_guest=True)
    last = await stage.next()
    assert isinstance(last, Exited)
    assert last.evidence.cause == "host-reboot"  # the stub says that it is of another boot

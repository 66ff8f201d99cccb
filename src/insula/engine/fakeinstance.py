"""A live machine of the fake engine, and its console (`fake`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from insula.engine.agent.protocol import Agent, silent
from insula.engine.errors import ConsoleBusy, EngineLost, NoAgent, NoConsole
from insula.engine.fakeguest import FakeAgent
from insula.engine.protocol import Console, EngineEvent, Exited, RunState
from insula.model.observation import ExitEvidence

if TYPE_CHECKING:
    from insula.engine.fake import FakeMachine


class FakeConsole:
    """A serial port whose guest echoes what is typed. See Console."""

    def __init__(self, machine: FakeMachine) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()
        self._machine = machine

    async def read(self) -> bytes:
        data = await self.received.get()
        if not data:
            self.received.put_nowait(b"")  # the end stays the end
        return data

    async def write(self, data: bytes) -> None:
        if self._machine.exit.value is not None:
            raise EngineLost("The machine ended while the console was written to.")
        self._machine.print(data.decode(errors="replace").replace("\r", "\r\n"))

    async def close(self) -> None:
        if self._machine.console is self:
            self._machine.console = None
        self.received.put_nowait(b"")


class FakeInstance:
    """See Instance."""

    def __init__(self, machine: FakeMachine) -> None:
        self.plan = machine.plan
        self.identity = machine.identity
        self.queue: asyncio.Queue[EngineEvent | None] = asyncio.Queue()
        self.disks = machine.disks
        self.drive = machine.drive
        self._machine = machine
        machine.instance = self

    def _living(self) -> FakeMachine:
        if self._machine.exit.value is not None or self._machine.instance is not self:
            raise EngineLost(f"The monitor of machine '{self.plan.name}' ended before it answered.")
        return self._machine

    async def events(self) -> AsyncIterator[EngineEvent]:
        while (event := await self.queue.get()) is not None:
            yield event
            if isinstance(event, Exited):
                return

    async def state(self) -> RunState:
        return self._living().state

    async def resume(self) -> None:
        self._living().resume()

    async def pause(self) -> None:
        self._living().pause()

    async def reset(self) -> None:
        self._living().reset(by_guest=False)

    async def press_power_button(self) -> None:
        machine = self._living()
        machine.power_button_presses += 1
        machine.asked_to_power_off()

    async def processor_seconds(self) -> float:
        self._living()
        return 0.0

    async def saved_bytes(self) -> int:
        self._living()
        return 0

    async def kill(self) -> ExitEvidence:
        self._machine.kill()
        return await self.wait_exit()

    async def wait_exit(self) -> ExitEvidence:
        found = await self._machine.exit.wait_until(lambda evidence: evidence is not None)
        assert found is not None
        return found

    async def agent(self, timeout: float) -> Agent:
        if self.plan.agent is None:
            raise NoAgent(f"Machine '{self.plan.name}' has no port for a guest agent.")
        try:
            async with asyncio.timeout(timeout):
                return await self._reach_agent()
        except TimeoutError:
            raise silent(f"The guest agent of machine '{self.plan.name}'", timeout) from None

    async def _reach_agent(self) -> Agent:
        machine = self._living()
        opened = asyncio.create_task(machine.port_open.wait_until(bool))
        ended = asyncio.create_task(machine.exit.wait_until(lambda evidence: evidence is not None))
        try:
            await asyncio.wait({opened, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise EngineLost(f"Machine '{self.plan.name}' ended before its guest agent answered.")
            if machine.script.agent == "silent":
                await ended
        finally:
            opened.cancel()
            ended.cancel()
        if machine.agent is None or machine.agent.lost:
            machine.agent = FakeAgent(machine, self.plan.agent or "insula")
        return machine.agent

    async def console(self) -> Console:
        machine = self._living()
        if not self.plan.has_console:
            raise NoConsole(f"Machine '{self.plan.name}' has no serial console.")
        if machine.console is not None:
            raise ConsoleBusy(f"Somebody else holds the console of machine '{self.plan.name}'.")
        machine.console = FakeConsole(machine)
        return machine.console

    async def detach(self) -> None:
        if self._machine.instance is self:
            self._machine.instance = None
            if self._machine.agent is not None:
                await self._machine.agent.close()
                self._machine.agent = None
            if self._machine.console is not None:
                await self._machine.console.close()
        self.queue.put_nowait(None)

"""By what a live machine's guest is spoken with: its agent's port, and its console.

The agent is connected when somebody wants it, shared, and connected anew when it was lost. Nothing is sent to
its port before the vCPUs run and the guest has opened it: what is sent earlier may hang for good. To be
connected earlier does no harm (`reserve`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from insula.engine.agent.port import Port, open_port
from insula.engine.agent.protocol import Agent, AgentLost, AgentSilent, silent
from insula.engine.console import SerialConsole
from insula.engine.errors import ConsoleBusy, EngineLost, NoAgent, NoConsole
from insula.engine.protocol import Console, LaunchPlan
from insula.kit.aio import Cell
from insula.kit.clock import monotonic
from insula.kit.paths import AGENT_SOCKET, QGA_SOCKET, SERIAL_SOCKET
from insula.model.observation import ExitEvidence


@dataclass(frozen=True)
class Situation:
    """What agents and waiters need to know of a machine, kept current by its events."""

    running: bool = False
    port_open: bool = False
    exit: ExitEvidence | None = None


class GuestPorts:
    """Of one machine. is_dying: waits a moment for the news of its end; whether it came."""

    def __init__(
        self, plan: LaunchPlan, situation: Cell[Situation], is_dying: Callable[[], Awaitable[bool]]
    ) -> None:
        self._plan = plan
        self._situation = situation
        self._is_dying = is_dying
        self._agent: Agent | None = None
        self._reserved: Port | None = None  # the agent's, for the first who wants it
        self._agent_lock = asyncio.Lock()
        self._console: SerialConsole | None = None
        self._console_taken = False

    @property
    def agent_socket(self) -> str:
        return QGA_SOCKET if self._plan.agent == "qemu" else AGENT_SOCKET

    async def agent(self, timeout: float) -> Agent:
        """See `Instance.agent`."""
        if self._plan.agent is None:
            raise NoAgent(
                f"Machine '{self._plan.name}' has no port for a guest agent.",
                hint="Make the machine from an image that has an agent, without --agent none.",
            )
        began = monotonic()
        try:
            async with asyncio.timeout(timeout):
                return await self._reach_agent(timeout)
        except TimeoutError:
            raise silent(f"The guest agent of machine '{self._plan.name}'", timeout) from None
        except AgentSilent as error:
            if await self._is_dying():  # perhaps nobody listens any more
                raise self._ended_silently() from error
            waited = monotonic() - began
            raise silent(f"The guest agent of machine '{self._plan.name}'", waited, error) from None

    def _ended_silently(self) -> EngineLost:
        return EngineLost(f"Machine '{self._plan.name}' ended before its guest agent answered.")

    async def _reach_agent(self, timeout: float) -> Agent:
        async with self._agent_lock:
            while True:
                if self._agent is not None and not _is_lost(self._agent):
                    return self._agent
                await self.drop_agent()
                now = await self._situation.wait_until(
                    lambda s: s.exit is not None or (s.running and s.port_open)
                )
                if now.exit is not None:
                    raise self._ended_silently()
                with contextlib.suppress(AgentLost):
                    self._agent = await self._connect_agent(timeout)

    async def _connect_agent(self, timeout: float) -> Agent:
        path = self._plan.directory / self.agent_socket
        reserved, self._reserved = self._reserved, None
        if self._plan.agent == "qemu":
            from insula.engine.agent import qga

            return await qga.connect(path, timeout=timeout, port=reserved)
        from insula.engine.agent import insula

        return await insula.connect(path, timeout=timeout, port=reserved)

    async def reserve(self) -> None:
        """Take the agent's port, and say nothing yet: before a guest goes on that had a host at its port.

        Else it would be told that this host has gone and that another has come, at a time of its own; to a
        guest that first hears our greeting and then of that end, the session that we began is over.
        """
        if self._plan.agent is not None and self._reserved is None:
            with contextlib.suppress(AgentSilent):
                self._reserved = await open_port(self._plan.directory / self.agent_socket)

    async def drop_agent(self) -> None:
        """Whoever wants it next connects anew."""
        agent, self._agent = self._agent, None
        if agent is not None:
            await agent.close()

    async def console(self) -> Console:
        """See `Instance.console`."""
        if not self._plan.has_console:
            raise NoConsole(f"Machine '{self._plan.name}' has no serial console.")
        if self._console_taken:
            raise ConsoleBusy(
                f"Somebody else holds the console of machine '{self._plan.name}'.",
                hint="Let them leave it first; `insula logs -f` shows what it prints meanwhile.",
            )
        self._console_taken = True
        try:
            path = self._plan.directory / SERIAL_SOCKET
            self._console = await SerialConsole.connect(path, self._plan.name, self._console_closed)
        except BaseException:
            self._console_taken = False
            raise
        return self._console

    def _console_closed(self) -> None:
        self._console, self._console_taken = None, False

    async def close(self) -> None:
        await self.drop_agent()
        reserved, self._reserved = self._reserved, None
        if reserved is not None:
            await reserved.close()
        if self._console is not None:
            await self._console.close()


def _is_lost(agent: Agent) -> bool:
    return bool(getattr(agent, "lost", getattr(agent, "_lost", False)))

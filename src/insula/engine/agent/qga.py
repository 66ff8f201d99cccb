"""The client of the QEMU guest agent, which every distribution and Windows have (QEMU: qga/qapi-schema.json).

JSON lines over one port, one request at a time, nothing pushed by the guest. After any break (a new
connection, a request that timed out or was cancelled) we say guest-sync-delimited and skip everything up to
its answer, which a 0xFF byte precedes. Commands are in `qga_exec`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import secrets
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from insula.engine.agent.port import Port, open_port
from insula.engine.agent.protocol import (
    AgentCannot,
    AgentLost,
    AgentSilent,
    ExecSession,
    ExitStatus,
    GuestFailed,
    GuestInfo,
    Identity,
    Interface,
    Renewal,
    ShutdownMode,
    frozen,
    silent,
)
from insula.engine.agent.qga_exec import CapturedExec, StreamedExec, exit_status
from insula.engine.agent.qga_freeze import Freezer
from insula.engine.agent.qga_refresh import refresh
from insula.kit.aio import Crew
from insula.kit.errors import InsulaError, Invalid

ANSWER_TIMEOUT = 30.0  # seconds for one request; a busy guest under TCG starts a shell in one or two
SHUTDOWN_REFUSAL = 1.0  # seconds in which a refusal of guest-shutdown comes; success has no answer
_LONGEST_LINE = 64 * 1024 * 1024  # qemu-ga keeps 16 MiB each of stdout and stderr, in base64
_RESEND_FIRST, _RESEND_MOST = 0.5, 8.0
_POLL_FIRST, _POLL_MOST = 0.01, 0.25
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MODES: dict[ShutdownMode, str] = {"poweroff": "powerdown", "reboot": "reboot"}


class QemuAgent:
    """A connection to the QEMU guest agent of one guest; see Agent. `connect` makes it."""

    kind = "qemu"

    def __init__(self, port: Port, *, streaming: bool = True) -> None:
        self._port = port
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer that surely hold no line end
        self._lock = asyncio.Lock()
        self._unsynchronised = True
        self._lost: AgentLost | None = None
        self._streaming = streaming
        self._sessions: set[StreamedExec | CapturedExec] = set()
        self._crew = Crew(lambda name, error: None)  # sessions report their failures to their callers
        self._freezer = Freezer(self.request, self._crew)

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
    ) -> ExecSession:
        _check_command(argv, env or {}, tty)
        self._freezer.refuse_if_frozen()
        session: StreamedExec | CapturedExec
        if self._streaming and await self._has_shell():
            session = StreamedExec(self, argv, env or {}, cwd or "", user or "")
            await session.start()
        else:
            if cwd or user:
                raise AgentCannot(
                    "The QEMU guest agent can set neither user nor directory in a guest without /bin/sh.",
                    hint="Have the command do it, e.g. with: cmd /c cd DIRECTORY && COMMAND.",
                )
            session = CapturedExec(self, argv, env or {})
        self._sessions.add(session)
        return session

    async def info(self) -> GuestInfo:
        self._freezer.refuse_if_frozen()
        name = await self._optional("guest-get-host-name", {})
        system = await self._optional("guest-get-osinfo", {})
        links = await self._optional("guest-network-get-interfaces", [])
        return GuestInfo(
            hostname=str(name.get("host-name", "")),
            addresses=tuple(_interface(link) for link in links),
            os=str(system.get("pretty-name", system.get("name", ""))),
            kernel=str(system.get("kernel-release", "")),
            uptime=await self._uptime(),
        )

    async def shutdown(self, mode: ShutdownMode) -> None:
        self._freezer.refuse_if_frozen()
        # qemu-ga answers guest-shutdown only to refuse it, so silence is consent: if it was there to hear us.
        await self.request("guest-ping")
        try:
            await self.request("guest-shutdown", timeout=SHUTDOWN_REFUSAL, mode=_MODES[mode])
        except (AgentSilent, AgentLost):
            return

    async def renew(self, identity: Identity) -> Renewal:
        raise AgentCannot(
            "The QEMU guest agent cannot renew a guest's identity.",
            hint="Use an image with Insula's agent, or boot the machine instead of forking it.",
        )

    async def refresh(self) -> Renewal:
        self._freezer.refuse_if_frozen()
        return await refresh(self)

    async def freeze(self, timeout: float) -> int:
        """See Agent.freeze. This agent never thaws by itself: only we do, while we live (qga_freeze)."""
        return await self._freezer.freeze(timeout)

    async def thaw(self) -> int:
        return await self._freezer.thaw()

    async def ping(self, timeout: float) -> bool:
        try:
            await self.request("guest-ping", timeout=timeout)
        except InsulaError:
            return False
        return True

    async def close(self) -> None:
        await self._freezer.close()  # first: what sessions ask at their end would wait for it
        await asyncio.gather(*(session.close() for session in list(self._sessions)))
        await self._crew.close()
        self._lost = self._lost or _lost(None)
        await self._port.close()

    # What sessions need.

    async def request(self, command: str, *, timeout: float = ANSWER_TIMEOUT, **arguments: Any) -> Any:
        """One request and its answer. Raises AgentSilent, AgentLost, AgentCannot, GuestFailed."""
        message = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        answer: dict[str, Any] | None = None
        try:
            while answer is None:
                await self._freezer.wait_until_allowed(command)
                async with asyncio.timeout(timeout), self._lock:
                    if not self._freezer.must_wait(command):  # it may have been frozen while we stood in line
                        answer = await self._ask(message)
        except TimeoutError as error:
            raise silent("The QEMU guest agent", timeout) from error
        except (OSError, ValueError) as error:
            self._lost = _lost(error)
            raise self._lost from error
        return _result(command, answer)

    async def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        if self._lost is not None:
            raise _lost(self._lost.__cause__)
        if self._unsynchronised:
            await self._synchronise()
        self._unsynchronised = True  # until its answer is here, whatever ends us
        await self._port.send(json.dumps(message).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await self._read_line())
        self._unsynchronised = False
        return answer

    async def run_shell(self, script: str, *words: str) -> tuple[ExitStatus, str]:
        """Run a short script in the guest's shell; how it ended and what it printed."""
        started = await self.request(
            "guest-exec", path="/bin/sh", arg=["-c", script, "insula", *words], capture_output=True
        )
        ended = await self.wait_ended(int(started["pid"]))
        return exit_status(ended), base64.b64decode(ended.get("out-data", "")).decode(errors="replace")

    async def wait_ended(self, pid: int) -> dict[str, Any]:
        """guest-exec-status once it says so. Polled: the agent has no way to tell us by itself."""
        pause = _POLL_FIRST
        while True:
            status: dict[str, Any] = await self.request("guest-exec-status", pid=pid)
            if status["exited"]:
                return status
            await asyncio.sleep(pause)
            pause = min(2 * pause, _POLL_MOST)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A background task that ends with this connection."""
        return self._crew.start(work, name)

    def forget(self, session: StreamedExec | CapturedExec) -> None:
        self._sessions.discard(session)

    # The line.

    async def synchronise(self) -> None:
        """Wait until the agent answers; give it a timeout. Raises AgentLost."""
        try:
            async with self._lock:
                await self._synchronise()
        except (OSError, ValueError) as error:
            raise _lost(error) from error

    async def release(self) -> None:
        """Thaw the guest if a host before us died while it was frozen."""
        await self._freezer.release()

    async def _synchronise(self) -> None:
        """Again only when the last was taken: otherwise the guest has not opened its port yet."""
        number = await self._say_sync()
        pause = _RESEND_FIRST
        while True:
            try:
                async with asyncio.timeout(pause):
                    line = await self._read_line()
            except TimeoutError:
                if self._port.all_taken():
                    number = await self._say_sync()
                pause = min(2 * pause, _RESEND_MOST)
                continue
            _, mark, answer = line.rpartition(b"\xff")
            if mark and json.loads(answer) == {"return": number}:
                self._unsynchronised = False
                return

    async def _say_sync(self) -> int:
        """The 0xFF ends whatever the agent was in the middle of reading (its parser starts anew)."""
        number = secrets.randbits(48)
        message = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        await self._port.send(b"\xff" + json.dumps(message).encode() + b"\n")
        return number

    async def _read_line(self) -> bytes:
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            data = await self._port.read()
            if not data:
                raise ConnectionError("the agent's port was closed")
            self._buffer += data
            if len(self._buffer) > _LONGEST_LINE:
                raise ValueError("the agent's answer has no end")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line

    async def _optional(self, command: str, default: Any) -> Any:
        """The answer, or the default of an agent that lacks the command or cannot tell."""
        try:
            return await self.request(command)
        except (AgentCannot, GuestFailed):
            return default

    async def _has_shell(self) -> bool:
        """Asked each time: a guest can change, and the question is cheap beside an exec."""
        try:
            handle = await self.request("guest-file-open", path="/bin/sh", mode="r")
        except (GuestFailed, AgentCannot):  # Windows; or a guest whose owner blocked the file commands
            return False
        await self.request("guest-file-close", handle=handle)
        return True

    async def _uptime(self) -> float | None:
        """The agent has no command for it; Linux has a file."""
        try:
            handle = await self.request("guest-file-open", path="/proc/uptime", mode="r")
            piece = await self.request("guest-file-read", handle=handle, count=64)
            await self.request("guest-file-close", handle=handle)
            return float(base64.b64decode(piece["buf-b64"]).split()[0])
        except (AgentCannot, GuestFailed, ValueError, IndexError):
            return None


def _check_command(argv: Sequence[str], env: Mapping[str, str], tty: bool) -> None:
    if tty:
        raise AgentCannot(
            "The QEMU guest agent has no terminals.",
            hint="Leave out the terminal, use 'insula console', or an image with Insula's agent.",
        )
    if not argv or not argv[0]:
        raise Invalid("There is no command to run.", hint="Give one: insula exec MACHINE -- COMMAND.")
    for name in env:
        if _VARIABLE.fullmatch(name) is None:
            raise Invalid(f"'{name}' is not a name of an environment variable.", hint="Write NAME=VALUE.")
    if any("\0" in word for word in (*argv, *env.values())):
        raise Invalid("A command and its environment cannot contain a NUL character.")


def _interface(link: Mapping[str, Any]) -> Interface:
    addresses = tuple(f"{a['ip-address']}/{a['prefix']}" for a in link.get("ip-addresses", ()))
    return Interface(str(link["name"]), str(link.get("hardware-address", "")), addresses)


def _result(command: str, answer: Mapping[str, Any]) -> Any:
    if "return" in answer:
        return answer["return"]
    error = answer.get("error", {})
    evidence = {"request": command, "guest_error": error.get("desc", "")}
    if "frozen" in evidence["guest_error"] and error.get("class") == "CommandNotFound":
        raise frozen()  # "... has been disabled: the agent is in frozen state" (from QEMU 7.1 on)
    if error.get("class") == "CommandNotFound":  # also for a command that the guest's owner has blocked
        raise AgentCannot(
            f"The QEMU guest agent of this guest does not offer '{command}'.",
            hint="It may be blocked in the guest: see /etc/sysconfig/qemu-ga or /etc/qemu/qemu-ga.conf.",
            evidence=evidence,
        )
    raise GuestFailed(
        "The QEMU guest agent could not do what was asked.",
        hint="The evidence has its words.",
        evidence=evidence,
    )


def _lost(cause: BaseException | None) -> AgentLost:
    error = AgentLost(
        "The connection to the QEMU guest agent ended.", hint="See whether the machine runs: insula ls."
    )
    error.__cause__ = cause
    return error


async def connect(
    path: Path, *, timeout: float = 10.0, streaming: bool = True, port: Port | None = None
) -> QemuAgent:
    """Connect to the QEMU guest agent behind a unix socket.

    streaming=False has commands run as in a guest without a shell: all input first, all output at the end.
    port: connected to that socket already; it is closed when this fails.
    Raises AgentSilent after `timeout` seconds, AgentLost when the socket is closed meanwhile.
    """
    try:
        async with asyncio.timeout(timeout), contextlib.AsyncExitStack() as undo:
            agent = QemuAgent(port or await open_port(path), streaming=streaming)
            undo.push_async_callback(agent.close)
            await agent.synchronise()
            await agent.release()
            undo.pop_all()
    except TimeoutError as error:
        raise silent("The QEMU guest agent", timeout) from error
    return agent

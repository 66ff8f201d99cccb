"""The client of Insula's own guest agent: many commands at once over one port, with flow control for each.

One task reads frames and hands them to whom they belong; it never waits for anybody, because what a command
may send is bounded by the credit that its reader granted. So a caller who does not read stops its own
command only.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from insula.engine.agent import wire
from insula.engine.agent.port import Port, open_port
from insula.engine.agent.protocol import (
    FREEZE_MOST,
    AgentBusy,
    AgentCannot,
    AgentLost,
    AgentSilent,
    ExitStatus,
    GuestFailed,
    GuestInfo,
    GuestRefused,
    Identity,
    Renewal,
    ShutdownMode,
    StreamName,
    command_not_executable,
    command_not_found,
    frozen,
    silent,
)
from insula.engine.agent.stream import CommandStream
from insula.engine.agent.wire import Frame, FrameType, Reason
from insula.kit.aio import Cell, cancel_and_wait
from insula.kit.errors import InsulaError, Invalid

OUTPUT_WINDOW = 256 * 1024  # bytes of a command's output that may wait on the host
ANSWER_TIMEOUT = 30.0  # seconds; a busy guest under TCG starts a program in one or two
ENTROPY_BYTES = 64  # twice the key of the kernel's generator (drivers/char/random.c, ChaCha20)
_MODES: dict[ShutdownMode, int] = {"poweroff": 0, "reboot": 1}
_RESEND_FIRST, _RESEND_MOST = 0.1, 8.0  # seconds between SYNCs that were taken and not answered
_PLAIN_RESENDS = 2  # first without padding: one in 200 SYNCs right after a host's end is lost on its way


class RefusedByGuest(Exception):
    """The agent's ERROR, on its way to the caller who knows what was asked."""

    def __init__(self, refusal: wire.Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


class InsulaExec:
    """A command run by Insula's agent; see ExecSession."""

    def __init__(self, agent: InsulaAgent, stream: int, command: str, stdin_window: int) -> None:
        self._agent = agent
        self._id = stream
        self._stream = CommandStream(command, self._was_read)
        self._credit = Cell(stdin_window)
        self._ungranted = 0
        self._stdin_open = True
        self.started: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def write_stdin(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self._stream.over:
            await self._credit.wait_until(lambda credit: credit > 0 or self._stream.over)
            if self._stream.over or not self._stdin_open:
                return
            size = min(len(view), self._credit.value, wire.MAX_PAYLOAD)
            self._credit.set(self._credit.value - size)
            await self._agent.send(FrameType.STDIN, self._id, bytes(view[:size]))
            view = view[size:]

    async def close_stdin(self) -> None:
        if self._stdin_open and not self._stream.over:
            self._stdin_open = False
            await self._agent.send(FrameType.STDIN_EOF, self._id)

    async def send_signal(self, number: int) -> None:
        if not 1 <= number <= 64:
            raise Invalid(f"{number} is not a signal's number.", hint="Signals are 1 to 64; TERM is 15.")
        if not self._stream.over:
            await self._agent.send(FrameType.SIGNAL, self._id, wire.encode_number(number))

    async def resize(self, rows: int, cols: int) -> None:
        if not self._stream.over:
            await self._agent.send(FrameType.RESIZE, self._id, wire.encode_size(rows, cols))

    def output(self) -> AsyncIterator[tuple[StreamName, bytes]]:
        return self._stream.output()

    async def wait(self) -> ExitStatus:
        return await self._stream.wait()

    async def close(self) -> None:
        if not self._stream.over:
            self._stream.lose("The session was closed")
            self._credit.set(self._credit.value)
            self._agent.forget(self._id)

    def received(self, frame: Frame) -> None:
        """A frame for this command."""
        match frame.type:
            case FrameType.STARTED:
                if not self.started.done():
                    self.started.set_result(wire.decode_number(frame.payload))
            case FrameType.STDOUT:
                self._stream.put("stdout", frame.payload)
            case FrameType.STDERR:
                self._stream.put("stderr", frame.payload)
            case FrameType.WINDOW:
                self._credit.set(self._credit.value + wire.decode_number(frame.payload))
            case FrameType.EXIT:
                killed, value = wire.decode_exit(frame.payload)
                self._stream.end(ExitStatus(signal=value) if killed else ExitStatus(code=value))
                self._credit.set(self._credit.value)  # wakes a writer, who sees that it is over

    def refused(self, error: RefusedByGuest) -> None:
        """It could not start; exec() tells its caller."""
        self._stream.lose("The guest refused")
        if not self.started.done():
            self.started.set_exception(error)

    def lost(self, cause: BaseException | None) -> None:
        """The connection is gone."""
        self._stream.lose("The connection to the guest agent ended", cause)
        self._credit.set(self._credit.value)
        if not self.started.done():
            self.started.set_exception(_lost(cause))

    def _was_read(self, size: int) -> None:
        self._ungranted += size
        if self._ungranted >= OUTPUT_WINDOW // 4 and not self._stream.over:
            self._agent.post(FrameType.WINDOW, self._id, wire.encode_number(self._ungranted))
            self._ungranted = 0


class InsulaAgent:
    """A connection to Insula's agent in one guest; see Agent. `connect` makes it."""

    kind = "insula"

    def __init__(self, port: Port, buffer: bytearray, nonce: int, hello: wire.Hello) -> None:
        self.hello = hello
        self._port = port
        self._buffer = buffer
        self._seal = wire.seal_of(nonce)
        self._last_id = 0
        self._sessions: dict[int, InsulaExec] = {}
        self._requests: dict[int, asyncio.Future[bytes]] = {}
        self._lost = False
        self._reader = asyncio.create_task(self._read(), name="insula-agent-reader")

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
    ) -> InsulaExec:
        payload = _exec_payload(argv, env or {}, cwd or "", user or "", tty, rows, cols)
        self._last_id += 1
        session = InsulaExec(self, self._last_id, argv[0], self.hello.stdin_window)
        self._sessions[self._last_id] = session
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self.send(FrameType.EXEC, self._last_id, payload)
                await session.started
        except TimeoutError as error:
            await session.close()
            raise silent("The guest agent", ANSWER_TIMEOUT) from error
        except RefusedByGuest as error:
            raise _refusal_error(error.refusal, argv, cwd, user) from error
        except BaseException:
            await session.close()
            raise
        return session

    async def info(self) -> GuestInfo:
        return wire.decode_info(await self._request(FrameType.INFO, b"", ANSWER_TIMEOUT))

    async def shutdown(self, mode: ShutdownMode) -> None:
        await self._request(FrameType.SHUTDOWN, bytes([_MODES[mode]]), ANSWER_TIMEOUT)

    async def renew(self, identity: Identity) -> Renewal:
        self._require(wire.CAN_RENEW, "renew its identity")
        return await self._renew(identity)

    async def refresh(self) -> Renewal:
        self._require(wire.CAN_REFRESH, "renew its random numbers and clock alone")
        return await self._renew(None)

    async def freeze(self, timeout: float) -> int:
        self._require(wire.CAN_FREEZE, "freeze its file systems")
        span = min(timeout, FREEZE_MOST)
        payload = wire.encode_number(max(1, round(span * 1000)))
        try:
            return wire.decode_number(await self._request(FrameType.FREEZE, payload, span + ANSWER_TIMEOUT))
        except (AgentSilent, asyncio.CancelledError):
            self._last_id += 1
            self.post(FrameType.THAW, self._last_id)  # nobody will ask for it, should it succeed yet
            raise

    async def thaw(self) -> int:
        if not self.hello.capabilities & wire.CAN_FREEZE:
            return 0  # it has frozen nothing
        return wire.decode_number(await self._request(FrameType.THAW, b"", ANSWER_TIMEOUT))

    def _require(self, capability: int, what: str) -> None:
        if not self.hello.capabilities & capability:
            raise AgentCannot(f"The agent in this guest cannot {what}.", hint="Build the guest's image anew.")

    async def _renew(self, identity: Identity | None) -> Renewal:
        payload = wire.encode_renew(identity, secrets.token_bytes(ENTROPY_BYTES), time.time_ns())
        results = wire.decode_renewed(await self._request(FrameType.RENEW, payload, ANSWER_TIMEOUT))
        told = [(name, number) for name, number in results if name != "hook"]
        return Renewal(
            renewed=tuple(name for name, number in told if number == 0),
            failed=tuple((name, os.strerror(number)) for name, number in told if number != 0),
            hook=("hook", 0) in results,
        )

    async def ping(self, timeout: float) -> bool:
        try:
            await self._request(FrameType.PING, b"", timeout)
        except InsulaError:
            return False
        return True

    async def close(self) -> None:
        await cancel_and_wait(self._reader)
        await self._port.close()
        self._end(None)

    async def send(self, type: FrameType, stream: int, payload: bytes = b"") -> None:
        """Send a frame, waiting while the guest takes nothing. Raises AgentLost."""
        if self._lost:
            raise _lost(None)
        try:
            await self._port.send(wire.encode_frame(type, stream, payload, self._seal))
        except OSError as error:
            raise _lost(error) from error

    def post(self, type: FrameType, stream: int, payload: bytes = b"") -> None:
        """Send a small frame without waiting; nothing if the connection is gone."""
        if not self._lost:
            self._port.post(wire.encode_frame(type, stream, payload, self._seal))

    def forget(self, stream: int) -> None:
        """Have the agent hang a command up; what still comes from it is dropped."""
        if self._sessions.pop(stream, None) is not None:
            self.post(FrameType.CLOSE, stream)

    async def _request(self, type: FrameType, payload: bytes, timeout: float) -> bytes:
        self._last_id += 1
        number = self._last_id
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._requests[number] = answer
        try:
            async with asyncio.timeout(timeout):
                await self.send(type, number, payload)
                return await answer
        except RefusedByGuest as error:
            raise _refusal_error(error.refusal, [type.name.lower()], None, None) from error
        except TimeoutError as error:
            raise silent("The guest agent", timeout) from error
        finally:
            self._requests.pop(number, None)

    async def _read(self) -> None:
        cause: BaseException | None = None
        try:
            while True:
                for frame in wire.take_frames(self._buffer, self._seal):
                    self._received(frame)
                data = await self._port.read()
                if not data:
                    break
                self._buffer += data
        except (OSError, wire.Malformed) as error:
            cause = error
        self._end(cause)

    def _received(self, frame: Frame) -> None:
        session = self._sessions.get(frame.stream)
        request = self._requests.get(frame.stream)
        if frame.type == FrameType.ERROR:
            refusal = wire.decode_refusal(frame.payload)
            if frame.stream == 0:
                raise wire.Malformed(f"the agent could not read us: {refusal.text}")
            if session is not None:
                del self._sessions[frame.stream]
                session.refused(RefusedByGuest(refusal))
            elif request is not None and not request.done():
                request.set_exception(RefusedByGuest(refusal))
        elif session is not None:
            if frame.type == FrameType.EXIT:
                del self._sessions[frame.stream]
            session.received(frame)
        elif request is not None and not request.done():
            request.set_result(frame.payload)

    def _end(self, cause: BaseException | None) -> None:
        """The connection is over: all who wait for something hear it."""
        self._lost = True
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            session.lost(cause)
        for request in self._requests.values():
            if not request.done():
                request.set_exception(_lost(cause))


def _exec_payload(
    argv: Sequence[str], env: Mapping[str, str], cwd: str, user: str, tty: bool, rows: int, cols: int
) -> bytes:
    if not argv or not argv[0]:
        raise Invalid("There is no command to run.", hint="Give one: insula exec MACHINE -- COMMAND.")
    for name in env:
        if not name or "=" in name:
            raise Invalid(f"'{name}' is not a name of an environment variable.", hint="Write NAME=VALUE.")
    if any("\0" in word for word in (*argv, *env, *env.values(), cwd, user)):
        raise Invalid("A command, its environment, directory and user cannot contain a NUL character.")
    payload = wire.encode_exec(
        argv, env=env, cwd=cwd, user=user, tty=tty, rows=rows, cols=cols, window=OUTPUT_WINDOW
    )
    if len(payload) > wire.MAX_PAYLOAD or len(argv) > wire.MAX_WORDS or len(env) > wire.MAX_WORDS:
        raise Invalid(
            f"The command and its environment are too long: {len(payload)} bytes of {wire.MAX_PAYLOAD}.",
            hint="Give long data on standard input.",
        )
    return payload


def _refusal_error(
    refusal: wire.Refusal, argv: Sequence[str], cwd: str | None, user: str | None
) -> InsulaError:
    """What the agent's ERROR means for the command that was asked for."""
    match refusal.reason:
        case Reason.EXEC if refusal.errno in (errno.ENOENT, errno.ENOTDIR):
            return command_not_found(argv[0])
        case Reason.EXEC:
            return command_not_executable(argv[0])
        case Reason.CWD:
            return GuestRefused(
                f"The guest cannot enter the directory '{cwd or '/'}'.",
                hint="Make it in the guest, or name another.",
                evidence={"guest_error": refusal.text},
            )
        case Reason.USER:
            return GuestRefused(
                f"The guest cannot run commands as user '{user}'.",
                hint="Its /etc/passwd must list the user, and its agent must run as root.",
                evidence={"guest_error": refusal.text},
            )
        case Reason.BUSY:
            return AgentBusy(
                "The guest agent runs as many commands as it can.",
                hint="Wait until one has ended.",
                retry_after=1.0,
            )
        case Reason.FROZEN:
            return frozen()
        case Reason.FILE_SYSTEM:
            why = os.strerror(refusal.errno)
            return GuestFailed(
                f"The guest could not {argv[0]} its file system '{refusal.text}': {why}.",
                hint="See what the guest's kernel says of it: insula exec MACHINE -- dmesg.",
                evidence={"file_system": refusal.text, "guest_error": why},
            )
        case Reason.UNSUPPORTED:
            return AgentCannot(
                "The agent in this guest is too old for this request.", hint="Build the guest's image anew."
            )
        case _:
            return GuestFailed(
                f"The guest could not start '{argv[0]}'.",
                hint="It may be out of processes, memory or file descriptors.",
                evidence={"guest_error": refusal.text},
            )


def _lost(cause: BaseException | None) -> AgentLost:
    error = AgentLost(
        "The connection to the guest agent ended.", hint="See whether the machine still runs: insula ls."
    )
    error.__cause__ = cause
    return error


async def connect(path: Path, *, timeout: float = 10.0, port: Port | None = None) -> InsulaAgent:
    """Connect to the agent behind a unix socket and agree on a new session with it.

    port: connected to that socket already; it is closed when this fails.
    Whatever the guest or a host before us left half-said is skipped; commands of an earlier session end.
    Raises AgentSilent after `timeout` seconds, AgentLost when the socket is closed meanwhile.
    """
    buffer = bytearray()
    try:
        async with asyncio.timeout(timeout), contextlib.AsyncExitStack() as undo:
            port = port or await open_port(path)
            undo.push_async_callback(port.close)
            nonce, hello = await _synchronise(port, buffer)
            undo.pop_all()
    except TimeoutError as error:
        raise silent("The guest agent", timeout) from error
    except OSError as error:
        raise _lost(error) from error
    return InsulaAgent(port, buffer, nonce, hello)


async def _synchronise(port: Port, buffer: bytearray) -> tuple[int, wire.Hello]:
    """Say SYNC until it is answered. Again only if it was taken: else the guest has not opened its port yet.

    An agent that did not notice the end of the host before us may wait for the rest of a frame: the padding
    completes any frame, and the wrong seal shows that it is none. Only the last SYNC's answer counts: the
    padding that follows an earlier one ends the session which that began.
    """
    nonce = secrets.randbits(64)
    pause = _RESEND_FIRST
    resent = 0
    await port.send(wire.encode_sync(nonce))
    while True:
        try:
            async with asyncio.timeout(pause):
                data = await port.read()
        except TimeoutError:
            if port.all_taken():
                nonce = secrets.randbits(64)
                padding = bytes(wire.MAX_FRAME) if resent >= _PLAIN_RESENDS else b""
                await port.send(padding + wire.encode_sync(nonce))
                resent += 1
            pause = min(2 * pause, _RESEND_MOST)
            continue
        if not data:
            raise _lost(None)
        buffer += data
        hello = wire.find_hello(buffer, nonce)
        if hello is not None:
            return nonce, hello

"""What the agent and its client make of broken channels: half frames, stale bytes, garbage, silence."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from insula.engine.agent import wire
from insula.engine.agent.insula import connect
from insula.engine.agent.protocol import AgentLost, AgentSilent, capture
from insula.engine.agent.wire import FrameType

if TYPE_CHECKING:
    from tests.unit.agent.conftest import Guest, StartGuest

pytestmark = pytest.mark.timeout(20)
NONCE = 0x1122334455667788
SEAL = wire.seal_of(NONCE)


class Relay:
    """Like QEMU's port: hosts come and go on a socket, and the agent behind does not notice."""

    def __init__(self, path: Path, agent_socket: Path) -> None:
        self.path = path
        self._agent_socket = agent_socket
        self._host: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Relay:
        reader, self._agent = await asyncio.open_unix_connection(self._agent_socket)
        self._server = await asyncio.start_unix_server(self._host_came, self.path)
        self._tasks.append(asyncio.create_task(self._from_agent(reader)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._agent.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def send(self, data: bytes) -> None:
        """As a host that is gone by now would have."""
        self._agent.write(data)
        await self._agent.drain()

    async def _from_agent(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(65536):
            if self._host is not None:
                self._host.write(data)

    async def _host_came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host = writer
        while data := await reader.read(65536):
            await self.send(data)
        self._host = None
        writer.close()


@pytest.fixture
def sanitized_guest(sanitized_program: Path, start_guest: StartGuest) -> Iterator[Guest]:
    running = start_guest(sanitized_program)
    yield running
    stderr = running.stop()
    assert running.process.returncode == -15, stderr  # our SIGTERM, and no sanitizer's abort
    assert "ERROR: " not in stderr


async def assert_works(path: Path) -> None:
    agent = await connect(path, timeout=10)
    captured = await capture(await agent.exec(["cat"]), b"hello")
    assert captured.stdout == b"hello"
    await agent.close()


@pytest.mark.slow
async def test_reconnect_in_the_middle_of_a_frame(guest: Guest, tmp_path: Path) -> None:
    exec_cat = wire.encode_exec(
        ["sh", "-c", f"cat > {tmp_path}/got; echo >> {tmp_path}/got"],
        env={}, cwd="", user="", tty=False, rows=0, cols=0, window=4096,
    )  # fmt: skip
    frame = wire.encode_frame(FrameType.STDIN, 1, b"x" * 1000, SEAL)
    sync = wire.encode_sync(NONCE)
    # Cut so that the successor's SYNC fills the frame exactly, falls short, and reaches beyond.
    for missing in (len(sync), len(sync) - 4, 900, 10, 1000 + 4, 1):
        async with Relay(tmp_path / "port.sock", guest.socket) as relay:
            await relay.send(sync + wire.encode_frame(FrameType.EXEC, 1, exec_cat, SEAL))
            await relay.send(frame[: len(frame) - missing])
            await assert_works(relay.path)
    # Not one byte of a frame that was never whole became input of the command.
    assert not (tmp_path / "got").exists() or b"x" not in (tmp_path / "got").read_bytes()


async def test_stale_output_of_another_session_is_skipped(guest: Guest, tmp_path: Path) -> None:
    exec_yes = wire.encode_exec(
        ["yes"], env={}, cwd="", user="", tty=False, rows=0, cols=0, window=1 << 20
    )  # fmt: skip
    async with Relay(tmp_path / "port.sock", guest.socket) as relay:
        await relay.send(wire.encode_sync(NONCE) + wire.encode_frame(FrameType.EXEC, 1, exec_yes, SEAL))
        await assert_works(relay.path)
        await assert_works(relay.path)


async def raw_session(path: Path) -> socket.socket:
    """A connection with a session begun, for sending anything."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    connection.settimeout(5)
    connection.sendall(wire.encode_sync(NONCE))
    return connection


def read_refusal(connection: socket.socket) -> str:
    buffer = bytearray()
    hello = None
    while True:
        data = connection.recv(65536)
        assert data, "the agent hung up"
        buffer += data
        hello = hello or wire.find_hello(buffer, NONCE)
        for frame in wire.take_frames(buffer, SEAL) if hello else ():
            if frame.type == FrameType.ERROR:
                return wire.decode_refusal(frame.payload).text


@pytest.mark.slow
async def test_malformed_frames_are_named_and_survived(sanitized_guest: Guest) -> None:
    u32 = wire.encode_number
    bad = {
        "header length": (wire.HEADER.pack(wire.MAGIC, 3, 1, wire.MAX_PAYLOAD + 1), "malformed header"),
        "magic": (b"GET / HTTP/1.1\r\n\r\n", "malformed header"),
        "seal": (wire.encode_frame(FrameType.PING, 1, b"", SEAL ^ 1), "wrong seal"),
        "exec empty": (wire.encode_frame(FrameType.EXEC, 1, b"", SEAL), "malformed EXEC"),
        "exec count": (
            wire.encode_frame(FrameType.EXEC, 1, u32(0) * 3 + u32(2**32 - 1), SEAL), "malformed EXEC",
        ),
        "exec string": (
            wire.encode_frame(FrameType.EXEC, 1, u32(0) * 3 + u32(1) + u32(2**31), SEAL), "malformed EXEC",
        ),
        "shutdown": (wire.encode_frame(FrameType.SHUTDOWN, 1, b"\x07", SEAL), "malformed SHUTDOWN"),
        "freeze": (wire.encode_frame(FrameType.FREEZE, 1, b"\x07", SEAL), "malformed FREEZE"),
        "freeze for no time": (wire.encode_frame(FrameType.FREEZE, 1, u32(0), SEAL), "malformed FREEZE"),
        "unknown type": (wire.encode_frame(FrameType.EXIT, 1, b"", SEAL), "unknown frame type"),
    }  # fmt: skip
    for what, (data, said) in bad.items():
        connection = await raw_session(sanitized_guest.socket)
        connection.sendall(data)
        assert read_refusal(connection) == said, what
        connection.close()
    await assert_works(sanitized_guest.socket)


@pytest.mark.slow
async def test_garbage_never_breaks_the_agent(sanitized_guest: Guest) -> None:
    dice = random.Random(20240607)
    # A RENEW that happened to be whole would be done, to this host (see test_renew).
    harmful = (FrameType.SHUTDOWN, FrameType.EXEC, FrameType.RENEW)
    harmless = [t for t in FrameType if t not in harmful]
    argv = wire.encode_exec(["cat"], env={"A": "b"}, cwd="/", user="", tty=False, rows=1, cols=1, window=99)
    for _ in range(60):
        connection = await raw_session(sanitized_guest.socket)
        connection.setblocking(False)
        for _ in range(30):
            kind = dice.random()
            payload = dice.randbytes(dice.choice((0, 1, 3, 4, 8, 12, 100, 5000)))
            if kind < 0.2:
                data = payload
            elif kind < 0.4:  # an EXEC with a few bytes changed: never argv[0]
                broken = bytearray(argv)
                broken[dice.randrange(20, len(broken))] = dice.randrange(256)
                broken[20:23] = b"cat"
                data = wire.encode_frame(FrameType.EXEC, dice.randrange(4), bytes(broken), SEAL)
            elif kind < 0.5:
                data = wire.encode_sync(NONCE)
            else:
                data = wire.encode_frame(dice.choice(harmless), dice.randrange(4), payload, SEAL)
            try:
                connection.send(data)
            except BlockingIOError:
                break
        connection.close()
    await assert_works(sanitized_guest.socket)


@pytest.mark.slow
async def test_silence_says_how_long(tmp_path: Path) -> None:
    with pytest.raises(AgentSilent, match="Nobody listens"):
        await connect(tmp_path / "none.sock")
    with socket.socket(socket.AF_UNIX) as listener:  # its backlog connects us, as QEMU's does
        listener.bind(str(tmp_path / "port.sock"))
        listener.listen(1)
        with pytest.raises(AgentSilent, match="300ms"):
            await connect(tmp_path / "port.sock", timeout=0.3)


@pytest.mark.slow
async def test_sync_is_not_piled_up_for_a_guest_that_is_not_there_yet(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "port.sock"))
        listener.listen(1)
        with pytest.raises(AgentSilent):
            await connect(tmp_path / "port.sock", timeout=1.2)
        connection, _ = listener.accept()
        connection.settimeout(5)
        received = b""
        while data := connection.recv(65536):
            received += data
        connection.close()
    assert len(received) == len(wire.encode_sync(0))


async def test_nonsense_from_the_guest_is_a_lost_agent(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sync = await reader.readexactly(len(wire.encode_sync(0)))
        nonce = int.from_bytes(sync[16:24], "little")
        hello = sync[16:24] + b"".join(map(wire.encode_number, (1, 3, 64, 65536)))
        writer.write(wire.encode_frame(FrameType.SYNC_REPLY, 0, hello, wire.seal_of(nonce)) + b"\0" * 50)
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "port.sock")
    agent = await connect(tmp_path / "port.sock")
    with pytest.raises(AgentLost):
        await agent.info()
    await agent.close()
    server.close()


async def test_waits_in_line_for_a_port_that_others_hold(tmp_path: Path) -> None:
    path = tmp_path / "port.sock"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        first = stack.enter_context(socket.socket(socket.AF_UNIX))
        first.connect(str(path))  # the backlog is full
        with pytest.raises(AgentSilent, match="200ms"):
            await connect(path, timeout=0.2)

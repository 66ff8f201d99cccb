"""The client of the QEMU guest agent against the real one, run on this host over a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from insula.engine.agent.protocol import (
    AgentCannot,
    AgentLost,
    AgentSilent,
    Captured,
    ExecSession,
    ExitStatus,
    GuestCommandNotExecutable,
    GuestCommandNotFound,
    GuestRefused,
    capture,
)
from insula.engine.agent.qga import QemuAgent, connect
from insula.kit.errors import Invalid

QEMU_GA = shutil.which("qemu-ga", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
needs_agent = pytest.mark.skipif(
    QEMU_GA is None, reason="qemu-ga is not installed: apt install qemu-guest-agent"
)
pytestmark = [pytest.mark.timeout(20), pytest.mark.slow]  # each command is a few polled shells in the guest

# This 'guest' is the host of the tests: it must neither stop nor freeze nor change its clock.
BLOCKED = (
    "guest-shutdown,guest-suspend-disk,guest-suspend-ram,guest-suspend-hybrid,guest-fsfreeze-freeze,"
    "guest-fsfreeze-freeze-list,guest-fsfreeze-thaw,guest-set-time,guest-set-user-password,guest-fstrim,guest-set-vcpus"
)


def wait_listening(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until qemu-ga accepts connections: its socket is there a moment before it listens."""
    deadline = time.monotonic() + 10
    while True:
        assert process.poll() is None, "qemu-ga has ended"
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                return probe.connect(str(path))
            except OSError:
                assert time.monotonic() < deadline, "qemu-ga does not listen"
        time.sleep(0.005)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Path]:
    """The socket of a running qemu-ga; nothing of ours may be left in /tmp after the test."""
    assert QEMU_GA is not None
    before = set(Path("/tmp").glob("insula-*"))
    path = tmp_path / "qga.sock"
    command = [QEMU_GA, "-m", "unix-listen", "-p", str(path), "-t", str(tmp_path), "-b", BLOCKED]
    with (tmp_path / "qga.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_listening(path, process)
        yield path
    finally:
        process.terminate()
        try:
            process.wait(timeout=3)
        except (
            subprocess.TimeoutExpired
        ):  # its SIGTERM handler takes a lock that it may hold (7.2: seen once)
            process.kill()
            process.wait(timeout=10)
    assert set(Path("/tmp").glob("insula-*")) <= before


async def connect_patiently(path: Path, *, streaming: bool = True) -> QemuAgent:
    """qemu-ga's own socket (not QEMU's) hangs up on whoever comes before it saw that the last one went."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return await connect(path, timeout=10, streaming=streaming)
        except AgentLost:
            assert time.monotonic() < deadline


@pytest.fixture
async def agent(guest: Path) -> AsyncIterator[QemuAgent]:
    connected = await connect_patiently(guest)
    yield connected
    await connected.close()


@pytest.fixture
async def captured_agent(guest: Path) -> AsyncIterator[QemuAgent]:
    connected = await connect_patiently(guest, streaming=False)
    yield connected
    await connected.close()


async def run(agent: QemuAgent, *argv: str, stdin: bytes = b"") -> Captured:
    return await capture(await agent.exec(argv), stdin)


async def first_output(session: ExecSession) -> bytes:
    async for _, data in session.output():
        return data
    raise AssertionError("the command ended without output")


async def wait_gone(pid: int) -> None:
    """Until the process has ended; a zombie has."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(10):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)


@needs_agent
async def test_output_and_exit_code(agent: QemuAgent) -> None:
    ended = await run(agent, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert ended == Captured(ExitStatus(code=5), b"out\n", b"err\n")


@needs_agent
async def test_a_conversation(agent: QemuAgent) -> None:
    session = await agent.exec(["sh", "-c", "echo ready; read line; echo got $line; cat; echo end"])
    output = session.output()
    assert await anext(output) == ("stdout", b"ready\n")
    await session.write_stdin(b"this\n")
    assert await anext(output) == ("stdout", b"got this\n")
    await session.write_stdin(b"more\n")
    assert await anext(output) == ("stdout", b"more\n")
    await session.close_stdin()
    assert await anext(output) == ("stdout", b"end\n")
    assert await session.wait() == ExitStatus(code=0)
    await session.close()


@needs_agent
async def test_much_output_and_input(agent: QemuAgent) -> None:
    data = os.urandom(3 << 20)
    ended = await run(agent, "cat", stdin=data)
    assert hashlib.sha256(ended.stdout).digest() == hashlib.sha256(data).digest()


@needs_agent
async def test_signal_goes_to_the_group(agent: QemuAgent) -> None:
    session = await agent.exec(["sh", "-c", "sleep 1000 & echo $!; wait"])
    child = int(await first_output(session))
    await session.send_signal(signal.SIGTERM)
    assert await session.wait() == ExitStatus(signal=signal.SIGTERM)
    await wait_gone(child)
    await session.close()


@needs_agent
async def test_not_found_not_executable_refused(agent: QemuAgent, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")
    for command in ("no-such-command", "/no/such/command"):
        with pytest.raises(GuestCommandNotFound):
            await agent.exec([command])
    for command in (str(tmp_path / "data"), "/tmp"):
        with pytest.raises(GuestCommandNotExecutable):
            await agent.exec([command])
    with pytest.raises(GuestRefused, match="directory"):
        await agent.exec(["true"], cwd="/no/such/place")
    with pytest.raises(GuestRefused, match="no user"):
        await agent.exec(["true"], user="nobody-at-all")
    with pytest.raises(AgentCannot, match="no terminals"):
        await agent.exec(["true"], tty=True)
    with pytest.raises(Invalid):
        await agent.exec(["true"], env={"A B": ""})


@needs_agent
async def test_environment_and_directory(agent: QemuAgent, tmp_path: Path) -> None:
    session = await agent.exec(["sh", "-c", 'pwd; echo "$_dir"'], env={"_dir": "a  b=ä"}, cwd=str(tmp_path))
    assert (await capture(session)).stdout.decode() == f"{tmp_path}\na  b=ä\n"


@needs_agent
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
async def test_another_user(agent: QemuAgent) -> None:
    for user in ("nobody", "65534"):
        session = await agent.exec(["sh", "-c", "id -u; echo $USER; cat"], user=user, cwd="/")
        assert (await capture(session, b"input")).stdout == b"65534\nnobody\ninput"


@needs_agent
async def test_grandchildren_do_not_hang_the_caller(agent: QemuAgent) -> None:
    ended = await run(agent, "sh", "-c", "sleep 1000 & echo $!; exit 4")
    assert ended.status == ExitStatus(code=4)
    os.kill(int(ended.stdout), signal.SIGKILL)
    ended = await run(agent, "sh", "-c", "yes & echo $! >&2; exit 4")
    assert ended.status == ExitStatus(code=4)
    with contextlib.suppress(ProcessLookupError):  # nobody reads it any more: SIGPIPE may have been faster
        os.kill(int(ended.stderr), signal.SIGKILL)


@needs_agent
async def test_close_hangs_up_even_a_writer(agent: QemuAgent) -> None:
    session = await agent.exec(["sh", "-c", "echo $$; exec sleep 1000"])
    pid = int(await first_output(session))
    writer = asyncio.create_task(session.write_stdin(b"\0" * 300_000))
    assert await agent.ping(5)
    assert not writer.done()
    await session.close()
    await writer
    await wait_gone(pid)
    with pytest.raises(AgentLost, match="closed while 'sh' ran"):
        await session.wait()


@needs_agent
async def test_several_at_once(agent: QemuAgent) -> None:
    ended = await asyncio.gather(*(run(agent, "cat", stdin=str(n).encode()) for n in range(5)))
    assert [one.stdout for one in ended] == [str(n).encode() for n in range(5)]


@needs_agent
async def test_a_cancelled_request_leaves_the_line_usable(agent: QemuAgent) -> None:
    for _ in range(5):
        request = asyncio.create_task(agent.request("guest-get-osinfo"))
        await asyncio.sleep(0)  # it has been sent, its answer is under way
        request.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await request
        assert await agent.request("guest-get-host-name") == {"host-name": os.uname().nodename}


@needs_agent
async def test_connect_again_after_half_a_request(guest: Path) -> None:
    for _ in range(3):
        reader, writer = await asyncio.open_unix_connection(guest)
        writer.write(b'{"execute": "guest-exec", "argu')
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        del reader
        agent = await connect_patiently(guest)
        assert (await run(agent, "echo", "back")).stdout == b"back\n"
        await agent.close()


@needs_agent
async def test_info_and_ping(agent: QemuAgent) -> None:
    info = await agent.info()
    assert (info.hostname, info.kernel) == (os.uname().nodename, os.uname().release)
    assert info.uptime is not None
    loopback = next(interface for interface in info.addresses if interface.name == "lo")
    assert "127.0.0.1/8" in loopback.addresses
    assert await agent.ping(5)


@needs_agent
async def test_blocked_command_is_explained(agent: QemuAgent) -> None:
    with pytest.raises(AgentCannot, match="does not offer 'guest-shutdown'"):
        await agent.shutdown("poweroff")


@needs_agent
async def test_captured_as_in_a_guest_without_a_shell(captured_agent: QemuAgent) -> None:
    ended = await run(captured_agent, "sh", "-c", "cat; echo err >&2; exit 3", stdin=b"input")
    assert ended == Captured(ExitStatus(code=3), b"input", b"err\n")
    with pytest.raises(GuestCommandNotFound):
        await run(captured_agent, "no-such-command")
    with pytest.raises(AgentCannot, match="neither user nor directory"):
        await captured_agent.exec(["true"], cwd="/")


async def test_shutdown_has_no_answer(tmp_path: Path) -> None:
    asked: list[object] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            message = json.loads(line.lstrip(b"\xff"))
            asked.append((message["execute"], message["arguments"]))
            if message["execute"] == "guest-sync-delimited":
                writer.write(
                    b'{"error": {}}\n\xff' + json.dumps({"return": message["arguments"]["id"]}).encode()
                )
                writer.write(b"\n")
            elif message["execute"] == "guest-ping":
                writer.write(b'{"return": {}}\n')
            elif message["execute"] == "guest-fsfreeze-status":
                writer.write(b'{"return": "thawed"}\n')
            else:
                break
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "qga.sock")
    agent = await connect(tmp_path / "qga.sock")
    await agent.shutdown("reboot")
    assert asked[-1] == ("guest-shutdown", {"mode": "reboot"})
    assert not await agent.ping(1)
    with pytest.raises(AgentLost):
        await agent.exec(["true"])
    await agent.close()
    server.close()


async def test_silence_says_how_long(tmp_path: Path) -> None:
    writers: list[asyncio.StreamWriter] = []  # from Python 3.13 on one that nobody has is closed

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read()

    server = await asyncio.start_unix_server(say_nothing, tmp_path / "qga.sock")
    with pytest.raises(AgentSilent, match="300ms"):
        await connect(tmp_path / "qga.sock", timeout=0.3)
    server.close()

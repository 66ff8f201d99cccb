"""The C agent and its client together, over a socket instead of a virtio port."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from insula.engine.agent.insula import OUTPUT_WINDOW, InsulaAgent, connect
from insula.engine.agent.protocol import (
    AgentBusy,
    AgentLost,
    ExecSession,
    ExitStatus,
    GuestCommandNotExecutable,
    GuestCommandNotFound,
    GuestRefused,
    capture,
)
from insula.kit.errors import Invalid

if TYPE_CHECKING:
    from tests.unit.agent.conftest import Guest, StartGuest

pytestmark = pytest.mark.timeout(20)


async def run(agent: InsulaAgent, *argv: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    captured = await capture(await agent.exec(argv), stdin)
    return captured.status.shell_status, captured.stdout, captured.stderr


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
    ended = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_reader(descriptor, lambda: ended.done() or ended.set_result(None))
    try:
        async with asyncio.timeout(10):
            await ended
    finally:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)


async def test_output_apart_and_in_order(agent: InsulaAgent) -> None:
    script = "for i in 1 2 3; do echo out $i; echo err $i >&2; done; exit 5"
    status, stdout, stderr = await run(agent, "sh", "-c", script)
    assert (status, stdout, stderr) == (5, b"out 1\nout 2\nout 3\n", b"err 1\nerr 2\nerr 3\n")


async def test_output_comes_while_the_command_runs(agent: InsulaAgent) -> None:
    session = await agent.exec(["sh", "-c", "echo ready; read line; echo got $line"])
    output = session.output()
    assert await anext(output) == ("stdout", b"ready\n")
    await session.write_stdin(b"this\n")
    assert await anext(output) == ("stdout", b"got this\n")
    assert await session.wait() == ExitStatus(code=0)


@pytest.mark.slow
async def test_much_output_arrives_whole(agent: InsulaAgent, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 8
    (tmp_path / "data").write_bytes(data)
    status, stdout, _ = await run(agent, "cat", str(tmp_path / "data"))
    assert status == 0
    assert hashlib.sha256(stdout).digest() == hashlib.sha256(data).digest()


@pytest.mark.slow
async def test_much_input_through_cat(agent: InsulaAgent) -> None:
    data = os.urandom(1 << 20) * 6
    status, stdout, _ = await run(agent, "cat", stdin=data)
    assert status == 0
    assert hashlib.sha256(stdout).digest() == hashlib.sha256(data).digest()


async def test_input_waits_for_a_command_that_does_not_read(agent: InsulaAgent) -> None:
    session = await agent.exec(["sh", "-c", "read go; wc -c"])
    await session.write_stdin(b"")
    writer = asyncio.create_task(session.write_stdin(b"\0" * (1 << 20)))
    other = await run(agent, "echo", "still", "here")  # a round trip later the writer is still stuck
    assert other[1] == b"still here\n"
    assert not writer.done()
    await session.close()
    await writer


async def test_input_that_nobody_reads_is_dropped(agent: InsulaAgent) -> None:
    status, stdout, _ = await run(agent, "sh", "-c", "exec 0<&-; echo closed", stdin=b"x" * (1 << 20))
    assert (status, stdout) == (0, b"closed\n")


async def test_a_signal_ends_the_whole_group(agent: InsulaAgent) -> None:
    session = await agent.exec(["sh", "-c", "sleep 1000 & echo $!; wait"])
    child = int(await first_output(session))
    await session.send_signal(signal.SIGTERM)
    assert await session.wait() == ExitStatus(signal=signal.SIGTERM)
    assert (await session.wait()).shell_status == 128 + signal.SIGTERM
    await wait_gone(child)
    await session.send_signal(signal.SIGTERM)  # it has ended: nothing


async def test_unknown_command(agent: InsulaAgent, tmp_path: Path) -> None:
    for command in ("no-such-command", str(tmp_path / "missing")):
        with pytest.raises(GuestCommandNotFound, match="has no command") as caught:
            await agent.exec([command])
        assert caught.value.exit_status == 127


async def test_command_that_cannot_be_executed(agent: InsulaAgent, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")
    for command in (str(tmp_path / "data"), "/tmp"):
        with pytest.raises(GuestCommandNotExecutable) as caught:
            await agent.exec([command])
        assert caught.value.exit_status == 126


async def test_environment_directory_and_user(agent: InsulaAgent, tmp_path: Path) -> None:
    session = await agent.exec(["sh", "-c", "pwd; echo $WORD; env"], env={"WORD": "a = ä"}, cwd=str(tmp_path))
    stdout = (await capture(session)).stdout.decode()
    assert stdout.startswith(f"{tmp_path}\na = ä\n")
    assert "PYTEST" not in stdout  # nothing of the agent's own environment
    with pytest.raises(GuestRefused, match="cannot enter"):
        await agent.exec(["true"], cwd="/no/such/place")
    with pytest.raises(GuestRefused, match="as user 'nobody-at-all'"):
        await agent.exec(["true"], user="nobody-at-all")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
async def test_another_user_by_name_and_number(agent: InsulaAgent) -> None:
    for user in ("nobody", "65534"):
        captured = await capture(await agent.exec(["sh", "-c", "id -u; echo $USER"], user=user, cwd="/"))
        assert captured.stdout == b"65534\nnobody\n"


async def test_nothing_to_run_and_too_much(agent: InsulaAgent) -> None:
    for argv in ([], [""], ["echo", "x" * 70_000], ["echo", "nul\0"]):
        with pytest.raises(Invalid):
            await agent.exec(argv)
    with pytest.raises(Invalid, match="environment variable"):
        await agent.exec(["true"], env={"A=B": ""})
    assert await agent.ping(5)


async def test_terminal(agent: InsulaAgent) -> None:
    session = await agent.exec(
        ["sh", "-c", "tty; stty size; read line; stty size; exit 3"], tty=True, rows=40, cols=120
    )
    output = session.output()
    text = b""
    while text.count(b"\n") < 2:
        text += (await anext(output))[1]
    assert text.startswith(b"/dev/pts/")
    assert text.endswith(b"\r\n40 120\r\n")
    await session.resize(50, 100)
    await session.write_stdin(b"\n")
    rest = b"".join([data async for _, data in output])
    assert rest.endswith(b"50 100\r\n")
    assert await session.wait() == ExitStatus(code=3)


async def test_terminal_keys_and_end_of_input(agent: InsulaAgent) -> None:
    session = await agent.exec(["sh", "-c", "stty -echo; echo ready; exec cat"], tty=True)
    output = session.output()
    assert await anext(output) == ("stdout", b"ready\r\n")
    await session.write_stdin(b"line\n")
    assert await anext(output) == ("stdout", b"line\r\n")
    await session.close_stdin()
    assert await session.wait() == ExitStatus(code=0)
    session = await agent.exec(["sh", "-c", "echo ready; exec cat"], tty=True)
    assert await first_output(session) == b"ready\r\n"
    await session.write_stdin(b"\x03")
    assert await session.wait() == ExitStatus(signal=signal.SIGINT)


@pytest.mark.slow
async def test_many_commands_at_once(agent: InsulaAgent) -> None:
    async def one(number: int) -> None:
        data = f"{number}\n".encode() * 1000
        assert await run(agent, "cat", stdin=data) == (0, data, b"")

    await asyncio.gather(*(one(number) for number in range(60)))


@pytest.mark.slow
async def test_too_many_commands_is_said(agent: InsulaAgent) -> None:
    sessions = [await agent.exec(["cat"]) for _ in range(agent.hello.max_streams)]
    with pytest.raises(AgentBusy):
        await agent.exec(["true"])
    await asyncio.gather(*(capture(session) for session in sessions))
    assert (await run(agent, "true"))[0] == 0


@pytest.mark.slow
async def test_a_slow_reader_stops_only_its_own_command(agent: InsulaAgent) -> None:
    session = await agent.exec(["sh", "-c", "head -c 3000000 /dev/zero; echo end >&2"])
    await asyncio.gather(*(run(agent, "echo", str(number)) for number in range(20)))
    waiting = session._stream._queued.value
    assert 0 < waiting <= OUTPUT_WINDOW
    assert not session._stream.over
    captured = await capture(session)
    assert (len(captured.stdout), captured.stderr) == (3_000_000, b"end\n")


async def test_a_grandchild_in_the_background_does_not_hang_the_caller(agent: InsulaAgent) -> None:
    begin = time.monotonic()
    status, stdout, _ = await run(agent, "sh", "-c", "sleep 1000 & echo $!; exit 4")
    assert status == 4
    assert time.monotonic() - begin < 5
    os.kill(int(stdout), signal.SIGKILL)


@pytest.mark.slow
async def test_a_grandchild_that_never_falls_silent_is_cut_off(agent: InsulaAgent) -> None:
    status, stdout, _ = await run(agent, "sh", "-c", "yes & echo first; exit 4")
    assert status == 4
    assert b"first\n" in stdout


async def test_last_words_are_kept_beside_a_grandchild(agent: InsulaAgent) -> None:
    script = "sleep 1000 & head -c 60000 /dev/zero; echo $! >&2"
    _, stdout, stderr = await run(agent, "sh", "-c", script)
    assert len(stdout) == 60000
    os.kill(int(stderr), signal.SIGKILL)


async def test_close_hangs_the_command_up(agent: InsulaAgent) -> None:
    session = await agent.exec(["sh", "-c", "echo $$; exec sleep 1000"])
    pid = int(await first_output(session))
    await session.close()
    await session.close()
    await wait_gone(pid)
    with pytest.raises(AgentLost, match="closed while 'sh' ran"):
        await session.wait()


async def test_disconnect_hangs_the_commands_up(guest: Guest) -> None:
    agent = await connect(guest.socket)
    session = await agent.exec(["sh", "-c", "echo $$; exec sleep 1000"])
    pid = int(await first_output(session))
    await agent.close()
    await wait_gone(pid)
    with pytest.raises(AgentLost, match="'sh'"):
        await session.wait()
    with pytest.raises(AgentLost):
        await agent.exec(["true"])
    assert not await agent.ping(1)
    again = await connect(guest.socket)
    assert (await run(again, "echo", "back"))[1] == b"back\n"
    await again.close()


async def test_end_of_the_agent_is_an_error_with_the_command(guest: Guest) -> None:
    agent = await connect(guest.socket)
    session = await agent.exec(["sh", "-c", "echo $$; exec sleep 1000"])
    pid = int(await first_output(session))
    guest.process.kill()
    with pytest.raises(AgentLost, match="while 'sh' ran"):
        await session.wait()
    await agent.close()
    os.kill(pid, signal.SIGKILL)


async def test_info(agent: InsulaAgent) -> None:
    info = await agent.info()
    assert (info.hostname, info.kernel) == (os.uname().nodename, os.uname().release)
    assert info.os
    assert info.uptime is not None
    assert info.uptime > 0
    loopback = next(interface for interface in info.addresses if interface.name == "lo")
    assert "127.0.0.1/8" in loopback.addresses
    assert loopback.mac == "00:00:00:00:00:00"


async def test_shutdown_asks_with_the_mode(
    agent_program: Path, start_guest: StartGuest, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    os.mkfifo(asked)
    program = tmp_path / "shutdown"
    program.write_text(f'#!/bin/sh\necho "$1" > {asked}\n')
    program.chmod(0o755)
    guest = start_guest(agent_program, "--shutdown", str(program))
    agent = await connect(guest.socket)
    for mode in ("poweroff", "reboot"):
        await agent.shutdown(mode)
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(asked.read_text) == f"{mode}\n"
    await agent.close()

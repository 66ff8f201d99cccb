"""Exec and console websockets under the real server: streams, ends, disconnects, backpressure."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed

from insula.engine.agent.protocol import ExitStatus
from insula.model.observation import Phase
from tests.unit.server.conftest import Served
from tests.unit.server.fake_control import FakeConsole, FakeControl, FakeSession, machine

WEB = "/v1/projects/default/machines/web"
START = json.dumps({"argv": ["cat", "-"], "environment": {"A": "b"}, "timeout": "5s"})


@contextlib.asynccontextmanager
async def connected(served: Served, path: str, **headers: str) -> AsyncIterator[ClientConnection]:
    async with (
        asyncio.timeout(15),
        unix_connect(served.path, f"ws://insula{path}", additional_headers=headers, max_queue=1) as websocket,
    ):
        yield websocket


@contextlib.asynccontextmanager
async def running(
    served: Served, control: FakeControl, query: str = "", name: str = "web"
) -> AsyncIterator[tuple[ClientConnection, FakeSession]]:
    """A command that was started."""
    session = control.node.session = FakeSession()
    async with connected(served, f"/v1/projects/default/machines/{name}/exec{query}") as websocket:
        await websocket.send(START)
        assert json.loads(await websocket.recv()) == {"type": "started"}
        yield websocket, session


async def closing_of(websocket: ClientConnection) -> tuple[int | None, str | None]:
    with pytest.raises(ConnectionClosed):
        await websocket.recv()
    return websocket.close_code, websocket.close_reason


async def error_of(websocket: ClientConnection) -> dict[str, Any]:
    message = json.loads(await websocket.recv())
    assert message["type"] == "error"
    assert (await closing_of(websocket))[0] == 1011
    problem: dict[str, Any] = message["problem"]
    return problem


async def test_exec_streams_apart_and_tells_the_status(served: Served, control: FakeControl) -> None:
    async with running(served, control) as (websocket, session):
        session.printed.put_nowait(("stdout", b"out"))
        session.printed.put_nowait(("stderr", b"err"))
        assert [await websocket.recv(), await websocket.recv()] == [b"\x01out", b"\x02err"]
        session.end(ExitStatus(code=3))
        told = json.loads(await websocket.recv())
        assert told == {"type": "exit", "code": 3, "signal": None, "status": 3}
        assert (await closing_of(websocket))[0] == 1000
    (request,) = control.node.exec_requests
    assert (request.argv, request.environment, request.timeout) == (("cat", "-"), (("A", "b"),), 5.0)
    assert session.closed.is_set()


async def test_exec_takes_input_signals_and_sizes(served: Served, control: FakeControl) -> None:
    async with running(served, control) as (websocket, session):
        await websocket.send(b"\x00some")
        await websocket.send(json.dumps({"type": "resize", "rows": 50, "columns": 132}))
        await websocket.send(json.dumps({"type": "signal", "number": 2}))
        await websocket.send(json.dumps({"type": "stdin-eof"}))
        assert [await session.stdin.get(), await session.stdin.get()] == [b"some", None]
        assert [await session.orders.get(), await session.orders.get()] == [
            ("resize", 50, 132),
            ("signal", 2),
        ]
        session.end(ExitStatus(signal=2))
        told = json.loads(await websocket.recv())
        assert told == {"type": "exit", "code": None, "signal": 2, "status": 130}


async def test_exec_of_unknown_command_machine_and_bad_start(served: Served) -> None:
    async with connected(served, f"{WEB}/exec") as websocket:
        await websocket.send(json.dumps({"argv": ["no-such"]}))
        problem = await error_of(websocket)
        assert (problem["code"], problem["exit_status"]) == ("guest-command-not-found", 127)
    async with connected(served, "/v1/projects/default/machines/nope/exec") as websocket:
        assert (await error_of(websocket))["code"] == "machine-not-found"
    for bad in ("{", json.dumps({"argv": []}), json.dumps({"argv": ["a"], "colour": 1}), b"\x00"):
        async with connected(served, f"{WEB}/exec") as websocket:
            await websocket.send(bad)
            assert (await error_of(websocket))["code"] == "bad-document"


@pytest.mark.parametrize("bad", [b"\x05data", b"", '{"type":"dance"}', '{"type":"signal","number":0}', "no"])
async def test_exec_refuses_bad_messages_and_hangs_up(
    served: Served, control: FakeControl, bad: str | bytes
) -> None:
    async with running(served, control) as (websocket, session):
        await websocket.send(bad)
        assert (await error_of(websocket))["code"] == "bad-document"
        await session.closed.wait()


async def test_exec_client_says_goodbye(served: Served, control: FakeControl) -> None:
    async with running(served, control) as (websocket, session):
        await websocket.close()
        await session.closed.wait()
    assert control.requests == []


async def test_exec_client_vanishes_while_its_input_is_not_taken(
    served: Served, control: FakeControl
) -> None:
    """The command reads nothing, the channel is full of input, and still the end of the client is seen."""
    async with running(served, control) as (websocket, session):
        session.takes_stdin.clear()
        await websocket.send(b"\x00first")
        flood = asyncio.ensure_future(websocket.send(b"\x00" + bytes(900_000)))
        await asyncio.wait([flood], timeout=0.05)
        websocket.transport.abort()
        await session.closed.wait()
        await asyncio.gather(flood, return_exceptions=True)


async def test_exec_client_vanishes_while_the_agent_is_silent(served: Served, control: FakeControl) -> None:
    control.node.agent_hangs = True
    async with connected(served, f"{WEB}/exec") as websocket:
        await websocket.send(START)
        websocket.transport.abort()
        await control.node.agent_cancelled.wait()


async def test_exec_output_waits_for_the_client(served: Served, control: FakeControl) -> None:
    """A client that does not read stops the command's output; nothing piles up in the daemon."""
    async with running(served, control) as (websocket, session):
        piece, count = bytes(65536), 200
        for _ in range(count):
            session.printed.put_nowait(("stdout", piece))
        session.end(ExitStatus(code=0))
        # Every websocket that is served proves that the server's loop went round and could have sent more.
        before = -1
        while session.delivered != before:
            before = session.delivered
            async with connected(served, f"{WEB}/exec") as other:
                await other.send("{")
                await other.recv()
        assert session.delivered < 4 * 2**20
        received = 0
        while isinstance(message := await websocket.recv(), bytes):
            received += len(message) - 1
        assert received == count * len(piece)


@pytest.mark.parametrize(
    ("query", "ephemeral", "removed"),
    [("?attached=true", True, True), ("?attached=true", False, False), ("", True, False)],
)
async def test_attached_ephemeral_machine_goes_with_its_client(
    served: Served, control: FakeControl, query: str, ephemeral: bool, removed: bool
) -> None:
    control.add(machine("job", ephemeral=ephemeral), Phase.RUNNING)
    async with running(served, control, query, "job") as (websocket, session):
        websocket.transport.abort()
        await session.closed.wait()
    served.closing.set()
    await served.task
    verbs = [(request.verb, request.name, request.parameters) for request in control.requests]
    assert verbs == ([("rm", "job", {"force": True})] if removed else [])


async def test_attached_ephemeral_machine_stays_when_the_command_ends_or_the_daemon(
    served: Served, control: FakeControl
) -> None:
    control.add(machine("job", ephemeral=True), Phase.RUNNING)
    async with running(served, control, "?attached=true", "job") as (websocket, session):
        session.end(ExitStatus(code=0))
        await websocket.recv()
        assert (await closing_of(websocket))[0] == 1000
    async with running(served, control, "?attached=true", "job") as (websocket, session):
        served.closing.set()
        assert (await closing_of(websocket))[0] == 1012
        await session.closed.wait()
    assert control.requests == []


async def test_other_version_is_told_on_the_websocket(served: Served) -> None:
    async with connected(served, f"{WEB}/exec", **{"Insula-Version": "0"}) as websocket:
        assert (await error_of(websocket))["code"] == "daemon-version"


async def test_unexpected_exception_is_a_bug(served: Served, control: FakeControl) -> None:
    control.failure = ZeroDivisionError()
    async with connected(served, f"{WEB}/exec") as websocket:
        assert (await error_of(websocket))["code"] == "bug"


async def test_console_carries_bytes_both_ways(served: Served, control: FakeControl) -> None:
    console = control.node.console = FakeConsole()
    async with connected(served, f"{WEB}/console") as websocket:
        console.printed.put_nowait(b"login: ")
        assert await websocket.recv() == b"login: "
        await websocket.send(b"root\r")
        assert await console.typed.get() == b"root\r"
        console.printed.put_nowait(b"")
        assert (await closing_of(websocket))[0] == 1000
    assert console.closed.is_set()


async def test_console_is_given_back_when_the_client_goes(served: Served, control: FakeControl) -> None:
    console = control.node.console = FakeConsole()
    async with connected(served, f"{WEB}/console") as websocket:
        await websocket.send(b"x")
        await console.typed.get()
        websocket.transport.abort()
        await console.closed.wait()


async def test_console_that_is_busy(served: Served) -> None:
    async with connected(served, f"{WEB}/console") as websocket:
        assert (await error_of(websocket))["code"] == "console-busy"

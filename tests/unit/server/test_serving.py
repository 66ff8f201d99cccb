"""The server on its socket: who may speak, streams that follow, and its end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import time

import httpx
import pytest
from fastapi import FastAPI

from insula.kit.paths import Home
from insula.model.observation import Phase
from insula.server.info import DaemonInfo
from insula.server.listen import open_listener
from tests.unit.server.conftest import Served, serve
from tests.unit.server.fake_control import FakeControl, machine

WEB = "/v1/projects/default/machines/web"


async def test_socket_is_its_owners_only(served: Served, daemon: DaemonInfo) -> None:
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon.socket.parent.stat().st_mode) == 0o700
    async with served.client() as client:
        answer = await client.get("/v1/machines")
    assert answer.status_code == 200
    assert "date" not in answer.headers
    assert "server" not in answer.headers


async def test_other_users_are_closed_at_once(
    app: FastAPI, daemon: DaemonInfo, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = frozenset({os.geteuid() + 4242})
    with caplog.at_level(logging.WARNING, "insula.server.peer"):
        async with serve(app, daemon, allowed=stranger) as served:
            reader, writer = await asyncio.open_unix_connection(served.path)
            writer.write(b"GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n")
            try:
                answer = await reader.read()
            except ConnectionResetError:  # closed with our request unread
                answer = b""
            writer.close()
    assert answer == b""
    assert f"user {os.geteuid()} (process {os.getpid()})" in caplog.text


async def test_deep_home(app: FastAPI, tmp_path: os.PathLike[str], daemon: DaemonInfo) -> None:
    deep = Home(daemon.home.root / ("d" * 80) / ("e" * 80))
    deep.daemon.mkdir(parents=True, mode=0o700)
    listener = open_listener(deep.daemon_socket)
    assert stat.S_ISSOCK(deep.daemon_socket.stat().st_mode)
    listener.close()
    assert not deep.daemon_socket.exists()


async def test_stale_socket_is_replaced(daemon: DaemonInfo) -> None:
    stale = open_listener(daemon.socket)
    stale.socket.close()
    fresh = open_listener(daemon.socket)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.socket))
    fresh.close()


async def test_requests_queue_before_the_server_is_there(app: FastAPI, daemon: DaemonInfo) -> None:
    listener = open_listener(daemon.socket)
    reader, writer = await asyncio.open_unix_connection(str(daemon.socket))
    writer.write(b"GET /v1/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    async with serve(app, daemon, listener):
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_events_follow_and_resume(served: Served, control: FakeControl) -> None:
    control.tell("old")
    async with served.client() as client:
        async with client.stream("GET", "/v1/events") as answer:
            # The answer has begun, so the subscription has: nothing from here on may be missed.
            control.tell("new")
            lines = answer.aiter_lines()
            assert [await anext(lines), await anext(lines)] == ["id: 2", "event: new"]
        await control.streams_closed.wait()
        control.tell("newer")
        async with client.stream("GET", "/v1/events", headers={"Last-Event-ID": "2"}) as answer:
            assert await anext(answer.aiter_lines()) == "id: 3"


async def test_followed_log_ends_with_its_client(served: Served, control: FakeControl) -> None:
    async with served.client() as client, client.stream("GET", f"{WEB}/log?follow=true") as answer:
        pieces = answer.aiter_bytes()
        assert await anext(pieces) == b"one\n"
    await control.node.log_closed.wait()


async def test_streams_and_waits_end_with_the_daemon(served: Served, control: FakeControl) -> None:
    control.holds = True
    async with served.client() as client:
        async with asyncio.TaskGroup() as group:
            machine_wait = group.create_task(client.get(f"{WEB}/wait", params={"phase": "stopped"}))
            start = group.create_task(client.post(f"{WEB}/start", params={"wait": 600}))
            events = group.create_task(client.get("/v1/events"))
            await control.waiting.wait_until(lambda waiting: waiting == 2)
            assert (await client.post("/v1/daemon/stop")).status_code == 202
            await served.task
        assert (machine_wait.result().status_code, machine_wait.result().json()["code"]) == (
            503,
            "daemon-stopping",
        )
        assert (start.result().status_code, start.result().json()["state"]) == (202, "queued")
        assert events.result().status_code == 200
    assert control.waiting.value == 0


async def test_wait_ends_with_its_client(served: Served, control: FakeControl) -> None:
    async with served.client() as client:
        wait = asyncio.ensure_future(client.get(f"{WEB}/wait", params={"phase": "stopped"}))
        await control.waiting.wait_until(lambda waiting: waiting == 1)
        wait.cancel()
        await asyncio.gather(wait, return_exceptions=True)
        await control.waiting.wait_until(lambda waiting: waiting == 0)


async def test_wait_sees_the_phase_come(served: Served, control: FakeControl) -> None:
    async with served.client() as client:
        wait = asyncio.ensure_future(client.get(f"{WEB}/wait", params={"phase": "stopped"}))
        await control.waiting.wait_until(lambda waiting: waiting == 1)
        control.add(machine("web", generation=4), Phase.STOPPED)
        answer = await wait
    assert (answer.json()["phase"], answer.headers["etag"]) == ("stopped", '"4"')


async def test_what_breaks_in_the_middle_of_a_stream_is_cut_off(
    served: Served, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(uid: str, *, follow: bool, tail: int | None):  # type: ignore[no-untyped-def]
        yield b"one"
        raise ZeroDivisionError

    monkeypatch.setattr(control.node, "read_log", broken)
    async with served.client() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"{WEB}/log")
        assert (await client.get("/v1/version")).status_code == 200


@pytest.mark.slow
async def test_list_of_twenty_is_cheap_beside_the_version(served: Served, control: FakeControl) -> None:
    """What 20 machines cost above an empty answer: at most ten times as much (A/B in one run)."""
    for number in range(19):
        control.add(machine(f"m{number}"))

    async def fastest(client: httpx.AsyncClient, path: str) -> float:
        times = []
        for _ in range(60):
            began = time.perf_counter()
            assert (await client.get(path)).status_code == 200
            times.append(time.perf_counter() - began)
        return min(times)

    async with served.client() as client:
        version, machines = await fastest(client, "/v1/version"), await fastest(client, "/v1/machines")
    assert machines < 10 * version

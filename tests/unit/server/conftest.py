"""The server with a fake control: in process through ASGI, and on a real unix socket under uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from insula.kit.paths import Home
from insula.server.app import create_app
from insula.server.info import DaemonInfo
from insula.server.listen import Listener, open_listener
from insula.server.peer import UnixServer
from tests.unit.server.fake_control import NOW, FakeControl, machine


@pytest.fixture
def control() -> FakeControl:
    control = FakeControl()
    control.add(machine("web", generation=3))
    return control


@pytest.fixture
def daemon(tmp_path: Path) -> DaemonInfo:
    home = Home(tmp_path)
    home.daemon.mkdir(mode=0o700)
    return DaemonInfo(version="1.2.3", started=NOW, home=home, socket=home.daemon_socket)


@pytest.fixture
def app(control: FakeControl, daemon: DaemonInfo) -> FastAPI:
    fake: Any = control
    return create_app(fake, daemon)


@pytest.fixture
async def api(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """The API in process: no socket, no server."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://insula") as client:
        yield client


@dataclass
class Served:
    """A server on a unix socket. task: ends when it has ended."""

    path: str
    closing: asyncio.Event
    server: UnixServer
    task: asyncio.Task[None]

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=self.path), base_url="http://insula", timeout=10
        )


@contextlib.asynccontextmanager
async def serve(
    app: FastAPI, daemon: DaemonInfo, listener: Listener | None = None, **options: Any
) -> AsyncIterator[Served]:
    listener = listener or open_listener(daemon.socket)
    ready = asyncio.Event()
    server = UnixServer(app, daemon.closing, on_ready=ready.set, **options)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(server.serve(sockets=[listener.socket]))
        await ready.wait()
        try:
            yield Served(str(daemon.socket), daemon.closing, server, task)
        finally:
            daemon.closing.set()
            await task
            listener.close()
    assert not server.server_state.tasks, "a request outlived the server"


@pytest.fixture
async def served(app: FastAPI, daemon: DaemonInfo) -> AsyncIterator[Served]:
    async with serve(app, daemon) as server:
        yield server

"""What is answered before the application is loaded is what the application answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from websockets.asyncio.client import unix_connect

from insula.server.front import Front
from insula.server.info import DaemonInfo
from tests.unit.server.conftest import serve
from tests.unit.server.fake_control import FakeControl

HOT = ["/v1/version", "/v1/daemon", "/v1/machines", "/v1/projects/default/machines"]


class Loading:
    """The application behind a gate that the test opens."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.loaded = asyncio.Event()

    async def load(self) -> FastAPI:
        await self.loaded.wait()
        return self.app


@pytest.fixture
async def loading(app: FastAPI) -> Loading:
    return Loading(app)


@pytest.fixture
async def early(
    loading: Loading, control: FakeControl, daemon: DaemonInfo
) -> AsyncIterator[httpx.AsyncClient]:
    fake: Any = control
    front = Front(fake, daemon, loading.load())
    async with serve(front, daemon) as served, served.client() as client:
        yield client
    await front.close()


@pytest.mark.parametrize("path", HOT)
async def test_hot_answers_equal_the_applications(
    early: httpx.AsyncClient, api: httpx.AsyncClient, path: str
) -> None:
    hot, plain = await early.get(path), await api.get(path)
    resident = {"resident_bytes": 0}
    if path == "/v1/daemon":
        assert {**hot.json(), **resident} == {**plain.json(), **resident}
    else:
        assert hot.content == plain.content
    assert hot.headers["content-type"] == plain.headers["content-type"]


async def test_all_else_waits_for_the_application(early: httpx.AsyncClient, loading: Loading) -> None:
    asked = asyncio.ensure_future(early.get("/v1/projects/default/machines/web"))
    assert (await early.get("/v1/machines")).status_code == 200
    assert not asked.done()
    loading.loaded.set()
    assert (await asked).json()["name"] == "web"


async def test_what_is_not_plain_is_the_applications(
    early: httpx.AsyncClient, loading: Loading, control: FakeControl
) -> None:
    loading.loaded.set()
    other = await early.get("/v1/machines", headers={"Insula-Version": "0"})
    assert other.json()["code"] == "daemon-version"
    assert (await early.post("/v1/machines")).status_code == 405
    control.failure = ZeroDivisionError()
    assert (await early.get("/v1/machines")).json()["code"] == "bug"


async def test_websockets_do_not_wait_for_the_application(
    loading: Loading, control: FakeControl, daemon: DaemonInfo
) -> None:
    fake: Any = control
    front = Front(fake, daemon, loading.load())
    async with serve(front, daemon) as served:
        url = "ws://insula/v1/projects/default/machines/nope/exec"
        async with unix_connect(served.path, url) as websocket:
            said = json.loads(await websocket.recv())
    assert said["problem"]["code"] == "machine-not-found"
    await front.close()

"""In front of the application: what commands ask first is answered before the application is even loaded.

    request ── hot, and all is well ──> answered here
        ├───── websocket ─────────────> `sockets`, loaded first
        └───── anything else ─────────> the application, once it is loaded

Loading the web framework is half of the daemon's start. Neither `insula ls` nor `insula exec` after a crash
need wait for it.
What is answered here is exactly what the application's own route would answer; whatever is not plain (another
version, an error, a query) goes there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from insula.control.control import Control
from insula.kit.aio import cancel_and_wait
from insula.server.desk import Desk
from insula.server.info import VERSION_HEADER, DaemonInfo
from insula.server.views import VersionView, render, render_array, view_daemon, view_machine

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger(__name__)


async def load_app(control: Control, daemon: DaemonInfo, accepting: asyncio.Event) -> ASGIApp:
    """The application, loaded in a thread once connections are accepted; the daemon ends if that fails."""

    def load() -> ASGIApp:
        import insula.server.sockets  # noqa: F401 - first what somebody may be waiting for

        _import_openapi_models()
        from insula.server.app import create_app

        return create_app(control, daemon)

    await accepting.wait()
    try:
        return await asyncio.to_thread(load)
    except Exception:
        log.critical("The application cannot be loaded; the daemon ends.", exc_info=True)
        daemon.stop()
        raise


def _import_openapi_models() -> None:
    """Import FastAPI's models of OpenAPI, which only /v1/openapi.json needs, to be built when it does.

    Building their validators at once takes 0.08 s of 0.3 s. `defer_build` is pydantic's option for that; the
    modules offer no way to say it but where all models look.
    """
    ordinary = BaseModel.model_config
    BaseModel.model_config = ConfigDict(defer_build=True)
    try:
        import fastapi.openapi.models  # noqa: F401
    finally:
        BaseModel.model_config = ordinary


class Front:
    """ASGI application. app: loads the application that stands behind."""

    def __init__(self, control: Control, daemon: DaemonInfo, app: Coroutine[Any, Any, ASGIApp]) -> None:
        self._control = control
        self._daemon = daemon
        self._sockets: ASGIApp | None = None
        self.app = asyncio.get_running_loop().create_task(app, name="loading the application")
        self._hot: dict[str, Callable[[], Awaitable[bytes]]] = {
            "/v1/version": self._version,
            "/v1/daemon": self._status,
            "/v1/machines": self._machines,
            "/v1/projects/default/machines": lambda: self._machines("default"),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._answer(scope) if scope["type"] == "http" else None
        if body is None:
            app = await self._application(scope["type"])
            await app(scope, receive, send)
            return
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _application(self, kind: str) -> ASGIApp:
        if kind == "websocket":
            from insula.server.sockets import create_sockets

            self._sockets = self._sockets or create_sockets(Desk(self._control, self._daemon))
            return self._sockets
        # Shielded: the request may be cancelled, the loading is everybody's.
        return await asyncio.shield(self.app)

    async def close(self) -> None:
        """End the loading, if it still goes on."""
        await cancel_and_wait(self.app)

    async def _answer(self, scope: Scope) -> bytes | None:
        hot = self._hot.get(scope["path"])
        if hot is None or scope["method"] != "GET":
            return None
        expected = self._daemon.version.encode()
        if any(name == VERSION_HEADER and value != expected for name, value in scope["headers"]):
            return None
        try:
            return await hot()
        except Exception:
            return None  # the application fails likewise, and tells why

    async def _version(self) -> bytes:
        return render(VersionView(version=self._daemon.version))

    async def _status(self) -> bytes:
        return render(view_daemon(self._daemon, await self._control.list_machines(None)))

    async def _machines(self, project: str | None = None) -> bytes:
        states = await self._control.list_machines(project)
        return render_array(view_machine(state, self._daemon.home) for state in states)

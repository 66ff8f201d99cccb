"""What every request passes first: the version check, the size limit, the net for what nobody expected."""

from __future__ import annotations

import json
from collections.abc import Iterable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from insula.kit.errors import InsulaError
from insula.server.info import VERSION_HEADER, DaemonInfo
from insula.server.problems import DaemonVersion, as_insula_error, problem_response

# A client of another version must be able to see whom it speaks to, and to end it.
OPEN_TO_ALL_VERSIONS = frozenset({"/v1/version", "/v1/daemon", "/v1/daemon/stop", "/v1/openapi.json"})
LARGEST_BODY = 2 * 2**20  # a machine document with its user-data is far smaller


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, daemon: DaemonInfo) -> None:
        self._app = app
        self._daemon = daemon

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            refusal = self._check_version(scope)
            if refusal is not None:
                raise refusal
            await self._app(scope, _limited(receive), watched)
        except Exception as error:
            told = as_insula_error(error, f"{scope['method']} {scope['path']}")
            if begun:
                raise ConnectionAbortedError("the answer broke off in the middle") from told
            await problem_response(told.to_problem())(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._check_version(scope)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        await receive()  # websocket.connect
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": error_message(refusal)})
        await send({"type": "websocket.close", "code": 1011, "reason": refusal.code})

    def _check_version(self, scope: Scope) -> InsulaError | None:
        version = _header(scope["headers"], VERSION_HEADER)
        if version in (None, self._daemon.version) or scope["path"] in OPEN_TO_ALL_VERSIONS:
            return None
        return DaemonVersion(
            f"The daemon is insula {self._daemon.version}, this command is insula {version}.",
            hint="Run: insula daemon stop, then try again: it starts anew. No machine is stopped.",
            evidence={"daemon": self._daemon.version, "client": version},
        )


def error_message(error: InsulaError) -> str:
    """The last text message of a websocket that fails."""
    return json.dumps({"type": "error", "problem": error.to_problem()}, default=repr)


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key == name), None)


def _limited(receive: Receive) -> Receive:
    """The request's body, refused (413) as soon as it has grown beyond LARGEST_BODY."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > LARGEST_BODY:
            raise HTTPException(413, f"At most {LARGEST_BODY} bytes.", {"Connection": "close"})
        return message

    return limited

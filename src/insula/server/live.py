"""Answers that go on: streams and waits that end when done, when the client goes, or when the daemon ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from insula.kit.aio import cancel_and_wait
from insula.server.info import DaemonInfo
from insula.server.race import first_of

T = TypeVar("T")


class LiveResponse(Response):
    """A body that comes in pieces, each sent as soon as it is there and not before the last one was taken."""

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        daemon: DaemonInfo,
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers({"Cache-Control": "no-store", **(headers or {})})
        self._pieces = pieces
        self._daemon = daemon
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ended = await first_of(
            done=self._send_pieces(send), closing=self._daemon.closing.wait(), gone=_disconnected(receive)
        )
        if "gone" not in ended:
            await self._begin(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, send: Send) -> None:
        if not self._begun:
            self._begun = True
            start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await send(start)

    async def _send_pieces(self, send: Send) -> None:
        first = asyncio.ensure_future(_next(self._pieces))
        try:
            # Let the iterator begin: once the client hears of its stream, nothing that happens may be missed.
            await asyncio.sleep(0)
            if first.done():
                first.result()  # what fails at once is answered with its problem
            await self._begin(send)
            piece = await first
            while piece is not None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                piece = await _next(self._pieces)
        finally:
            await cancel_and_wait(first)
            # An iterator left to the garbage collector would hold its watch or file until then.
            close = getattr(self._pieces, "aclose", None)
            if close is not None:
                await close()


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)


async def while_wanted(request: Request, daemon: DaemonInfo, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of a long wait, or None when the client has gone or the daemon ends before."""
    ended = await first_of(done=work, closing=daemon.closing.wait(), gone=_disconnected(request.receive))
    result: T | None = ended.get("done")
    return result


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

"""Events as server-sent events (WHATWG HTML 9.2): resumable, in order, none twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from insula.model.event import Event
from insula.server.desk import desk_of
from insula.server.live import LiveResponse
from insula.server.problems import problems

router = APIRouter(tags=["events"], responses=problems())

_EXAMPLE = (
    'id: 7\nevent: machine.phase\ndata: {"seq":7,"at":"2026-01-01T00:00:00Z","kind":"machine.phase",'
    '"project":"default","target":"5f2c9a7e1b3d4860","name":"web","data":{"phase":"running"}}\n\n'
)


@router.get(
    "/v1/events",
    operation_id="watch_events",
    response_model=None,
    responses={
        200: {
            "description": "One event a block: `id` is its seq, `event` its kind, `data` the event as JSON.",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _EXAMPLE}},
        }
    },
)
async def watch_events(
    request: Request,
    after: Annotated[int | None, Query(ge=0, lt=2**63, description="Only events with seq > after.")] = None,
    follow: Annotated[bool, Query(description="Go on with new ones; false: end at the last one.")] = True,
    last_event_id: Annotated[
        int | None, Header(ge=0, lt=2**63, description="Where a broken stream is taken up; beats `after`.")
    ] = None,
) -> Response:
    """The host's events. Without `after`: only new ones, or with `follow=false` all that are kept."""
    desk = desk_of(request)
    start = after if last_event_id is None else last_event_id
    if start is None and not follow:
        start = 0
    events = desk.control.watch_events(start, follow=follow)
    return LiveResponse(_blocks(events), desk.daemon, "text/event-stream")


async def _blocks(events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            # The JSON has no line break of its own: they are escaped within strings.
            yield f"id: {event.seq}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n".encode()
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()

"""The daemon's event stream (server-sent events) as plain dictionaries, across restarts of the daemon."""

from __future__ import annotations

import json

from insula.client.errors import DaemonLost
from insula.client.wire import Disconnected, with_query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from insula.client.transport import Transport
    from insula.client.types import EventInfo


def watch_events(transport: Transport, after: int | None, follow: bool) -> Iterator[EventInfo]:
    """Events in order. With follow it goes on for good: when the daemon dies, it is started and none is
    missed."""
    fruitless = 0
    while True:
        target = with_query("/v1/events", after=after, follow=follow)
        response = transport.stream(target, {"Accept": "text/event-stream"})
        try:
            for event in parse_events(response.pieces()):
                fruitless = 0
                after = event["seq"]
                yield event
            if not follow:
                return
        except Disconnected:
            if not follow:
                raise
        finally:
            response.close()
        fruitless += 1
        if fruitless > 3:
            raise DaemonLost(
                "The daemon ended the event stream again and again.", hint="Look at: insula daemon status"
            )


def parse_events(pieces: Iterable[bytes]) -> Iterator[EventInfo]:
    """The `data` of each event in a text/event-stream (WHATWG HTML, section 9.2.6), however it was cut."""
    buffer = b""
    data: list[bytes] = []
    for piece in pieces:
        buffer += piece
        *lines, buffer = buffer.split(b"\n")
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if not line:
                if data:
                    yield json.loads(b"\n".join(data))
                data = []
            elif line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))

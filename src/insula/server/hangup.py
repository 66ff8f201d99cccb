"""Seeing at once that the other end of a socket is closed."""

from __future__ import annotations

import asyncio
import os
import select
from typing import Any

# Key in a websocket's scope["extensions"]: an event that is set when the client's end is closed. Without it a
# client that goes away would be noticed only after all it had sent was taken, which may be never.
HANG_UP = "insula.hang-up"


class HangUp:
    """Sets an event when the other end of a socket is closed, even while we do not read from it.

    asyncio sees that only when it reads up to the end, which backpressure forbids. epoll tells of it apart
    (EPOLLRDHUP, epoll_ctl(2)), and its own descriptor can be watched by any event loop.
    """

    def __init__(self, connection: Any) -> None:
        self.event = asyncio.Event()
        # A descriptor of our own: the transport closes its one whenever it likes.
        self._watched = os.dup(connection.fileno())
        self._epoll = select.epoll()
        self._epoll.register(self._watched, select.EPOLLRDHUP | select.EPOLLONESHOT)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self.end)

    def end(self) -> None:
        """Set the event and stop watching; may be called twice."""
        self.event.set()
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            os.close(self._watched)

"""What both clients keep of a running command: output not yet read, and how it ended."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable

from insula.engine.agent.protocol import AgentLost, ExitStatus, StreamName
from insula.kit.aio import Cell
from insula.kit.errors import InsulaError


class CommandStream:
    """The host's side of one command. The client puts, the caller reads; on_read(bytes) tells the client."""

    def __init__(self, command: str, on_read: Callable[[int], None] | None = None) -> None:
        self.command = command
        self._on_read = on_read
        self._chunks: deque[tuple[StreamName, bytes]] = deque()
        self._queued = Cell(0)
        self._turn = Cell(0)  # rises with every change, for those who wait for any
        self._status: ExitStatus | None = None
        self._failure: InsulaError | None = None

    @property
    def over(self) -> bool:
        """Whether nothing will be put any more: it ended, was closed, or was lost."""
        return self._status is not None or self._failure is not None

    def put(self, name: StreamName, data: bytes) -> None:
        self._chunks.append((name, data))
        self._queued.set(self._queued.value + len(data))
        self._changed()

    def end(self, status: ExitStatus) -> None:
        if not self.over:
            self._status = status
            self._changed()

    def fail(self, error: InsulaError) -> None:
        if not self.over:
            self._failure = error
            self._changed()

    def lose(self, why: str, cause: BaseException | None = None) -> None:
        """The command's end will never be known."""
        error = AgentLost(
            f"{why} while '{self.command}' ran in the guest.",
            hint="See whether the machine still runs: insula ls.",
        )
        error.__cause__ = cause
        self.fail(error)

    async def output(self) -> AsyncIterator[tuple[StreamName, bytes]]:
        while True:
            if self._chunks:
                name, data = self._chunks.popleft()
                self._queued.set(self._queued.value - len(data))
                if self._on_read is not None:
                    self._on_read(len(data))
                yield name, data
            elif self._failure is not None:
                raise self._failure
            elif self._status is not None:
                return
            else:
                await self.wait_changed()

    async def wait(self) -> ExitStatus:
        while not self.over:
            await self.wait_changed()
        if self._status is None:
            assert self._failure is not None
            raise self._failure
        return self._status

    async def wait_changed(self) -> None:
        seen = self._turn.value
        await self._turn.wait_until(lambda turn: turn != seen)

    async def wait_queued_below(self, limit: int) -> None:
        """Until fewer than `limit` bytes of output wait for the caller."""
        await self._queued.wait_until(lambda queued: queued < limit)

    def _changed(self) -> None:
        self._turn.set(self._turn.value + 1)

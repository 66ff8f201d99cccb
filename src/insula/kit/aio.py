"""What asyncio lacks for us: a value one can wait on, and ending tasks for good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Cell(Generic[T]):
    """A value that changes, and tasks waiting until it satisfies a condition: no polling, no lost wake-up."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def value(self) -> T:
        return self._value

    def set(self, value: T) -> None:
        self._value = value
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_until(self, condition: Callable[[T], bool]) -> T:
        """The first value, now or later, for which condition(value) holds."""
        while not condition(self._value):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        return self._value


async def cancel_and_wait(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel the tasks and wait until they have really ended; what they raise is theirs to have reported."""
    real = [task for task in tasks if task is not None]
    for task in real:
        task.cancel()
    if real:
        await asyncio.gather(*real, return_exceptions=True)


async def to_thread_end(
    work: Callable[..., T], *arguments: Any, give_up: Callable[[], None] | None = None
) -> T:
    """As asyncio.to_thread, but it does not return before the thread is through, also when it is cancelled:
    then what the work was given may go. give_up: tells the work that nobody wants it any more."""
    working = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(working)
    finally:
        if not working.done():
            if give_up is not None:
                give_up()
            await asyncio.wait({working})
            if not working.cancelled():
                working.exception()  # looked at: whoever cancelled does not want to know


class Crew:
    """Background tasks of one owner: none is forgotten by the garbage collector, each failure is reported.

    on_failure(name, exception) is called for any task that raises; cancellation is not a failure.
    """

    def __init__(self, on_failure: Callable[[str, BaseException], None]) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._on_failure = on_failure

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(task.get_name(), error)

    async def close(self) -> None:
        await cancel_and_wait(*self._tasks)

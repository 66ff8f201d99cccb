"""Several things at once, of which the first to end decides: a stream, its client, and the daemon's end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from insula.kit.aio import cancel_and_wait


async def first_of(**works: Coroutine[Any, Any, Any]) -> dict[str, Any]:
    """Run all until one ends, cancel the others and wait until they have ended; the results by name.

    More than one may have ended by then. Raises what the first of them (in the order given) raised; with our
    own cancellation all are cancelled.
    """
    tasks = {name: asyncio.ensure_future(work) for name, work in works.items()}
    try:
        await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_and_wait(*(task for task in tasks.values() if not task.done()))
    ended = {name: task for name, task in tasks.items() if not task.cancelled()}
    failures = [error for task in ended.values() if (error := task.exception()) is not None]
    if failures:
        raise failures[0]
    return {name: task.result() for name, task in ended.items()}

"""Saving and loading the state of a machine's processors and devices, beside memory that stays where it is.

QEMU calls it a migration: `x-ignore-shared` leaves out memory that is mapped from a file. The file with the
state is handed over as a descriptor, so the monitor needs to open nothing.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from insula.engine.errors import EngineLost
from insula.engine.qmp import Event, Monitor

_DESCRIPTOR = "state"
_TIMEOUT = 60.0  # seconds; it takes 10 to 45 ms
# qapi/migration.json. `events` tells the end; without it one would have to ask again and again.
_CAPABILITIES = ("events", "x-ignore-shared")


async def save(monitor: Monitor, path: Path) -> None:
    """Write the state of a machine whose vCPUs stand. Raises EngineLost, EngineRefused, OSError.

    The monitor's events must be taken by `wait_event`: nobody else may listen.
    """
    await _set_capabilities(monitor)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        await monitor.give_descriptor(_DESCRIPTOR, descriptor)
    finally:
        os.close(descriptor)
    await monitor.execute("migrate", uri=f"fd:{_DESCRIPTOR}")
    await _wait_end(monitor, "saved")


async def load(monitor: Monitor, path: Path) -> None:
    """Give a machine that waits for it the state; its vCPUs stand then. Raises as `save`."""
    await _set_capabilities(monitor)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        await monitor.give_descriptor(_DESCRIPTOR, descriptor)
    finally:
        os.close(descriptor)
    await monitor.execute("migrate-incoming", uri=f"fd:{_DESCRIPTOR}")
    await _wait_end(monitor, "loaded")


async def _set_capabilities(monitor: Monitor) -> None:
    wanted = [{"capability": name, "state": True} for name in _CAPABILITIES]
    await monitor.execute("migrate-set-capabilities", capabilities=wanted)


async def _wait_end(monitor: Monitor, what: str) -> None:
    try:
        async with asyncio.timeout(_TIMEOUT):
            event = await monitor.wait_event(_is_end)
    except TimeoutError as error:
        raise EngineLost(f"The state of the machine was not {what} within {_TIMEOUT:.0f}s.") from error
    if event["data"]["status"] != "completed":
        found: dict[str, Any] = await monitor.execute("query-migrate")
        why = found.get("error-desc", "it does not say why")
        raise EngineLost(f"The state of the machine could not be {what}: {why}.")


def _is_end(event: Event) -> bool:
    return event["event"] == "MIGRATION" and event["data"]["status"] in ("completed", "failed", "cancelled")

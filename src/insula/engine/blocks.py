"""The blocks of memory that a monitor has for its machine, and where they are in its process.

It tells both in words that are meant for people; where it tells something else, nothing is known.
"""

from __future__ import annotations

import re

from insula.engine.errors import EngineRefused
from insula.engine.qmp import Monitor

_BLOCK = re.compile(r"^\s*(\S.*?)\s+\d+ [KMG]iB\s+0x[0-9a-f]+\s+0x([0-9a-f]+)\s", re.MULTILINE)
_PLACE = re.compile(r"Host virtual address for 0x[0-9a-f]+ \((.+)\) is 0x([0-9a-f]+)")


async def sizes(monitor: Monitor) -> dict[str, int]:
    """Name of each block -> bytes in use of it. Raises EngineLost."""
    try:
        told = await monitor.execute("x-query-ramblock")
    except EngineRefused:
        return {}
    return {name: int(used, 16) for name, used in _BLOCK.findall(told["human-readable-text"])}


async def locate(monitor: Monitor, block: str, address: int) -> int | None:
    """Where in the process is what the guest has at this address, which is in that block; None if it is not.

    Raises EngineLost.
    """
    try:
        told = await monitor.execute("human-monitor-command", command_line=f"gpa2hva {address:#x}")
    except EngineRefused:
        return None
    found = _PLACE.match(told)
    return int(found[2], 16) if found is not None and found[1] == block else None

"""What the server knows of the daemon around it; free of the web framework, so that it is there at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from insula.kit.paths import Home

VERSION_HEADER = b"insula-version"  # of the client, in each of its requests


@dataclass
class DaemonInfo:
    """home, socket: where the daemon lives. recovered: what its last start adopted, finished and undid.

    closing: set when the daemon ends; streams and waits end with it, and no request is begun any more.
    """

    version: str
    started: datetime
    home: Home
    socket: Path
    recovered: list[str] = field(default_factory=list)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    pid: int = field(default_factory=os.getpid)

    @property
    def stop(self) -> Callable[[], None]:
        """Ends the daemon soon; machines are not touched."""
        return self.closing.set

    def resident_bytes(self) -> int:
        """Resident memory of this process: field 2 of /proc/self/statm, in pages (proc(5))."""
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

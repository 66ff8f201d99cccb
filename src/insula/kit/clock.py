"""What time it is: for records (UTC, ISO 8601) and for measuring (monotonic seconds)."""

from __future__ import annotations

import functools
import time
from datetime import UTC, datetime
from pathlib import Path


def utc_now() -> datetime:
    """The time for records: aware, UTC, whole milliseconds so that it survives JSON unchanged."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def monotonic() -> float:
    """Seconds for measuring; unrelated to the wall clock."""
    return time.monotonic()


@functools.cache
def boot_id() -> str:
    """The kernel's random id of this boot of the host; what was cached under another one is stale."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

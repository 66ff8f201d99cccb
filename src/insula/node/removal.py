"""Removing a directory of a home so that a crash in the middle leaves it under a name that says so."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path


async def remove_directory(directory: Path) -> None:
    """The directory and all in it are gone, also what an earlier try has left. Idempotent. Raises OSError."""
    doomed = directory.with_name(f".removing-{directory.name}")
    if directory.exists():
        if doomed.exists():
            await asyncio.to_thread(shutil.rmtree, doomed)
        directory.rename(doomed)
    if doomed.exists():
        await asyncio.to_thread(shutil.rmtree, doomed)

"""An import whose tool takes for ever, in a process of its own: python -m tests.support.slow_tool FILE
STORE."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from insula.model.image import ImageProperties
from insula.storage.confinement import Confinement
from insula.storage.images import ImageStore
from insula.storage.importing import import_file

_wrap = Confinement.wrap
NAME = "sleep"


async def wrap_slow(self: Confinement, argv: Sequence[str], *, most_file: int, disk: int) -> list[str]:
    """In place of `Confinement.wrap`: as confined, and another program."""
    return await _wrap(self, [NAME, "1000"], most_file=most_file, disk=disk)


def wait_for_tool(parent: int) -> int:
    """The process id of the parent's tool, once it runs."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                head, _, tail = path.read_text().rpartition(")")
            except OSError:
                continue
            if int(tail.split()[1]) == parent and head.endswith(f"({NAME}"):
                return int(path.parent.name)
    raise AssertionError("the tool was not started")


if __name__ == "__main__":
    Confinement.wrap = wrap_slow  # type: ignore[method-assign]
    file, images = map(Path, sys.argv[1:])
    asyncio.run(import_file(file, "web", ImageProperties(), ImageStore(images), print))

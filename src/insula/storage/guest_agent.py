"""Insula's guest agent: one static program, compiled from its source when an image is built."""

from __future__ import annotations

import shutil
from pathlib import Path

from insula.kit.run import run

SOURCE = Path(__file__).parent / "agent" / "insula-agent.c"
# musl's programs are a tenth of glibc's size, which counts where cold code is translated at each boot.
COMPILERS = ("musl-gcc", "gcc", "cc")
FLAGS = ("-std=gnu11", "-O2", "-static", "-s", "-Wl,--build-id=none")


def find_compiler() -> str | None:
    """The best C compiler of this host, or None."""
    return next((name for name in COMPILERS if shutil.which(name)), None)


async def compile_agent(source: Path, target: Path) -> None:
    """Compile the agent. Raises CommandMissing without a compiler, CommandFailed with what it said."""
    compiler = find_compiler() or "gcc"
    await run([compiler, *FLAGS, "-o", str(target), str(source)])

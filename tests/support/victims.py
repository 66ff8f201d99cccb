"""Who is killed while an operation goes on: kill -9 at a drawn moment, and what was hit, in words."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.support.boots import RealShell

Victim = Literal["daemon", "machine", "keeper", "sibling", "tool"]
# Who comes and goes in the course of an operation, and the seconds that they live: they are waited for first.
COMES_AND_GOES: dict[Victim, float] = {"tool": 0.03, "keeper": 0.4, "sibling": 0.6}


@dataclass(frozen=True)
class Killer:
    """Kills one process of a home. daemon: its process id, known before so that its end comes at the moment
    that was drawn. machine: the directory of the machine that the operation is about."""

    home: Path
    daemon: int
    machine: Path

    @classmethod
    def of(cls, insula: RealShell, machine: str) -> Killer:
        daemon = insula.data("daemon", "status")["pid"]
        return cls(insula.home, daemon, Path(insula.info(machine)["directory"]))

    def kill(self, victim: Victim, doing: subprocess.Popen[bytes], delay: float) -> str:
        """delay: from now; of who comes and goes, from when it came. Has it ended by then, the next one is
        killed at once."""
        if victim not in COMES_AND_GOES:
            time.sleep(delay)  # what is drawn is the moment
        while doing.poll() is None or victim == "daemon":
            for pid, line in self.find(victim):
                with contextlib.suppress(ProcessLookupError):
                    watch = os.pidfd_open(pid)
                    try:
                        if victim in COMES_AND_GOES and _has_ended(watch, delay):
                            delay = 0.0
                            continue
                        signal.pidfd_send_signal(watch, signal.SIGKILL)
                        assert _has_ended(watch, 10), f"{victim} {pid} survived kill -9"
                    finally:
                        os.close(watch)
                    return f"{victim} {pid} {line[:150]}"
            if victim == "daemon":
                break
        return "nothing, there was none"

    def find(self, victim: Victim) -> Iterator[tuple[int, str]]:
        """Such processes: id, command line. The daemon's tools are known by their parent: a confined one
        names no path."""
        if victim == "daemon":
            yield self.daemon, "insulad"
            return
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                program = os.path.basename(words[0]).decode()  # noqa: PTH119
                if victim == "tool":
                    found = program == "qemu-img" and _parent(entry) == self.daemon
                else:
                    # Of a capture it is who keeps its memory, or is to take it.
                    monitors = program.startswith("qemu-system") or (
                        victim == "keeper" and program == "sleep"
                    )
                    found = monitors and self._is_in(victim, (entry / "cwd").readlink())
                if found:
                    yield int(entry.name), b" ".join(words).decode()

    def _is_in(self, victim: Victim, place: Path) -> bool:
        if victim == "keeper":
            return place.parent == self.home / "captures"
        return place.parent == self.home / "machines" and (place == self.machine) is (victim == "machine")


def _has_ended(watch: int, timeout: float) -> bool:
    return bool(select.select([watch], [], [], timeout)[0])


def _parent(entry: Path) -> int:
    return int((entry / "stat").read_text().rpartition(")")[2].split()[1])

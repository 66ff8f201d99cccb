"""Whether a qcow2 disk agrees with itself: `qemu-img check`, which changes nothing."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from insula.kit.run import run

# Exit statuses of qemu-img(1): 0 sound, 1 not completed, 2 corrupt, 3 leaks only, 63 not supported.


@dataclass(frozen=True)
class DiskState:
    """leaks: clusters that nothing uses. corruptions: that are not as they must be. failure: why there is no
    answer."""

    leaks: int = 0
    corruptions: int = 0
    cluster_bytes: int = 65536
    failure: str = ""

    @property
    def is_sound(self) -> bool:
        return not (self.leaks or self.corruptions or self.failure)


async def check_disk(path: Path) -> DiskState:
    """Look into a disk, and not into what it stands on. It is not locked meanwhile, so that a machine may
    begin to use it; what is said then is worth nothing. Raises CommandMissing."""
    options = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, "backing": None}
    argv = ["qemu-img", "check", "-U", "--output=json", f"json:{json.dumps(options)}"]
    done = await run(argv, check=False, env={**os.environ, "LC_ALL": "C"})
    if done.exit_status in (0, 2, 3):
        try:
            said = json.loads(done.stdout)
            return DiskState(leaks=int(said.get("leaks", 0)), corruptions=int(said.get("corruptions", 0)))
        except (ValueError, AttributeError):
            return DiskState(failure="qemu-img said nothing that can be understood")
    words = done.stderr.decode(errors="replace").strip().splitlines()
    return DiskState(failure=words[-1] if words else f"qemu-img ended with {done.exit_status}")

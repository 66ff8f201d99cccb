"""How long a guest stood, seen from outside: the longest silence of one that makes a sound each millisecond.

    python3 bench/pulse.py FILE        until stdin ends; prints its longest silence in seconds

A guest's own clock stands when its processors are stopped, so a loop in the guest that reads it sees nothing
of that. `pulse.c` reads it in a loop, and says on the serial port that it does; here somebody listens to the
log of that port. What a page costs that is copied before the guest may write to it is in it as well.
"""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MEGABYTES = 50  # a second, that the guest writes to its memory
SOURCE = Path(__file__).with_name("pulse.c")
_LOOK = 0.0003  # seconds between looks at the log
_BUILD = (
    *("gcc", "-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector"),
    *("-fno-tree-loop-distribute-patterns", "-fno-asynchronous-unwind-tables"),
    *("-s", "-Wl,-n,--build-id=none"),
)
_IN_GUEST = "/tmp/pulse"
SETTLING = 0.5  # seconds until the guest has touched all that it writes to


def compile_pulse(directory: Path) -> str:
    """The shell's command that puts the program into a guest and leaves it running there."""
    program = directory / "pulse"
    subprocess.run([*_BUILD, "-o", program, SOURCE], check=True)
    text = base64.b64encode(program.read_bytes()).decode()
    start = f"setsid {_IN_GUEST} {MEGABYTES} </dev/null >/dev/null 2>&1 &"
    # rm: one that is just being killed still holds its file.
    return f"rm -f {_IN_GUEST}; echo {text} | base64 -d >{_IN_GUEST} && chmod +x {_IN_GUEST} && {start}"


def longest_silence(log: Path, meanwhile: Callable[[], object]) -> float:
    """Seconds between two sounds of the guest, at most, while something is done to it."""
    command = [sys.executable, __file__, str(log)]
    with _listening(command) as listener:
        meanwhile()
        said, _ = listener.communicate(timeout=30)
    return float(said)


@contextlib.contextmanager
def _listening(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as listener:
        try:
            if listener.stdout is None or listener.stdout.readline() != "listening\n":
                raise RuntimeError("the guest makes no sound")
            yield listener
        finally:
            listener.kill()


def listen(log: Path, ended: Callable[[], bool]) -> float:
    """The longest silence until `ended`, begun with a sound. It counts too while it lasts."""
    # A listener that the host lets wait would hear a silence that was its own.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    descriptor = os.open(log, os.O_RDONLY)
    longest, heard, size = 0.0, 0.0, os.fstat(descriptor).st_size
    deadline = time.monotonic() + 10
    while not heard or not ended():
        time.sleep(_LOOK)
        now, new = time.monotonic(), os.fstat(descriptor).st_size
        if new != size:
            if not heard:
                print("listening", flush=True)
            longest = max(longest, now - heard) if heard else 0.0
            heard, size = now, new
        elif not heard and now > deadline:
            return 0.0
    return max(longest, time.monotonic() - heard)


def _stdin_ended() -> bool:
    import select

    return bool(select.select([sys.stdin], [], [], 0)[0])


if __name__ == "__main__":
    print(listen(Path(sys.argv[1]), _stdin_ended))

"""Several that work at the same time, each only in its own slices of it: what the host does meanwhile to one,
it does to all.

Two measurements one after the other are of two different hosts: what a guest writes into the page cache in 20
seconds differed by a fifth from one time to the next, and between two equal monitors as much. In slices the
two were within a few per cent of each other.

    python3 -c THIS_TEXT SECONDS JSON     runs commands (lists of words) like that, prints what each said

Standard library only: it is also run in guests.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle


def take_turns(pids: Sequence[int], seconds: float, is_done: Callable[[], bool]) -> None:
    """Until it is done, of the processes only one runs at a time, for so many seconds.

    Whoever has ended keeps its slice, so that the part of the others stays what it was: 1 / len(pids).
    """
    for pid in pids:
        _send(pid, signal.SIGSTOP)
    try:
        for pid in cycle(pids):
            if is_done():
                return
            _send(pid, signal.SIGCONT)
            time.sleep(seconds)
            _send(pid, signal.SIGSTOP)
    finally:
        for pid in pids:
            _send(pid, signal.SIGCONT)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _main(seconds: float, commands: list[list[str]]) -> None:
    with contextlib.ExitStack() as files:
        outputs = [files.enter_context(tempfile.TemporaryFile()) for _ in commands]
        running = [
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output)
            for command, output in zip(commands, outputs, strict=True)
        ]
        # All of them, not the first that still runs: poll() is what clears the ended away.
        take_turns([one.pid for one in running], seconds, lambda: None not in [one.poll() for one in running])
        if any(one.returncode for one in running):
            sys.exit(1)
        for output in outputs:
            output.seek(0)
        print(json.dumps([output.read().decode() for output in outputs]))


if __name__ == "__main__":
    _main(float(sys.argv[1]), json.loads(sys.argv[2]))

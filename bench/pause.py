"""How long a machine stands while it is captured with its memory: ours against the bare recipe by hand."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import insula
from bench.bare import Bare
from bench.bed import IMAGE, Bed
from bench.figure import Bound, Figure, in_turn
from bench.pulse import MEGABYTES, SETTLING, compile_pulse, longest_silence
from insula.client.fork import births
from insula.client.operation import Operation
from insula.kit.paths import SERIAL_LOG

UNDER_WAY = 300_000  # bytes after which the devices are written down: the guest may run
_LOOK = 0.002  # seconds between looks at that
_ENDS = ("completed", "failed", "cancelled")


def measure_pause(bed: Bed, runs: int) -> Iterator[Figure]:
    """How long a busy machine is silent when it is forked, against the bare recipe by hand."""
    start = compile_pulse(bed.directory)
    bare = bed.start_bare()
    with bed.client.run(IMAGE, name="booted", cold=True) as machine:
        booted, by_hand, stood = _against(bed, runs, machine, bare, start)
    with bed.client.run(IMAGE, name="forked") as machine:
        forked, by_hand_again, stood_again = _against(bed, runs, machine, bare, start)
    bare.kill()
    what = (
        f"longest silence of a guest that dirties {MEGABYTES} MB/s while it is forked / while the bare "
        "recipe saves the same, by hand (a background snapshot to memory)"
    )
    yield Figure("pause", what, "s", booted, by_hand, (Bound("times", 1.3),))
    what = "the same of a machine that is a fork itself"
    yield Figure("pause of a fork", what, "s", forked, by_hand_again, (Bound("times", 1.3),))
    what = "what Insula says of it: from the request to stand to that to go on"
    yield Figure("pause, as told", what, "s", stood)
    yield Figure("of a fork, as told", what, "s", stood_again)


def _against(
    bed: Bed, runs: int, machine: insula.Machine, bare: Bare, start: str
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Silences of the machine and of the peer, and how long the machine stood as it is told."""
    stood: list[float] = []

    def ours() -> float:
        born: list[Operation] = []

        def fork() -> None:  # as far as it concerns the machine; making the sibling of it is another's load
            info = machine.submit("fork", {"count": 1}).wait()
            stood.append((info["outcome"] or {})["stood_seconds"])
            born.extend(births(machine._transport, info))

        with sounding(lambda *argv: machine.exec(*argv, check=True), start):
            silence = longest_silence(Path(machine.info["directory"]) / SERIAL_LOG, fork)
        for birth in born:
            birth.wait()
            bed.client.machine(birth.info["name"]).remove(force=True)
        return silence

    def peer() -> float:
        with sounding(lambda *argv: bare.hear(list(argv)), start):
            return longest_silence(Path(bare.directory) / SERIAL_LOG, lambda: capture(bare))

    a, b = in_turn(runs, ours, peer)
    return a, b, tuple(stood[1:])


@contextlib.contextmanager
def sounding(run: Callable[..., object], start: str) -> Iterator[None]:
    """Meanwhile the guest makes a sound each millisecond. run: has the guest execute an argv."""
    run("sh", "-c", start)
    time.sleep(SETTLING)
    try:
        yield
    finally:
        run("sh", "-c", "killall pulse")


def capture(bare: Bare, disks: Mapping[str, Path] | None = None) -> None:
    """The recipe: stand, have the disks go on in overlays, save in the background, run; until all is saved.

    disks: block node to the file of the overlay that is to be made.
    """
    state = os.memfd_create("state")
    try:
        bare.say("stop")
        switch(bare, disks or {})
        bare.say(
            "migrate-set-capabilities", capabilities=[{"capability": "background-snapshot", "state": True}]
        )
        bare.give("state", state)
        bare.say("migrate", uri="fd:state")
        while (found := bare.say("query-migrate")).get("ram", {}).get("transferred", 0) < UNDER_WAY:
            if found.get("status") in _ENDS:
                break
            time.sleep(_LOOK)
        bare.say("cont")
        while (found := bare.say("query-migrate"))["status"] not in _ENDS:
            time.sleep(_LOOK)
        if found["status"] != "completed":
            raise RuntimeError(f"the recipe does not work here: {found}")
    finally:
        os.close(state)


def switch(bare: Bare, disks: Mapping[str, Path]) -> None:
    """Have all disks go on in new overlays at one moment."""
    actions = [
        {
            "type": "blockdev-snapshot-sync",
            "data": {"node-name": node, "snapshot-file": str(file), "snapshot-node-name": file.stem},
        }
        for node, file in disks.items()
    ]
    bare.say("transaction", actions=actions)


CASES = {"pause": measure_pause}

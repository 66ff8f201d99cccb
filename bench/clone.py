"""Another machine like the one there is: a fork while it runs, against libvirt's clone of one that is off."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.bed import PATIENCE, Bed
from bench.figure import Bound, Figure, in_turn
from bench.libvirt import libvirt


def measure_clone(bed: Bed, runs: int) -> Iterator[Figure]:
    """A running machine's sibling, to its first answer; against virt-clone and virsh start."""
    with libvirt(bed) as peer, bed.image_with_disk() as image:
        peer.define("source")
        with bed.client.run(image, name="parent") as parent:
            parent.exec("true", check=True, agent_timeout=PATIENCE)

            def ours() -> float:
                began = time.monotonic()
                bed.cli("fork", "parent", "--name", "sibling")
                bed.cli("exec", "sibling", "--", "true")
                took = time.monotonic() - began
                bed.client.machine("sibling").remove(force=True)
                return took

            def theirs() -> float:
                began = time.monotonic()
                peer.run("virt-clone", "-q", "--original", "source", "--name", "clone", "--auto-clone")
                peer.start("clone")
                took = time.monotonic() - began
                peer.remove("clone")
                return took

            a, b = in_turn(runs, ours, theirs)
    what = (
        "insula fork of a running machine with a disk, insula exec true in the sibling / virt-clone of one "
        "that is off, virsh start, and its agent's answer"
    )
    yield Figure("clone", what, "s", a, b, (Bound("times", 1 / 10),))


CASES = {"clone": measure_clone}

"""Snapshots of a running machine with a disk, and going back to one: against the bare recipe, and libvirt."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import insula
from bench.bare import Bare
from bench.bed import PATIENCE, Bed
from bench.figure import Bound, Figure, in_turn
from bench.libvirt import Libvirt, libvirt
from bench.pause import capture, sounding, switch
from bench.pulse import MEGABYTES, compile_pulse, longest_silence
from insula.kit.paths import LAUNCH_PLAN, SERIAL_LOG

DOMAIN = "snapshots"
BUSY = f"longest silence of a guest that dirties {MEGABYTES} MB/s"


def measure_snapshot(bed: Bed, runs: int) -> Iterator[Figure]:
    """How long a busy machine is silent for a snapshot of its disk: ours against QMP by hand."""
    start = compile_pulse(bed.directory)
    with bed.image_with_disk() as image, bed.client.run(image, name="kept", cold=True) as machine:
        bare, names = start_peer(bed, machine), count()
        layers = _Layers(bed.directory)

        def ours() -> float:
            name = f"s{next(names)}"
            silence = _of_machine(machine, start, lambda: machine.snapshot(name))
            machine.remove_snapshot(name)
            return silence

        def peer() -> float:
            with sounding(lambda *argv: bare.hear(list(argv)), start):
                return longest_silence(Path(bare.directory) / SERIAL_LOG, lambda: switch(bare, layers.next()))

        a, b = in_turn(runs, ours, peer)
        yield Figure(
            "snapshot of a disk",
            f"{BUSY} while its disk is kept / the same by hand, blockdev-snapshot-sync",
            *("s", a, b, (Bound("times", 1.3),)),
        )

        def ours_with_memory() -> float:
            name = f"s{next(names)}"
            silence = _of_machine(machine, start, lambda: machine.snapshot(name, memory=True))
            machine.remove_snapshot(name)
            return silence

        def peer_with_memory() -> float:
            with sounding(lambda *argv: bare.hear(list(argv)), start):
                log = Path(bare.directory) / SERIAL_LOG
                return longest_silence(log, lambda: capture(bare, layers.next()))

        a, b = in_turn(runs, ours_with_memory, peer_with_memory)
        yield Figure(
            "snapshot with memory",
            f"{BUSY} while its disk and memory are kept / the same by hand, background-snapshot",
            *("s", a, b, (Bound("times", 1.3),)),
        )
        bare.kill()


def measure_libvirt(bed: Bed, runs: int) -> Iterator[Figure]:
    """The same with memory, and going back to it, against virsh."""
    start = compile_pulse(bed.directory)
    with (
        libvirt(bed) as peer,
        bed.image_with_disk() as image,
        bed.client.run(image, name="kept", cold=True) as machine,
    ):
        peer.define(DOMAIN)
        peer.start(DOMAIN).close()
        names = count()

        def ours() -> float:
            name = f"s{next(names)}"
            silence = _of_machine(machine, start, lambda: machine.snapshot(name, memory=True))
            machine.remove_snapshot(name)
            return silence

        a, b = in_turn(runs, ours, lambda: _of_domain(peer, start))
        yield Figure(
            "snapshot, to libvirt's",
            f"{BUSY} while its disk and memory are kept / virsh snapshot-create-as",
            *("s", a, b, (Bound("times", 1 / 3),)),
        )
        machine.snapshot("back", memory=True)
        peer.run("virsh", "snapshot-create-as", DOMAIN, "back")
        a, b = in_turn(runs, lambda: _restore(bed), lambda: _revert(peer))
        yield Figure(
            "restore",
            "insula snapshot restore of a running machine, insula exec true / virsh snapshot-revert, and its "
            "agent's answer",
            *("s", a, b, (Bound("times", 1 / 2),)),
        )


def _restore(bed: Bed) -> float:
    began = time.monotonic()
    bed.cli("snapshot", "restore", "kept", "back", "--yes")
    bed.cli("exec", "kept", "--", "true")
    return time.monotonic() - began


def _revert(peer: Libvirt) -> float:
    began = time.monotonic()
    peer.run("virsh", "snapshot-revert", DOMAIN, "back")
    peer.wait_agent(DOMAIN).close()
    return time.monotonic() - began


def _of_machine(machine: insula.Machine, start: str, work: Callable[[], object]) -> float:
    """How long the machine is silent meanwhile."""
    with sounding(lambda *argv: machine.exec(*argv, check=True, agent_timeout=PATIENCE), start):
        return longest_silence(Path(machine.info["directory"]) / SERIAL_LOG, work)


def _of_domain(peer: Libvirt, start: str) -> float:
    agent = peer.wait_agent(DOMAIN)
    with sounding(lambda *argv: agent.hear(list(argv)), start):
        create = ("virsh", "snapshot-create-as", DOMAIN, "once")
        silence = longest_silence(peer.files / f"{DOMAIN}.log", lambda: peer.run(*create))
    agent.close()
    peer.run("virsh", "snapshot-delete", DOMAIN, "once")
    return silence


def start_peer(bed: Bed, machine: insula.Machine) -> Bare:
    """The machine's monitor by hand, on a copy of its disk."""
    directory = Path(machine.info["directory"])
    argv = json.loads((directory / LAUNCH_PLAN).read_text())["argv"]
    return bed.start_bare(argv, directory)


class _Layers:
    """Overlays of the peer's disk, one upon the other."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._node = "disk0-node"
        self._numbers = count()

    def next(self) -> dict[str, Path]:
        """Which node is to go on in which file."""
        node, file = self._node, self._directory / f"layer{next(self._numbers)}.qcow2"
        self._node = file.stem
        return {node: file}


CASES = {"snapshot": measure_snapshot, "libvirt": measure_libvirt}

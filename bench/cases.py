"""What is measured. Each case takes a test bed and a number of runs, and yields figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import insula
from bench import clone, disk, pause, snapshot, warm
from bench.bare import Bare
from bench.bed import IMAGE, PATIENCE, Bed, at_once, pss, resident, timed
from bench.figure import Bound, Figure, in_turn
from insula.kit.units import format_size, parse_size

FLEET = 20
IMPORT_SIZE = parse_size(os.environ.get("INSULA_BENCH_IMPORT_SIZE", "2GiB"))
TEN = [f"ten{number}" for number in range(10)]

Case = Callable[[Bed, int], Iterator[Figure]]


def measure_run(bed: Bed, runs: int) -> Iterator[Figure]:
    """A whole `insula run --rm micro -- true` against the same monitor started by hand."""
    command = ("run", "--cold", "--rm", IMAGE, "--", "true")

    def bare() -> float:
        return timed(lambda: bed.run_bare_script("true"))

    def cold() -> float:
        bed.client.daemon_stop()
        return timed(lambda: bed.cli(*command))

    bed.cli("ls")
    # A guest's boot varies by half a second on a busy host, what is measured here by a tenth.
    ours, peer = in_turn(3 * runs, lambda: timed(lambda: bed.cli(*command)), bare)
    what = "insula run --cold --rm micro -- true / the same argv, started and asked by a minimal script"
    yield Figure("run, daemon up", what, "s", ours, peer, (Bound("times", 1.05), Bound("more", 0.150)))
    ours, peer = in_turn(runs, cold, bare)
    yield Figure(
        "run, daemon down", f"{what}; the daemon has to start", "s", ours, peer, (Bound("more", 1.0),)
    )


def measure_ls(bed: Bed, runs: int) -> Iterator[Figure]:
    """`insula ls` against the interpreter doing nothing."""
    with bed.fleet(FLEET):
        ours, peer = in_turn(
            max(runs, 3) * 5,
            lambda: timed(lambda: bed.cli("ls")),
            lambda: timed(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True)),
        )
    what = f"insula ls with {FLEET} running machines / python3 -c pass"
    yield Figure("ls", what, "s", ours, peer, (Bound("times", 2.5),))


def measure_ten(bed: Bed, runs: int) -> Iterator[Figure]:
    """Ten machines to where their agents answer: at once, and one after another."""

    def ours(start: Callable[[], Sequence[insula.Machine]]) -> float:
        machines: list[insula.Machine] = []
        try:
            return timed(lambda: machines.extend(start()))
        finally:
            at_once(lambda machine: machine.remove(force=True), machines)

    def peer(start: Callable[[], Sequence[Bare]]) -> float:
        bares: list[Bare] = []
        try:
            return timed(lambda: bares.extend(start()))
        finally:
            for bare in bares:
                bare.kill()

    bounds = (Bound("times", 1.1),)
    a, b = in_turn(
        runs,
        lambda: ours(lambda: at_once(bed.start_machine, TEN)),
        lambda: peer(lambda: at_once(lambda _: bed.start_bare(), TEN)),
    )
    yield Figure("ten at once", "ten machines to 'agent answers' / ten bare monitors", "s", a, b, bounds)
    a, b = in_turn(
        runs,
        lambda: ours(lambda: [bed.start_machine(name) for name in TEN]),
        lambda: peer(lambda: [bed.start_bare() for _ in TEN]),
    )
    yield Figure("ten in a row", "the same, one after another", "s", a, b, bounds)


def measure_daemon(bed: Bed, runs: int) -> Iterator[Figure]:
    """The daemon's size with machines, and how fast one that was killed knows them again."""
    to_ls: list[float] = []
    empty: list[float] = []
    to_agents: list[float] = []
    warm: list[float] = []
    sizes: list[float] = []
    with bed.fleet(FLEET) as machines:
        for _ in range(runs):
            status = bed.client.daemon_status()
            if status is None:
                raise RuntimeError("the daemon has gone")
            sizes.append(resident(status["pid"]))
            empty.append(bed.start_empty_daemon())
            warm.append(timed(lambda: _ask_all(machines)))
            bed.kill_daemon()
            began = time.monotonic()
            while not _is_correct(bed.cli("ls", "--json")):
                pass
            to_ls.append(time.monotonic() - began)
            to_agents.append(timed(lambda: _ask_all(machines)))
    name = f"with {FLEET} running machines"
    yield Figure(
        "daemon memory", f"insulad's resident set {name}", "MB", tuple(sizes), (), (Bound("most", 100),)
    )
    yield Figure(
        "adoption",
        f"kill -9 of insulad {name}; from the start of `insula ls`, which starts it, to a correct answer / "
        "the same in a home without machines",
        *("s", tuple(to_ls), tuple(empty), (Bound("most", 1.0),)),
    )
    yield Figure(
        "agents after adoption",
        f"then `true` in all {FLEET} guests at once / the same before the kill",
        *("s", tuple(to_agents), tuple(warm), (Bound("more", 0.3),)),
    )


def _is_correct(listing: str) -> bool:
    return [machine["phase"] for machine in json.loads(listing)] == ["running"] * FLEET


def _ask_all(machines: Sequence[insula.Machine]) -> None:
    at_once(lambda machine: machine.exec("true", check=True, agent_timeout=PATIENCE), machines)


def measure_memory(bed: Bed, runs: int) -> Iterator[Figure]:
    """What one machine costs the host, with the guest idle."""
    ours, same, default = [], [], []
    for number in range(runs):
        machine = bed.start_machine(f"size{number}")
        try:
            pid = machine.info["pid"]
            ours.append(pss(pid) if pid is not None else 0.0)
        finally:
            machine.remove(force=True)
        same.append(_bare_size(bed, bed.argv))
        default.append(_bare_size(bed, _with_default_devices(bed.argv)))
    what = "PSS of an idle micro machine's monitor"
    yield Figure(
        "memory", f"{what} / bare, same argv", "MB", tuple(ours), tuple(same), (Bound("times", 1.05),)
    )
    what = f"{what} / bare, with the devices that qemu-system-x86_64 adds by itself"
    yield Figure("memory, defaults", what, "MB", tuple(ours), tuple(default))


def measure_import(bed: Bed, runs: int) -> Iterator[Figure]:
    """A VMDK of IMPORT_SIZE, all of it data, to an image that is on the medium; against qemu-img by hand."""
    source, target = bed.directory / "disk.vmdk", bed.directory / "by-hand.qcow2"
    bed.make_vmdk(source, IMPORT_SIZE)

    def ours() -> float:
        _read(source)
        # replace: a run that was ended in the middle has left its own, since images outlive a bed.
        seconds = timed(lambda: bed.client.import_image(source, "bench-import", replace=True))
        bed.client.remove_image("bench-import")
        return seconds

    def peer() -> float:
        _read(source)
        seconds = timed(lambda: _convert(source, target))
        target.unlink()
        return seconds

    a, b = in_turn(runs, ours, peer)
    what = (
        f"import_image of a {format_size(IMPORT_SIZE)} VMDK / qemu-img convert -O qcow2, and sync of the file"
    )
    yield Figure("import", what, "s", a, b, (Bound("times", 1.05),))


def _read(file: Path) -> None:
    """So that neither finds more of it in the host's memory than the other."""
    with file.open("rb", buffering=0) as stream:
        while stream.read(2**24):
            pass


def _convert(source: Path, target: Path) -> None:
    subprocess.run(["qemu-img", "convert", "-f", "vmdk", "-O", "qcow2", source, target], check=True)
    # An image that a power cut may still take is none, so ours is on the medium, and so is the peer's.
    subprocess.run(["sync", target], check=True)


def _bare_size(bed: Bed, argv: list[str]) -> float:
    bare = bed.start_bare(argv)
    try:
        return pss(bare.process.pid)
    finally:
        bare.kill()


def _with_default_devices(argv: list[str]) -> list[str]:
    """The argv as somebody in a hurry writes it: default machine, nothing left out."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word in ("-nodefaults", "-no-user-config"):
            continue
        if word in ("-machine", "-cpu", "-sandbox"):
            next(words)
            continue
        kept.append(word)
    return kept


CASES: dict[str, Case] = {
    "run": measure_run,
    "ls": measure_ls,
    "ten": measure_ten,
    "daemon": measure_daemon,
    "memory": measure_memory,
    **warm.CASES,
    **pause.CASES,
    **snapshot.CASES,
    **clone.CASES,
    **disk.CASES,
    "import": measure_import,
}

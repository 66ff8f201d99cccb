"""How fast a guest reads and writes: fio in a distribution, on Insula's disks and on those of a bare monitor.

The peer's guest is the same, with a disk for each way in which QEMU can do its work on the same kind of file;
which is the fastest is found first, for each load by itself.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

from bench.bare import Bare
from bench.bed import PATIENCE, Bed
from bench.figure import Bound, Figure, in_turn
from insula.client.machine import Machine
from insula.kit.paths import LAUNCH_PLAN

IMAGE = "bench-fio"
RECIPE = """
extends = "debian-12"
summary = "debian-12 with fio, for ./scripts/bench"
packages = ["fio"]
"""
SIZE = 2**29  # bytes of the disk that is read and written
SECONDS = 2.0  # of each load
LOADS = {
    "sequential read": ("read", "1M", 4),
    "sequential write": ("write", "1M", 4),
    "random 4K read": ("randread", "4k", 16),
    "random 4K write": ("randwrite", "4k", 16),
}
# What the monitor is told of the file and of the device, besides what both disks have in common.
WAYS: dict[str, tuple[dict[str, str], bool]] = {
    "cached": ({"cache.direct": "off", "aio": "threads"}, False),
    "cached, io_uring": ({"cache.direct": "off", "aio": "io_uring"}, False),
    "direct, native": ({"cache.direct": "on", "aio": "native"}, False),
    "direct, io_uring": ({"cache.direct": "on", "aio": "io_uring"}, False),
    "cached, own thread": ({"cache.direct": "off", "aio": "threads"}, True),
    "direct, native, own thread": ({"cache.direct": "on", "aio": "native"}, True),
}
TRIES = 3  # of each way, to find the best
# Both are started anew so many times, each first in turn: how fast a guest's memory is depends on the huge
# pages that the host has left, and who starts first finds more (7 % of the sequential loads were that).
STARTS = 2
BY_SERIAL = "/dev/disk/by-id/virtio-"

Run = Callable[[list[str]], bytes]


def measure_disk(bed: Bed, runs: int) -> Iterator[Figure]:
    """Throughput of fio in a debian-12 machine, against bare QEMU with whatever settings are best for it."""
    bed.add_recipe(IMAGE, RECIPE)
    bed.build(IMAGE)
    own = BY_SERIAL + bed.client.create_volume("bench", SIZE).info["serial"]
    ways: dict[str, dict[str, float]] = {}
    pairs: dict[str, list[tuple[float, float]]] = {load: [] for load in LOADS}
    with bed.client.run(IMAGE, name="disks", cold=True, volumes=["bench"]) as machine:
        machine.kill()  # whose disk is copied must not be writing to it
        kept = bed.directory / "kept"
        shutil.copytree(machine.info["directory"], kept, ignore=_leave_sockets)
        for number in range(STARTS):
            with _both(bed, machine, kept, ours_first=number % 2 == 0) as bare:
                fill(_hear(machine), own)
                if not ways:
                    ways = _find_ways(bare)
                for load in LOADS:
                    best = _best(ways[load])
                    fill(bare.hear, _device(best))
                    ours, peer = partial(fio, _hear(machine), own), partial(fio, bare.hear, _device(best))
                    some = max(1, runs // STARTS)
                    a, b = in_turn(some, partial(ours, load), partial(peer, load))
                    pairs[load] += zip(a, b, strict=True)
    bed.client.volume("bench").remove()
    for load, found in ways.items():
        tried = ", ".join(f"{way} {found[way]:.0f}" for way in sorted(found, key=lambda way: -found[way]))
        what = (
            f"fio on a volume of a debian-12 machine / in the same guest under bare QEMU (best of: {tried})"
        )
        a, b = tuple(a for a, _ in pairs[load]), tuple(b for _, b in pairs[load])
        yield Figure(load, what, "MB/s", a, b, (Bound("least", 0.97),))


@contextlib.contextmanager
def _both(bed: Bed, machine: Machine, kept: Path, *, ours_first: bool) -> Iterator[Bare]:
    """The machine and its peer run, and have nothing to do. kept: the machine's directory as it was made."""
    files = bed.directory / "disks"
    files.mkdir()
    bare: Bare | None = None
    try:
        if ours_first:
            _start(machine)
        bare = _start_peer(bed, kept, files)
        _wait_quiet(bare.hear)
        if not ours_first:
            _start(machine)
        yield bare
    finally:
        if bare is not None:
            bare.kill()
        machine.kill()
        shutil.rmtree(files)


def _start(machine: Machine) -> None:
    machine.start()
    _wait_quiet(_hear(machine))


def _leave_sockets(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(directory) / name).is_socket()]


def _hear(machine: Machine) -> Run:
    return lambda argv: machine.exec(*argv, agent_timeout=PATIENCE).stdout_bytes


def _find_ways(bare: Bare) -> dict[str, dict[str, float]]:
    """For each load how fast it is in each way (median), all of them in turn."""
    for way in WAYS:
        fill(bare.hear, _device(way))
    found: dict[str, dict[str, float]] = {}
    for load in LOADS:
        tries = [{way: fio(bare.hear, _device(way), load) for way in WAYS} for _ in range(TRIES)]
        found[load] = {way: median(one[way] for one in tries) for way in WAYS}
    return found


def _best(found: dict[str, float]) -> str:
    return max(found, key=lambda way: found[way])


def _device(way: str) -> str:
    return f"{BY_SERIAL}way{list(WAYS).index(way)}"


def fio(run: Run, device: str, load: str) -> float:
    """MB a second that the guest reads or writes."""
    kind, block, depth = LOADS[load]
    said = run(
        [
            *("fio", "--name=bench", f"--filename={device}", f"--rw={kind}", f"--bs={block}"),
            *(f"--iodepth={depth}", "--ioengine=libaio", "--direct=1", "--output-format=json"),
            *(f"--runtime={SECONDS:g}", "--time_based", "--thread", f"--size={SIZE}"),
        ]
    )
    job = json.loads(said[said.index(b"{") :])["jobs"][0]
    return float(job["read" if "read" in kind else "write"]["bw_bytes"]) / 1e6


def fill(run: Run, device: str) -> None:
    """So that no load has to find room for what it writes, nor reads what is not there."""
    run(["dd", "if=/dev/urandom", f"of={device}", "bs=1M", f"count={SIZE >> 20}", "oflag=direct"])


def _wait_quiet(run: Run) -> None:
    """Until the guest has done what it does after a boot."""
    run(["sh", "-c", "cloud-init status --wait; systemctl is-system-running --wait; true"])


def _start_peer(bed: Bed, directory: Path, files: Path) -> Bare:
    """The machine's monitor by hand, on a copy of its disk as it is, with a disk for each way in `files`."""
    plan = json.loads((directory / LAUNCH_PLAN).read_text())
    argv: list[str] = []
    words = iter(plan["argv"])
    for word in words:
        value = next(words) if word in ("-blockdev", "-device") else ""
        if "/volumes/" in value or "drive=vol-" in value:
            continue
        argv += [word, value] if value else [word]
    for number, (settings, threaded) in enumerate(WAYS.values()):
        argv += _disk(files / f"{number}.qcow2", number, settings, threaded)
    return bed.start_bare(argv, directory)


def _disk(file: Path, number: int, settings: dict[str, str], threaded: bool) -> list[str]:
    create = ["qemu-img", "create", "-q", "-f", "qcow2", str(file), str(SIZE)]
    subprocess.run(create, check=True)
    node = {
        **{"driver": "qcow2", "node-name": f"way{number}", "discard": "unmap"},
        **{"file.driver": "file", "file.filename": str(file), "file.discard": "unmap"},
        **{f"file.{key}": value for key, value in settings.items()},
        "cache.direct": settings["cache.direct"],
    }
    device = f"virtio-blk-pci,drive=way{number},serial=way{number}"
    arguments = ["-blockdev", ",".join(f"{key}={value}" for key, value in node.items())]
    if threaded:
        arguments += ["-object", f"iothread,id=thread{number}"]
        device += f",iothread=thread{number}"
    return [*arguments, "-device", device]


CASES = {"disk": measure_disk}

"""How fast a guest reads and writes: fio in a distribution, on Insula's disks and on those of a bare monitor.

The peer's guest is the same, with a disk for each way in which QEMU can do its work on the same kind of file;
which is the fastest is found first, for each load by itself. A second peer, equal to the first, shows how far
apart equals are in this run.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import slices
from bench.bare import Bare
from bench.bed import PATIENCE, Bed, at_once
from bench.figure import Bound, Figure
from insula.client.machine import Machine
from insula.kit.paths import LAUNCH_PLAN

IMAGE = "bench-fio"
RECIPE = """
extends = "debian-12"
summary = "debian-12 with fio, for ./scripts/bench"
packages = ["fio"]
"""
SIZE = 2**29  # bytes of the disk that is read and written
SLICE = 0.5  # seconds for which one works, while the others stand
SLICES = 16  # of each in a sample
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
TRIES = 3  # samples of each way, to find the best
TRY_SLICES = 4  # in each of them
STARTS = 2  # all are started anew so many times: where a guest's memory comes to lie makes some per cent
BY_SERIAL = "/dev/disk/by-id/virtio-"

Run = Callable[[list[str]], bytes]


@dataclass(frozen=True)
class Guest:
    """What runs in it is asked by `run`; `pid` is its monitor."""

    run: Run
    pid: int


def measure_disk(bed: Bed, runs: int) -> Iterator[Figure]:
    """Throughput of fio in a debian-12 machine, against bare QEMU with whatever settings are best for it."""
    bed.add_recipe(IMAGE, RECIPE)
    bed.build(IMAGE)
    own = BY_SERIAL + bed.client.create_volume("bench", SIZE).info["serial"]
    ways: dict[str, dict[str, float]] = {}
    samples: dict[str, list[list[float]]] = {load: [] for load in LOADS}
    with bed.client.run(IMAGE, name="disks", cold=True, volumes=["bench"]) as machine:
        machine.kill()  # whose disk is copied must not be writing to it
        kept = bed.directory / "kept"
        shutil.copytree(machine.info["directory"], kept, ignore=_leave_sockets)
        for _ in range(STARTS):
            with _three(bed, machine, kept) as (ours, peer, twin):
                ways = ways or _find_ways(peer)
                for load, found in ways.items():
                    device = _device(_best(found))
                    sides = [(ours, own), (peer, device), (twin, device)]
                    at_once(lambda side: fill(side[0].run, side[1]), sides)
                    samples[load] += [fio_in_turn(sides, load) for _ in range(-(-runs // STARTS))]
    bed.client.volume("bench").remove()
    for load, found in ways.items():
        yield from _figures(load, found, samples[load])


def _figures(load: str, ways: dict[str, float], samples: list[list[float]]) -> Iterator[Figure]:
    """samples: of ours, the peer and its twin."""
    tried = ", ".join(f"{way} {ways[way]:.4g}" for way in sorted(ways, key=lambda way: -ways[way]))
    what = f"fio on a volume of a debian-12 machine / in the same guest under bare QEMU (best of: {tried})"
    ours, peer, twin = map(tuple, zip(*samples, strict=True))
    yield Figure(load, what, "MB/s", ours, peer, (Bound("least", 0.97),))
    yield Figure(f"{load}, two bare", "how far apart two equal bare monitors are", "MB/s", peer, twin)


@contextlib.contextmanager
def _three(bed: Bed, machine: Machine, kept: Path) -> Iterator[tuple[Guest, Guest, Guest]]:
    """The machine, its peer and the peer's twin run, and have nothing to do.

    kept: the machine's directory as it was made. They boot at the same time, so that none finds more huge
    pages on the host than the others.
    """
    files = [bed.directory / "peer", bed.directory / "twin"]
    bares: list[Bare] = []
    try:
        with ThreadPoolExecutor() as pool:
            for directory in files:
                directory.mkdir()
            peers = [pool.submit(_start_peer, bed, kept, directory) for directory in files]
            started = pool.submit(_start, machine)
            bares += [peer.result() for peer in peers]
            started.result()
        pid = machine.info["pid"]
        assert pid is not None  # it runs
        ours = Guest(_hear(machine), pid)
        peer, twin = (Guest(bare.hear, bare.process.pid) for bare in bares)
        yield ours, peer, twin
    finally:
        for bare in bares:
            bare.kill()
        machine.kill()
        for directory in files:
            shutil.rmtree(directory)


def _start(machine: Machine) -> None:
    machine.start()
    _wait_quiet(_hear(machine))


def _leave_sockets(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(directory) / name).is_socket()]


def _hear(machine: Machine) -> Run:
    return lambda argv: machine.exec(*argv, agent_timeout=PATIENCE).stdout_bytes


def _find_ways(peer: Guest) -> dict[str, dict[str, float]]:
    """For each load how fast it is in each way (median)."""
    devices = [_device(way) for way in WAYS]
    for device in devices:
        fill(peer.run, device)
    found: dict[str, dict[str, float]] = {}
    for load in LOADS:
        tries = [_fio_within(peer, devices, load) for _ in range(TRIES)]
        found[load] = dict(zip(WAYS, map(median, zip(*tries, strict=True)), strict=True))
    return found


def _best(found: dict[str, float]) -> str:
    return max(found, key=lambda way: found[way])


def _device(way: str) -> str:
    return f"{BY_SERIAL}way{list(WAYS).index(way)}"


def fio_in_turn(sides: Sequence[tuple[Guest, str]], load: str) -> list[float]:
    """MB a second that each guest reads from or writes to its device, each in its slices of the time."""
    command = _fio(load, SLICE * SLICES * len(sides))
    with ThreadPoolExecutor(len(sides)) as pool:
        said = [pool.submit(guest.run, [*command, f"--filename={device}"]) for guest, device in sides]
        slices.take_turns([guest.pid for guest, _ in sides], SLICE, lambda: all(one.done() for one in said))
        return [_speed(one.result(), load) * len(sides) for one in said]


def _fio_within(guest: Guest, devices: Sequence[str], load: str) -> list[float]:
    """The same with several devices of one guest."""
    command = _fio(load, SLICE * TRY_SLICES * len(devices))
    commands = json.dumps([[*command, f"--filename={device}"] for device in devices])
    said = guest.run(["python3", "-c", Path(slices.__file__).read_text(), str(SLICE), commands])
    return [_speed(one.encode(), load) * len(devices) for one in json.loads(said)]


def _fio(load: str, seconds: float) -> list[str]:
    """seconds: by the clock, that is in all slices together."""
    kind, block, depth = LOADS[load]
    return [
        *("fio", "--name=bench", f"--rw={kind}", f"--bs={block}", f"--iodepth={depth}", "--ioengine=libaio"),
        *("--direct=1", "--thread", f"--size={SIZE}", "--time_based", f"--runtime={seconds:g}"),
        "--output-format=json",
    ]


def _speed(said: bytes, load: str) -> float:
    job = json.loads(said[said.index(b"{") :])["jobs"][0]
    return float(job["read" if "read" in load else "write"]["bw_bytes"]) / 1e6


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
    bare = bed.start_bare(argv, directory)
    _wait_quiet(bare.hear)
    return bare


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

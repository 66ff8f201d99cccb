"""How fast a guest reads and writes: fio in a distribution, on Insula's disks and on those of a bare monitor.

The peer's guest is the same, with a disk for each way in which QEMU can do its work on the same kind of file;
which is the fastest is found first, for each load by itself.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.bare import Bare
from bench.bed import PATIENCE, Bed
from bench.figure import Bound, Figure, in_turn
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
BY_SERIAL = "/dev/disk/by-id/virtio-"

Run = Callable[[list[str]], bytes]


def measure_disk(bed: Bed, runs: int) -> Iterator[Figure]:
    """Throughput of fio in a debian-12 machine, against bare QEMU with whatever settings are best for it."""
    bed.add_recipe(IMAGE, RECIPE)
    bed.build(IMAGE)
    own = BY_SERIAL + bed.client.create_volume("bench", SIZE).info["serial"]
    with bed.client.run(IMAGE, name="disks", cold=True, volumes=["bench"]) as machine:
        machine.kill()  # whose disk is copied must not be writing to it
        bare = _start_peer(bed, Path(machine.info["directory"]))
        try:
            machine.start()
            _wait_quiet(lambda argv: machine.exec(*argv, agent_timeout=PATIENCE).stdout_bytes)
            _wait_quiet(bare.hear)

            def ours(load: str) -> float:
                return fio(lambda argv: machine.exec(*argv, check=True).stdout_bytes, own, load)

            devices = {way: f"{BY_SERIAL}way{number}" for number, way in enumerate(WAYS)}
            for device in devices.values():
                fill(bare.hear, device)
            fill(lambda argv: machine.exec(*argv, check=True).stdout_bytes, own)
            for load in LOADS:
                found = {way: fio(bare.hear, device, load) for way, device in devices.items()}
                yield from _compare(load, runs, ours, bare, devices, found)
        finally:
            bare.kill()
    bed.client.volume("bench").remove()


def _compare(
    load: str,
    runs: int,
    ours: Callable[[str], float],
    bare: Bare,
    devices: dict[str, str],
    found: dict[str, float],
) -> Iterator[Figure]:
    best = max(found, key=lambda way: found[way])
    a, b = in_turn(runs, lambda: ours(load), lambda: fio(bare.hear, devices[best], load))
    tried = ", ".join(f"{way} {speed:.0f}" for way, speed in sorted(found.items(), key=lambda pair: -pair[1]))
    what = f"fio on a volume of a debian-12 machine / in the same guest under bare QEMU (best of: {tried})"
    yield Figure(load, what, "MB/s", a, b, (Bound("least", 0.97),))


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


def _start_peer(bed: Bed, directory: Path) -> Bare:
    """The machine's monitor by hand, on a copy of its own disk as it was made, with a disk for each way."""
    plan = json.loads((directory / LAUNCH_PLAN).read_text())
    files = bed.directory / "disks"
    files.mkdir()
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

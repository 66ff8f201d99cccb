"""The layers of a real machine's disks, and machines that are saved: the suite, and what is in the files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from insula.engine.errors import EngineRefused
from insula.engine.protocol import Instance
from insula.kit.paths import QEMU_STDERR
from insula.model.device.disk import Disk
from tests.boot.test_engine import QemuBench, bench, host_facts
from tests.conformance.layers import LayersConformance, at, directory_of, layered, names, new_layer, with_disk

__all__ = ["bench", "host_facts"]  # fixtures

pytestmark = [pytest.mark.boot, pytest.mark.slow]


class TestLayersOfQemu(LayersConformance):
    pass


async def monitor(instance: Instance, command: str, **arguments: Any) -> Any:
    return await instance.transfer.monitor.execute(command, **arguments)  # type: ignore[attr-defined]


async def device(instance: Instance, disk: Disk, command: str) -> None:
    """A command of qemu-io on the disk as the guest's device has it; a pattern that differs fails."""
    log = instance.plan.directory / QEMU_STDERR  # where its stdout goes, too
    before = log.stat().st_size
    line = f'qemu-io -d {disk.id} "{command}"'
    refused = await monitor(instance, "human-monitor-command", command_line=line)
    said = log.read_bytes()[before:].decode()
    assert "bytes at offset" in said, (command, said, refused)
    assert "fail" not in said, (command, said)


async def flush(instance: Instance) -> None:
    """As a guest does that wants to find again what it wrote."""
    await instance.resume()
    await instance.pause()  # which flushes every disk


def holds(path: Path, pattern: int, at: str, length: str = "64k") -> bool:
    """Whether a layer, with all it stands on, has the pattern there."""
    command = f"read -P {pattern} {at} {length}"
    argv = ["qemu-io", "-r", "-U", "-f", "qcow2", "-c", command, str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "bytes at offset" in done.stdout, done.stderr
    return "Pattern verification failed" not in done.stdout


def is_clean(path: Path) -> bool:
    return subprocess.run(["qemu-img", "check", "-q", "-U", str(path)], check=False).returncode == 0


async def test_each_layer_keeps_what_was_written_while_it_was_the_top(bench: QemuBench) -> None:
    """QEMU opens a file again by its name when it is for reading only from then on: it is still that file."""
    instance, disk = await with_disk(bench)
    directory = directory_of(disk)
    tags = ("one", "two", "three")
    await device(instance, disk, "write -P 1 0 64k")
    for number, tag in enumerate(tags, start=2):
        await instance.disks.freeze([await new_layer(disk, tag)])
        await device(instance, disk, f"write -P {number} {number - 1}00k 64k")
        await device(instance, disk, f"write -P {number} 512k 64k")
        for earlier in range(2, number + 1):
            await device(instance, disk, f"read -P {earlier} {earlier - 1}00k 64k")
        await device(instance, disk, "read -P 1 0 64k")
        await device(instance, disk, f"read -P {number} 512k 64k")
    await flush(instance)
    await instance.kill()
    layers = names(disk)
    assert len(layers) == 4
    for layer, last in zip(layers, (4, 3, 2, 0), strict=True):
        assert holds(directory / layer, last, "512k"), layer
        assert holds(directory / layer, 1, "0"), layer
        assert holds(directory / layer, 0, f"{last}00k") or last == 0, layer


@pytest.mark.parametrize(("onto", "base"), [("three", 0), ("two", 0), ("three", None), ("two", "one")])
async def test_merged_layers_hold_what_they_held_apart(
    bench: QemuBench, onto: str, base: int | str | None
) -> None:
    instance, disk = await with_disk(bench)
    directory = directory_of(disk)
    below = f"disk-{base}.qcow2" if isinstance(base, str) else names(disk)[0] if base == 0 else None
    await device(instance, disk, "write -P 1 0 256k")
    for number, tag in enumerate(("one", "two", "three"), start=2):
        await instance.disks.freeze([await new_layer(disk, tag)])
        await device(instance, disk, f"write -P {number} {number - 1}00k 64k")
    await instance.disks.merge(disk, at(disk, f"disk-{onto}.qcow2"), below, lambda _: None)
    kept = set(names(disk))
    for path in directory.glob("disk-*.qcow2"):
        if path.name not in kept:
            path.unlink()
    await device(instance, disk, "write -P 9 700k 64k")
    await instance.disks.freeze([await new_layer(disk, "four")])
    await instance.kill()
    for layer in names(disk):
        assert is_clean(directory / layer), layer
    top = directory / "disk.qcow2"
    assert holds(top, 1, "0", "100k")
    assert holds(top, 2, "100k")
    assert holds(top, 3, "200k")
    assert holds(top, 4, "300k")
    assert holds(top, 9, "700k")
    assert holds(directory / f"disk-{onto}.qcow2", 4 if onto == "three" else 0, "300k")


async def large(bench: QemuBench) -> tuple[Instance, Disk]:
    """A machine whose disk has 32 MiB in a layer that is to be merged."""
    instance, disk = await with_disk(bench)
    await instance.disks.grow(disk, 2**26)
    await instance.disks.freeze([await new_layer(disk, "one")])
    await device(instance, disk, "write -P 1 0 32M")
    await instance.disks.freeze([await new_layer(disk, "two")])
    await device(instance, disk, "write -P 2 1M 64k")
    await flush(instance)
    return instance, disk


async def begin(instance: Instance, disk: Disk) -> asyncio.Task[None]:
    """A merge of which something is done."""
    layer = at(disk, "disk-two.qcow2")
    merging = asyncio.ensure_future(instance.disks.merge(disk, layer, None, lambda _: None))
    while not merging.done() and not await monitor(instance, "query-block-jobs"):
        pass
    with contextlib.suppress(EngineRefused):  # it is done already
        await monitor(instance, "block-job-set-speed", device=f"merge-{disk.id}", speed=2**20)
    return merging


async def test_a_merge_that_is_cancelled_changes_nothing_and_is_done_again(bench: QemuBench) -> None:
    instance, disk = await large(bench)
    merging = await begin(instance, disk)
    merging.cancel()
    await asyncio.gather(merging, return_exceptions=True)
    assert not merging.cancelled() or len(names(disk)) == 3
    assert await monitor(instance, "query-block-jobs") == []
    await device(instance, disk, "read -P 1 2M 30M")
    await device(instance, disk, "read -P 2 1M 64k")
    await instance.disks.merge(disk, at(disk, "disk-two.qcow2"), None, lambda _: None)
    assert names(disk) == ["disk-two.qcow2"]
    await device(instance, disk, "read -P 1 2M 30M")
    await device(instance, disk, "read -P 2 1M 64k")
    await instance.kill()
    assert is_clean(directory_of(disk) / "disk.qcow2")


async def test_a_merge_goes_on_when_its_daemon_is_gone(bench: QemuBench) -> None:
    instance, disk = await large(bench)
    merging = await begin(instance, disk)
    await instance.detach()
    await asyncio.gather(merging, return_exceptions=True)
    again = await bench.new_daemon().adopt(bench.directory)
    assert again is not None
    with contextlib.suppress(EngineRefused):
        await monitor(again, "block-job-set-speed", device=f"merge-{disk.id}", speed=0)
    await again.disks.merge(disk, at(disk, "disk-two.qcow2"), None, lambda _: None)
    assert names(disk) == ["disk-two.qcow2"]
    await device(again, disk, "read -P 1 2M 30M")
    await device(again, disk, "read -P 2 1M 64k")


async def test_a_kill_in_a_merge_loses_nothing(bench: QemuBench) -> None:
    instance, disk = await large(bench)
    merging = await begin(instance, disk)
    os.kill(instance.identity.pid, signal.SIGKILL)
    await asyncio.gather(merging, return_exceptions=True)
    await instance.wait_exit()
    top = directory_of(disk) / "disk.qcow2"
    assert holds(top, 1, "2M", "30M")
    assert holds(top, 2, "1M")


async def test_what_was_merged_is_in_the_file_when_the_layers_below_are_let_go(bench: QemuBench) -> None:
    """QEMU would change the header first, and write down what finds the data when somebody flushes."""
    instance, disk = await large(bench)
    await instance.disks.merge(disk, at(disk, "disk-two.qcow2"), None, lambda _: None)
    os.kill(instance.identity.pid, signal.SIGKILL)
    await instance.wait_exit()
    assert names(disk) == ["disk-two.qcow2"]
    top = directory_of(disk) / "disk.qcow2"
    assert holds(top, 1, "2M", "30M")
    assert holds(top, 2, "1M")


async def test_a_machine_is_saved_again_when_a_save_is_under_way_that_nobody_waits_for(
    bench: QemuBench, tmp_path: Path
) -> None:
    """A daemon died at it."""
    instance, disk = await with_disk(bench)
    await instance.resume()
    for number in range(3):
        saving = asyncio.ensure_future(bench.engine.save(instance, tmp_path / "state", ()))
        for _ in range(10 * number):
            await asyncio.sleep(0.001)
        await instance.detach()
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)
        daemon = bench.new_daemon()
        found = await daemon.adopt(bench.directory)
        assert found is not None
        await daemon.save(found, tmp_path / "state", [await new_layer(disk, f"try{number}")])
        await found.resume()  # the one that died may have had it stand
        assert await found.state() == "running"
        instance = found


async def test_two_disks_go_on_at_one_moment(bench: QemuBench) -> None:
    instance, one = await with_disk(bench)
    two = layered(bench, "other")
    await instance.disks.attach(two)
    await device(instance, one, "write -P 1 0 64k")
    await device(instance, two, "write -P 2 0 64k")
    await instance.disks.freeze([await new_layer(one, "a"), await new_layer(two, "a")])
    await device(instance, one, "write -P 3 0 64k")
    await device(instance, two, "write -P 4 0 64k")
    await flush(instance)
    await instance.kill()
    for disk, before, after in ((one, 1, 3), (two, 2, 4)):
        top, frozen = names(disk)
        assert holds(directory_of(disk) / frozen, before, "0")
        assert holds(directory_of(disk) / top, after, "0")

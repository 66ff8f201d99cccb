"""Disks that several machines stand on: frozen, linked, forked, with what was written where it belongs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from insula.kit.run import run
from insula.storage import chain
from insula.storage.volumes import create_overlay

SIZE = 2**20


@pytest.fixture
async def machine(tmp_path: Path) -> Path:
    """A machine's directory with a disk that stands on an image's."""
    image = tmp_path / "image.qcow2"
    await run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(SIZE)])
    await write(image, 1)
    home = tmp_path / "machine"
    home.mkdir()
    await create_overlay(home / "disk0.qcow2", image, "qcow2", SIZE)
    return home


async def write(disk: Path, number: int) -> None:
    """Fill the 64 KiB at 64 KiB times `number` with that number."""
    await run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P {number} {number * 64}k 64k", str(disk)])


async def holds(disk: Path, *numbers: int) -> bool:
    """Whether the disk has been filled at these places, and at no other of the first eight."""
    for number in range(1, 8):
        pattern = number if number in numbers else 0
        said = await run(
            ["qemu-io", "-r", "-f", "qcow2", "-c", f"read -q -P {pattern} {number * 64}k 64k", str(disk)]
        )
        if b"Pattern verification failed" in said.stdout:
            return False
    return True


async def test_a_fork_begins_as_the_machine_was_and_goes_its_own_way(machine: Path, tmp_path: Path) -> None:
    await write(machine / "disk0.qcow2", 2)
    await chain.freeze(machine, "disk0.qcow2", "a", SIZE)
    sibling = tmp_path / "sibling"
    sibling.mkdir()
    await chain.fork(machine, sibling, "disk0.qcow2", "a", SIZE)
    await write(machine / "disk0.qcow2", 3)
    await write(sibling / "disk0.qcow2", 4)
    assert await holds(machine / "disk0.qcow2", 1, 2, 3)
    assert await holds(sibling / "disk0.qcow2", 1, 2, 4)
    assert await holds(machine / "disk0-a.qcow2", 1, 2)
    for file in (machine / "disk0.qcow2", sibling / "disk0.qcow2", sibling / "disk0-a.qcow2"):
        await run(["qemu-img", "check", "-q", str(file)])


async def test_a_sibling_needs_nothing_of_the_machine_it_was_forked_from(
    machine: Path, tmp_path: Path
) -> None:
    for number, tag in ((2, "a"), (3, "b")):
        await write(machine / "disk0.qcow2", number)
        await chain.freeze(machine, "disk0.qcow2", tag, SIZE)
    sibling = tmp_path / "sibling"
    sibling.mkdir()
    await chain.fork(machine, sibling, "disk0.qcow2", "b", SIZE)
    for path in machine.iterdir():
        path.unlink()
    machine.rmdir()
    moved = sibling.rename(tmp_path / "elsewhere")
    assert await holds(moved / "disk0.qcow2", 1, 2, 3)


async def test_what_is_written_by_whom_has_it_open_is_seen_through_the_new_file(machine: Path) -> None:
    """A host that ends between the freeze and the switch of a running machine has lost nothing."""
    opened = machine / "still-open"
    os.link(machine / "disk0.qcow2", opened)
    await chain.freeze(machine, "disk0.qcow2", "a", SIZE)
    await write(opened, 5)
    assert await holds(machine / "disk0.qcow2", 1, 5)


async def test_a_tag_is_used_once(machine: Path) -> None:
    await chain.freeze(machine, "disk0.qcow2", "a", SIZE)
    await write(machine / "disk0.qcow2", 2)
    with pytest.raises(FileExistsError):
        await chain.freeze(machine, "disk0.qcow2", "a", SIZE)
    assert await holds(machine / "disk0.qcow2", 1, 2)


async def test_a_fork_that_is_there_is_kept(machine: Path, tmp_path: Path) -> None:
    await chain.freeze(machine, "disk0.qcow2", "a", SIZE)
    sibling = tmp_path / "sibling"
    sibling.mkdir()
    for _ in range(2):
        await chain.fork(machine, sibling, "disk0.qcow2", "a", SIZE)
        await write(sibling / "disk0.qcow2", 4)
    assert await holds(sibling / "disk0.qcow2", 1, 4)


async def test_a_failure_leaves_the_disk_as_it_was(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chain, "create_overlay", full)
    before = sorted(path.name for path in machine.iterdir())
    with pytest.raises(OSError, match="No space"):
        await chain.freeze(machine, "disk0.qcow2", "a", SIZE)
    assert sorted(path.name for path in machine.iterdir()) == before


async def test_backing_files_are_named_relatively(machine: Path) -> None:
    await chain.freeze(machine, "disk0.qcow2", "a", SIZE)
    said = await run(["qemu-img", "info", "--output=json", str(machine / "disk0.qcow2")])
    assert json.loads(said.stdout)["backing-filename"] == "disk0-a.qcow2"

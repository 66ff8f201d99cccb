"""Disks that several machines stand on: frozen, linked, forked, with what was written where it belongs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from insula.kit.run import run
from insula.storage import chain
from insula.storage.errors import ImageDamaged
from insula.storage.layers import read_layer
from insula.storage.volumes import create_overlay

SIZE = 2**20
DISK = "disk0.qcow2"


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


async def stand_on(machine: Path, name: str, tag: str) -> None:
    """The disk becomes an empty layer on the one called `name`."""
    fresh = machine / chain.layer_name(DISK, tag)
    await create_overlay(fresh, machine / name, "qcow2", SIZE, beside=True)
    chain.point(machine, DISK, fresh.name)


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
    await write(machine / DISK, 2)
    frozen = await chain.freeze(machine, DISK, "a")
    sibling = tmp_path / "sibling"
    sibling.mkdir()
    await chain.fork(machine, sibling, DISK, frozen)
    await write(machine / DISK, 3)
    await write(sibling / DISK, 4)
    assert await holds(machine / DISK, 1, 2, 3)
    assert await holds(sibling / DISK, 1, 2, 4)
    assert await holds(machine / frozen, 1, 2)
    for file in (machine / DISK, sibling / DISK, sibling / frozen):
        await run(["qemu-img", "check", "-q", str(file)])


async def test_a_sibling_needs_nothing_of_the_machine_it_was_forked_from(
    machine: Path, tmp_path: Path
) -> None:
    for number, tag in ((2, "a"), (3, "b")):
        await write(machine / DISK, number)
        frozen = await chain.freeze(machine, DISK, tag)
    sibling = tmp_path / "sibling"
    sibling.mkdir()
    await chain.fork(machine, sibling, DISK, frozen)
    for path in machine.iterdir():
        path.unlink()
    machine.rmdir()
    moved = sibling.rename(tmp_path / "elsewhere")
    assert await holds(moved / DISK, 1, 2, 3)


async def test_a_layer_keeps_its_name_for_good(machine: Path) -> None:
    """A monitor opens again by name what it had for writing and then only reads."""
    first = chain.settle(machine, DISK)
    assert chain.settle(machine, DISK) == first
    before = (machine / first).stat().st_ino
    for tag in ("a", "b"):
        await chain.freeze(machine, DISK, tag)
    assert (machine / first).stat().st_ino == before
    assert (machine / DISK).readlink() == Path("disk0-b.qcow2")


async def test_what_is_written_by_whom_has_it_open_is_seen_through_the_new_layer(machine: Path) -> None:
    """A host that ends between the freeze and the switch of a running machine has lost nothing."""
    frozen = await chain.freeze(machine, DISK, "a")
    await write(machine / frozen, 5)
    assert await holds(machine / DISK, 1, 5)


async def test_a_freeze_is_taken_back_once(machine: Path) -> None:
    await write(machine / DISK, 2)
    frozen = await chain.freeze(machine, DISK, "a")
    for _ in range(2):
        chain.thaw(machine, DISK, "a")
        assert chain.settle(machine, DISK) == frozen
        assert sorted(path.name for path in machine.iterdir()) == sorted([DISK, frozen])
    assert await holds(machine / DISK, 1, 2)


async def test_a_disk_goes_back_to_an_earlier_layer_and_to_the_later_one_again(machine: Path) -> None:
    await write(machine / DISK, 2)
    early = await chain.freeze(machine, DISK, "a")
    await write(machine / DISK, 3)
    late = chain.settle(machine, DISK)
    await stand_on(machine, early, "r")
    assert await holds(machine / DISK, 1, 2)
    for _ in range(2):
        chain.point(machine, DISK, late)
        assert await holds(machine / DISK, 1, 2, 3)


async def test_layers_that_nothing_stands_on_are_swept(machine: Path) -> None:
    early = await chain.freeze(machine, DISK, "a")
    late = await chain.freeze(machine, DISK, "b")
    await stand_on(machine, early, "c")
    chain.sweep(machine, DISK, late)
    assert len(list(machine.iterdir())) == 4 + 0  # the disk's name, its top, early, late
    chain.sweep(machine, DISK)
    assert sorted(path.name for path in machine.iterdir()) == sorted([DISK, "disk0-c.qcow2", early])
    assert await holds(machine / DISK, 1)


async def test_a_tag_is_used_once(machine: Path) -> None:
    await chain.freeze(machine, DISK, "a")
    await write(machine / DISK, 2)
    with pytest.raises(FileExistsError):
        await chain.freeze(machine, DISK, "a")
    assert await holds(machine / DISK, 1, 2)


async def test_a_fork_that_is_there_is_kept(machine: Path, tmp_path: Path) -> None:
    frozen = await chain.freeze(machine, DISK, "a")
    sibling = tmp_path / "sibling"
    sibling.mkdir()
    for _ in range(2):
        await chain.fork(machine, sibling, DISK, frozen)
        await write(sibling / DISK, 4)
    assert await holds(sibling / DISK, 1, 4)


async def test_a_template_is_known_by_its_layer(machine: Path) -> None:
    chain.settle(machine, DISK)
    for _ in range(2):
        chain.name_top(machine, DISK, "key")
        assert [path.name for path in machine.iterdir()] == ["disk0-key.qcow2"]
    assert await holds(machine / "disk0-key.qcow2", 1)


async def test_a_failure_leaves_the_disk_as_it_was(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chain, "create_overlay", full)
    before = chain.settle(machine, DISK)
    with pytest.raises(OSError, match="No space"):
        await chain.freeze(machine, DISK, "a")
    assert chain.settle(machine, DISK) == before
    assert await holds(machine / DISK, 1)


async def test_what_a_freeze_that_was_cut_short_has_left_goes_with_the_next(
    machine: Path,
) -> None:
    """Whoever does it again takes another tag: what was begun must be found all the same."""
    half = machine / f".{DISK}.new"
    half.write_text("half a layer")
    await chain.freeze(machine, DISK, "b")
    assert not half.exists()
    half.write_text("half a layer")
    for _ in range(2):
        chain.clear(machine, DISK)
    assert sorted(path.suffix for path in machine.iterdir()) == [".qcow2"] * 3
    assert await holds(machine / DISK, 1)


async def test_backing_files_are_named_relatively(machine: Path) -> None:
    frozen = await chain.freeze(machine, DISK, "a")
    said = await run(["qemu-img", "info", "--output=json", str(machine / DISK)])
    assert json.loads(said.stdout)["backing-filename"] == frozen


async def test_what_a_layer_says_is_what_qemu_img_says(machine: Path) -> None:
    top = chain.settle(machine, DISK)
    said = json.loads((await run(["qemu-img", "info", "--output=json", str(machine / top)])).stdout)
    layer = read_layer(machine / top)
    assert (layer.size_bytes, layer.backing, layer.backing_format) == (
        said["virtual-size"],
        said["backing-filename"],
        said["backing-filename-format"],
    )
    assert not layer.stands_on_layer
    (machine / "other").write_bytes(b"no disk")
    with pytest.raises(ImageDamaged):
        read_layer(machine / "other")

"""Merging layers: which may be merged, and that nobody sees anything else before, meanwhile and after."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from insula.storage import chain
from insula.storage.merging import Merge, Stand, merge_at_rest, plan_merges, stand_of, survey
from tests.unit.storage.test_chain import DISK, holds, machine, stand_on, write

__all__ = ["machine"]  # the fixture

SNAPSHOTS = ("one", "two", "three")


@pytest.fixture
async def kept(machine: Path, tmp_path: Path) -> dict[str, Stand]:
    """Three snapshots in a row: 2, then 3, then 4 was written before each; 5 after the last."""
    stands = {}
    for number, name in enumerate(SNAPSHOTS, start=2):
        await write(machine / DISK, number)
        stands[name] = await keep(machine, tmp_path / name, name)
    await write(machine / DISK, 5)
    return stands


async def keep(machine: Path, directory: Path, tag: str) -> Stand:
    frozen = await chain.freeze(machine, DISK, tag)
    directory.mkdir()
    chain.link(machine, directory, frozen)
    return Stand(directory, frozen)


def remove(stand: Stand) -> None:
    for path in stand.directory.iterdir():
        path.unlink()
    stand.directory.rmdir()


def plan(machine: Path, *stands: Stand) -> list[Merge]:
    all_stands = [stand_of(machine, DISK), *stands]
    return plan_merges(survey(all_stands), all_stands)


async def merge_all(machine: Path, *stands: Stand) -> None:
    told: list[float] = []
    for merge in plan(machine, *stands):
        await merge_at_rest(merge, told.append)
    chain.sweep(machine, DISK)
    for stand in stands:
        chain.sweep(stand.directory, DISK, stand.top)
    assert not told or told[-1] == 1.0


def layers(directory: Path) -> int:
    return sum(not path.is_symlink() for path in directory.iterdir())


async def test_what_has_a_snapshot_is_not_merged(machine: Path, kept: dict[str, Stand]) -> None:
    assert plan(machine, *kept.values()) == []


async def test_a_removed_snapshot_is_merged_into_the_next(machine: Path, kept: dict[str, Stand]) -> None:
    remove(kept.pop("two"))
    (merge,) = plan(machine, *kept.values())
    assert merge.onto == kept["three"].top
    assert merge.base == kept["one"].top
    await merge_all(machine, *kept.values())
    assert (layers(machine), layers(kept["three"].directory), layers(kept["one"].directory)) == (3, 2, 1)
    assert await holds(machine / DISK, 1, 2, 3, 4, 5)
    assert await holds(kept["three"].directory / kept["three"].top, 1, 2, 3, 4)
    assert await holds(kept["one"].directory / kept["one"].top, 1, 2)


async def test_all_removed_at_once_are_one_merge_into_the_top(machine: Path, kept: dict[str, Stand]) -> None:
    for stand in kept.values():
        remove(stand)
    (merge,) = plan(machine)
    assert len(merge.gone) == 3
    await merge_all(machine)
    assert layers(machine) == 1
    assert await holds(machine / DISK, 1, 2, 3, 4, 5)


async def test_what_somebody_else_stands_on_is_kept(
    machine: Path, kept: dict[str, Stand], tmp_path: Path
) -> None:
    sibling = tmp_path / "sibling"
    sibling.mkdir()
    await chain.fork(machine, sibling, DISK, kept["two"].top)
    for stand in kept.values():
        remove(stand)
    (merge,) = plan(machine)
    assert len(merge.gone) == 1
    await merge_all(machine)
    assert await holds(machine / DISK, 1, 2, 3, 4, 5)
    assert await holds(sibling / DISK, 1, 2, 3)
    for path in sibling.iterdir():
        path.unlink()
    await merge_all(machine)
    assert layers(machine) == 1


async def test_what_two_branches_stand_on_is_kept(
    machine: Path, kept: dict[str, Stand], tmp_path: Path
) -> None:
    await stand_on(machine, kept["one"].top, "back")
    chain.sweep(machine, DISK)
    await write(machine / DISK, 6)
    remove(kept.pop("one"))
    assert plan(machine, *kept.values()) == []
    remove(kept.pop("two"))
    assert [len(merge.gone) for merge in plan(machine, *kept.values())] == [1]  # in the other branch
    await merge_all(machine, *kept.values())
    assert await holds(machine / DISK, 1, 2, 6)
    assert await holds(kept["three"].directory / kept["three"].top, 1, 2, 3, 4)
    remove(kept.pop("three"))
    await merge_all(machine)
    assert layers(machine) == 1
    assert await holds(machine / DISK, 1, 2, 6)


async def test_a_disk_that_stands_on_nothing_at_last(tmp_path: Path) -> None:
    from insula.storage.volumes import create_empty

    await create_empty(tmp_path / DISK, 2**20, "data")
    await write(tmp_path / DISK, 1)
    await chain.freeze(tmp_path, DISK, "a")
    await write(tmp_path / DISK, 2)
    (merge,) = plan(tmp_path)
    assert merge.base is None
    await merge_all(tmp_path)
    assert layers(tmp_path) == 1
    assert await holds(tmp_path / DISK, 1, 2)


async def test_a_merge_that_was_killed_is_done_again(machine: Path, kept: dict[str, Stand]) -> None:
    """Merged, and its header written, but the names not removed yet."""
    for stand in kept.values():
        remove(stand)
    (merge,) = plan(machine)
    await merge_at_rest(merge, lambda _: None)
    assert plan(machine) == []
    os.link(machine / merge.gone[0], machine / "elsewhere")
    chain.sweep(machine, DISK)
    assert await holds(machine / DISK, 1, 2, 3, 4, 5)

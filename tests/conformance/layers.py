"""What is true of every engine about saved machines and about the layers of their disks.

Subclass `LayersConformance` and give it a fixture `bench` (`engine.Bench`). The disks are made as `storage`
makes them; what is in them is for the tests of one engine to show.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from insula.engine.errors import EngineLost, EngineRefused, MergeFailed
from insula.engine.protocol import (
    BootFiles,
    DiskSwitch,
    Instance,
    Memory,
    Paused,
    Resumed,
    Saved,
)
from insula.model.device.disk import Disk
from insula.storage import chain
from insula.storage.layers import layers_below, top_name
from tests.conformance.engine import PATIENCE, Bench, launched, machine, next_transition, volume


def layered(bench: Bench, name: str = "data") -> Disk:
    """A volume in a directory of its own, by the name for good of its top."""
    made = volume(bench, name)
    directory = bench.directory.parent / f"volume-{name}"
    if not directory.exists():
        directory.mkdir()
        Path(made.file).rename(directory / "disk.qcow2")
    top = chain.settle(directory, "disk.qcow2")
    return made.changed(file=str(directory / top))


def directory_of(disk: Disk) -> Path:
    return Path(disk.file).parent


def at(disk: Disk, layer: str) -> str:
    """A layer as the engine is to name it."""
    return str(directory_of(disk) / layer)


async def new_layer(disk: Disk, tag: str) -> DiskSwitch:
    """An empty layer on the top of a disk, which its file is from now on."""
    directory = directory_of(disk)
    await chain.freeze(directory, "disk.qcow2", tag)
    return DiskSwitch(disk.id, str(directory / chain.layer_name("disk.qcow2", tag)))


def names(disk: Disk) -> list[str]:
    """The layers of a disk as they stand on each other, the top first."""
    directory = directory_of(disk)
    return [layer.name for layer in layers_below(directory, top_name(directory, "disk.qcow2"))]


async def launch_saved(bench: Bench, instance: Instance, path: Path, *devices: Disk) -> Instance:
    """A machine that goes on from what was saved of one that has ended."""
    plan = instance.plan
    saved = Saved(path, plan.shape["machine type"], plan.memory.forked)
    facts = await bench.engine.facts()
    document = machine(devices=(*machine().devices, *devices))
    return await bench.engine.launch(
        bench.engine.plan(document, BootFiles(), bench.directory, facts, Memory(saved=saved))
    )


async def with_disk(bench: Bench) -> tuple[Instance, Disk]:
    disk = layered(bench)
    return await launched(bench, devices=(*machine().devices, disk)), disk


class LayersConformance:
    # Saving

    async def test_a_running_machine_is_saved_and_goes_on(self, bench: Bench, tmp_path: Path) -> None:
        instance = await launched(bench)
        await instance.resume()
        assert 0 <= await bench.engine.save(instance, tmp_path / "state", ()) < PATIENCE
        assert await instance.state() == "running"
        assert (tmp_path / "state").stat().st_size > 0

    async def test_it_is_saved_as_often_as_one_likes(self, bench: Bench, tmp_path: Path) -> None:
        instance = await launched(bench)
        await instance.resume()
        for number in range(3):
            await bench.engine.save(instance, tmp_path / f"state{number}", ())
        assert await instance.state() == "running"

    async def test_a_paused_machine_is_saved_and_stays_paused(self, bench: Bench, tmp_path: Path) -> None:
        instance = await launched(bench)
        await instance.resume()
        await instance.pause()
        for number in range(3):
            assert await bench.engine.save(instance, tmp_path / f"state{number}", ()) == 0
            assert await instance.state() == "paused"
        await instance.resume()
        assert await instance.state() == "running"
        await bench.engine.save(instance, tmp_path / "state", ())
        assert await instance.state() == "running"

    async def test_it_stands_from_then_on_where_that_is_wanted(self, bench: Bench, tmp_path: Path) -> None:
        instance = await launched(bench)
        await instance.resume()
        await bench.engine.save(instance, tmp_path / "state", (), stay=True)
        assert await instance.state() == "paused"
        await bench.engine.save(instance, tmp_path / "again", (), stay=True)  # the next daemon does
        assert await instance.state() == "paused"
        await instance.resume()
        assert await instance.state() == "running"

    async def test_what_was_saved_goes_on_where_it_was(self, bench: Bench, tmp_path: Path) -> None:
        first = await launched(bench)
        await first.resume()
        await bench.engine.save(first, tmp_path / "state", (), stay=True)
        await first.kill()
        for _ in range(2):  # it can be gone on from again and again
            second = await launch_saved(bench, first, tmp_path / "state")
            assert await second.state() == "prepared"
            assert second.plan.memory.wakes
            events = second.events()
            await second.resume()
            assert await next_transition(events) == Resumed()
            assert await second.state() == "running"
            await second.kill()

    async def test_what_was_saved_while_it_ran_waits_too(self, bench: Bench, tmp_path: Path) -> None:
        first = await launched(bench)
        await first.resume()
        await bench.engine.save(first, tmp_path / "state", ())
        await first.kill()
        second = await launch_saved(bench, first, tmp_path / "state")
        assert await second.state() == "prepared"
        adopted = bench.new_daemon()
        await second.detach()
        found = await adopted.adopt(bench.directory)
        assert found is not None
        assert await found.state() == "paused"
        await found.resume()
        assert await found.state() == "running"

    async def test_disks_go_on_in_new_layers_at_that_moment(self, bench: Bench, tmp_path: Path) -> None:
        instance, disk = await with_disk(bench)
        await instance.resume()
        switch = await new_layer(disk, "one")
        assert not await instance.disks.has_layer(at(disk, "disk-one.qcow2"))
        await bench.engine.save(instance, tmp_path / "state", [switch])
        assert await instance.disks.has_layer(at(disk, "disk-one.qcow2"))
        assert await instance.disks.has_layer(disk.file)
        assert await instance.state() == "running"

    @pytest.mark.parametrize("state", ["running", "paused"])
    async def test_what_cannot_be_saved_goes_on(self, bench: Bench, tmp_path: Path, state: str) -> None:
        instance, disk = await with_disk(bench)
        await instance.resume()
        if state == "paused":
            await instance.pause()
        with pytest.raises(OSError, match="No such file"):
            await bench.engine.save(instance, tmp_path / "nowhere" / "state", ())
        for stay in (False, True):
            with pytest.raises(EngineRefused):
                await bench.engine.save(
                    instance, tmp_path / "state", [DiskSwitch("other", "other.qcow2")], stay=stay
                )
            assert await instance.state() == state
        await bench.engine.save(instance, tmp_path / "state", [await new_layer(disk, "one")])
        assert await instance.state() == state

    async def test_a_machine_that_has_ended_is_not_saved(self, bench: Bench, tmp_path: Path) -> None:
        instance = await launched(bench)
        await instance.kill()
        with pytest.raises(EngineLost):
            await bench.engine.save(instance, tmp_path / "state", ())

    async def test_a_machine_that_was_saved_while_paused_is_like_any_other(
        self, bench: Bench, tmp_path: Path
    ) -> None:
        """Its disks are still its own: they grow, go on in new layers, are merged, and are let go of."""
        instance, disk = await with_disk(bench)
        bottom = names(disk)[-1]
        await instance.resume()
        await instance.pause()
        await bench.engine.save(instance, tmp_path / "state", [await new_layer(disk, "one")])
        await instance.disks.freeze([await new_layer(disk, "two")])
        await instance.disks.grow(disk, 2**21)
        await instance.disks.merge(disk, at(disk, "disk-one.qcow2"), None, lambda _: None)
        assert names(disk) == ["disk-two.qcow2", "disk-one.qcow2"]
        assert not await instance.disks.has_layer(at(disk, bottom))
        await instance.disks.attach(layered(bench, "other"))
        await bench.engine.save(instance, tmp_path / "again", [await new_layer(disk, "three")])
        assert await instance.state() == "paused"
        await instance.resume()
        await instance.disks.merge(disk, at(disk, "disk-three.qcow2"), None, lambda _: None)
        assert names(disk) == ["disk-three.qcow2"]

    async def test_a_pause_by_us_is_told_once(self, bench: Bench, tmp_path: Path) -> None:
        instance = await launched(bench)
        events = instance.events()
        await instance.resume()
        assert await next_transition(events) == Resumed()
        await bench.engine.save(instance, tmp_path / "state", (), stay=True)
        assert isinstance(await next_transition(events), Paused)
        await instance.resume()
        assert await next_transition(events) == Resumed()

    async def test_resident_memory(self, bench: Bench) -> None:
        instance = await launched(bench)
        assert await instance.saved_bytes() >= 0
        await instance.kill()

    # Freezing layers

    async def test_all_disks_go_on_or_none(self, bench: Bench) -> None:
        one, two = layered(bench, "one"), layered(bench, "two")
        instance = await launched(bench, devices=(one, two))
        switches = [await new_layer(one, "a"), await new_layer(two, "a")]
        Path(switches[1].file).rename(f"{switches[1].file}.away")
        with pytest.raises(EngineRefused):
            await instance.disks.freeze(switches)
        assert not await instance.disks.has_layer(at(one, "disk-a.qcow2"))
        with pytest.raises(EngineRefused):
            await instance.disks.freeze([switches[0], DiskSwitch("none", switches[0].file)])
        assert not await instance.disks.has_layer(at(one, "disk-a.qcow2"))
        Path(f"{switches[1].file}.away").rename(switches[1].file)
        for _ in range(2):
            await instance.disks.freeze(switches)
            assert await instance.disks.has_layer(at(one, "disk-a.qcow2"))

    async def test_the_next_daemon_sees_the_layers(self, bench: Bench) -> None:
        instance, disk = await with_disk(bench)
        switch = await new_layer(disk, "one")
        await instance.disks.freeze([switch])
        await instance.detach()
        again = await bench.new_daemon().adopt(bench.directory)
        assert again is not None
        await again.disks.freeze([switch])
        await again.disks.freeze([await new_layer(disk, "two")])
        for layer in names(disk):
            assert await again.disks.has_layer(at(disk, layer))

    async def test_what_a_killed_machine_has_open_is_lost(self, bench: Bench) -> None:
        instance, disk = await with_disk(bench)
        await instance.kill()
        with pytest.raises(EngineLost):
            await instance.disks.has_layer(disk.file)
        with pytest.raises(EngineLost):
            await instance.disks.freeze([])

    # Merging layers

    @pytest.mark.parametrize("runs", [True, False])
    async def test_layers_are_merged_into_the_top(self, bench: Bench, runs: bool) -> None:
        instance, disk = await with_disk(bench)
        if runs:
            await instance.resume()
        bottom = names(disk)[0]
        for tag in ("one", "two", "three"):
            await instance.disks.freeze([await new_layer(disk, tag)])
        for _ in range(2):
            await instance.disks.merge(disk, at(disk, "disk-three.qcow2"), bottom, lambda _: None)
            assert names(disk) == ["disk-three.qcow2", bottom]
            assert await instance.disks.has_layer(at(disk, bottom))
            assert not await instance.disks.has_layer(at(disk, "disk-one.qcow2"))

    async def test_layers_between_are_merged_and_those_around_stay(self, bench: Bench) -> None:
        instance, disk = await with_disk(bench)
        bottom = names(disk)[0]
        for tag in ("one", "two", "three", "four"):
            await instance.disks.freeze([await new_layer(disk, tag)])
        for _ in range(2):
            await instance.disks.merge(disk, at(disk, "disk-three.qcow2"), "disk-one.qcow2", lambda _: None)
            assert names(disk) == ["disk-four.qcow2", "disk-three.qcow2", "disk-one.qcow2", bottom]
        assert not await instance.disks.has_layer(at(disk, "disk-two.qcow2"))
        os.unlink(directory_of(disk) / "disk-two.qcow2")  # noqa: PTH108
        await instance.disks.freeze([await new_layer(disk, "five")])
        for layer in names(disk):
            assert await instance.disks.has_layer(at(disk, layer))

    async def test_layers_of_one_disk_are_not_taken_for_anothers(self, bench: Bench) -> None:
        """What was frozen at one moment has one tag, and volumes' files are called the same but for that."""
        one, two = layered(bench, "one"), layered(bench, "two")
        instance = await launched(bench, devices=(one, two))
        bottom = names(one)[0]
        await instance.disks.freeze([await new_layer(one, "a")])
        assert not await instance.disks.has_layer(at(two, "disk-a.qcow2"))
        await instance.disks.freeze([await new_layer(two, "a")])
        assert await instance.disks.has_layer(at(two, "disk-a.qcow2"))
        await instance.disks.freeze([await new_layer(one, "b"), await new_layer(two, "b")])
        await instance.disks.merge(one, at(one, "disk-b.qcow2"), bottom, lambda _: None)
        assert (len(names(one)), len(names(two))) == (2, 3)
        await instance.disks.merge(two, at(two, "disk-b.qcow2"), None, lambda _: None)
        assert (len(names(one)), len(names(two))) == (2, 1)
        assert await instance.disks.has_layer(at(one, bottom))

    async def test_layers_are_merged_down_to_nothing(self, bench: Bench) -> None:
        instance, disk = await with_disk(bench)
        for tag in ("one", "two"):
            await instance.disks.freeze([await new_layer(disk, tag)])
        for _ in range(2):
            await instance.disks.merge(disk, at(disk, "disk-two.qcow2"), None, lambda _: None)
            assert names(disk) == ["disk-two.qcow2"]
        assert not await instance.disks.has_layer(at(disk, "disk-one.qcow2"))

    async def test_the_next_daemon_merges(self, bench: Bench) -> None:
        instance, disk = await with_disk(bench)
        bottom = names(disk)[0]
        for tag in ("one", "two"):
            await instance.disks.freeze([await new_layer(disk, tag)])
        merging = asyncio.ensure_future(
            instance.disks.merge(disk, at(disk, "disk-two.qcow2"), bottom, lambda _: None)
        )
        await asyncio.sleep(0)
        await instance.detach()
        merging.cancel()
        await asyncio.gather(merging, return_exceptions=True)
        again = await bench.new_daemon().adopt(bench.directory)
        assert again is not None
        await again.disks.merge(disk, at(disk, "disk-two.qcow2"), bottom, lambda _: None)
        assert names(disk) == ["disk-two.qcow2", bottom]

    async def test_a_layer_that_is_not_there_is_not_merged(self, bench: Bench) -> None:
        instance, disk = await with_disk(bench)
        await instance.disks.freeze([await new_layer(disk, "one")])
        with pytest.raises(MergeFailed):
            await instance.disks.merge(disk, at(disk, "disk-none.qcow2"), None, lambda _: None)
        with pytest.raises(MergeFailed):
            await instance.disks.merge(disk, at(disk, "disk-one.qcow2"), "disk-none.qcow2", lambda _: None)
        assert len(names(disk)) == 2

"""What is true of the CD drives of every engine. Subclass `DriveConformance` as `EngineConformance`.

Nothing here needs a guest; what one does with its tray is in the boot tests.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from insula.engine.errors import EngineLost, EngineRefused, UnsupportedDevice
from insula.engine.protocol import BootFiles, Memory
from insula.model.device.cdrom import CDROM, Cdrom, CdromBus, Medium
from tests.conformance.engine import PATIENCE, Bench, launch_fork, launched, machine, planned


def drive(bench: Bench, name: str | None = "tools", *, bus: CdromBus = "scsi") -> Cdrom:
    """A drive with a medium of 64 KiB in it, or empty."""
    if name is None:
        return Cdrom(id=CDROM, bus=bus)
    path = bench.directory.parent / f"{name}.raw"
    if not path.exists():
        path.write_bytes(name.encode().ljust(2**16, b"\0"))
    return Cdrom(
        id=CDROM, bus=bus, medium=Medium(uid=f"{name:0<16}", name=name, digest="sha256:1", file=str(path))
    )


def uid_in(drive: Cdrom) -> str:
    assert drive.medium is not None
    return drive.medium.uid


class DriveConformance:
    @pytest.mark.parametrize("bus", ["ata", "scsi"])
    async def test_media_come_and_go(self, bench: Bench, bus: CdromBus) -> None:
        empty, tools, other = (drive(bench, name, bus=bus) for name in (None, "tools", "other"))
        instance = await launched(bench, devices=(empty,))
        assert await instance.drive.settle(empty) is None
        for wanted in (tools, tools, other, tools):
            await instance.drive.insert(wanted, PATIENCE)
            assert await instance.drive.settle(wanted) == uid_in(wanted)
        for force in (False, True):
            await instance.drive.eject(tools, PATIENCE, force=force)
            assert await instance.drive.settle(tools) is None
        await instance.drive.insert(tools, PATIENCE)
        assert await instance.drive.settle(tools) == uid_in(tools)

    @pytest.mark.parametrize("bus", ["ata", "scsi"])
    async def test_a_machine_is_launched_with_its_medium(self, bench: Bench, bus: CdromBus) -> None:
        tools = drive(bench, bus=bus)
        instance = await launched(bench, devices=(tools,))
        assert await instance.drive.settle(tools) == uid_in(tools)
        await instance.drive.insert(tools, PATIENCE)
        await instance.drive.eject(tools, PATIENCE)
        assert await instance.drive.settle(tools) is None

    async def test_a_drive_is_plugged_with_its_first_medium(self, bench: Bench) -> None:
        tools = drive(bench)
        instance = await launched(bench)
        await instance.drive.eject(tools, PATIENCE)
        assert await instance.drive.settle(tools) is None
        for _ in range(2):
            await instance.drive.insert(tools, PATIENCE)
            assert await instance.drive.settle(tools) == uid_in(tools)
            await instance.drive.unplug(tools, PATIENCE)
            await instance.drive.unplug(tools, PATIENCE)
            assert await instance.drive.settle(tools) is None

    async def test_a_drive_that_cannot_be_plugged_is_refused(self, bench: Bench) -> None:
        instance = await launched(bench)
        with pytest.raises(UnsupportedDevice) as caught:
            await instance.drive.insert(drive(bench, bus="ata"), PATIENCE)
        assert "'web'" in caught.value.message
        await instance.drive.insert(drive(bench), PATIENCE)

    @pytest.mark.parametrize("has_drive", [True, False])
    async def test_a_medium_whose_file_is_not_there_leaves_what_was(
        self, bench: Bench, has_drive: bool
    ) -> None:
        instance = await launched(bench, devices=(drive(bench),) if has_drive else ())
        other = drive(bench, "other")
        assert other.medium is not None
        Path(other.medium.file).unlink()
        with pytest.raises(EngineRefused):
            await instance.drive.insert(other, PATIENCE)
        assert await instance.drive.settle(other) == (uid_in(drive(bench)) if has_drive else None)
        await instance.drive.insert(drive(bench, "other"), PATIENCE)

    async def test_the_drive_of_an_adopted_machine_is_known(self, bench: Bench) -> None:
        first = await launched(bench)
        await first.drive.insert(drive(bench), PATIENCE)
        await first.detach()
        second = await bench.new_daemon().adopt(bench.directory)
        assert second is not None
        assert await second.drive.settle(drive(bench)) == uid_in(drive(bench))
        await second.drive.insert(drive(bench, "other"), PATIENCE)
        await second.drive.eject(drive(bench, "other"), PATIENCE)

    async def test_a_medium_is_read_by_many(self, bench: Bench) -> None:
        first = await launched(bench, devices=(drive(bench),))
        plan = replace(
            await planned(bench, name="second", uid="f" * 16, devices=(drive(bench),)),
            directory=bench.directory / "second",
        )
        second = await bench.engine.launch(plan)
        try:
            assert await second.drive.settle(drive(bench)) == await first.drive.settle(drive(bench))
        finally:
            await second.kill()

    async def test_the_drive_of_a_machine_that_has_ended_is_lost(self, bench: Bench) -> None:
        instance = await launched(bench, devices=(drive(bench),))
        await instance.kill()
        with pytest.raises(EngineLost):
            await instance.drive.insert(drive(bench), PATIENCE)
        with pytest.raises(EngineLost):
            await instance.drive.eject(drive(bench), PATIENCE)

    async def test_a_captured_machine_has_forks_with_its_medium(self, bench: Bench) -> None:
        """Also when the drive was plugged while it ran: its place is as a launch would have it."""
        tools = drive(bench)
        instance = await launched(bench)
        await instance.resume()
        await instance.drive.insert(tools, PATIENCE)
        facts = await bench.engine.facts()
        directory = bench.directory.parent / "captured"
        parts = (*machine().devices, tools)
        memory = Memory(shareable=True, vessel=True)
        like = machine("vessel", devices=parts)
        vessel = bench.engine.plan(like, BootFiles(), directory, facts, memory)
        await bench.engine.capture(instance, vessel, [])
        fork = await launch_fork(bench, directory, "a", devices=parts)
        await fork.resume()
        assert await fork.state() == "running"
        assert await fork.drive.settle(tools) == uid_in(tools)
        await fork.drive.insert(drive(bench, "other"), PATIENCE)
        await bench.engine.discard(directory)
        await fork.kill()

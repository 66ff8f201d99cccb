"""The tray of a drive whose guest resets it, or locks it, at an inconvenient moment."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from insula.engine.cdrom import QemuDrive
from insula.engine.controller import ScsiController
from insula.engine.device.cdrom import medium_node
from insula.engine.errors import EngineRefused, MediumLocked
from insula.engine.protocol import LaunchPlan
from insula.model.device.cdrom import Cdrom, Medium
from insula.model.observation import AcceleratorFact


def drive_with(name: str) -> Cdrom:
    return Cdrom(id="cdrom0", bus="scsi", medium=Medium(uid=name, name=name, digest="sha256:1", file=name))


def node(name: str) -> str:
    return medium_node("cdrom0", name)


class DriveOfQemu:
    """What a monitor knows of one drive. resets: the requests before which the guest resets it."""

    def __init__(self) -> None:
        self.inside: str | None = node("old")
        self.nodes = {node("old")}
        self.is_open = self.locked = False
        self.resets: list[str] = []
        self.requests: list[str] = []

    async def execute(self, command: str, **arguments: Any) -> Any:
        self.requests.append(command)
        if command in self.resets:
            self.resets.remove(command)
            self.is_open = False
        match command:
            case "qom-list":
                return [{"name": "cdrom0"}]
            case "query-named-block-nodes":
                return [{"node-name": name} for name in self.nodes]
            case "query-block":
                inserted = {"inserted": {"node-name": self.inside}} if self.inside else {}
                state = {"qdev": "cdrom0", "tray_open": self.is_open, "locked": self.locked}
                return [{**state, **inserted}]
            case "blockdev-add":
                self.nodes.add(arguments["node_name"] if "node_name" in arguments else arguments["node-name"])
            case "blockdev-del":
                self.nodes.remove(arguments["node_name"])
            case "blockdev-open-tray":
                self.is_open = self.is_open or not self.locked or arguments["force"]
            case "blockdev-close-tray":
                self.is_open = False
            case "blockdev-remove-medium" | "blockdev-insert-medium" if not self.is_open:
                answer = "Tray of device 'cdrom0' is not open"
                raise EngineRefused(f"refused '{command}'", evidence={"answer": answer})
            case "blockdev-remove-medium":
                self.inside = None
            case "blockdev-insert-medium":
                assert self.inside is None
                self.inside = arguments["node_name"]
            case _:
                raise AssertionError(command)
        return {}


@pytest.fixture
def qemu() -> DriveOfQemu:
    return DriveOfQemu()


@pytest.fixture
def drive(qemu: DriveOfQemu, tmp_path: Path) -> QemuDrive:
    accelerator = AcceleratorFact(name="tcg", reason="")
    plan = LaunchPlan(
        uid="0" * 16,
        name="web",
        directory=tmp_path,
        argv=(),
        accelerator=accelerator,
        engine_version="7.2.0",
        agent=None,
        has_console=False,
        memory_bytes=2**27,
    )
    return QemuDrive(plan, qemu.execute, ScsiController("web", qemu.execute))


@pytest.mark.parametrize(
    "resets",
    [
        [],
        ["query-block"],
        ["query-block"] * 3,
        ["blockdev-remove-medium"],
        ["blockdev-insert-medium"],
        ["blockdev-remove-medium", "blockdev-insert-medium", "blockdev-insert-medium"],
    ],
)
async def test_a_guest_that_resets_the_drive_does_not_keep_a_medium_out(
    qemu: DriveOfQemu, drive: QemuDrive, resets: list[str]
) -> None:
    qemu.resets = list(resets)
    await drive.insert(drive_with("new"), 5)
    assert qemu.resets == []
    assert (qemu.inside, qemu.nodes, qemu.is_open) == (node("new"), {node("new")}, False)
    qemu.resets = [name for name in resets if name != "blockdev-insert-medium"]
    await drive.eject(drive_with("new"), 5)
    assert (qemu.inside, qemu.nodes, qemu.is_open) == (None, set(), False)


async def test_one_that_resets_it_without_end_is_given_up(qemu: DriveOfQemu, drive: QemuDrive) -> None:
    qemu.resets = ["blockdev-insert-medium"] * 99
    with pytest.raises(EngineRefused):
        await drive.insert(drive_with("new"), 5)
    assert qemu.nodes == set(), "the medium that is not in the drive is not left behind"
    assert qemu.requests.count("blockdev-insert-medium") < 10


async def test_a_locked_tray_opens_once_the_guest_unlocks_it(qemu: DriveOfQemu, drive: QemuDrive) -> None:
    qemu.locked = True
    inserting = asyncio.create_task(drive.insert(drive_with("new"), 5))
    await asyncio.sleep(0.05)
    assert (inserting.done(), qemu.inside) == (False, node("old"))
    qemu.locked = False
    drive.hear()
    await inserting
    assert qemu.inside == node("new")


async def test_a_tray_that_stays_locked_is_told(qemu: DriveOfQemu, drive: QemuDrive) -> None:
    qemu.locked = True
    with pytest.raises(MediumLocked):
        await drive.insert(drive_with("new"), 0.05)
    assert (qemu.inside, qemu.nodes) == (node("old"), {node("old")})
    await drive.eject(drive_with("old"), 0.05, force=True)
    assert qemu.inside is None

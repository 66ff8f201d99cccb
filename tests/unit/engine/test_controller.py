"""The scsi controller of a live machine comes and goes with what is on it."""

from __future__ import annotations

from typing import Any

import pytest

from insula.engine import controller
from insula.engine.controller import ScsiController
from insula.engine.errors import DiskNotReleased, EngineRefused

BUS = "/machine/peripheral/scsi0/virtio-backend/scsi0.0"


class Board:
    """What a monitor has. gives_up: whether it is of a type that gives up cards."""

    def __init__(self) -> None:
        self.devices: set[str] = set()
        self.on_bus = 0
        self.status = "running"
        self.gives_up = True
        self.asked: list[str] = []

    async def execute(self, command: str, **arguments: Any) -> Any:
        match command, arguments:
            case "query-status", _:
                return {"status": self.status}
            case "qom-list", {"path": "/machine/peripheral"}:
                return [{"name": "type"}, *({"name": name} for name in self.devices)]
            case "qom-list", {"path": path}:
                assert path == BUS
                return [{"name": "hotplug-handler"}, *({"name": f"child[{n}]"} for n in range(self.on_bus))]
            case "device_add", {"id": name}:
                assert name not in self.devices
                self.devices.add(name)
            case "device_del", {"id": name}:
                if not self.gives_up:
                    raise EngineRefused(
                        "no", evidence={"answer": "Bus 'pcie.0' does not support hotplugging"}
                    )
                if name in self.asked:
                    raise EngineRefused("no", evidence={"answer": f"{name} is in the process of unplug"})
                self.asked.append(name)
            case _:
                raise AssertionError(command)
        return {}


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setattr(controller, "_PATIENCE", 0.05)
    return Board()


async def test_it_is_plugged_once_and_goes_with_the_last(board: Board) -> None:
    scsi = ScsiController("web", board.execute)
    for on_bus in (1, 2):
        async with scsi.in_place():
            assert board.devices == {"scsi0"}
            board.on_bus = on_bus
    board.on_bus = 1
    await scsi.leave_if_empty()
    assert board.asked == []
    board.on_bus = 0
    await scsi.leave_if_empty()
    assert board.asked == ["scsi0"]


async def test_a_guest_that_is_late_is_waited_for_by_who_wants_another(board: Board) -> None:
    scsi = ScsiController("web", board.execute)
    board.devices = {"scsi0"}
    await scsi.leave_if_empty()
    with pytest.raises(DiskNotReleased, match="still has to let go"):
        async with scsi.in_place():
            raise AssertionError("it may go at any moment, and what is on it")
    board.devices, board.asked = set(), []
    scsi.hear_released("scsi0")
    async with scsi.in_place():
        assert board.devices == {"scsi0"}


async def test_one_that_went_while_nobody_heard_is_plugged_anew(board: Board) -> None:
    scsi = ScsiController("web", board.execute)
    board.devices = {"scsi0"}
    await scsi.leave_if_empty()
    board.devices = set()
    async with scsi.in_place():
        assert board.devices == {"scsi0"}


@pytest.mark.parametrize("why", ["paused", "no hotplug"])
async def test_it_stays_and_is_used_again_where_it_cannot_go(board: Board, why: str) -> None:
    board.devices = {"scsi0"}
    if why == "paused":
        board.status = "paused"
    else:
        board.gives_up = False
    scsi = ScsiController("web", board.execute)
    await scsi.leave_if_empty()
    assert board.asked == []
    async with scsi.in_place():
        assert board.devices == {"scsi0"}


async def test_a_daemon_that_follows_waits_for_what_was_asked_before(board: Board) -> None:
    board.devices, board.asked = {"scsi0"}, ["scsi0"]
    scsi = ScsiController("web", board.execute)
    await scsi.leave_if_empty()
    with pytest.raises(DiskNotReleased):
        async with scsi.in_place():
            raise AssertionError("the guest has been asked")

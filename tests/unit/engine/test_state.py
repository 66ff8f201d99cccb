"""Saving a machine's state with a monitor that says what a test scripts."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from insula.engine import state
from insula.engine.errors import EngineRefused
from insula.engine.qmp import Event
from insula.engine.state import StateTransfer


class ScriptedMonitor:
    """answers: what query-migrate says, the last one for good. refuses: to save in the background."""

    def __init__(self, *answers: dict[str, Any], refuses: bool = False) -> None:
        self.answers = list(answers)
        self.refuses = refuses
        self.asked: list[str] = []
        self.uris: list[str] = []
        self.tell: Callable[[Event], None] = lambda event: None
        self._in_background = False

    async def execute(self, command: str, **arguments: Any) -> Any:
        self.asked.append(command)
        self.uris += [arguments["uri"]] if "uri" in arguments else []
        if command == "migrate-set-capabilities":
            states = {entry["capability"]: entry["state"] for entry in arguments["capabilities"]}
            self._in_background = states["background-snapshot"]
        if command == "migrate" and self.refuses and self._in_background:
            raise EngineRefused("No userfaultfd here.")
        if command == "migrate-incoming":
            for status in ("setup", "completed"):
                self.tell({"event": "MIGRATION", "data": {"status": status}})
        if command == "query-migrate-capabilities":
            return [{"capability": "background-snapshot", "state": self._in_background}]
        if command == "query-status":
            return {"status": "running"}
        if command == "query-migrate":
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return {}

    async def give_descriptor(self, name: str, descriptor: int) -> None: ...

    @asynccontextmanager
    async def lent_descriptor(self, descriptor: int) -> AsyncIterator[str]:
        yield "/dev/fdset/1"


def under_way(status: str, sent: int = 0) -> dict[str, Any]:
    return {"status": status, "ram": {"transferred": sent}}


@pytest.fixture
def target() -> Iterator[int]:
    descriptor = os.memfd_create("target")
    yield descriptor
    os.close(descriptor)


def transfer(monitor: Any, monkeypatch: pytest.MonkeyPatch, *, by_path: bool = False) -> StateTransfer:
    monkeypatch.setattr(state, "_LOOK", 0.0)
    return StateTransfer(monitor, "web", os.getpid(), by_path=by_path)


async def test_what_is_saved_in_the_background_is_waited_for_and_never_cancelled(
    target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = ScriptedMonitor(
        under_way("active", 400_000), under_way("active"), under_way("active"), under_way("completed")
    )
    sending = transfer(monitor, monkeypatch)
    assert await sending.send(target, in_background=True)
    next_daemons = transfer(monitor, monkeypatch)
    await next_daemons.cancel()
    assert "migrate_cancel" not in monitor.asked
    assert monitor.answers == [under_way("completed")]


async def test_what_is_saved_while_the_machine_stands_is_cancelled(
    target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for in_background in (False, True):
        monitor = ScriptedMonitor(under_way("active"), under_way("cancelled"), refuses=True)
        sending = transfer(monitor, monkeypatch)
        assert not await sending.send(target, in_background=in_background)
        await sending.cancel()
        assert "migrate_cancel" in monitor.asked


async def test_a_monitor_that_tracks_writes_is_busy_and_one_that_only_could_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settling = transfer(ScriptedMonitor(under_way("completed")), monkeypatch)
    device = tmp_path / "userfaultfd"  # like /dev/userfaultfd, which QEMU from 8.0 on keeps open
    device.touch()
    with device.open():
        assert not await settling._is_busy()
    tracking = new_userfaultfd()
    try:
        assert await settling._is_busy()
    finally:
        os.close(tracking)
    assert not await settling._is_busy()


@pytest.mark.parametrize("by_path", [True, False])
async def test_files_go_by_path_where_they_may_and_pipes_and_what_has_room_reserved_never(
    by_path: bool, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = ScriptedMonitor(under_way("completed"))
    moving = transfer(monitor, monkeypatch, by_path=by_path)
    monitor.tell = moving.heard
    reader, writer = os.pipe()
    try:
        await moving.load(target)
        await moving.load(reader)
    finally:
        os.close(reader)
        os.close(writer)
    await moving.send(target, in_background=False)
    file = "file:/dev/fdset/1" if by_path else "fd:migrate-incoming-state"
    assert monitor.uris == [file, "fd:migrate-incoming-state", "fd:migrate-state"]


def new_userfaultfd() -> int:
    """Of the kind that a plain user may have (ioctl_userfaultfd(2), UFFD_USER_MODE_ONLY); x86-64."""
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(323, os.O_CLOEXEC | 1)
    if descriptor < 0 and ctypes.get_errno() in (errno.ENOSYS, errno.EPERM):
        pytest.skip("this kernel gives no userfaultfd(2)")
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    return int(descriptor)

"""The CD drive of a fake machine: what is in it, and a guest that may hold on to that or throw it out."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from insula.engine.errors import EngineRefused, MediumLocked, UnsupportedDevice
from insula.engine.protocol import EngineEvent, LaunchPlan, TrayMoved
from insula.kit.units import format_duration
from insula.model.device.cdrom import CDROM, Cdrom

_MEDIUM = re.compile(rf"node-name={CDROM}-(?P<uid>[^,]+),.*file\.filename=(?P<file>[^,]+)")
_DRIVE = re.compile(rf"(ide|scsi)-cd,id={CDROM},")


@dataclass
class FakeDrive:
    """See `Drive`. is_there: the machine has one. gives_out: whether the guest opens a tray it has locked.

    Tests lock the tray by `locked`, and open it as the guest by `open_tray`.
    """

    plan: LaunchPlan
    gives_out: Callable[[], bool]
    check_living: Callable[[], object]
    tell: Callable[[EngineEvent], None]
    is_there: bool = False
    medium: str | None = None
    file: Path | None = None
    tray_open: bool = False
    locked: bool = False

    def open_launched(self) -> None:
        """What the machine was launched with."""
        for word in self.plan.argv:
            if (found := _MEDIUM.search(word)) is not None:
                self.medium, self.file = found["uid"], Path(found["file"])
            self.is_there = self.is_there or _DRIVE.match(word) is not None

    def open_tray(self) -> None:
        """The guest opens the tray."""
        self._move(open=True)

    def _move(self, *, open: bool) -> None:
        if self.tray_open is not open:
            self.tray_open = open
            self.tell(TrayMoved(open=open))

    async def insert(self, drive: Cdrom, timeout: float) -> None:
        self.check_living()
        assert drive.medium is not None
        if not self.is_there and drive.bus == "ata":
            raise UnsupportedDevice(f"Machine '{self.plan.name}' has no drive, and gets none while it runs.")
        if self.medium != drive.medium.uid:
            if not Path(drive.medium.file).exists():
                raise EngineRefused(f"The monitor of machine '{self.plan.name}' refused 'blockdev-add'.")
            if self.is_there:
                await self._open(timeout, force=False)
            self.medium, self.file = drive.medium.uid, Path(drive.medium.file)
        self.is_there = True
        self._move(open=False)

    async def eject(self, drive: Cdrom, timeout: float, *, force: bool = False) -> None:
        self.check_living()
        if self.medium is not None:
            await self._open(timeout, force=force)
        self.medium, self.file = None, None
        self._move(open=False)

    async def _open(self, timeout: float, *, force: bool) -> None:
        if self.locked and not force and not self.gives_out():
            await asyncio.sleep(0)
            raise MediumLocked(
                f"The guest of machine '{self.plan.name}' has locked the medium in its drive, and did "
                f"not give it out within {format_duration(timeout)}."
            )
        self.locked = False
        self._move(open=True)

    async def unplug(self, drive: Cdrom, timeout: float) -> None:
        self.check_living()
        self.is_there, self.medium, self.file = False, None, None

    async def settle(self, drive: Cdrom) -> str | None:
        self.check_living()
        if self.tray_open:
            self.medium, self.file = None, None
        return self.medium

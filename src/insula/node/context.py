"""What the steps of a machine's procedure work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from insula.engine.protocol import BootFiles, Instance
from insula.kit.errors import Bug
from insula.kit.paths import MACHINE_DOCUMENT, write_atomically
from insula.model.device.disk import Disk
from insula.model.image import Image
from insula.model.machine import Machine
from insula.model.observation import Observation, Phase
from insula.model.operation import Operation, Progress
from insula.node.disks import place_disk
from insula.node.firmware import find_uefi
from insula.node.journal import OperationJournal
from insula.node.media import place_medium
from insula.node.observer import Observer
from insula.node.rooms import Rooms
from insula.node.turns import Turn
from insula.storage.images import MANIFEST


@dataclass
class Seat:
    """The live machine of one actor, if any; shared by the actor and the procedure it runs.

    waking: it goes on in the middle of something and is not itself yet: nobody else may speak to it.
    capturing: its vCPUs stand for a moment of ours, which is no change of phase. stale: it goes on from a
    saved memory and stands; its clock and random numbers are to be made new once it runs.
    """

    instance: Instance | None = None
    waking: bool = False
    capturing: bool = False
    stale: bool = False


@dataclass
class MachineContext:
    """One performance of an operation on one machine. outcome: what whoever waits gets on success."""

    rooms: Rooms
    operation: Operation
    observer: Observer
    journal: OperationJournal
    seat: Seat
    attach: Callable[[Instance], None]  # the actor begins to listen to a live machine
    outcome: dict[str, Any] = field(default_factory=dict)
    turn: Turn | None = None

    @property
    def machine(self) -> Machine:
        stored = self.rooms.store.get(Machine, self.operation.target)
        if stored is None:
            raise Bug(f"The document of machine '{self.operation.name}' has vanished during an operation.")
        return stored.document

    @property
    def placed(self) -> Machine:
        """The machine with its disks' files by the names they have for good, and its medium's where it is on
        this host: what the engine is given. Raises ImageNotFound."""
        machine = self.machine
        devices = tuple(
            place_disk(self.rooms.home, machine.uid, device) if isinstance(device, Disk) else device
            for device in machine.devices
        )
        placed = machine.changed(devices=devices) if devices != machine.devices else machine
        return place_medium(placed, self.rooms.images)

    @property
    def directory(self) -> Path:
        return self.rooms.home.machine(self.operation.target)

    @property
    def instance(self) -> Instance | None:
        return self.seat.instance

    @property
    def parameters(self) -> dict[str, Any]:
        return self.operation.parameters

    def keep_document(self) -> None:
        """Copy the document to the machine's directory: from there a lost ledger can be made again."""
        text = self.machine.model_dump_json(indent=1)
        path = self.directory / MACHINE_DOCUMENT
        if not path.exists() or path.read_text() != text:
            write_atomically(path, text)

    @property
    def is_sibling(self) -> bool:
        """Whether this makes a fork of a machine that was captured (`procedures/fork.py`)."""
        return "captured" in self.journal.remembered

    async def take_turn(self) -> None:
        """Wait until a launch may begin (`turns`); done again it changes nothing."""
        if self.turn is None:
            self.turn = await self.rooms.turns.take()

    def end_turn(self) -> None:
        """The next launch may begin, whatever became of this one."""
        if self.turn is not None:
            self.turn.end()

    def note(self, text: str) -> None:
        self.journal.note(text)

    def progress(self, message: str, fraction: float | None = None) -> None:
        self.journal.progress(Progress(message=message, fraction=fraction))

    async def wait_ended(self) -> None:
        """Until the end of the process has been seen and recorded."""
        await self.rooms.store.wait(
            Observation, self.operation.target, lambda seen: seen is None or not seen.phase.has_process
        )

    async def wait_phase(self, *phases: Phase) -> None:
        """Until the phase is one of these, or the process has ended."""
        await self.rooms.store.wait(
            Observation,
            self.operation.target,
            lambda seen: seen is None or seen.phase in phases or not seen.phase.has_process,
        )

    @property
    def hostname(self) -> str:
        """What the guest is to call itself."""
        machine = self.machine
        return (machine.cloud_init.hostname if machine.cloud_init else None) or machine.name

    def image(self) -> tuple[Image, Path]:
        """The image the machine was made from, and where its files are. Raises ImageNotFound."""
        directory = self.rooms.images.blob(self.machine.image.digest)
        return Image.model_validate_json((directory / MANIFEST).read_bytes()), directory

    def boot_files(self, hostname: str | None = None) -> BootFiles:
        """The machine's firmware, and the image's files for direct kernel boot if it does not boot from its
        disk.

        hostname: what the guest is to call itself, if not as the machine's document says. Raises
        FirmwareMissing.
        """
        uefi = find_uefi(self.rooms.engine, self.machine)
        if self.machine.boot != "direct":
            return BootFiles(uefi=uefi)
        image, directory = self.image()
        if image.kernel is None:
            return BootFiles(uefi=uefi)
        initrd = None if image.kernel.initrd is None else directory / image.kernel.initrd
        arguments = image.kernel.arguments.replace("{hostname}", hostname or self.hostname)
        return BootFiles(directory / image.kernel.file, initrd, arguments, uefi)

"""The medium in a machine's drive on this host: where its file is, and a guest that throws it out."""

from __future__ import annotations

from insula.engine.errors import EngineLost, EngineRefused
from insula.engine.protocol import Instance
from insula.model.device.cdrom import Cdrom, Medium
from insula.model.machine import Machine
from insula.model.operation import Operation
from insula.model.snapshot import Snapshot
from insula.node.observer import Observer
from insula.storage.images import ImageStore
from insula.store.protocol import Store

VERBS = ("cdrom-insert", "cdrom-eject")


def medium_of(machine: Machine) -> Medium | None:
    """What is in the machine's drive, if anything."""
    return machine.cdrom.medium if machine.cdrom is not None else None


def place_drive(drive: Cdrom, images: ImageStore) -> Cdrom:
    """The drive with its medium's file where that is on this host. Raises ImageNotFound."""
    if drive.medium is None:
        return drive
    file = images.blob(drive.medium.digest) / drive.medium.file
    return drive.changed(medium=drive.medium.changed(file=str(file)))


def place_medium(machine: Machine, images: ImageStore) -> Machine:
    """The machine with its medium's file where that is on this host. Raises ImageNotFound."""
    if medium_of(machine) is None or machine.cdrom is None:
        return machine
    return machine.changed(devices=machine.with_cdrom(place_drive(machine.cdrom, images)))


def digests_in_use(store: Store) -> set[str]:
    """The images that machines use, as they are or as a snapshot has them: what they are made of, media."""
    machines = [stored.document for stored in store.all(Machine)]
    machines += [stored.document.machine for stored in store.all(Snapshot)]
    return {digest for machine in machines for digest in machine.digests}


async def notice_ejection(store: Store, observer: Observer, instance: Instance, uid: str) -> None:
    """Where the guest has opened the tray, take the medium out as a person would, and record that.

    While somebody inserts or ejects, what is in the drive is theirs to say.
    """
    machine = _settled(store, uid)
    if machine is None or machine.cdrom is None:
        return
    try:
        present = await instance.drive.settle(machine.cdrom)
    except (EngineLost, EngineRefused):
        return  # it has ended; or there is no such drive, as a launch before it was given one is adopted
    medium = machine.cdrom.medium
    now = _settled(store, uid)
    if medium is None or present is not None or now is None or now.cdrom != machine.cdrom:
        return
    await observer.see(ejected=medium.uid)


def _settled(store: Store, uid: str) -> Machine | None:
    """The machine, unless an operation on its drive is under way."""
    for stored in store.all(Operation):
        operation = stored.document
        if operation.target == uid and operation.verb in VERBS and not operation.state.is_final:
            return None
    found = store.get(Machine, uid)
    return found.document if found is not None else None

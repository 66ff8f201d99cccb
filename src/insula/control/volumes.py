"""Volumes at the desk: finding them, who has them, and what keeps one from being taken, changed or removed.

The machines' documents say who has a volume. Every intent that builds on this writes the volume's document at
the revision it was read (`untouched`), so that of two that exclude each other one is judged anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from insula.control.desk import Desk
from insula.control.request import VerbRequest
from insula.kit.clock import utc_now
from insula.kit.errors import Conflict, Invalid, NotFound, nearest
from insula.kit.paths import VOLUME_DISK
from insula.model.base import new_uid
from insula.model.device import Device
from insula.model.device.disk import SLOTS, Bus, Disk, VolumeRef, free_slot, volume_disk
from insula.model.machine import Machine
from insula.model.operation import Operation
from insula.model.volume import Volume, VolumeMount
from insula.store.protocol import Change, Put, Stored


class VolumeNotFound(NotFound):
    """No volume of this name in the project."""

    code = "volume-not-found"


class VolumeNameTaken(Conflict):
    """Another volume of the project has the name."""

    code = "volume-name-taken"


class VolumeInUse(Conflict):
    """A machine has the volume, in a way that excludes what was asked."""

    code = "volume-in-use"


class VolumeBusy(Conflict):
    """Another operation works on the volume."""

    code = "volume-busy"


class VolumeNotAttached(Conflict):
    """The machine does not have the volume."""

    code = "volume-not-attached"


class TooManyVolumes(Invalid):
    """No place is left on the bus."""

    code = "too-many-volumes"


class VolumeCannotShrink(Invalid):
    """A smaller size than the volume has."""

    code = "volume-cannot-shrink"


@dataclass(frozen=True)
class Attachment:
    """A machine that has a volume, and as what."""

    machine: Machine
    disk: Disk


def find_volume(desk: Desk, project: str, name: str) -> Stored[Volume]:
    """Raises VolumeNotFound with the nearest name."""
    stored = desk.store.find(Volume, project, name)
    if stored is not None:
        return stored
    names = [s.document.name for s in desk.store.all(Volume) if s.document.project == project]
    guess = nearest(name, names)
    if guess is not None:
        hint = f"Did you mean '{guess}'?"
    elif names:
        hint = "See which there are: insula volume ls"
    else:
        hint = f"There are none yet; make one: insula volume create {name} --size 1GiB"
    raise VolumeNotFound(f"There is no volume '{name}'.", hint=hint)


def volume_of(disk: Any) -> VolumeRef | None:
    """The volume that a device is, if it is one."""
    return disk.volume if isinstance(disk, Disk) else None


def attachments(desk: Desk, uid: str) -> list[Attachment]:
    """The machines that have a volume, oldest first."""
    return [
        Attachment(stored.document, device)
        for stored in desk.store.all(Machine)
        for device in stored.document.devices
        if isinstance(device, Disk) and device.volume is not None and device.volume.uid == uid
    ]


def untouched(stored: Stored[Volume]) -> Change:
    """The commit succeeds only if nobody else built on the volume since it was read."""
    return Put(stored.document, stored.revision)


def refuse_taken_name(desk: Desk, project: str, name: str) -> None:
    """Raises VolumeNameTaken."""
    if desk.store.find(Volume, project, name) is not None:
        raise VolumeNameTaken(
            f"The name '{name}' is taken by another volume.",
            hint=f"Choose another name, or remove that volume: insula volume rm {name}",
        )


def refuse_busy(desk: Desk, volume: Volume) -> None:
    """Raises VolumeBusy while an operation makes, copies, grows, attaches, detaches or removes it."""
    for stored in desk.store.all(Operation):
        operation = stored.document
        about = (
            operation.target,
            operation.parameters.get("source_uid"),
            operation.parameters.get("volume_uid"),
        )
        if not operation.state.is_final and volume.uid in about:
            raise VolumeBusy(
                f"Volume '{volume.name}' is busy: the operation '{operation.verb}' of '{operation.name}' "
                "works on it.",
                hint=f"Wait for it: insula op wait {operation.uid}",
            )


def refuse_use(desk: Desk, volume: Volume, what: str, *, having: Sequence[Attachment] | None = None) -> None:
    """Raises VolumeInUse, naming who has it. what: 'remove', 'attach'. having: of whom, if not of all."""
    users = list(attachments(desk, volume.uid) if having is None else having)
    if not users:
        return
    machine = users[0].machine
    how = "read-only " if users[0].disk.read_only else ""
    more = f" and {len(users) - 1} more" if len(users) > 1 else ""
    raise VolumeInUse(
        f"Cannot {what} volume '{volume.name}': it is attached {how}to machine '{machine.name}'{more}.",
        hint=f"Detach it: insula volume detach {volume.name} {machine.name}",
        evidence={"machines": [user.machine.name for user in users]},
    )


def refuse_sharing(desk: Desk, volume: Volume, machine: str, *, read_only: bool) -> None:
    """One machine writes, or any number read; never both. Raises VolumeInUse, VolumeBusy."""
    refuse_busy(desk, volume)
    users = attachments(desk, volume.uid)
    own = [user for user in users if user.machine.name == machine]
    if own:
        refuse_use(desk, volume, "attach", having=own)
    if not read_only:
        refuse_use(desk, volume, "attach", having=users)
    refuse_use(desk, volume, "attach", having=[user for user in users if not user.disk.read_only])


def refuse_busy_disks(desk: Desk, machine: Machine) -> None:
    """Before a start. Raises VolumeBusy while one of the machine's volumes is being copied or removed."""
    for device in machine.devices:
        volume = volume_of(device)
        stored = desk.store.get(Volume, volume.uid) if volume is not None else None
        if stored is not None:
            for other in desk.store.all(Operation):
                operation = other.document
                copied = operation.parameters.get("source_uid") == stored.document.uid
                if copied and not operation.state.is_final:
                    refuse_busy(desk, stored.document)


def disk_of(volume: Volume, devices: Sequence[Device], *, read_only: bool, bus: Bus) -> Disk:
    """The volume as another device beside these. Raises TooManyVolumes."""
    slot = free_slot(bus, devices)
    if slot is None:
        raise TooManyVolumes(
            f"Volume '{volume.name}' cannot be attached: the machine has {len(SLOTS[bus])} on the {bus} bus, "
            "which is all there is room for.",
            hint="Use --bus scsi." if bus == "virtio" else "Detach one first, or use --bus virtio.",
        )
    reference = VolumeRef(uid=volume.uid, name=volume.name)
    return volume_disk(reference, VOLUME_DISK, read_only=read_only, bus=bus, slot=slot)


def with_volumes(
    desk: Desk, machine: Machine, mounts: Sequence[VolumeMount]
) -> tuple[Machine, tuple[Change, ...]]:
    """A new machine with its volumes, and the changes that make sure of them.

    Raises VolumeNotFound, VolumeInUse, VolumeBusy.
    """
    disks: list[Disk] = []
    changes: list[Change] = []
    for mount in mounts:
        stored = find_volume(desk, machine.project, mount.volume)
        volume = stored.document
        if any(disk.volume is not None and disk.volume.uid == volume.uid for disk in disks):
            raise VolumeInUse(
                f"Volume '{volume.name}' is named twice for machine '{machine.name}'.", hint="Name it once."
            )
        refuse_sharing(desk, volume, machine.name, read_only=mount.read_only)
        present = (*machine.devices, *disks)
        disks.append(disk_of(volume, present, read_only=mount.read_only, bus=mount.bus))
        changes.append(untouched(stored))
    return machine.changed(devices=(*machine.devices, *disks)), tuple(changes)


def volume_operation(request: VerbRequest, volume: Volume, **parameters: Any) -> Operation:
    """A new operation on a volume."""
    return Operation(
        uid=new_uid(),
        project=volume.project,
        name=volume.name,
        generation=volume.generation,
        created=utc_now(),
        verb=request.verb,
        target_kind="volume",
        target=volume.uid,
        parameters={**request.parameters, **parameters},
    )

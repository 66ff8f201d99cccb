"""Templates: an image booted once and frozen with its memory; launches are forked from it.

Not everything about a machine may differ from its template's: processors, memory, devices are in the frozen
state. What may differ is what a guest can be told after it woke up, so `as_template` takes that out, and two
machines that leave the same behind share a template.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from insula.model.base import Value
from insula.model.cloudinit import CloudInit
from insula.model.device import Device
from insula.model.device.agent import AgentPort
from insula.model.device.cdrom import Cdrom
from insula.model.device.disk import MADE_WITH_MACHINE, Disk
from insula.model.device.nic import Nic
from insula.model.image import ImageRef
from insula.model.machine import Machine, Power, RunPolicy, mac_address

NAME = "template"  # what a template's guest calls itself; no fork keeps it
_UID = "0" * 16


class Template(Value):
    """A frozen machine. key: of everything in it that must match a fork's; `template.json` of its directory.

    memory_bytes: what its guest has; how much of the host's memory that takes is the engine's to say. medium:
    the digest of what is in its drive, "" for nothing.
    """

    key: str
    image: ImageRef
    cpus: int
    memory_bytes: int
    accelerator: Literal["kvm", "tcg"]
    engine_version: str
    created: datetime
    medium: str = ""


class TemplateView(Template):
    """A template as it stands. held_bytes: of the host's memory; disk_bytes: of its disks; last_used: by a
    launch, or when it was made."""

    held_bytes: int
    disk_bytes: int
    last_used: datetime


def why_not_forked(machine: Machine) -> str | None:
    """Why a launch of this machine must boot, or None: a fork of a template can become it."""
    told = machine.cloud_init or CloudInit()
    if told.user or told.ssh_keys or told.user_data:
        return "its cloud-init settings (user, keys, user-data) are taken at the first boot only"
    agent = next((device for device in machine.devices if isinstance(device, AgentPort)), None)
    if agent is None or agent.protocol != "insula":
        return "its guest has no agent that could renew its identity"
    strange = [device.device for device in machine.devices if not _is_forkable(device)]
    return f"it has a {strange[0]} that is its own" if strange else None


_COPIED = ("volume", "copy")  # disks that a machine's forks get a copy of; one that a template would not have


def _is_forkable(device: Device) -> bool:
    if isinstance(device, Disk):
        return device.source == "seed" or device.source in MADE_WITH_MACHINE
    return device.device in ("serial", "agent", "rng", "nic", "cdrom")


def as_template(machine: Machine) -> Machine:
    """The machine without what is its own: of all machines that may share a template, the same."""
    return machine.changed(
        uid=_UID,
        name=NAME,
        project="default",
        generation=1,
        created=datetime.fromtimestamp(0, tz=machine.created.tzinfo),
        run_policy=RunPolicy.KEEP,
        ephemeral=False,
        power=Power.OFF,
        removing=False,
        snapshot=None,
        unmerged=False,
        devices=tuple(_as_template(device, index) for index, device in enumerate(machine.devices)),
        cloud_init=None if machine.cloud_init is None else CloudInit(),
    )


def _as_template(device: Device, index: int) -> Device:
    if isinstance(device, Nic):
        return device.changed(mac=mac_address(_UID, index), publish=())
    if isinstance(device, Cdrom) and device.medium is not None:  # its guest has booted with that in its drive
        return device.changed(medium=device.medium.changed(uid=_UID))
    return device


def cards_of(machine: Machine) -> tuple[tuple[str, str], ...]:
    """(as in its template, its own) MAC of each of the machine's network cards."""
    pairs = zip(as_template(machine).devices, machine.devices, strict=True)
    return tuple((old.mac, new.mac) for old, new in pairs if isinstance(old, Nic) and isinstance(new, Nic))


def why_not_captured(machine: Machine, *, live: bool) -> tuple[str, str] | None:
    """Why this machine cannot be forked as it is, and what to do; None: it can.

    live: it has a process, so that its memory is forked too; else its disks only.
    """
    others = [d for d in machine.devices if not _is_forkable(d) and getattr(d, "source", "") not in _COPIED]
    if others:
        return f"it has a {others[0].device} of its own, '{others[0].id}'", "Detach that first."
    agent = next((device for device in machine.devices if isinstance(device, AgentPort)), None)
    if live and (agent is None or agent.protocol != "insula"):
        return (
            "while it runs, its guest has no agent that could give its siblings an identity of their own",
            f"Stop it first: insula stop {machine.name}",
        )
    return None

"""The UEFI of machines that boot by one: this host's, with variables of their own."""

from __future__ import annotations

from pathlib import Path

from insula.engine.protocol import Engine, Uefi
from insula.model.machine import Machine
from insula.node.disks import disks_of
from insula.planner.admission import no_uefi
from insula.storage.volumes import copy_raw


def find_uefi(engine: Engine, machine: Machine) -> Uefi | None:
    """What the machine boots by; None: by a BIOS. Raises FirmwareMissing when it went since it was made."""
    if machine.firmware != "uefi":
        return None
    found = engine.find_uefi(machine.machine_type)
    if found is None:
        raise no_uefi(machine)
    return found


async def make_variables(machine: Machine, uefi: Uefi | None, directory: Path) -> None:
    """The variables of its UEFI, as a new machine has them; made once."""
    for disk in disks_of(machine, "firmware"):
        assert uefi is not None, "only a machine that boots by UEFI has variables"
        await copy_raw(uefi.variables.path, directory / disk.file)

"""Can this host take this machine?"""

from __future__ import annotations

from insula.kit.errors import Invalid, Unavailable
from insula.kit.units import format_size
from insula.model.host import HostFacts
from insula.model.machine import Machine


class MemoryExceedsHost(Invalid):
    """More memory than the host has at all."""

    code = "memory-exceeds-host"


class AcceleratorRefused(Unavailable):
    """The accelerator asked for by name does not work here."""

    code = "accelerator-refused"


class FirmwareMissing(Unavailable):
    """This host has no firmware of the kind that the machine is to boot with."""

    code = "firmware-missing"


def admit(machine: Machine, host: HostFacts) -> None:
    """Return if the host can take the machine.

    Raises MemoryExceedsHost, AcceleratorRefused and FirmwareMissing.
    """
    if machine.memory_bytes > host.memory_bytes:
        raise MemoryExceedsHost(
            f"Machine '{machine.name}' asks for {format_size(machine.memory_bytes)} of memory; this host has "
            f"{format_size(host.memory_bytes)}.",
            hint=f"Ask for less, for example --memory {format_size(host.memory_bytes // 2**22 * 2**20)}.",
        )
    if machine.accelerator == "kvm" and host.accelerator.name != "kvm":
        raise AcceleratorRefused(
            f"Machine '{machine.name}' asks for KVM, which does not work here: {host.kvm_refused}",
            hint="Leave out --accelerator, or see what is missing: insula doctor",
        )
    if machine.firmware == "uefi" and machine.machine_type not in host.uefi:
        raise no_uefi(machine)


def no_uefi(machine: Machine) -> FirmwareMissing:
    """What to raise where there is no UEFI for the machine."""
    return FirmwareMissing(
        f"Machine '{machine.name}' is to boot by UEFI, and this host has none for machines of type "
        f"'{machine.machine_type}'.",
        hint="Install it: sudo apt-get install ovmf",
    )

"""What a host has and lacks, as `insula doctor` and admission need it."""

from __future__ import annotations

from typing import Literal

from insula.model.base import Value
from insula.model.observation import AcceleratorFact


class HostFacts(Value):
    """cpus: logical processors. memory_bytes: of the host. accelerator: what 'auto' means here.

    uefi: the machine types for which this host has a UEFI.
    """

    cpus: int
    memory_bytes: int
    memory_available_bytes: int
    accelerator: AcceleratorFact
    kvm_refused: str = ""
    engine_version: str = ""
    uefi: tuple[str, ...] = ()


class Finding(Value):
    """One line of `insula doctor`. state: ok, missing (something will not work), limited (slower or less)."""

    name: str
    state: Literal["ok", "limited", "missing"]
    detail: str
    mend: str = ""

"""Which UEFI this host has: what its packages say of themselves, in the files that QEMU defined for it.

Each describes one firmware: its code, and what the variables of a new machine are to begin with. A file in an
earlier directory takes the place of one of the same name in a later one, and an empty one hides it; of
several that fit, the first by name is taken (QEMU, docs/interop/firmware.json).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from insula.engine.protocol import FirmwareFile, Uefi

# Any version of the types of machine that we have; descriptions name them by patterns.
_MACHINES = {"pc": "pc-i440fx-0", "q35": "pc-q35-0"}
_ARCHITECTURE = "x86_64"
# Secure Boot protects its variables by SMM, which our machines do not have, and enrolled keys ask for it.
_UNWANTED = frozenset({"requires-smm", "secure-boot", "enrolled-keys"})


def search_path() -> tuple[Path, ...]:
    """Where descriptions are looked for, the most important first."""
    own = Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"))  # noqa: PTH111
    return (own / "qemu/firmware", Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))


def find_uefi(machine_type: str, directories: Sequence[Path] | None = None) -> Uefi | None:
    """The UEFI for machines of this type ('pc', 'q35'); None: there is none that can be used.

    What cannot be read, or is not understood, is passed over.
    """
    for path in _descriptions(search_path() if directories is None else directories):
        try:
            found = _read(json.loads(path.read_text()), machine_type)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
        if found is not None:
            return found
    return None


def _descriptions(directories: Sequence[Path]) -> list[Path]:
    """In the order in which they count; without those that an empty one hides."""
    named: dict[str, Path] = {}
    for directory in directories:
        try:
            for path in directory.glob("*.json"):
                named.setdefault(path.name, path)
        except OSError:
            continue
    return [named[name] for name in sorted(named)]


def _read(said: dict[str, Any], machine_type: str) -> Uefi | None:
    mapping = said["mapping"]
    fits = (
        "uefi" in said["interface-types"]
        and mapping["device"] == "flash"
        and mapping.get("mode", "split") == "split"
        and not _UNWANTED.intersection(said["features"])
        and any(
            target["architecture"] == _ARCHITECTURE
            and any(fnmatch(_MACHINES[machine_type], pattern) for pattern in target["machines"])
            for target in said["targets"]
        )
    )
    return Uefi(_file(mapping["executable"]), _file(mapping["nvram-template"])) if fits else None


def _file(said: dict[str, Any]) -> FirmwareFile:
    """Raises OSError and ValueError."""
    path, disk_format = Path(said["filename"]), said["format"]
    if disk_format != "raw":  # what fills the flash memory is the file, to the byte
        raise ValueError(disk_format)
    return FirmwareFile(path, path.stat().st_size)

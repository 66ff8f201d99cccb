"""What a disk image says of itself, read from a few bytes of its header before any tool opens it.

    descriptor --find_format--> format --inspect--> DiskFacts | refused, with the reason

A format is a module with

    NAME       what people call it;  DRIVER  what the conversion tool calls it
    matches(header)   its magic number is there
    inspect(header)   DiskFacts; raises ImageDamaged and ImageRefused, nothing else, whatever the bytes

The parsers are pure: they see a `Header`, which reads bounded pieces of a file that is open already, and they
never follow what an image names. What one does not understand (a feature bit, an unknown version) it refuses.
"""

from __future__ import annotations

from typing import Protocol

from insula.storage.errors import UnknownFormat
from insula.storage.formats import iso, parallels, qcow2, qed, raw, vdi, vhd, vhdx, vmdk
from insula.storage.formats.header import MOST_VIRTUAL, DiskFacts, Extent, Header

__all__ = ["FORMATS", "MOST_VIRTUAL", "DiskFacts", "Extent", "Format", "Header", "find_format", "inspect"]


class Format(Protocol):
    """See the module."""

    @property
    def NAME(self) -> str: ...

    @property
    def DRIVER(self) -> str: ...

    def matches(self, header: Header) -> bool: ...

    def inspect(self, header: Header) -> DiskFacts: ...


# In the order in which they are looked for: raw has no magic number of its own and comes last. An image of a
# CD may look like a disk, too (its first sectors are anybody's), so it comes before that.
_MODULES: tuple[Format, ...] = (qcow2, vmdk, vhdx, vdi, qed, parallels, vhd, iso, raw)
FORMATS: dict[str, Format] = {module.NAME: module for module in _MODULES}


def find_format(header: Header, named: str | None = None) -> Format:
    """The format that was named, if the header agrees, or else the one the header shows.

    Never by the file's name. A disk that is named raw is raw whatever its first bytes say. Raises
    UnknownFormat.
    """
    if named == raw.NAME:
        return FORMATS[raw.NAME]
    found = next((module for module in _MODULES if module.matches(header)), None)
    if named is not None and named not in FORMATS:
        raise UnknownFormat(f"There is no disk format '{named}'.", hint=f"There are: {', '.join(FORMATS)}.")
    if named is not None and (found is None or named != found.NAME):
        what = f"its header says {found.NAME}" if found is not None else "its header is none"
        raise UnknownFormat(
            f"'{header.name}' is not in the format {named}: {what}.",
            hint="Leave --format out to go by the header.",
        )
    if found is None:
        raise UnknownFormat(
            f"'{header.name}' is in no disk format that is known here.",
            hint="A disk without any header is imported with --format raw; a compressed file must be "
            "unpacked first. "
            f"Known: {', '.join(FORMATS)}.",
        )
    return found


def inspect(header: Header, named: str | None = None) -> DiskFacts:
    """What the image says of itself. Raises UnknownFormat, ImageDamaged and ImageRefused."""
    return find_format(header, named).inspect(header)

"""Reading headers of files that somebody else made: bounded pieces, checked sizes, and one voice for
refusals."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any

from insula.kit.units import format_size
from insula.storage.errors import ImageDamaged, ImageRefused

SECTOR = 512
# The largest disk of any format here (VHDX, MS-VHDX 2.6.2.3); what claims to be larger is a mistake or an
# attack.
MOST_VIRTUAL = 64 * 2**40
MOST_PIECE = 2**20  # bytes read at once: the longest piece that a format has before its tables
MOST_READ = 8 * 2**20  # bytes read of one header altogether


@dataclass(frozen=True)
class Extent:
    """A piece of a split disk. file: a plain name in the image's own directory, None for zeros only.

    sectors and offset (into the file) are in units of 512 bytes.
    """

    sectors: int
    sparse: bool
    file: str | None
    offset: int = 0


@dataclass(frozen=True)
class DiskFacts:
    """What was found: format as in FORMATS, the tool's driver, the disk's size in bytes.

    extents: files beside this one that hold the data (split VMDK). options: for the driver.
    """

    format: str
    driver: str
    virtual_size: int
    extents: tuple[Extent, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


class Header:
    """The bytes of an open regular file, read in bounded pieces. name: what people call the file."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self.name = name
        self.size = os.fstat(descriptor).st_size
        self._left = MOST_READ

    def at(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises ImageDamaged when the file has not got them."""
        if size > MOST_PIECE or size > self._left:
            raise self.damaged(f"it has {format_size(size)} where a header is")
        if offset < 0 or size < 0 or offset + size > self.size:
            raise self.damaged(f"it ends at byte {self.size}, and should go on to byte {offset + size}")
        self._left -= size
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise self.damaged("it became shorter while it was read")
        return data

    def starts_with(self, magic: bytes, offset: int = 0) -> bool:
        """Whether these bytes stand there; False, too, where the file is too short."""
        if offset < 0 or offset + len(magic) > self.size:
            return False
        return os.pread(self._descriptor, len(magic), offset) == magic

    def unpack(self, layout: str, offset: int) -> tuple[Any, ...]:
        """The fields of a struct there. Raises ImageDamaged."""
        return struct.unpack(layout, self.at(offset, struct.calcsize(layout)))

    def need(self, what: str, offset: int, size: int) -> None:
        """Raises ImageDamaged unless the file has `size` bytes at `offset`."""
        if offset <= 0 or offset + size > self.size:
            raise self.damaged(
                f"its {what} would be at byte {offset}, with {format_size(size)}, which the file has not"
            )

    def disk_size(self, size: int) -> int:
        """The size, if a disk can have it. Raises ImageRefused."""
        if size <= 0:
            raise self.damaged("it says that the disk has no size")
        if size > MOST_VIRTUAL:
            raise self.refused(
                f"it says that the disk has {format_size(size)}; the most is {format_size(MOST_VIRTUAL)}"
            )
        return size

    def power_of_two(self, what: str, value: int, least: int, most: int) -> int:
        """The value, if it is a power of two within the bounds. Raises ImageDamaged."""
        if value & (value - 1) or not least <= value <= most:
            raise self.damaged(f"its {what} is {value}, which cannot be")
        return value

    def damaged(self, why: str) -> ImageDamaged:
        return ImageDamaged(
            f"The image '{self.name}' is damaged: {why}.",
            hint="Get the file again, and compare its checksum with the publisher's.",
        )

    def refused(self, why: str, hint: str = "") -> ImageRefused:
        return ImageRefused(f"The image '{self.name}' is refused: {why}.", hint=hint)

    def unclean(self) -> ImageDamaged:
        error = self.damaged("it was not closed by the program that wrote it last")
        error.hint = "Open and close it once with that program, then import it."
        return error


def shown(raw: bytes) -> str:
    """A name out of a file, fit to be printed."""
    text = raw[:200].split(b"\0")[0].decode(errors="replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)

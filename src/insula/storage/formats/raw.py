"""A disk as it is, byte for byte. Found by a boot signature only; anything else must be named to be taken
for one."""

from __future__ import annotations

from insula.storage.formats.header import SECTOR, DiskFacts, Header

NAME = DRIVER = "raw"


def matches(header: Header) -> bool:
    return header.starts_with(b"\x55\xaa", 510) or header.starts_with(b"EFI PART", SECTOR)


def inspect(header: Header) -> DiskFacts:
    sectors = -(-header.size // SECTOR)
    return DiskFacts(NAME, DRIVER, header.disk_size(sectors * SECTOR))

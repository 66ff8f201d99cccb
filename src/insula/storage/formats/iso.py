"""The content of a CD or DVD: ISO 9660 (ECMA-119) or UDF (ECMA-167), kept byte for byte as a medium for
drives.

Both begin with a volume recognition sequence after 16 sectors of 2048 bytes, whose first bytes belong to
nobody: an image that is also made to boot as a disk has a partition table there.
"""

from __future__ import annotations

from insula.storage.formats.header import SECTOR, DiskFacts, Header

NAME = "iso"
DRIVER = "raw"
_IDENTIFIER = 16 * 2048 + 1  # ECMA-119, 8.1.2: after the type of the first descriptor
_STANDARDS = (b"CD001", b"BEA01")  # ISO 9660; UDF alone


def matches(header: Header) -> bool:
    return any(header.starts_with(standard, _IDENTIFIER) for standard in _STANDARDS)


def inspect(header: Header) -> DiskFacts:
    sectors = -(-header.size // SECTOR)
    return DiskFacts(NAME, DRIVER, header.disk_size(sectors * SECTOR))

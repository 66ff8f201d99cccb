"""Parallels' expanding disks (docs/interop/parallels.txt of QEMU)."""

from __future__ import annotations

from insula.storage.formats.header import SECTOR, DiskFacts, Header

NAME = DRIVER = "parallels"
_OLD, _NEW = b"WithoutFreeSpace", b"WithouFreSpacExt"
_IN_USE = 0x746F6E59
_HEADER_SIZE = 64
_MOST_TRACK = 2**20  # sectors of a cluster


def matches(header: Header) -> bool:
    return header.starts_with(_OLD) or header.starts_with(_NEW)


def inspect(header: Header) -> DiskFacts:
    version, _, _, track, entries, sectors, in_use, _, _, extension = header.unpack("<IIIIIQIIIQ", 16)
    if version != 2:
        raise header.refused(f"it is of version {version} of its format; known is 2")
    if in_use == _IN_USE:
        raise header.unclean()
    if extension:
        raise header.refused("it has an extension that is not known here")
    if header.starts_with(_OLD):
        sectors &= 0xFFFFFFFF  # the format of that time had 32 bits, and what follows means nothing
    if not 0 < track <= _MOST_TRACK:
        raise header.damaged(f"its clusters have {track} sectors")
    header.disk_size(sectors * SECTOR)
    if entries * track < sectors:
        raise header.damaged("its table is too short for its disk")
    header.need("table", _HEADER_SIZE, 4 * entries)
    return DiskFacts(NAME, DRIVER, sectors * SECTOR)

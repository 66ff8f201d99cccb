"""VHD (Virtual Hard Disk Image Format Specification 1.0): fixed and dynamic."""

from __future__ import annotations

import struct

from insula.storage.formats.header import SECTOR, DiskFacts, Header

NAME = "vhd"
DRIVER = "vpc"
_COOKIE = b"conectix"
_FOOTER = ">8sIIQI4sI4sQQHBBII16sB"
_DYNAMIC = ">8sQQIIII"
_FIXED_TYPE, _DYNAMIC_TYPE, _DIFFERENCING = 2, 3, 4
_MOST = 2040 * 2**30  # the format's own limit


def matches(header: Header) -> bool:
    return header.starts_with(_COOKIE) or header.starts_with(_COOKIE, header.size - SECTOR)


def inspect(header: Header) -> DiskFacts:
    # The reference implementation looks at the beginning first, and takes the end only for a fixed disk.
    at_start = header.starts_with(_COOKIE)
    at = 0 if at_start else header.size - SECTOR
    raw = header.at(at, SECTOR)
    (_, _, version, table, _, _, _, _, _, size, *_chs, kind, checksum, _, _) = struct.unpack_from(
        _FOOTER, raw
    )
    _verify(header, raw, 64, checksum, "footer")
    if version >> 16 != 1:
        raise header.refused(f"it is of version {version >> 16} of its format; known is 1")
    if kind == _DIFFERENCING:
        raise header.refused("it holds only what differs from another disk, which it asks the host to open")
    if kind not in (_FIXED_TYPE, _DYNAMIC_TYPE):
        raise header.refused(f"it is of a kind that is not known here ({kind})")
    header.disk_size(size)
    if size > _MOST:
        raise header.damaged("it says that its disk is larger than the format allows")
    if kind == _FIXED_TYPE:
        if at_start or size > header.size - SECTOR:
            raise header.damaged("it is shorter than its disk")
    else:
        if not at_start:
            raise header.damaged("its beginning is missing")
        _check_dynamic(header, table, size)
    return DiskFacts(NAME, DRIVER, size, options=(("force_size_calc", "current_size"),))


def _check_dynamic(header: Header, at: int, size: int) -> None:
    raw = header.at(at, 1024)
    cookie, _, table, version, entries, block, checksum = struct.unpack_from(_DYNAMIC, raw)
    if cookie != b"cxsparse" or version >> 16 != 1:
        raise header.damaged("its second header is none")
    _verify(header, raw, 36, checksum, "second header")
    header.power_of_two("block size", block, SECTOR, 256 * 2**20)
    if entries * block < size:
        raise header.damaged("its table is too short for its disk")
    header.need("table", table, 4 * entries)


def _verify(header: Header, raw: bytes, at: int, checksum: int, what: str) -> None:
    """The one's complement of the sum of all bytes but its own ("Checksum" in the specification)."""
    if ~(sum(raw) - sum(raw[at : at + 4])) & 0xFFFFFFFF != checksum:
        raise header.damaged(f"the checksum of its {what} is wrong")

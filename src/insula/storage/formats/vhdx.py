"""VHDX (MS-VHDX): fixed and dynamic, closed in order."""

from __future__ import annotations

import struct
from uuid import UUID

from insula.storage.formats.header import DiskFacts, Header

NAME = DRIVER = "vhdx"
_MAGIC = b"vhdxfile"
_HEADERS = (64 * 2**10, 128 * 2**10)
_HEADER_SIZE = 4096
_REGIONS = 192 * 2**10
_TABLE_SIZE = 64 * 2**10
_MOST_REGIONS = _MOST_ITEMS = 2047  # MS-VHDX 2.2.3.1 and 2.6.1.1
_BAT = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
_METADATA = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_PARENT = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
_HAS_PARENT = 2


def matches(header: Header) -> bool:
    return header.starts_with(_MAGIC)


def inspect(header: Header) -> DiskFacts:
    _check_log(header)
    regions = _read_regions(header)
    if _BAT not in regions or _METADATA not in regions:
        raise header.damaged("it has no table of blocks or no metadata")
    items = _read_metadata(header, *regions[_METADATA])
    if _PARENT in items:
        raise header.refused("it holds only what differs from another disk, which it asks the host to open")
    if _PARAMETERS not in items or _DISK_SIZE not in items:
        raise header.damaged("its metadata lacks the disk's size")
    block, flags = header.unpack("<II", items[_PARAMETERS])
    if flags & _HAS_PARENT:
        raise header.refused("it holds only what differs from another disk, which it asks the host to open")
    header.power_of_two("block size", block, 2**20, 256 * 2**20)
    size = header.disk_size(header.unpack("<Q", items[_DISK_SIZE])[0])
    if 8 * -(-size // block) > regions[_BAT][1]:
        raise header.damaged("its table of blocks is too short for its disk")
    return DiskFacts(NAME, DRIVER, size)


def _check_log(header: Header) -> None:
    """Of the two headers the valid one with the higher number counts; its log must have been emptied."""
    best: tuple[int, bytes] | None = None
    for at in _HEADERS:
        raw = header.at(at, _HEADER_SIZE)
        signature, checksum, number = struct.unpack_from("<4sIQ", raw)
        if signature == b"head" and checksum == crc32c(raw[:4] + bytes(4) + raw[8:]):
            best = max(best or (-1, b""), (number, raw))
    if best is None:
        raise header.damaged("both of its headers are broken")
    if any(best[1][48:64]):
        raise header.unclean()


def _read_regions(header: Header) -> dict[bytes, tuple[int, int]]:
    raw = header.at(_REGIONS, _TABLE_SIZE)
    signature, checksum, count, _ = struct.unpack_from("<4sIII", raw)
    if signature != b"regi" or count > _MOST_REGIONS:
        raise header.damaged("its table of regions is broken")
    if checksum != crc32c(raw[:4] + bytes(4) + raw[8:]):
        raise header.damaged("the checksum of its table of regions is wrong")
    regions: dict[bytes, tuple[int, int]] = {}
    for number in range(count):
        guid, offset, length, required = struct.unpack_from("<16sQII", raw, 16 + 32 * number)
        if guid not in (_BAT, _METADATA):
            if required & 1:
                raise header.refused("it needs a region that is not known here")
            continue
        if guid in regions or offset < 2**20:
            raise header.damaged("its table of regions contradicts itself")
        header.need("region", offset, length)
        regions[guid] = (offset, length)
    return regions


def _read_metadata(header: Header, at: int, length: int) -> dict[bytes, int]:
    """Where in the file each item is."""
    signature, _, count = header.unpack("<8sHH", at)
    if signature != b"metadata" or count > _MOST_ITEMS:
        raise header.damaged("its metadata is broken")
    items: dict[bytes, int] = {}
    for number in range(count):
        guid, offset, size, _, _ = header.unpack("<16sIIII", at + 32 + 32 * number)
        if guid in items or offset + size > length:
            raise header.damaged("its metadata contradicts itself")
        items[guid] = at + offset
    return items


def _make_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _make_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720 B.4), which zlib has not got."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF

"""VDI, VirtualBox's: dynamic and fixed. Layout as in block/vdi.c of QEMU and VDICore.h of VirtualBox."""

from __future__ import annotations

from insula.storage.formats.header import SECTOR, DiskFacts, Header

NAME = DRIVER = "vdi"
_MAGIC = b"\x7f\x10\xda\xbe"
_VERSION = 0x00010001
_DYNAMIC, _FIXED = 1, 2
_BLOCK = 2**20  # the only size that VirtualBox makes


def matches(header: Header) -> bool:
    return header.starts_with(_MAGIC, 64)


def inspect(header: Header) -> DiskFacts:
    version, header_size, kind, _ = header.unpack("<IIII", 68)
    if version != _VERSION:
        raise header.refused(
            f"it is of version {version >> 16}.{version & 0xFFFF} of its format; known is 1.1"
        )
    if header_size < 0x180:
        raise header.damaged(f"its header says that it has {header_size} bytes")
    table, data, _, _, _, sector = header.unpack("<IIIIII", 340)
    size, block, extra, blocks, allocated = header.unpack("<QIIII", 368)
    link, parent = header.unpack("<16s16s", 424)
    if kind not in (_DYNAMIC, _FIXED) or any(link) or any(parent):
        raise header.refused("it holds only what differs from another disk, which it asks the host to open")
    if sector != SECTOR or block != _BLOCK or extra:
        raise header.refused(f"it has blocks of {block} + {extra} bytes; known are {_BLOCK}")
    header.disk_size(size)
    if size > blocks * block or allocated > blocks:
        raise header.damaged("its table is too short for its disk")
    if table % SECTOR or data % SECTOR:
        raise header.damaged("its tables are not where sectors begin")
    header.need("table", table, 4 * blocks)
    return DiskFacts(NAME, DRIVER, size)

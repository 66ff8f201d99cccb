"""QED (docs/interop/qed_spec.rst of QEMU)."""

from __future__ import annotations

from insula.storage.formats.header import DiskFacts, Header, shown

NAME = DRIVER = "qed"
_MAGIC = b"QED\0"
_BACKING, _NEED_CHECK, _BACKING_RAW = 1, 2, 4


def matches(header: Header) -> bool:
    return header.starts_with(_MAGIC)


def inspect(header: Header) -> DiskFacts:
    cluster, table, header_size, features, _, _, l1, size, name_at, name_size = header.unpack(
        "<IIIQQQQQII", 4
    )
    if features & (_BACKING | _BACKING_RAW):
        name = shown(header.at(name_at, min(name_size, 1023)))
        raise header.refused(f"it is a layer over another file, '{name}', which it asks the host to open")
    if features & ~_NEED_CHECK:
        raise header.refused(f"it uses features that are not known here ({features & ~_NEED_CHECK:#x})")
    if features & _NEED_CHECK:
        raise header.unclean()
    header.power_of_two("cluster size", cluster, 2**12, 2**26)
    header.power_of_two("table size", table, 1, 16)
    if not header_size or header_size * cluster > header.size or l1 % cluster:
        raise header.damaged("its header or its first table is not where clusters begin")
    header.need("first table", l1, table * cluster)
    header.disk_size(size)
    entries = table * cluster // 8
    if size > entries * entries * cluster:
        raise header.damaged("its tables are too short for its disk")
    return DiskFacts(NAME, DRIVER, size)

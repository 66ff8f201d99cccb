"""qcow2 (docs/interop/qcow2.txt of QEMU): versions 2 and 3, compressed or not, without anything outside the
file."""

from __future__ import annotations

from insula.storage.formats.header import DiskFacts, Header, shown

NAME = DRIVER = "qcow2"
_MAGIC = b"QFI\xfb"
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _LONG_L2 = 1, 2, 4, 8, 16
_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _LONG_L2
_END, _DATA_FILE_NAME, _CRYPTO = 0, 0x44415441, 0x0537BE77
_MOST_L1 = 32 * 2**20  # bytes: QCOW_MAX_L1_SIZE of the reference implementation
_MOST_EXTENSIONS = 64


def matches(header: Header) -> bool:
    return header.starts_with(_MAGIC)


def inspect(header: Header) -> DiskFacts:
    (
        version,
        backing,
        backing_size,
        cluster_bits,
        size,
        crypt,
        l1_size,
        l1_at,
        refcounts_at,
        refcount_clusters,
    ) = header.unpack(">IQIIQIIQQI", 4)
    if version not in (2, 3):
        raise header.refused(f"it is of version {version} of its format; known are 2 and 3")
    if backing or backing_size:
        name = shown(header.at(backing, min(backing_size, 1023))) if backing_size else ""
        raise header.refused(
            f"it is a layer over another file, '{name}', which it asks the host to open",
            hint="Make it a whole one where it comes from: qemu-img convert -O qcow2 FILE WHOLE",
        )
    if crypt:
        raise header.refused("it is encrypted", hint="Decrypt it where it comes from.")
    if not 9 <= cluster_bits <= 21:
        raise header.damaged(f"its clusters have 2^{cluster_bits} bytes")
    header_length = _check_features(header) if version == 3 else 72
    _check_extensions(header, header_length, 1 << cluster_bits)
    cluster = 1 << cluster_bits
    header.disk_size(size)
    entry = 16 if version == 3 and header.unpack(">Q", 72)[0] & _LONG_L2 else 8
    needed = -(-size // (cluster * (cluster // entry)))
    if l1_size < needed or l1_size * 8 > _MOST_L1:
        raise header.damaged(f"its first table has {l1_size} entries, and needs {needed}")
    header.need("first table", l1_at, 8 * l1_size)
    header.need("reference table", refcounts_at, cluster * refcount_clusters)
    if l1_at % cluster or refcounts_at % cluster or not refcount_clusters:
        raise header.damaged("its tables are not where clusters begin")
    return DiskFacts(NAME, DRIVER, size)


def _check_features(header: Header) -> int:
    """The header's length. Raises on what must not or cannot be opened."""
    incompatible, _, _, refcount_order, length = header.unpack(">QQQII", 72)
    if incompatible & _DATA_FILE:
        raise header.refused("its data is in another file, which it asks the host to open")
    if incompatible & _CORRUPT:
        raise header.damaged("it is marked as corrupt")
    if incompatible & ~_KNOWN:
        raise header.refused(f"it uses features that are not known here ({incompatible & ~_KNOWN:#x})")
    if refcount_order > 6:
        raise header.damaged(f"its reference counts have 2^{refcount_order} bits")
    if length < 104 or length % 8:
        raise header.damaged(f"its header says that it has {length} bytes")
    return int(length)


def _check_extensions(header: Header, offset: int, cluster: int) -> None:
    for _ in range(_MOST_EXTENSIONS):
        if offset + 8 > min(cluster, header.size):
            return
        kind, length = header.unpack(">II", offset)
        if kind == _END:
            return
        if kind == _DATA_FILE_NAME:
            name = shown(header.at(offset + 8, min(length, 1023)))
            raise header.refused(f"its data is in another file, '{name}', which it asks the host to open")
        if kind == _CRYPTO:
            raise header.refused("it is encrypted", hint="Decrypt it where it comes from.")
        offset += 8 + (length + 7) // 8 * 8
        if offset > cluster:
            raise header.damaged("the extensions of its header are longer than a cluster")
    raise header.damaged(f"its header has more than {_MOST_EXTENSIONS} extensions")

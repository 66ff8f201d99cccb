"""A corpus of disk images that nobody should open: each with what it is refused for.

Every format has a function that makes a small image whose header is in order; a hostile one is that with one
thing changed. Nothing here needs a tool.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from insula.storage.formats.header import MOST_VIRTUAL
from insula.storage.formats.vhdx import crc32c

MIB = 2**20
TOO_LARGE = MOST_VIRTUAL + 512


def qcow2(
    *,
    version: int = 3,
    backing: bytes = b"",
    bits: int = 16,
    size: int = MIB,
    crypt: int = 0,
    l1_size: int = 1,
    l1_at: int = 3 << 16,
    refcounts_at: int = 1 << 16,
    refcount_clusters: int = 1,
    incompatible: int = 0,
    refcount_order: int = 4,
    length: int = 104,
    extensions: bytes = bytes(8),
) -> bytes:
    at = 1024 if backing else 0
    raw = struct.pack(
        ">4sIQIIQIIQQI",
        b"QFI\xfb",
        version,
        at,
        len(backing),
        bits,
        size,
        crypt,
        l1_size,
        l1_at,
        refcounts_at,
        refcount_clusters,
    )
    raw += struct.pack(">IQQQQII", 0, 0, incompatible, 0, 0, refcount_order, length)
    image = bytearray(4 << 16)
    image[: len(raw)] = raw
    image[104 : 104 + len(extensions)] = extensions
    if backing:
        image[at : at + len(backing)] = backing
    return bytes(image)


def vmdk_header(
    capacity: int = 2048,
    *,
    version: int = 1,
    grain: int = 128,
    text_at: int = 1,
    text_size: int = 1,
    entries: int = 512,
    directory: int = 2,
    algorithm: int = 0,
) -> bytes:
    return struct.pack(
        "<4sIIQQQQIQQQB4sH",
        b"KDMV",
        version,
        3,
        capacity,
        grain,
        text_at,
        text_size,
        entries,
        3,
        directory,
        128,
        0,
        b"\n \r\n",
        algorithm,
    ).ljust(512, b"\0")


def vmdk(
    text: str = 'parentCID=ffffffff\ncreateType="monolithicSparse"\nRW 2048 SPARSE "a.vmdk"\n', **fields: int
) -> bytes:
    return vmdk_header(**fields) + text.encode().ljust(512, b"\0") + bytes(64 * 1024)


def vmdk_text(*lines: str, kind: str = "monolithicFlat", parent: str = "ffffffff") -> bytes:
    head = ["# Disk DescriptorFile", "version=1", f"parentCID={parent}", f'createType="{kind}"']
    return ("\n".join([*head, *lines]) + "\n").encode()


def _checked(raw: bytes, at: int) -> bytes:
    return raw[:at] + struct.pack(">I", ~sum(raw) & 0xFFFFFFFF) + raw[at + 4 :]


def vhd_footer(*, kind: int = 3, size: int = MIB, version: int = 0x10000, table: int = 512) -> bytes:
    raw = struct.pack(
        ">8sIIQI4sI4sQQHBBII16sB",
        b"conectix",
        2,
        version,
        table,
        0,
        b"test",
        1,
        b"Wi2k",
        size,
        size,
        1,
        1,
        1,
        kind,
        0,
        bytes(16),
        0,
    )
    return _checked(raw.ljust(512, b"\0"), 64)


def vhd(*, block: int = 2 * MIB, entries: int = 1, table: int = 1536, **fields: int) -> bytes:
    raw = struct.pack(">8sQQIIII", b"cxsparse", 2**64 - 1, table, 0x10000, entries, block, 0).ljust(
        1024, b"\0"
    )
    footer = vhd_footer(**fields)
    return footer + _checked(raw, 36) + bytes(512) + footer


def vhdx(
    *,
    size: int = MIB,
    block: int = MIB,
    flags: int = 0,
    log: bytes = bytes(16),
    parent: bool = False,
    headers: int = 2,
    region_at: int = 3 * MIB,
    more_regions: bytes = b"",
) -> bytes:
    image = bytearray(4 * MIB)
    image[:8] = b"vhdxfile"
    for number in range(headers):
        raw = struct.pack("<4sIQ16s16s16s", b"head", 0, number, bytes(16), bytes(16), log).ljust(4096, b"\0")
        at = (1 + number) * 64 * 1024
        image[at : at + 4096] = raw[:4] + struct.pack("<I", crc32c(raw)) + raw[8:]
    bat, metadata = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08"), UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
    entries = struct.pack("<16sQII", bat.bytes_le, region_at, MIB, 1) + struct.pack(
        "<16sQII", metadata.bytes_le, 2 * MIB, 64 * 1024, 1
    )
    count = 2 + len(more_regions) // 32
    raw = (struct.pack("<4sIII", b"regi", 0, count, 0) + entries + more_regions).ljust(64 * 1024, b"\0")
    image[192 * 1024 : 256 * 1024] = raw[:4] + struct.pack("<I", crc32c(raw)) + raw[8:]
    items = [
        ("caa16737-fa36-4d43-b3b6-33f0aa44e76b", struct.pack("<II", block, flags)),
        ("2fa54224-cd1b-4876-b211-5dbed83bf4b8", struct.pack("<Q", size)),
    ]
    if parent:
        items.append(("a8d35f2d-b30b-454d-abf7-d3d84834ab0c", b"parents!"))
    table = struct.pack("<8sHH20x", b"metadata", 0, len(items))
    for number, (name, value) in enumerate(items):
        table += struct.pack("<16sIIII", UUID(name).bytes_le, 4096 + 64 * number, len(value), 0, 0)
        at = 2 * MIB + 4096 + 64 * number
        image[at : at + len(value)] = value
    image[2 * MIB : 2 * MIB + len(table)] = table
    return bytes(image)


def vdi(
    *,
    version: int = 0x10001,
    kind: int = 1,
    size: int = MIB,
    block: int = MIB,
    blocks: int = 1,
    table: int = 512,
    parent: bytes = bytes(16),
    sector: int = 512,
) -> bytes:
    raw = b"<<< test >>>\n".ljust(64, b"\0") + struct.pack("<IIIII", 0xBEDA107F, version, 0x190, kind, 0)
    raw += bytes(256) + struct.pack("<IIIIII", table, MIB, 0, 0, 0, sector) + bytes(4)
    raw += struct.pack("<QIIII", size, block, 0, blocks, 0) + bytes(32) + bytes(16) + parent
    return raw.ljust(8192, b"\0")


def qed(
    *,
    features: int = 0,
    name: bytes = b"",
    size: int = MIB,
    cluster: int = 65536,
    table: int = 4,
    l1: int = 65536,
) -> bytes:
    raw = struct.pack("<4sIIIQQQQQII", b"QED\0", cluster, table, 1, features, 0, 0, l1, size, 512, len(name))
    return (raw.ljust(512, b"\0") + name).ljust(6 * 65536, b"\0")


def parallels(
    *,
    magic: bytes = b"WithouFreSpacExt",
    version: int = 2,
    track: int = 2048,
    entries: int = 1,
    sectors: int = 2048,
    in_use: int = 0,
    extension: int = 0,
) -> bytes:
    raw = struct.pack(
        "<16sIIIIIQIIIQ", magic, version, 16, 1, track, entries, sectors, in_use, 0, 0, extension
    )
    return raw.ljust(4096, b"\0")


GOOD = {
    "qcow2": qcow2(),
    "vmdk": vmdk(),
    "vhd": vhd(),
    "vhdx": vhdx(),
    "vdi": vdi(),
    "qed": qed(),
    "parallels": parallels(),
    "iso": bytes(0x8000) + b"\x01CD001\x01" + bytes(MIB - 0x8007),
    "raw": b"\0" * 510 + b"\x55\xaa" + bytes(MIB - 512),
}


@dataclass(frozen=True)
class Hostile:
    """An image. code: of the error; says: words of its sentence; format: if it must be named."""

    name: str
    data: bytes
    code: str
    says: str
    format: str | None = None


_REFUSED, _DAMAGED, _UNKNOWN = "image-refused", "image-damaged", "image-format-unknown"
_FOREIGN_REGION = struct.pack("<16sQII", bytes(range(16)), 3 * MIB, 4096, 1)


def _extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0") + bytes(8)


def _footer(capacity: int, marker: int = 3, directory: int = 2) -> bytes:
    start = vmdk(directory=2**64 - 1)
    tail = struct.pack("<QII", 1, 512, marker).ljust(512, b"\0")
    return start + tail + vmdk_header(capacity, directory=directory) + bytes(512)


def corpus() -> Iterator[Hostile]:
    yield from _qcow2()
    yield from _vmdk()
    yield from _others()
    for name, data in GOOD.items():
        if name not in ("raw", "iso"):  # these two are whatever is left of them
            yield Hostile(f"{name}-cut-short", data[: 80 if name == "vdi" else 66], _DAMAGED, "", name)


def _qcow2() -> Iterator[Hostile]:
    yield Hostile("qcow2-backing", qcow2(backing=b"/etc/shadow"), _REFUSED, "/etc/shadow")
    yield Hostile(
        "qcow2-backing-json", qcow2(backing=b'json:{"driver":"nbd"}'), _REFUSED, "layer over another file"
    )
    yield Hostile("qcow2-backing-escape", qcow2(backing=b"\x1b[2J"), _REFUSED, "'?[2J'")
    yield Hostile("qcow2-data-file-bit", qcow2(incompatible=4), _REFUSED, "its data is in another file")
    yield Hostile(
        "qcow2-data-file-name", qcow2(extensions=_extension(0x44415441, b"/dev/sda")), _REFUSED, "/dev/sda"
    )
    yield Hostile("qcow2-encrypted", qcow2(crypt=2), _REFUSED, "encrypted")
    yield Hostile("qcow2-luks", qcow2(extensions=_extension(0x0537BE77, bytes(16))), _REFUSED, "encrypted")
    yield Hostile("qcow2-corrupt", qcow2(incompatible=2), _DAMAGED, "marked as corrupt")
    yield Hostile("qcow2-future", qcow2(incompatible=1 << 40), _REFUSED, "not known here")
    yield Hostile("qcow2-version", qcow2(version=9), _REFUSED, "version 9")
    yield Hostile("qcow2-huge", qcow2(size=2**62), _REFUSED, "4096PiB")
    yield Hostile("qcow2-too-large", qcow2(size=TOO_LARGE), _REFUSED, "the most is 64TiB")
    yield Hostile("qcow2-no-size", qcow2(size=0), _DAMAGED, "no size")
    yield Hostile("qcow2-clusters", qcow2(bits=60), _DAMAGED, "2^60")
    yield Hostile("qcow2-l1-short", qcow2(size=2**40), _DAMAGED, "first table")
    yield Hostile("qcow2-l1-long", qcow2(l1_size=2**31), _DAMAGED, "first table")
    yield Hostile("qcow2-l1-outside", qcow2(l1_at=1 << 40), _DAMAGED, "first table")
    yield Hostile("qcow2-refcounts-outside", qcow2(refcounts_at=1 << 40), _DAMAGED, "reference table")
    yield Hostile("qcow2-refcount-bits", qcow2(refcount_order=9), _DAMAGED, "2^9")
    yield Hostile("qcow2-header-length", qcow2(length=3), _DAMAGED, "3 bytes")
    yield Hostile(
        "qcow2-extension-long",
        qcow2(extensions=struct.pack(">II", 7, 2**31)),
        _DAMAGED,
        "longer than a cluster",
    )
    yield Hostile(
        "qcow2-extensions-many", qcow2(extensions=struct.pack(">II", 7, 0) * 200), _DAMAGED, "extensions"
    )


def _vmdk() -> Iterator[Hostile]:
    for name in ("/etc/shadow", "../secret", "sub/file", "..", "C:\\\\disk", "nbd:host", "a\tb"):
        yield Hostile(
            f"vmdk-names-{name!r}", vmdk_text(f'RW 8 FLAT "{name}" 0'), _REFUSED, "no plain file name"
        )
    yield Hostile("vmdk-device", vmdk_text('RW 8 FLAT "/dev/sda" 0', kind="fullDevice"), _REFUSED, "")
    yield Hostile("vmdk-raw-device", vmdk_text('RW 8 VMFSRDM "rdm"', kind="vmfs"), _REFUSED, "VMFSRDM")
    yield Hostile(
        "vmdk-parent", vmdk_text('RW 8 FLAT "a" 0', parent="12345678"), _REFUSED, "differs from another"
    )
    yield Hostile(
        "vmdk-hint",
        vmdk_text('parentFileNameHint="/etc/passwd"', 'RW 8 FLAT "a" 0'),
        _REFUSED,
        "differs from",
    )
    yield Hostile(
        "vmdk-hint-hidden", vmdk_text('#parentFileNameHint="/x"', 'RW 8 FLAT "a" 0'), _REFUSED, "differs from"
    )
    yield Hostile("vmdk-no-extents", vmdk_text(), _DAMAGED, "names no files")
    yield Hostile("vmdk-blanks", vmdk_text("a=" + " " * 250_000 + "x"), _DAMAGED, "names no files")
    yield Hostile("vmdk-bad-line", vmdk_text("RW lots FLAT"), _DAMAGED, "a line that is none")
    yield Hostile("vmdk-huge", vmdk_text("RW 999999999999999999 ZERO"), _REFUSED, "the most is 64TiB")
    yield Hostile("vmdk-many", vmdk_text(*["RW 1 ZERO"] * 600), _REFUSED, "more than 256 files")
    yield Hostile("vmdk-long", vmdk_text("#" * 300_000), _DAMAGED, "longer than any")
    yield Hostile("vmdk-one-file-text", vmdk_text('RW 8 SPARSE "a"', kind="monolithicSparse"), _REFUSED, "")
    # With a capacity of 0 the reference implementation opens what the embedded descriptor names.
    yield Hostile("vmdk-embedded", vmdk(capacity=0), _REFUSED, "in other files")
    yield Hostile("vmdk-embedded-parent", vmdk(text="parentCID=1\n"), _REFUSED, "differs from another")
    yield Hostile("vmdk-embedded-path", vmdk(text='RW 8 SPARSE "/etc/x"\n'), _REFUSED, "/etc/x")
    yield Hostile(
        "vmdk-embedded-kind", vmdk(text='createType="twoGbMaxExtentFlat"\n'), _REFUSED, "not in one file"
    )
    yield Hostile("vmdk-embedded-long", vmdk(text_size=2**40), _DAMAGED, "longer than any")
    yield Hostile("vmdk-sparse-huge", vmdk(capacity=2**60), _REFUSED, "the most is 64TiB")
    yield Hostile("vmdk-grain", vmdk(grain=3), _DAMAGED, "grain")
    yield Hostile("vmdk-grain-zero", vmdk(grain=0), _DAMAGED, "grain")
    yield Hostile("vmdk-entries", vmdk(entries=2**31), _DAMAGED, "table size")
    yield Hostile("vmdk-directory", vmdk(directory=2**50), _DAMAGED, "directory")
    yield Hostile("vmdk-version", vmdk(version=77), _REFUSED, "version 77")
    yield Hostile("vmdk-algorithm", vmdk(algorithm=9), _REFUSED, "compressed")
    yield Hostile("vmdk-footer-other", _footer(4096), _DAMAGED, "contradict")
    yield Hostile("vmdk-footer-zero", _footer(0), _REFUSED, "in other files")
    yield Hostile("vmdk-footer-none", _footer(2048, marker=1), _DAMAGED, "footer is missing")
    yield Hostile("vmdk-footer-again", _footer(2048, directory=2**64 - 1), _DAMAGED, "contradict")
    yield Hostile("vmdk-cowd", b"COWD" + bytes(2048), _REFUSED, "ESX")


def _others() -> Iterator[Hostile]:
    yield Hostile("vhd-differencing", vhd(kind=4), _REFUSED, "differs from another")
    yield Hostile("vhd-kind", vhd(kind=77), _REFUSED, "(77)")
    yield Hostile("vhd-huge", vhd(size=2**60), _REFUSED, "the most is 64TiB")
    yield Hostile("vhd-beyond-format", vhd(size=4 * 2**40), _DAMAGED, "larger than the format allows")
    yield Hostile("vhd-checksum", vhd()[:70] + b"x" + vhd()[71:], _DAMAGED, "checksum of its footer")
    yield Hostile("vhd-version", vhd(version=0x20000), _REFUSED, "version 2")
    yield Hostile("vhd-table-short", vhd(size=2**30), _DAMAGED, "too short")
    yield Hostile("vhd-table-outside", vhd(entries=2**30), _DAMAGED, "its table would be")
    yield Hostile("vhd-block", vhd(block=12345), _DAMAGED, "block size")
    yield Hostile("vhd-second", vhd()[:512] + bytes(1536) + vhd_footer(), _DAMAGED, "second header")
    yield Hostile("vhd-beginning", bytes(2048) + vhd_footer(), _DAMAGED, "beginning is missing")
    yield Hostile("vhd-fixed-short", bytes(512) + vhd_footer(kind=2), _DAMAGED, "shorter than its disk")
    yield Hostile("vhdx-parent", vhdx(flags=2), _REFUSED, "differs from another")
    yield Hostile("vhdx-locator", vhdx(parent=True), _REFUSED, "differs from another")
    yield Hostile("vhdx-log", vhdx(log=b"l" * 16), _DAMAGED, "not closed")
    yield Hostile("vhdx-headers", vhdx(headers=0), _DAMAGED, "both of its headers")
    yield Hostile("vhdx-huge", vhdx(size=2**60), _REFUSED, "the most is 64TiB")
    yield Hostile("vhdx-block", vhdx(block=1000), _DAMAGED, "block size")
    yield Hostile("vhdx-table", vhdx(size=2**42), _DAMAGED, "too short")
    yield Hostile("vhdx-region-outside", vhdx(region_at=2**50), _DAMAGED, "region")
    yield Hostile(
        "vhdx-region-unknown", vhdx(more_regions=_FOREIGN_REGION), _REFUSED, "a region that is not known"
    )
    yield Hostile("vdi-parent", vdi(parent=b"p" * 16), _REFUSED, "differs from another")
    yield Hostile("vdi-kind", vdi(kind=4), _REFUSED, "differs from another")
    yield Hostile("vdi-huge", vdi(size=2**60), _REFUSED, "the most is 64TiB")
    yield Hostile("vdi-short", vdi(size=2 * MIB), _DAMAGED, "too short")
    yield Hostile("vdi-blocks", vdi(blocks=2**31), _DAMAGED, "its table")
    yield Hostile("vdi-block", vdi(block=4096), _REFUSED, "4096")
    yield Hostile("vdi-sector", vdi(sector=4096), _REFUSED, "blocks of")
    yield Hostile("vdi-version", vdi(version=0x20000), _REFUSED, "version 2.0")
    yield Hostile("qed-backing", qed(features=1, name=b"/etc/shadow"), _REFUSED, "/etc/shadow")
    yield Hostile("qed-future", qed(features=64), _REFUSED, "0x40")
    yield Hostile("qed-unclean", qed(features=2), _DAMAGED, "not closed")
    yield Hostile("qed-cluster", qed(cluster=5), _DAMAGED, "cluster size")
    yield Hostile("qed-l1", qed(l1=2**40), _DAMAGED, "first table")
    yield Hostile("qed-huge", qed(size=2**63), _REFUSED, "the most is 64TiB")
    yield Hostile("qed-short", qed(cluster=4096, table=1, l1=4096, size=2**40), _DAMAGED, "too short")
    yield Hostile("parallels-open", parallels(in_use=0x746F6E59), _DAMAGED, "not closed")
    yield Hostile("parallels-track", parallels(track=0), _DAMAGED, "0 sectors")
    yield Hostile("parallels-table", parallels(entries=2**30), _DAMAGED, "its table")
    yield Hostile("parallels-short", parallels(sectors=2**20), _DAMAGED, "too short")
    yield Hostile("parallels-huge", parallels(sectors=2**55), _REFUSED, "the most is 64TiB")
    yield Hostile("parallels-extension", parallels(extension=8), _REFUSED, "extension")
    yield Hostile("parallels-version", parallels(version=1), _REFUSED, "version 1")
    yield Hostile("empty", b"", _UNKNOWN, "no disk format")
    yield Hostile("text", b"root:x:0:0\n" * 100, _UNKNOWN, "no disk format")
    yield Hostile("empty-raw", b"", _DAMAGED, "no size", "raw")
    yield Hostile("misnamed", qcow2(), _UNKNOWN, "its header says qcow2", "vmdk")
    yield Hostile("no-such-format", qcow2(), _UNKNOWN, "no disk format 'docx'", "docx")

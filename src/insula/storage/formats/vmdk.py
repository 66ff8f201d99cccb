"""VMDK (VMware Virtual Disk Format 5.0): monolithic and stream-optimized in one file, flat and split in
several.

A descriptor names other files, which is how an image asks for a host's own. So it is never handed on: the
names are checked to be plain ones, beside the descriptor, and the conversion writes a descriptor of its own.
"""

from __future__ import annotations

import re

from insula.storage.formats.header import SECTOR, DiskFacts, Extent, Header, shown

NAME = DRIVER = "vmdk"
MAGIC = b"KDMV"
_TEXT = b"# Disk DescriptorFile"
_OTHERS = {b"COWD": "ESX's old sparse", b"\xbe\xba\xfe\xca": "ESX's SE sparse"}
_LAYOUT = "<IIQQQQIQQQB4sH"
_AT_END = 0xFFFFFFFFFFFFFFFF
_MOST_TEXT = 256 * 2**10
# Of 2 GiB each: half a TiB. Each is a descriptor that is held open, of the 1024 that a daemon may have.
_MOST_EXTENTS = 256
_ONE_FILE = ("monolithicSparse", "streamOptimized")
_MANY_FILES = ("monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "vmfs")
_EXTENT = re.compile(r'(RW|RDONLY|NOACCESS)\s+(\d{1,18})\s+([A-Z]+)(?:\s+"([^"]*)"(?:\s+(\d{1,18}))?)?\s*')


def matches(header: Header) -> bool:
    return any(header.starts_with(magic) for magic in (MAGIC, _TEXT, *_OTHERS))


def inspect(header: Header) -> DiskFacts:
    for magic, what in _OTHERS.items():
        if header.starts_with(magic):
            raise header.refused(
                f"it is in {what} format", hint="Export it from its host as OVF or stream-optimized."
            )
    if header.starts_with(MAGIC):
        return DiskFacts(NAME, DRIVER, SECTOR * inspect_sparse(header))
    if header.size > _MOST_TEXT:
        raise header.damaged("its descriptor is longer than any can be")
    return _read_descriptor(header)


def inspect_sparse(header: Header) -> int:
    """The sectors of a sparse extent, whose headers and embedded descriptor hold nothing to object to."""
    capacity, directory = _check_sparse(header, 4)
    if directory == _AT_END:
        # The footer is the header again, complete this time; the marker before it says that it is one.
        at = header.size - 3 * SECTOR
        _, _, marker = header.unpack("<QII", at)
        if marker != 3 or not header.starts_with(MAGIC, at + SECTOR):
            raise header.damaged("its footer is missing")
        again, directory = _check_sparse(header, at + SECTOR + 4)
        if directory == _AT_END or again != capacity:
            raise header.damaged("its footer and its header contradict each other")
    return capacity


def _check_sparse(header: Header, at: int) -> tuple[int, int]:
    """Capacity in sectors, and where the grain directory is."""
    fields = header.unpack(_LAYOUT, at)
    version, _, capacity, grain, text_at, text_size, entries, _, directory, *_, algorithm = fields
    if version not in (1, 2, 3):
        raise header.refused(f"it is of version {version} of its format; known are 1 to 3")
    if capacity == 0:
        # The reference implementation would then go by the embedded descriptor, and open what that names.
        raise header.refused("it says that its data is in other files, which it asks the host to open")
    header.disk_size(capacity * SECTOR)
    header.power_of_two("grain", grain, 1, 2048)
    header.power_of_two("table size", entries, 1, 512)
    if algorithm not in (0, 1):
        raise header.refused(f"it is compressed in a way that is not known here ({algorithm})")
    if directory != _AT_END:
        header.need("directory", directory * SECTOR, 4 * -(-capacity // (grain * entries)))
    if text_at:
        if text_size * SECTOR > _MOST_TEXT:
            raise header.damaged("its descriptor is longer than any can be")
        fields_of = _parse(header, header.at(text_at * SECTOR, text_size * SECTOR))[0]
        kind = fields_of.get("createType", _ONE_FILE[0])
        if kind not in _ONE_FILE:
            raise header.refused(f"it says that it is '{shown(kind.encode())}', which is not in one file")
    return capacity, directory


def _read_descriptor(header: Header) -> DiskFacts:
    fields, extents = _parse(header, header.at(0, header.size))
    kind = fields.get("createType", "")
    if kind not in _MANY_FILES:
        raise header.refused(
            f"it is of the kind '{shown(kind.encode())}'; known are {', '.join((*_ONE_FILE, *_MANY_FILES))}"
        )
    if not extents:
        raise header.damaged("its descriptor names no files")
    size = header.disk_size(SECTOR * sum(extent.sectors for extent in extents))
    return DiskFacts(NAME, DRIVER, size, tuple(extents))


def _parse(header: Header, raw: bytes) -> tuple[dict[str, str], list[Extent]]:
    """Fields and extents of a descriptor. Raises ImageRefused on a parent, and on names that are not
    plain."""
    fields: dict[str, str] = {}
    extents: list[Extent] = []
    for line in raw.split(b"\0")[0].decode(errors="replace").splitlines():
        text = line.strip()
        if text.startswith(("RW ", "RDONLY ", "NOACCESS ", "RW\t", "RDONLY\t", "NOACCESS\t")):
            extents.append(_read_extent(header, text))
            if len(extents) > _MOST_EXTENTS:
                raise header.refused(f"it is split into more than {_MOST_EXTENTS} files")
        elif not text.startswith("#") and "=" in text:
            # By hand: what an expression makes of a quarter of a million blanks takes minutes.
            key, _, value = text.partition("=")
            fields.setdefault(key.strip(), value.strip().strip('"'))
    # The reference implementation looks for this word anywhere, so it may stand nowhere.
    if b"parentFileNameHint" in raw or fields.get("parentCID", "ffffffff").lower() != "ffffffff":
        raise header.refused("it holds only what differs from another disk, which it asks the host to open")
    return fields, extents


def _read_extent(header: Header, line: str) -> Extent:
    found = _EXTENT.fullmatch(line)
    if found is None:
        raise header.damaged(f"its descriptor has a line that is none: '{shown(line.encode())}'")
    _, sectors, kind, name, offset = found.groups()
    if kind == "ZERO":
        return Extent(int(sectors), sparse=False, file=None)
    if kind not in ("FLAT", "VMFS", "SPARSE"):
        raise header.refused(f"it has an extent of the kind '{kind}', which is not known here")
    if not name or name in (".", "..") or re.search(r"[/\\:]|[^ -~\u00a0-\U0010ffff]", name):
        raise header.refused(
            f"its descriptor names '{shown((name or '').encode())}', which is no plain file name beside it",
            hint="Only files in the directory of the descriptor are read.",
        )
    return Extent(int(sectors), sparse=kind == "SPARSE", file=name, offset=int(offset or 0))

"""The layers of a disk: qcow2 files that each read from the next what they have not got.

    disk0.qcow2 ──(symbolic link)──> disk0-c.qcow2 ──> disk0-b.qcow2 ──> disk0-a.qcow2 ──> the image's disk
    how all call the disk            the top: written   frozen            frozen            elsewhere

A layer has one name for good, in each directory that has a link to it. A monitor that has it open opens it
again by that name whenever it wants it for reading only, or for writing: were the name another file's by
then, it would read that one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from insula.storage.errors import ImageDamaged

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQ")  # magic, version, backing offset and length, cluster bits, size
_LENGTH_AT, _SHORT = 100, 72  # of the header: said by version 3, always this in version 2
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT = 0xE2792ACA  # docs/interop/qcow2.txt: "Backing file format name string"
_MOST = 1000  # layers of a disk; more can only be a circle


@dataclass(frozen=True)
class Layer:
    """A file of a disk. size_bytes: of the disk as a guest sees it. backing: what it stands on, as it says.

    A relative backing name is one in the same directory: a layer of ours. Any other is an image's.
    """

    name: str
    size_bytes: int
    backing: str | None
    backing_format: str | None

    @property
    def stands_on_layer(self) -> bool:
        return self.backing is not None and not self.backing.startswith("/")


def read_layer(path: Path) -> Layer:
    """What a file made here says of itself. Raises OSError, and ImageDamaged when it is no qcow2."""
    with path.open("rb") as stream:
        head = stream.read(65536)  # one cluster: header, extensions and the backing file's name
    try:
        magic, version, backing_at, backing_length, _, size = _HEADER.unpack_from(head)
        if magic != _MAGIC:
            raise ValueError
        backing = head[backing_at : backing_at + backing_length].decode() if backing_at else None
        start = struct.unpack_from(">I", head, _LENGTH_AT)[0] if version >= 3 else _SHORT
        return Layer(path.name, size, backing, _read_backing_format(head, start))
    except (struct.error, ValueError) as error:
        raise ImageDamaged(f"'{path.name}' is no qcow2 file.", evidence={"path": str(path)}) from error


def _read_backing_format(head: bytes, at: int) -> str | None:
    while at + _EXTENSION.size <= len(head):
        kind, length = _EXTENSION.unpack_from(head, at)
        at += _EXTENSION.size
        if kind == 0:
            return None
        if kind == _BACKING_FORMAT:
            return head[at : at + length].decode()
        at += (length + 7) // 8 * 8
    return None


def top_name(directory: Path, file: str) -> str:
    """The name for good of the layer that is written now; `file` itself while it has not got one."""
    try:
        return str((directory / file).readlink())
    except OSError:
        return file


def layers_below(directory: Path, name: str) -> Iterator[Layer]:
    """The layer of that name and all it stands on, in order. Raises as read_layer."""
    for _ in range(_MOST):
        layer = read_layer(directory / name)
        yield layer
        if not layer.stands_on_layer:
            return
        assert layer.backing is not None
        name = Path(layer.backing).name
    raise ImageDamaged(f"The layers of '{name}' have no end.", evidence={"directory": str(directory)})

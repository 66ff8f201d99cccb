"""Just enough of ELF to pack a system: which libraries a program needs, what a module says of itself.

Only 64-bit little-endian files are read (System V ABI, "Object Files" and "Dynamic Linking").
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB = 1, 5


@dataclass(frozen=True)
class Linkage:
    """What a program asks of the dynamic linker: the linker's path (None: none) and names of libraries."""

    interpreter: str | None
    needed: tuple[str, ...]


def is_elf(data: bytes) -> bool:
    """Whether this is a file that the other functions can read."""
    return len(data) >= 64 and data[:6] == b"\x7fELF\x02\x01"


def read_linkage(data: bytes) -> Linkage:
    """The interpreter and the needed libraries of an executable or a library."""
    header = _HEADER.unpack_from(data)
    offset, size, count = header[4], header[8], header[9]
    segments = [_SEGMENT.unpack_from(data, offset + index * size) for index in range(count)]
    interpreter = None
    dynamic: list[tuple[int, int]] = []
    for kind, _flags, start, _virtual, _physical, length, *_rest in segments:
        if kind == _PT_INTERP:
            interpreter = _text(data, start)
        elif kind == _PT_DYNAMIC:
            dynamic = list(_DYNAMIC.iter_unpack(data[start : start + length]))
    strings = next((value for tag, value in dynamic if tag == _DT_STRTAB), None)
    if strings is None:
        return Linkage(interpreter, ())
    for kind, _flags, start, virtual, _physical, length, *_rest in segments:
        if kind == _PT_LOAD and virtual <= strings < virtual + length:
            table = start + strings - virtual
            needed = tuple(_text(data, table + value) for tag, value in dynamic if tag == _DT_NEEDED)
            return Linkage(interpreter, needed)
    return Linkage(interpreter, ())


def read_section(data: bytes, name: str) -> bytes:
    """The bytes of a section, b"" if there is none of this name."""
    header = _HEADER.unpack_from(data)
    offset, size, count, names_index = header[5], header[10], header[11], header[12]
    sections = [_SECTION.unpack_from(data, offset + index * size) for index in range(count)]
    if not sections:
        return b""
    names = sections[names_index][4]
    for section in sections:
        if _text(data, names + section[0]) == name:
            return data[section[4] : section[4] + section[5]]
    return b""


def read_modinfo(data: bytes) -> dict[str, list[str]]:
    """What a kernel module says of itself: 'depends', 'alias', 'name' ... each with all its values."""
    found: dict[str, list[str]] = {}
    for entry in read_section(data, ".modinfo").split(b"\0"):
        key, separator, value = entry.decode(errors="replace").partition("=")
        if separator:
            found.setdefault(key, []).append(value)
    return found


def _text(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()

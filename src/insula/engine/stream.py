"""What a monitor sends of a machine, without the pages of memory that are nothing but zeros.

    header, machine type   section "ram": the blocks' names   (section "ram": page | zero page ...)*   devices

For a page of zeros the stream has nine bytes, and whoever takes them touches that page: memory that was
never used is used from then on, which takes longer than all the rest and is to be given back afterwards.
Memory that has just been made is zeros anyway, so the nine bytes need not come.

The format is QEMU's (migration/savevm.c, migration/ram.c, since 2.1). Machines move between releases with
it, so it stays. Anything that is not known here is passed on as it is, with all that follows it: the worst
that a new kind of record can do is that zeros are sent again.
"""

from __future__ import annotations

import re

_PAGE_SIZE = 4096
# Sections: what comes, and its number; their end has the number again.
_PART, _LAST_PART, _DEVICE, _FOOTER = b"\x02", b"\x03", b"\x04", b"\x7e"
# The first section of memory: its number, its name, instance 0, version 4.
_FIRST = re.compile(rb"\x01(....)\x03ram\x00\x00\x00\x00\x00\x00\x00\x04", re.DOTALL)
_FAR = 2**12  # bytes in which it comes: before it there is little but the machine's type
_LONGEST = 2**16  # bytes that must have come to tell what something is: more than anything here takes
# A record begins with 8 bytes, big endian: where in its block the page is, and in the lowest 12 bits what it
# is. Unless it goes on in the block of the record before, the block's name follows.
_ZERO, _MEMORY_SIZE, _PAGE, _END, _GOES_ON = 0x02, 0x04, 0x08, 0x10, 0x20
_AT = rb".{6}[\x00\x10\x20\x30\x40\x50\x60\x70\x80\x90\xa0\xb0\xc0\xd0\xe0\xf0]"
_ZEROS = re.compile(rb"(?:%b\x22\x00)++" % _AT, re.DOTALL)  # as many as there are
_PAGES = re.compile(rb"(?:%b\x28.{4096})++" % _AT, re.DOTALL)


class _Unknown(Exception):
    """Something that this module does not know."""


class _Short(Exception):
    """More must come before it can be told what this is."""


class ZeroFilter:
    """Leaves out the zero pages of one block of memory, each of whose pages is sent once at most.

    block: the name by which that block goes. thorough: no zeros were passed on, as far as it has come.
    """

    def __init__(self, block: str) -> None:
        self._block = block.encode()
        self.thorough = True
        self._passes = False  # all that follows
        self._number: bytes | None = None  # of the section of memory, once it has begun
        self._inside = False  # of a section of memory
        self._in_block = False  # the last record was of our block
        self._pending = b""
        self._kept: list[tuple[int, int]] = []

    def feed(self, data: bytes) -> list[memoryview]:
        """What is to be passed on, now that this has come."""
        buffer, self._pending, self._kept = self._pending + data, b"", []
        position = 0
        try:
            while position < len(buffer) and not self._passes:
                position = self._step(buffer, position)
        except _Short:
            self._pending = buffer[position:]
            if len(self._pending) > _LONGEST:
                self._give_up()
        except _Unknown:
            self._give_up()
        if self._passes:
            self._keep(position, len(buffer))
            self._pending = b""
        whole = memoryview(buffer)
        return [whole[start:end] for start, end in self._kept]

    def _give_up(self) -> None:
        self._passes, self.thorough = True, False

    def end(self) -> bytes:
        """What is still to be passed on when nothing more comes."""
        rest, self._pending = self._pending, b""
        self.thorough = self.thorough and self._passes
        return rest

    def _step(self, buffer: bytes, position: int) -> int:
        """Take one thing, or many of a kind; where the next begins. When it raises nothing was taken."""
        if self._inside:
            return self._records(buffer, position)
        if self._number is None:
            return self._first_section(buffer, position)
        if buffer.startswith(_DEVICE, position):
            self._passes = True
            return position
        if _take(buffer, position, 5) not in (_PART + self._number, _LAST_PART + self._number):
            raise _Unknown
        self._inside = True
        return self._keep(position, position + 5)

    def _first_section(self, buffer: bytes, position: int) -> int:
        found = _FIRST.search(buffer, position, position + _FAR)
        if found is None:
            raise _Short if len(buffer) - position < _FAR else _Unknown
        at = found.end()
        left = int.from_bytes(_take(buffer, at, 8)) - _MEMORY_SIZE
        at += 8
        while left > 0:
            at += 1 + _take(buffer, at, 1)[0]
            left -= int.from_bytes(_take(buffer, at, 8))
            at += 8
        at = self._section_end(buffer, at, found[1])
        self._number = found[1]
        return self._keep(position, at)

    def _section_end(self, buffer: bytes, position: int, number: bytes) -> int:
        said = _take(buffer, position, 13)
        if said != _END.to_bytes(8) + _FOOTER + number:
            raise _Unknown
        return position + 13

    def _records(self, buffer: bytes, position: int) -> int:
        assert self._number is not None, "a section has a number"
        if self._in_block and (zeros := _ZEROS.match(buffer, position)):
            return zeros.end()
        if pages := _PAGES.match(buffer, position):
            return self._keep(position, pages.end())
        kind = int.from_bytes(_take(buffer, position, 8)) % _PAGE_SIZE
        if kind == _END:
            end = self._section_end(buffer, position, self._number)
            self._inside = False
            return self._keep(position, end)
        if kind & ~_GOES_ON not in (_ZERO, _PAGE):
            raise _Unknown
        end, block = position + 8, None
        if not kind & _GOES_ON:
            length = _take(buffer, end, 1)[0]
            block = _take(buffer, end + 1, length)
            end += 1 + length
        size = _PAGE_SIZE if kind & _PAGE else 1
        _take(buffer, end, size)
        if block is not None:
            self._in_block = block == self._block
        return self._keep(position, end + size)

    def _keep(self, start: int, end: int) -> int:
        if self._kept and self._kept[-1][1] == start:
            start, _ = self._kept.pop()
        if end > start:
            self._kept.append((start, end))
        return end


def _take(buffer: bytes, position: int, size: int) -> bytes:
    taken = buffer[position : position + size]
    if len(taken) < size:
        raise _Short
    return taken

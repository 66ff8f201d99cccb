"""The devices of a machine that stands, written down in a millisecond beside memory that others take care of.

    "QEVM" version   configuration   section "ram": firmware, pages   devices   end   description
                     └────────────────── ours ─────────────────────┘                  └── ours, empty

QEMU writes the devices with a command that was made for Xen, where memory is not QEMU's either. It is part of
every build for x86, needs no migration to begin or to end, and changes nothing of the machine. It leaves out
what machine this is of, without which nothing loads it, and the firmware: a BIOS is thrown away by a monitor
that loads a state, and flash memory, where a UEFI is, may have been written by the guest. Both are put in
here, as `migrate` would have written them (migration/savevm.c and ram.c; the format has not changed since
2.4): with `x-ignore-shared` for a monitor that is given the memory itself, or with all that is in the memory
for one that is given nothing else.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping

from insula.engine import blocks
from insula.engine.errors import EngineLost
from insula.engine.guestmemory import Page
from insula.engine.plan import MEMORY
from insula.engine.qmp import Monitor

Buffer = bytes | memoryview
_BEGINNING = b"QEVM\x00\x00\x00\x03"
_CONFIGURATION, _SUBSECTION, _DESCRIPTION, _FOOTER = b"\x07", b"\x05", b"\x06", b"\x7e"
_START, _LAST = b"\x01", b"\x03"  # parts of a section
_RAM = b"\x03ram" + struct.pack(">II", 0, 4)  # the section's name, instance and version
_NUMBER = struct.pack(">I", 1)  # of the section; any does that no other has had
_U32, _U64 = struct.Struct(">I"), struct.Struct(">Q")
_SIZE, _PAGE, _END, _GOES_ON = 0x04, 0x08, 0x10, 0x20  # records of that section
_PAGE_SIZE = 4096

# From the top of what 32 bits address downwards: a BIOS, or the code of a UEFI and its variables below it.
_FIRMWARE = (("pc.bios",), ("system.flash0", "system.flash1"))
_TOP = 2**32
# What the others hold is made anew by each monitor (the tables for the firmware, the end of the flash memory
# as a BIOS would have it), or is nothing (the room for cards' own firmware, which goes another way).
_STATIC = re.compile(r"isa-bios|pc\.rom|/rom@\S+")

Firmware = Mapping[str, bytes]  # what is in each block of it


async def read_firmware(monitor: Monitor, pid: int, memory_bytes: int) -> Firmware | None:
    """The machine's firmware, if that and so much memory are all there is beside its devices.

    None: a card has memory of its own, as one with a screen has, or it is not told. Raises EngineLost, and
    OSError where this user may not look into the process.
    """
    found = await blocks.sizes(monitor)
    beside = {name for name in found if name != MEMORY and not _STATIC.fullmatch(name)}
    names = next((names for names in _FIRMWARE if beside == set(names)), None)
    if found.get(MEMORY) != memory_bytes or names is None:
        return None
    firmware, end = {}, _TOP
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for name in names:
            end -= found[name]
            address = await blocks.locate(monitor, name, end)
            if address is None:
                return None
            firmware[name] = os.pread(memory, found[name], address)
    finally:
        os.close(memory)
    return firmware if all(len(firmware[name]) == found[name] for name in names) else None


async def write(monitor: Monitor) -> bytes:
    """The devices, in the monitor's own words; the vCPUs stand. Raises EngineLost, EngineRefused, OSError."""
    memory = os.memfd_create("insula-devices", os.MFD_CLOEXEC)
    try:
        writer = os.open(f"/proc/self/fd/{memory}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            async with monitor.lent_descriptor(writer) as path:
                # live: else it lets go of the disks when the machine stood already.
                await monitor.execute("xen-save-devices-state", filename=path, live=False)
        finally:
            os.close(writer)
        written = os.pread(memory, os.fstat(memory).st_size, 0)
    finally:
        os.close(memory)
    require_known(written)
    return written


def require_known(written: bytes) -> None:
    """Raises EngineLost when that is not what Xen's command writes."""
    if not written.startswith(_BEGINNING) or not written.endswith(b"\x00"):
        raise EngineLost("The monitor wrote its devices in a way that nothing is known of.")


def compose(
    written: bytes,
    machine_type: str,
    firmware: Firmware,
    memory_bytes: int,
    pages: Iterable[Page] = (),
    *,
    whole: bool = False,
) -> Iterator[Buffer]:
    """What a monitor loads, piece by piece: what `write` returned as `migrate` would have written it.

    machine_type: with its version, as the machine was launched. memory_bytes: that it has. pages: of its
    memory, where they are not what the monitor finds in the memory that it is given. whole: it is given none,
    and loads this as a migration of everything: all that is not zeros must be in the pages.
    """
    description = b"{}"
    yield _BEGINNING + _configuration(machine_type, whole=whole)
    sizes = {MEMORY: memory_bytes, **{name: len(content) for name, content in firmware.items()}}
    yield from _ram(sizes, whole=whole)
    for name, content in firmware.items():
        yield from _records(name, _pages(content))
    yield from _records(MEMORY, pages)
    yield _U64.pack(_END) + _FOOTER + _NUMBER
    yield written[len(_BEGINNING) :]
    yield _DESCRIPTION + _U32.pack(len(description)) + description


def _configuration(machine_type: str, *, whole: bool) -> bytes:
    """The capabilities that both sides must have, by name, are left out where there are none."""
    named = _CONFIGURATION + _U32.pack(len(machine_type)) + machine_type.encode()
    if whole:
        return named
    capabilities = _SUBSECTION + _text("configuration/capabilities") + _U32.pack(1)  # its version
    return named + capabilities + _U32.pack(1) + _text("x-ignore-shared")


def _ram(sizes: Mapping[str, int], *, whole: bool) -> Iterator[Buffer]:
    """What blocks there are, each, unless all of it comes, with where the guest has it (compared for shared
    ones); then the beginning of the pages."""
    yield _START + _NUMBER + _RAM + _U64.pack(sum(sizes.values()) | _SIZE)
    for block, size in sizes.items():
        yield _text(block) + _U64.pack(size) + (b"" if whole else _U64.pack(0))
    yield _U64.pack(_END) + _FOOTER + _NUMBER + _LAST + _NUMBER


def _pages(content: bytes) -> Iterator[Page]:
    for at in range(0, len(content), _PAGE_SIZE):
        yield at, memoryview(content)[at : at + _PAGE_SIZE]


def _records(block: str, pages: Iterable[Page]) -> Iterator[Buffer]:
    named = False
    for at, page in pages:
        yield _U64.pack(at | _PAGE | _GOES_ON) if named else _U64.pack(at | _PAGE) + _text(block)
        yield page
        named = True


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()

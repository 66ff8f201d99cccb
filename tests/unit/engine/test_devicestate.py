"""What a fork loads, put together of what a monitor writes of its devices and what it leaves out."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.engine import blocks, devicestate
from insula.engine.errors import EngineLost, EngineRefused
from insula.engine.stream import ZeroFilter

TOLD = """\
              Block Name    PSize              Offset               Used              Total
                     ram    4 KiB  0x0000000000000000 0x0000000020000000 0x0000000020000000
    /rom@etc/acpi/tables    4 KiB  0x0000000020080000 0x0000000000020000 0x0000000000200000
                 pc.bios    4 KiB  0x0000000020000000 0x0000000000001000 0x0000000000001000
                  pc.rom    4 KiB  0x0000000020040000 0x0000000000020000 0x0000000000020000
"""
# From QEMU 8.2 on there are more columns.
TOLD_LATER = """\
      Block Name    PSize              Offset               Used              Total                HVA  RO
             ram    4 KiB  0x0000000000000000 0x0000000020000000 0x0000000020000000 0x00007f0e3fe00000  rw
        vga.vram    2 MiB  0x0000000020080000 0x0000000001000000 0x0000000001000000 0x00007f0e3ee00000  rw
"""


class Monitor:
    """One that says what it was told to say."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    async def execute(self, command: str, **arguments: Any) -> Any:
        answer = self.answers.get(command.replace("-", "_"))
        if answer is None:
            raise EngineRefused(f"no {command}")
        return answer


async def test_blocks_are_read_as_releases_tell_them() -> None:
    found = await blocks.sizes(Monitor(x_query_ramblock={"human-readable-text": TOLD}))  # type: ignore[arg-type]
    assert found == {"ram": 2**29, "/rom@etc/acpi/tables": 2**17, "pc.bios": 2**12, "pc.rom": 2**17}
    later = await blocks.sizes(Monitor(x_query_ramblock={"human-readable-text": TOLD_LATER}))  # type: ignore[arg-type]
    assert later == {"ram": 2**29, "vga.vram": 2**24}
    assert await blocks.sizes(Monitor()) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ("Host virtual address for 0x0 (ram) is 0x7fd1affff000\r\n", 0x7FD1AFFFF000),
        ("Host virtual address for 0x0 (vga.vram) is 0x7fd1affff000\r\n", None),
        ("Memory at address 0x0 is not RAM\r\n", None),
    ],
)
async def test_a_place_is_believed_only_of_the_block_that_was_asked_for(said: str, place: int | None) -> None:
    assert await blocks.locate(Monitor(human_monitor_command=said), "ram", 0) == place  # type: ignore[arg-type]


@pytest.mark.parametrize("told", [TOLD_LATER, "", TOLD.replace("pc.bios", "pflash0")])
async def test_a_machine_with_memory_beside_memory_is_not_for_this(told: str) -> None:
    monitor = Monitor(
        x_query_ramblock={"human-readable-text": told},
        human_monitor_command="Host virtual address for 0xfffff000 (pc.bios) is 0x1000\r\n",
    )
    assert await devicestate.read_firmware(monitor, 1, 2**29) is None  # type: ignore[arg-type]


class Flash(Monitor):
    """One of a machine with a UEFI, whose process is this one. content: of its flash memory."""

    def __init__(self, content: dict[str, bytes]) -> None:
        told = "".join(
            f"  {name}  4 KiB  0x0000000020000000 0x{len(data):016x} 0x{len(data):016x}\n"
            for name, data in content.items()
        )
        told += "  ram  4 KiB  0x0000000000000000 0x0000000020000000 0x0000000020000000\n"
        told += "  isa-bios  4 KiB  0x0000000020000000 0x0000000000020000 0x0000000000020000\n"
        super().__init__(x_query_ramblock={"human-readable-text": told})
        self.kept = {name: ctypes.create_string_buffer(data, len(data)) for name, data in content.items()}

    async def execute(self, command: str, **arguments: Any) -> Any:
        if command != "human-monitor-command":
            return await super().execute(command, **arguments)
        asked, end = int(arguments["command_line"].split()[1], 16), 2**32
        for name, data in self.kept.items():
            end -= len(data)
            if asked == end:
                at = ctypes.addressof(data)
                return f"Host virtual address for {asked:#x} ({name}) is {at:#x}\r\n"
        return "Memory at address is not RAM\r\n"


async def test_of_a_uefi_the_code_and_its_variables_below_are_carried() -> None:
    content = {"system.flash0": bytes([5]) * 8192, "system.flash1": b"vars" * 1024}
    firmware = await devicestate.read_firmware(Flash(content), os.getpid(), 2**29)  # type: ignore[arg-type]
    assert firmware == content
    assert firmware is not None
    state = b"".join(devicestate.compose(b"QEVM\0\0\0\x03\0", "pc-i440fx-7.2", firmware, 2**29))
    assert b"\x0dsystem.flash1" + content["system.flash1"] in state


async def test_half_a_uefi_is_none() -> None:
    assert await devicestate.read_firmware(Flash({"system.flash0": bytes(4096)}), os.getpid(), 2**29) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_loaded_has_the_machine_the_firmware_the_pages_and_the_devices(whole: bool) -> None:
    """whole: as a migration of everything, without what is for memory that is there already."""
    firmware = bytes([1]) * 4096 + bytes([2]) * 4096
    pages = [(0x5000, memoryview(bytes([3]) * 4096)), (0x1F000, memoryview(bytes([4]) * 4096))]
    written = b"QEVM\0\0\0\x03\x04devices\0"
    state = b"".join(
        devicestate.compose(written, "pc-i440fx-7.2", {"pc.bios": firmware}, 2**20, pages, whole=whole)
    )
    end = b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x01"
    capabilities = b"\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x0fx-ignore-shared"
    place = b"" if whole else bytes(8)
    expected = [
        b"QEVM\0\0\0\x03",
        b"\x07\0\0\0\x0dpc-i440fx-7.2",
        b"" if whole else capabilities,
        b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04",
        b"\0\0\0\0\0\x10\x20\x04",
        b"\x03ram" + b"\0\0\0\0\0\x10\0\0" + place,
        b"\x07pc.bios" + b"\0\0\0\0\0\0\x20\0" + place,
        end,
        b"\x03\0\0\0\x01",
        b"\0\0\0\0\0\0\0\x08\x07pc.bios" + firmware[:4096],
        b"\0\0\0\0\0\0\x10\x28" + firmware[4096:],
        b"\0\0\0\0\0\0\x50\x08\x03ram" + pages[0][1],
        b"\0\0\0\0\0\x01\xf0\x28" + pages[1][1],
        end,
        b"\x04devices\0",
        b"\x06\0\0\0\x02{}",
    ]
    for part in expected:
        assert state.startswith(part)
        state = state[len(part) :]
    assert not state


@settings(max_examples=50)
@given(content=st.dictionaries(st.integers(0, 255), st.integers(0, 255)))
def test_who_reads_a_whole_stream_finds_each_page_once_where_it_belongs(content: dict[int, int]) -> None:
    """Read by what leaves zeros out of QEMU's own streams: it would pass on what it does not know."""
    pages = [(page * 4096, memoryview(bytes([value]) * 4096)) for page, value in sorted(content.items())]
    written = b"QEVM\0\0\0\x03\x04devices\0"
    stream = b"".join(
        devicestate.compose(written, "pc", {"pc.bios": bytes([1]) * 4096}, 2**20, pages, whole=True)
    )
    zeros = ZeroFilter("ram")
    passed = b"".join(
        piece for start in range(0, len(stream), 5000) for piece in zeros.feed(stream[start : start + 5000])
    )
    assert passed + zeros.end() == stream
    assert zeros.thorough


@pytest.mark.parametrize("written", [b"", b"QEVM\0\0\0\x04\0", b"QEVM\0\0\0\x03\x04cut"])
def test_what_is_not_known_is_not_loaded(written: bytes) -> None:
    with pytest.raises(EngineLost):
        devicestate.require_known(written)

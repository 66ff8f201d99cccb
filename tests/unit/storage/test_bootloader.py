"""The first megabyte of a disk."""

from __future__ import annotations

import struct

import pytest

from insula.storage import bootloader
from insula.storage.errors import BuildFailed

BOOT = bytearray(512)
BOOT[0:2] = b"\xeb\x63"
BOOT[0x66] = 0xEB
BOOT[510:512] = b"\x55\xaa"
CORE = bytes(range(256)) * 100


def test_the_system_is_the_first_partition_and_the_last_on_the_disk() -> None:
    sectors = bootloader.first_sectors(bytes(BOOT), CORE, sectors=1000, signature=0xDEADBEEF)
    assert len(sectors) == 2048 * 512
    assert sectors[510:512] == b"\x55\xaa"
    assert struct.unpack_from("<I", sectors, 440) == (0xDEADBEEF,)
    entries = [struct.unpack_from("<B3xB3xII", sectors, 446 + 16 * number) for number in range(2)]
    assert entries == [(0x80, 0x83, 18432, 1000), (0, 0xEF, 2048, 16384)]
    assert sectors[478:510] == bytes(32)


def test_boot_img_finds_core_img_and_core_img_the_rest_of_itself() -> None:
    sectors = bootloader.first_sectors(bytes(BOOT), CORE, sectors=1000, signature=1)
    assert struct.unpack_from("<Q", sectors, 0x5C) == (1,)
    assert sectors[0x66:0x68] == b"\x90\x90"
    start, length = struct.unpack_from("<QH", sectors, 512 + 500)
    assert (start, length) == (2, len(CORE) // 512 - 1)
    assert sectors[1024 : 512 + len(CORE)] == CORE[512:]


@pytest.mark.parametrize(
    ("boot", "core"), [(b"", CORE), (bytes(512), CORE), (bytes(BOOT), b"x"), (bytes(BOOT), bytes(2**20))]
)
def test_what_is_not_grub_is_refused(boot: bytes, core: bytes) -> None:
    with pytest.raises(BuildFailed):
        bootloader.first_sectors(boot, core, sectors=1, signature=1)


def test_grub_s_own_configuration_names_the_file_system() -> None:
    text = bootloader.grub_config("Debian 12", "1234-uuid", "root=UUID=1234-uuid ro", 0)
    assert "search --no-floppy --fs-uuid --set=root 1234-uuid" in text
    assert "linux /vmlinuz root=UUID=1234-uuid ro" in text

"""The first megabyte of a disk: partition table and GRUB for BIOS, as bytes, without a host's devices.

    sector 0      boot.img's code, disk signature, four partition entries, 0x55AA
    sector 1...   core.img, in the gap before the first partition
    sector 2048   the partition

Sources: GRUB 2.06 grub-core/boot/i386/pc/boot.S and diskboot.S, include/grub/i386/pc/boot.h;
grub-install does the same to a real disk (util/setup.c).
"""

from __future__ import annotations

import struct

from insula.storage.errors import BuildFailed

SECTOR = 512
FIRST_SECTOR = 2048  # 1 MiB: what every partitioning tool aligns to

_CODE_END = 440  # then come the disk signature and the partition table
_KERNEL_SECTOR = 0x5C  # GRUB_BOOT_MACHINE_KERNEL_SECTOR: where boot.img finds core.img
_DRIVE_CHECK = 0x66  # GRUB_BOOT_MACHINE_DRIVE_CHECK: a jump, for floppies; two NOPs for hard disks
_BLOCK_LIST = SECTOR - 12  # in core.img's first sector: start (u64), length (u16), segment (u16)
_LINUX = 0x83
_BOOTABLE = 0x80
_LBA_ONLY = b"\xfe\xff\xff"  # a CHS address too large to be one

# What core.img can do without reading modules from the disk.
CORE_MODULES = (
    "biosdisk part_msdos ext2 search search_fs_uuid normal configfile linux serial terminal echo test "
    "minicmd reboot halt gzio sleep"
)


def first_sectors(boot: bytes, core: bytes, *, sectors: int, signature: int) -> bytes:
    """Sectors 0 to 2047 of a disk with one bootable Linux partition of `sectors` from sector 2048 on.

    boot, core: GRUB's boot.img and core.img for i386-pc. signature: of the disk (32 bits, not 0).
    Raises BuildFailed when they are not what this was written for.
    """
    _check(boot, core)
    code = bytearray(boot[:_CODE_END])
    struct.pack_into("<Q", code, _KERNEL_SECTOR, 1)
    code[_DRIVE_CHECK : _DRIVE_CHECK + 2] = b"\x90\x90"
    entry = struct.pack("<B3sB3sII", _BOOTABLE, b"\x20\x21\x00", _LINUX, _LBA_ONLY, FIRST_SECTOR, sectors)
    table = entry + bytes(48)
    master = bytes(code) + struct.pack("<IH", signature, 0) + table + b"\x55\xaa"
    length = (len(core) + SECTOR - 1) // SECTOR
    first = bytearray(core[:SECTOR])
    struct.pack_into("<QH", first, _BLOCK_LIST, 2, length - 1)
    gap = bytes(first) + core[SECTOR:]
    return master + gap + bytes(FIRST_SECTOR * SECTOR - SECTOR - len(gap))


def _check(boot: bytes, core: bytes) -> None:
    space = (FIRST_SECTOR - 1) * SECTOR
    if len(boot) != SECTOR or boot[510:512] != b"\x55\xaa" or boot[_DRIVE_CHECK] != 0xEB:
        raise BuildFailed("GRUB's boot.img does not look like the one of i386-pc.")
    if not SECTOR < len(core) <= space:
        raise BuildFailed(f"GRUB's core.img has {len(core)} bytes; between 513 and {space} fit.")


def grub_config(title: str, filesystem: str, arguments: str, wait: int) -> str:
    """grub.cfg until the guest's own update-grub writes another. filesystem: UUID."""
    return f"""\
# Written when the image was built; update-grub replaces it.
set timeout={wait}
serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console
search --no-floppy --fs-uuid --set=root {filesystem}
menuentry '{title}' {{
    linux /vmlinuz {arguments}
    initrd /initrd.img
}}
"""

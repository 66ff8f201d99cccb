"""What boots a disk, by BIOS and by UEFI, without a host's devices: partition table and GRUB, twice.

    sector 0      boot.img's code, disk signature, four partition entries, 0x55AA
    sector 1...   core.img, in the gap before the first partition
    sector 2048   partition 2: the EFI system partition (FAT), with GRUB where UEFI looks on any medium
    sector 18432  partition 1: the system

The system is the last on the disk, so that it can grow with it, and the first by number, as it is known to
cloud-init and GRUB.

Sources: GRUB 2.06 grub-core/boot/i386/pc/boot.S and diskboot.S, include/grub/i386/pc/boot.h;
grub-install does the same to a real disk (util/setup.c).
"""

from __future__ import annotations

import struct

from insula.storage.errors import BuildFailed

SECTOR = 512
_ALIGNED = 2048  # 1 MiB: what every partitioning tool aligns to
EFI_SECTOR, EFI_SECTORS = _ALIGNED, 8 * _ALIGNED  # GRUB takes an eighth of it
FIRST_SECTOR = EFI_SECTOR + EFI_SECTORS

_CODE_END = 440  # then come the disk signature and the partition table
_KERNEL_SECTOR = 0x5C  # GRUB_BOOT_MACHINE_KERNEL_SECTOR: where boot.img finds core.img
_DRIVE_CHECK = 0x66  # GRUB_BOOT_MACHINE_DRIVE_CHECK: a jump, for floppies; two NOPs for hard disks
_BLOCK_LIST = SECTOR - 12  # in core.img's first sector: start (u64), length (u16), segment (u16)
_LINUX = 0x83
_EFI = 0xEF  # UEFI 2.10, 5.2.2: an EFI system partition in a table of this kind
_BOOTABLE = 0x80
_LBA_ONLY = b"\xfe\xff\xff"  # a CHS address too large to be one

# What GRUB can do without reading modules from the disk.
_MODULES = "part_msdos ext2 search search_fs_uuid normal configfile linux serial terminal echo test minicmd"
CORE_MODULES = f"biosdisk {_MODULES} reboot halt gzio sleep"
EFI_MODULES = f"part_gpt fat {_MODULES} reboot halt gzio sleep efi_gop all_video"
# Where UEFI looks on a medium that it does not know (UEFI 2.10, 3.5.1.1).
EFI_LOADER = "EFI/BOOT/BOOTX64.EFI"


def first_sectors(boot: bytes, core: bytes, *, sectors: int, signature: int) -> bytes:
    """Sectors 0 to 2047 of a disk with a bootable Linux partition of `sectors` from FIRST_SECTOR on.

    boot, core: GRUB's boot.img and core.img for i386-pc. signature: of the disk (32 bits, not 0).
    Raises BuildFailed when they are not what this was written for.
    """
    _check(boot, core)
    code = bytearray(boot[:_CODE_END])
    struct.pack_into("<Q", code, _KERNEL_SECTOR, 1)
    code[_DRIVE_CHECK : _DRIVE_CHECK + 2] = b"\x90\x90"
    system = _entry(_BOOTABLE, _LINUX, FIRST_SECTOR, sectors)
    table = system + _entry(0, _EFI, EFI_SECTOR, EFI_SECTORS) + bytes(32)
    master = bytes(code) + struct.pack("<IH", signature, 0) + table + b"\x55\xaa"
    length = (len(core) + SECTOR - 1) // SECTOR
    first = bytearray(core[:SECTOR])
    struct.pack_into("<QH", first, _BLOCK_LIST, 2, length - 1)
    gap = bytes(first) + core[SECTOR:]
    return master + gap + bytes(_ALIGNED * SECTOR - SECTOR - len(gap))


def _entry(flag: int, kind: int, start: int, sectors: int) -> bytes:
    return struct.pack("<B3sB3sII", flag, _LBA_ONLY, kind, _LBA_ONLY, start, sectors)


def _check(boot: bytes, core: bytes) -> None:
    space = (_ALIGNED - 1) * SECTOR
    if len(boot) != SECTOR or boot[510:512] != b"\x55\xaa" or boot[_DRIVE_CHECK] != 0xEB:
        raise BuildFailed("GRUB's boot.img does not look like the one of i386-pc.")
    if not SECTOR < len(core) <= space:
        raise BuildFailed(f"GRUB's core.img has {len(core)} bytes; between 513 and {space} fit.")


def efi_config(filesystem: str) -> str:
    """What GRUB for UEFI is told where it begins, outside the system: to go on with what is said there."""
    return f"""\
search --no-floppy --fs-uuid --set=root {filesystem}
set prefix=($root)/boot/grub
configfile $prefix/grub.cfg
"""


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

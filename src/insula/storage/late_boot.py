"""Boot files for machines that have long booted: forks, which need a kernel only should their guest reboot.

    kernel as it is:   setup | kernel             initrd as it is:   initrd
    made of them:      setup | a few words        made of them:      kernel | initrd

A monitor reads the kernel into its own memory when it starts: 14 MB that hardly any fork ever uses, and that
cost a quarter of its start. The initrd it maps, so it is read when a guest boots, and once for all machines.
Here the kernel is moved to where the initrd is. What stays in its place copies it to where it is to be, says
where the real initrd begins, and goes on there.

The Linux/x86 boot protocol (Documentation/arch/x86/boot.rst): the setup code leaves us in 32-bit mode with
flat segments and %esi on the boot parameters; a relocatable kernel may be anywhere that is aligned.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

from insula.kit.paths import LATE_INITRD, LATE_KERNEL

_NAMES = (LATE_KERNEL, LATE_INITRD)
_PAGE = 4096
_SECTOR = 512
_VERSION = 0x020A  # of the protocol: from then on it says where it wants to be, and what room it needs
_LOADED_HIGH = 0x01
_ROOM = 2**24  # bytes beside kernel and initrd: what lies below 1 MiB, firmware tables, and some more
# Of the boot parameters, and where they are in a kernel's file.
_SETUP_SECTORS, _MAGIC, _PROTOCOL, _FLAGS, _RELOCATABLE = 0x1F1, 0x202, 0x206, 0x211, 0x234
_INITRD, _INITRD_SIZE, _PREFERRED, _INIT_SIZE = 0x218, 0x21C, 0x258, 0x260


def make(kernel: Path, initrd: Path, directory: Path, memory_bytes: int) -> bool:
    """Write such files of these into a directory. False, and nothing there, where it cannot be done.

    memory_bytes: of the machine, which must have room for both.
    """
    try:
        setup, moved = split(kernel.read_bytes(), initrd.read_bytes(), memory_bytes)
        (directory / LATE_KERNEL).write_bytes(setup)
        (directory / LATE_INITRD).write_bytes(moved)
    except (OSError, ValueError):
        drop(directory)
        return False
    return True


def link(source: Path, target: Path) -> bool:
    """Give another directory those of `source`. False, and nothing there, where there are none."""
    drop(target)
    try:
        for name in _NAMES:
            os.link(source / name, target / name)
    except OSError:
        drop(target)
        return False
    return True


def drop(directory: Path) -> None:
    """Remove them from a directory, if they are there."""
    for name in _NAMES:
        with contextlib.suppress(OSError):
            (directory / name).unlink()


def split(kernel: bytes, initrd: bytes, memory_bytes: int) -> tuple[bytes, bytes]:
    """What is to be given as kernel and as initrd. Raises ValueError for a kernel of another kind."""
    if kernel[_MAGIC : _MAGIC + 4] != b"HdrS" or len(kernel) < _INIT_SIZE + 4:
        raise ValueError("no Linux kernel")
    (version,) = struct.unpack_from("<H", kernel, _PROTOCOL)
    if version < _VERSION or not kernel[_FLAGS] & _LOADED_HIGH or not kernel[_RELOCATABLE]:
        raise ValueError("a kernel that must be where a loader puts it")
    preferred, needed = struct.unpack_from("<QI", kernel, _PREFERRED)
    beginning = ((kernel[_SETUP_SECTORS] or 4) + 1) * _SECTOR
    moved = _padded(kernel[beginning:])
    if preferred + needed + len(moved) + len(initrd) + _ROOM > min(memory_bytes, 2**31):
        raise ValueError("no room for both")
    return kernel[:beginning] + _padded(_mover(preferred, len(moved))), moved + initrd


def _mover(to: int, size: int) -> bytes:
    """Copy the first bytes of the initrd and go on there; the initrd is what follows them."""
    return b"".join(
        [
            b"\x89\xf2",  # mov edx, esi
            b"\xb9" + struct.pack("<I", size // 4),  # mov ecx, ...
            b"\xbf" + struct.pack("<I", to),  # mov edi, ...
            b"\x8b\xb2" + struct.pack("<I", _INITRD),  # mov esi, [edx + ...]
            b"\xfc\xf3\xa5",  # cld; rep movsd
            b"\x89\xd6",  # mov esi, edx
            b"\x81\x86" + struct.pack("<II", _INITRD, size),  # add dword [esi + ...], ...
            b"\x81\xae" + struct.pack("<II", _INITRD_SIZE, size),  # sub dword [esi + ...], ...
            b"\xb8" + struct.pack("<I", to),  # mov eax, ...
            b"\xff\xe0",  # jmp eax
        ]
    )


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // _PAGE) * _PAGE, b"\0")

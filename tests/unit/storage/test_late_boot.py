"""Boot files for forks: the kernel is in the initrd, whole, and what cannot be moved is left alone."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from insula.storage import late_boot

SETUP_SECTORS = 3
CODE = os.urandom(10_001)
INITRD = os.urandom(5000)
MEMORY = 2**27


def kernel(**changed: int) -> bytes:
    """A kernel's file as far as its header goes."""
    said = {"version": 0x020F, "flags": 1, "relocatable": 1, "preferred": 2**24, "needed": 2**25} | changed
    setup = bytearray((SETUP_SECTORS + 1) * 512)
    setup[0x1F1] = SETUP_SECTORS
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, said["version"])
    setup[0x211], setup[0x234] = said["flags"], said["relocatable"]
    struct.pack_into("<QI", setup, 0x258, said["preferred"], said["needed"])
    return bytes(setup) + CODE


def test_the_kernel_is_moved_into_the_initrd() -> None:
    stub, moved = late_boot.split(kernel(), INITRD, MEMORY)
    assert stub[: (SETUP_SECTORS + 1) * 512] == kernel()[: (SETUP_SECTORS + 1) * 512]
    assert len(stub) == (SETUP_SECTORS + 1) * 512 + 4096
    size = len(moved) - len(INITRD)
    assert size % 4096 == 0
    assert moved == CODE + bytes(size - len(CODE)) + INITRD
    words = stub[(SETUP_SECTORS + 1) * 512 :]
    assert struct.pack("<I", size // 4) in words
    assert words.count(struct.pack("<I", 2**24)) == 2  # where it is copied to, and where it goes on
    assert words.count(struct.pack("<II", 0x218, size)) == words.count(struct.pack("<II", 0x21C, size)) == 1


@pytest.mark.parametrize(
    "changed",
    [{"version": 0x0209}, {"flags": 0}, {"relocatable": 0}, {"needed": MEMORY}, {"preferred": 2**40}],
)
def test_what_cannot_be_moved_stays(changed: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(kernel(**changed))
    (tmp_path / "initrd").write_bytes(INITRD)
    assert not late_boot.make(tmp_path / "vmlinuz", tmp_path / "initrd", tmp_path, MEMORY)
    assert {path.name for path in tmp_path.iterdir()} == {"vmlinuz", "initrd"}


@pytest.mark.parametrize("content", [b"", b"kernel", bytes(100_000), b"\x7fELF" + bytes(5000)])
def test_what_is_no_kernel_stays(content: bytes) -> None:
    with pytest.raises(ValueError, match="kernel"):
        late_boot.split(content, INITRD, MEMORY)


def test_they_are_linked_together_or_not_at_all(tmp_path: Path) -> None:
    for name in ("template", "fork", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "vmlinuz").write_bytes(kernel())
    (tmp_path / "initrd").write_bytes(INITRD)
    assert late_boot.make(tmp_path / "vmlinuz", tmp_path / "initrd", tmp_path / "template", MEMORY)
    for _ in range(2):
        assert late_boot.link(tmp_path / "template", tmp_path / "fork")
    names = {path.name for path in (tmp_path / "fork").iterdir()}
    assert len(names) == 2
    assert all((tmp_path / "fork" / name).samefile(tmp_path / "template" / name) for name in names)
    next((tmp_path / "template").iterdir()).unlink()
    for target in ("fork", "empty"):  # what was there before is of another template
        assert not late_boot.link(tmp_path / "template", tmp_path / target)
        assert list((tmp_path / target).iterdir()) == []

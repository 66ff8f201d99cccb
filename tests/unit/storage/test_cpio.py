"""The initramfs archive: what we write is what cpio reads, byte for byte the same each time."""

from __future__ import annotations

import shutil
import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.storage import cpio

ENTRIES = [
    cpio.file("init", b"#!/bin/sh\n", 0o755),
    cpio.symlink("bin", "usr/bin"),
    cpio.file("usr/bin/a", b"x" * 5),
    cpio.character_device("dev/console", 5, 1),
]


def read(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """A second, independent reading of the format."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        start = at + (110 + name_size + 3) // 4 * 4
        if name == cpio.TRAILER:
            return found
        found[name] = (mode, archive[start : start + size])
        at = start + (size + 3) // 4 * 4


def test_parents_come_first_and_are_made_once() -> None:
    assert list(cpio.with_parents(ENTRIES)) == [
        "bin",
        "dev",
        "dev/console",
        "init",
        "usr",
        "usr/bin",
        "usr/bin/a",
    ]


def test_later_entries_win() -> None:
    archive = b"".join(cpio.write([cpio.file("a", b"1"), cpio.file("/a", b"2")]))
    assert read(archive) == {"a": (stat.S_IFREG | 0o644, b"2")}


def test_equal_entries_give_equal_bytes_in_any_order() -> None:
    assert b"".join(cpio.write(ENTRIES)) == b"".join(cpio.write(reversed(ENTRIES)))


@given(st.dictionaries(st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.binary(max_size=70)))
def test_what_is_written_is_read_back(files: dict[str, bytes]) -> None:
    archive = b"".join(cpio.write(cpio.file(name, data) for name, data in files.items()))
    assert {name: data for name, (_, data) in read(archive).items()} == files
    assert len(archive) % 4 == 0


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_lists_it() -> None:
    archive = b"".join(cpio.write(ENTRIES))
    listed = subprocess.run(["cpio", "-tv"], input=archive, capture_output=True, check=True)
    lines = [line.split() for line in listed.stdout.decode().splitlines()]
    assert [(line[0], line[2]) for line in lines if line[-1] == "init"] == [("-rwxr-xr-x", "root")]
    assert [line[4:6] for line in lines if line[-1] == "dev/console"] == [["5,", "1"]]
    assert [line[-3:] for line in lines if line[0].startswith("l")] == [["bin", "->", "usr/bin"]]

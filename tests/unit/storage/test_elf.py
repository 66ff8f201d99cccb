"""Reading ELF: compared with what the toolchain says of a program that is surely here, Python itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from insula.storage import elf


def test_text_is_not_elf() -> None:
    assert not elf.is_elf(b"#!/bin/sh\n" * 20)
    assert not elf.is_elf(b"\x7fELF")


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf (binutils) is not installed")
def test_needed_libraries_are_those_that_readelf_names() -> None:
    program = Path("/bin/sh").resolve()
    linkage = elf.read_linkage(program.read_bytes())
    said = subprocess.run(["readelf", "-d", str(program)], capture_output=True, text=True, check=True).stdout
    assert linkage.needed == tuple(
        line.split("[")[1].rstrip("]") for line in said.splitlines() if "(NEEDED)" in line
    )
    assert linkage.interpreter is not None
    assert Path(linkage.interpreter).exists()


def test_a_section_that_is_not_there_is_empty() -> None:
    assert elf.read_modinfo(Path("/bin/sh").resolve().read_bytes()) == {}

"""Copy-on-write disks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from insula.kit.run import CommandFailed, Completed, run
from insula.storage import errors, volumes
from insula.storage.errors import DiskFull

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    path = tmp_path / "a disk, of: an image.raw"
    with path.open("wb") as stream:
        stream.write(b"boot")
        stream.truncate(2**20)
    return path


def describe(path: Path) -> dict[str, object]:
    argv = ["qemu-img", "info", "--output=json", str(path)]
    found: dict[str, object] = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    return found


def is_sound(path: Path) -> bool:
    return subprocess.run(["qemu-img", "check", "-q", str(path)], check=False).returncode == 0


async def test_an_overlay_reads_its_backing_file_and_may_be_larger(tmp_path: Path, backing: Path) -> None:
    path = tmp_path / "disk0.qcow2"
    await volumes.create_overlay(path, backing, "raw", 2**30)
    said = describe(path)
    assert said["virtual-size"] == 2**30
    assert said["backing-filename"] == str(backing)
    assert said["backing-filename-format"] == "raw"
    assert is_sound(path)
    assert path.stat().st_blocks * 512 < volumes.OVERLAY_BYTES
    await volumes.remove(path)
    await volumes.remove(path)
    assert not path.exists()


async def test_nothing_is_replaced(tmp_path: Path, backing: Path) -> None:
    path = tmp_path / "disk0.qcow2"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        await volumes.create_overlay(path, backing, "raw", 2**30)
    assert path.read_text() == "mine"


async def test_a_disk_has_its_name_once_it_is_whole(
    tmp_path: Path, backing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that dies takes its qemu-img with it, and the next one takes what has the name for whole."""
    path, new = tmp_path / "disk0.qcow2", tmp_path / ".disk0.qcow2.new"
    new.write_text("half of it, of a daemon that died")
    names: list[list[Path]] = []

    async def watched(argv: Sequence[str], **options: Any) -> Completed:
        done = await run(argv, **options)
        names.append(sorted({*tmp_path.glob("disk0*"), *tmp_path.glob(".disk0*")}))
        return done

    monkeypatch.setattr(volumes, "run", watched)
    await volumes.create_overlay(path, backing, "raw", 2**30)
    assert names == [[new]]
    assert not new.exists()
    assert describe(path)["backing-filename"] == str(backing)


async def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "disk0.qcow2"
    with pytest.raises(CommandFailed):
        await volumes.create_overlay(path, tmp_path / "gone", "raw", 2**30)
    assert not path.exists()


async def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, backing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "free_bytes", lambda path: 1000)
    with pytest.raises(DiskFull) as caught:
        await volumes.create_overlay(tmp_path / "disk0.qcow2", backing, "raw", 2**30)
    message = "There is too little space for the disk 'disk0.qcow2': 1MiB needed, 1000B free."
    assert caught.value.message == message
    assert caught.value.evidence["needed_bytes"] == 2**20
    assert not (tmp_path / "disk0.qcow2").exists()


async def test_a_disk_that_fills_up_meanwhile_is_told_the_same(
    tmp_path: Path, backing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "qemu-img"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n: >"$9"\necho "qemu-img: disk0: No space left on device" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises(DiskFull):
        await volumes.create_overlay(tmp_path / "disk0.qcow2", backing, "raw", 2**30)
    assert not (tmp_path / "disk0.qcow2").exists()

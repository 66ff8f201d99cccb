"""Importing and exporting: real files of every format, and what happens when something goes wrong in the
middle."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pycdlib
import pytest

from insula.kit.errors import InsulaError
from insula.kit.run import run
from insula.model.image import Image, ImageProperties
from insula.model.operation import Progress
from insula.storage import confinement, conversion
from insula.storage.confinement import choose_confinement
from insula.storage.content import Follower, digest_of
from insula.storage.errors import (
    ConversionFailed,
    DiskFull,
    ImageDamaged,
    ImageHasNoDisk,
    ImageNameTaken,
    ImageRefused,
    SourceUnreadable,
    TargetExists,
    UnusableTarget,
)
from insula.storage.exporting import EXPORTS, export_disk, is_file
from insula.storage.images import ImageStore
from insula.storage.importing import check_file, import_file
from insula.storage.source import open_source
from tests.support.host import publish_fake_image
from tests.support.hostile import MIB, corpus, qcow2, vmdk_header, vmdk_text
from tests.support.slow_tool import wait_for_tool, wrap_slow

SIZE = 8 * MIB
# format as the tool calls it, its options, the format as it is found
KINDS = [
    ("raw", "", "raw"),
    ("qcow2", "", "qcow2"),
    ("qcow2", "compat=0.10", "qcow2"),
    ("qcow2", "extended_l2=on", "qcow2"),
    ("qcow2", "-c", "qcow2"),
    ("vmdk", "subformat=monolithicSparse", "vmdk"),
    ("vmdk", "subformat=streamOptimized", "vmdk"),
    ("vmdk", "subformat=monolithicFlat", "vmdk"),
    ("vmdk", "subformat=twoGbMaxExtentSparse", "vmdk"),
    ("vmdk", "subformat=twoGbMaxExtentFlat", "vmdk"),
    ("vpc", "subformat=dynamic,force_size=on", "vhd"),
    ("vpc", "subformat=fixed,force_size=on", "vhd"),
    ("vhdx", "subformat=dynamic", "vhdx"),
    ("vhdx", "subformat=fixed", "vhdx"),
    ("vdi", "", "vdi"),
    ("vdi", "static=on", "vdi"),
    ("qed", "", "qed"),
    ("parallels", "", "parallels"),
]
needs_tool = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def nothing(_: Progress) -> None: ...


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with a boot signature, something in its middle, and its last sector."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    content = bytearray(SIZE)
    content[510:512] = b"\x55\xaa"
    content[2 * MIB + 100 : 3 * MIB] = random.Random(7).randbytes(MIB - 100)
    content[-4:] = b"tail"
    path.write_bytes(content)
    return path


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


@pytest.fixture
def slow_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement.Confinement, "wrap", wrap_slow)


def make(disk: Path, target: Path, driver: str, options: str) -> Path:
    words = ["-c"] if options == "-c" else ["-o", options] if options else []
    subprocess.run(["qemu-img", "convert", "-O", driver, *words, str(disk), str(target)], check=True)
    return target


def in_the_making(store: ImageStore) -> list[Path]:
    builds = store.root / "builds"
    return list(builds.iterdir()) if builds.exists() else []


async def take(path: Path, store: ImageStore, name: str = "web", **options: Any) -> Image:
    return await import_file(path, name, ImageProperties(), store, nothing, **options)


@needs_tool
@pytest.mark.slow
async def test_the_same_disk_comes_out_of_every_format(tmp_path: Path, disk: Path, store: ImageStore) -> None:
    digests = set()
    for number, (driver, options, format) in enumerate(KINDS):
        file = make(disk, tmp_path / f"d{number}.bin", driver, options)
        properties = ImageProperties(summary="the same")
        seen: list[Progress] = []
        image = await import_file(file, "web", properties, store, seen.append, replace=True)
        with open_source(file) as source:
            assert source.facts.format == format
        assert (store.directory("web") / "disk.raw").read_bytes() == disk.read_bytes(), (driver, options)
        assert seen[-2].fraction == 1.0, (driver, options)
        digests.add(image.digest)
    # The content and what is said of it make the digest, not the file it came in.
    assert len(digests) == 1
    assert image.disk is not None
    assert (image.disk.format, image.disk.virtual_size_bytes, image.boots) == ("raw", SIZE, ("disk",))
    assert image.size_bytes < SIZE // 2, "it is sparse"
    files = store.directory("web")
    assert (files / "disk.raw").stat().st_uid == os.geteuid()
    assert (files / "disk.raw").stat().st_mode & 0o777 == 0o444
    assert in_the_making(store) == []


@needs_tool
@pytest.mark.slow
async def test_export_and_back(tmp_path: Path, disk: Path, store: ImageStore) -> None:
    image = await take(disk, store)
    for format in EXPORTS:
        target = tmp_path / f"out.{format}"
        taken = await export_disk(image, store.directory("web"), target, format, nothing)
        assert taken < SIZE, f"{format} is sparse"
        assert target.stat().st_uid == os.geteuid()
        again = await take(target, store, f"from-{format}", format=EXPORTS[format][0])
        assert (store.directory(again.name) / "disk.raw").read_bytes() == disk.read_bytes(), format


@needs_tool
async def test_an_export_takes_no_place_but_when_asked(tmp_path: Path, disk: Path, store: ImageStore) -> None:
    image = await take(disk, store)
    files, target = store.directory("web"), tmp_path / "out"
    target.write_text("mine")
    with pytest.raises(TargetExists):
        await export_disk(image, files, target, "raw", nothing)
    assert target.read_text() == "mine"
    told: list[list[int]] = []

    async def whole(identity: list[int]) -> None:
        assert target.read_text() == "mine"
        told.append(identity)

    await export_disk(image, files, target, "raw", nothing, replace=True, whole=whole)
    assert target.read_bytes() == disk.read_bytes()
    assert is_file(target, told[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]
    for bad in (tmp_path / "none" / "out", tmp_path, Path("relative")):
        with pytest.raises(UnusableTarget):
            await export_disk(image, files, bad, "raw", nothing, replace=True)
    with pytest.raises(UnusableTarget):
        await export_disk(image, files, tmp_path / "x", "iso", nothing)
    with pytest.raises(ImageHasNoDisk):
        await export_disk(publish_fake_image(store), files, tmp_path / "x", "raw", nothing)


@pytest.mark.slow
async def test_no_hostile_image_gets_as_far_as_a_tool(
    tmp_path: Path, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None:
        raise AssertionError("a tool was started")

    monkeypatch.setattr(conversion, "_run", never)
    for image in corpus():
        path = tmp_path / "gift"
        path.write_bytes(image.data)
        with pytest.raises(InsulaError) as refused:
            await take(path, store, format=image.format)
        assert refused.value.code == image.code, image.name
    assert store.list() == []
    assert in_the_making(store) == []


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "device", "missing", "dangling"])
def test_only_a_regular_file_is_opened(tmp_path: Path, disk: Path, kind: str) -> None:
    path = tmp_path / "gift"
    if kind == "symlink":
        path.symlink_to(disk)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "fifo":
        os.mkfifo(path)  # opening it would wait for a writer
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    with pytest.raises(SourceUnreadable) as refused:
        check_file(path, None)
    assert str(path) in refused.value.message


@pytest.mark.parametrize("kind", ["symlink", "fifo", "missing", "short", "other-size", "no-part"])
def test_the_parts_of_a_split_disk_are_looked_at_too(tmp_path: Path, disk: Path, kind: str) -> None:
    part = tmp_path / "part.vmdk"
    line = f'RW {SIZE // 512} FLAT "part.vmdk" 0'
    if kind == "symlink":
        part.symlink_to(disk)
    elif kind == "fifo":
        os.mkfifo(part)
    elif kind == "short":
        part.write_bytes(bytes(SIZE - 512))
    elif kind in ("other-size", "no-part"):
        line = 'RW 4096 SPARSE "part.vmdk"'
        part.write_bytes(bytes(MIB) if kind == "no-part" else vmdk_header(2048, text_at=0).ljust(MIB, b"\0"))
    (tmp_path / "gift.vmdk").write_bytes(vmdk_text(line, kind="twoGbMaxExtentSparse"))
    with pytest.raises((SourceUnreadable, ImageDamaged)) as refused:
        check_file(tmp_path / "gift.vmdk", None)
    assert "part.vmdk" in refused.value.message


def test_a_file_that_changes_after_it_was_checked_is_refused(tmp_path: Path, disk: Path) -> None:
    path = Path(shutil.copy(disk, tmp_path / "gift"))
    with open_source(path) as source:
        source.verify_unchanged()
        status = path.stat()
        with path.open("r+b") as stream:
            stream.write(qcow2(backing=b"/etc/shadow")[:104])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # what an attacker can set back
        with pytest.raises(ImageRefused, match="changed while it was read"):
            source.verify_unchanged()


def test_a_name_that_is_turned_to_another_file_changes_nothing(tmp_path: Path, disk: Path) -> None:
    path = Path(shutil.copy(disk, tmp_path / "gift"))
    with open_source(path) as source:
        path.rename(tmp_path / "away")
        path.write_bytes(qcow2(backing=b"/etc/shadow"))
        assert os.pread(source.main.descriptor, 4, SIZE - 4) == b"tail"


@needs_tool
async def test_a_change_during_the_conversion_leaves_nothing(
    tmp_path: Path, disk: Path, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(disk, tmp_path / "gift"))
    convert = conversion._run

    async def run_and_change(*arguments: Any) -> None:
        await convert(*arguments)
        os.truncate(path, SIZE - 512)

    monkeypatch.setattr(conversion, "_run", run_and_change)
    with pytest.raises(ImageRefused, match="changed while it was read"):
        await take(path, store)
    assert store.list() == []
    assert in_the_making(store) == []


@needs_tool
async def test_contents_that_cannot_be_read_are_told(tmp_path: Path, disk: Path, store: ImageStore) -> None:
    path = make(disk, tmp_path / "c.qcow2", "qcow2", "-c")
    raw = bytearray(path.read_bytes())
    raw[5 * 65536 + 8 : 7 * 65536] = b"\xa5" * (2 * 65536 - 8)
    path.write_bytes(raw)
    with pytest.raises(ImageDamaged) as refused:
        await take(path, store)
    assert refused.value.evidence["stderr"]
    assert store.list() == []
    assert in_the_making(store) == []


@needs_tool
async def test_a_name_that_is_taken(disk: Path, store: ImageStore) -> None:
    publish_fake_image(store, "web")
    with pytest.raises(ImageNameTaken):
        await take(disk, store)
    assert store.get("web").os == "none"
    assert (await take(disk, store, replace=True)).disk is not None
    assert store.get("web").boots == ("disk",)


@needs_tool
async def test_a_disk_that_would_fill_the_host_is_stopped(
    disk: Path, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []

    def no_room(path: Path) -> int:
        looked.append(path)
        return 2**40 if len(looked) == 1 else 1000

    monkeypatch.setattr(conversion, "free_bytes", no_room)

    async def endless(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(conversion, "_run", endless)
    with pytest.raises(DiskFull):
        await take(disk, store)
    assert len(looked) >= 2
    assert in_the_making(store) == []


async def test_a_full_host_begins_nothing(
    disk: Path, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("insula.storage.errors.free_bytes", lambda _: 1000)
    with pytest.raises(DiskFull):
        await take(disk, store)
    assert in_the_making(store) == []


async def test_a_tool_that_is_killed_leaves_nothing(slow_tool: None, disk: Path, store: ImageStore) -> None:
    importing = asyncio.ensure_future(take(disk, store))
    os.kill(await told_pid(os.getpid()), signal.SIGKILL)
    with pytest.raises(ConversionFailed):
        await importing
    assert store.list() == []
    assert in_the_making(store) == []


async def test_a_cancelled_import_ends_its_tool(slow_tool: None, disk: Path, store: ImageStore) -> None:
    importing = asyncio.ensure_future(take(disk, store))
    pid = await told_pid(os.getpid())
    descriptor = os.pidfd_open(pid)
    importing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await importing
    await asyncio.to_thread(wait_readable, descriptor)
    os.close(descriptor)
    assert in_the_making(store) == []


async def test_what_is_published_is_on_its_medium(
    disk: Path, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []

    def fdatasync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").read_bytes())

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    await take(disk, store)
    content = disk.read_bytes()
    assert [data for data in synced if len(data) == SIZE][-1] == content


async def test_a_medium_that_fails_fails_the_import(
    disk: Path, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fdatasync(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(OSError, match="Input/output"):
        await take(disk, store)
    assert in_the_making(store) == []
    assert store.list() == []


@pytest.mark.slow
async def test_kill_minus_9_of_the_daemon_leaves_what_sweep_takes(
    slow_tool: None, tmp_path: Path, disk: Path, store: ImageStore
) -> None:
    argv = [sys.executable, "-m", "tests.support.slow_tool", str(disk), str(store.root)]
    daemon = await asyncio.create_subprocess_exec(*argv)
    pid = await told_pid(daemon.pid)
    descriptor = os.pidfd_open(pid)
    assert len(in_the_making(store)) == 1
    assert await store.sweep() == (), "a living import is left alone"
    daemon.kill()
    await daemon.wait()
    await asyncio.to_thread(wait_readable, descriptor)  # the tool dies with it, whatever user it runs as
    os.close(descriptor)
    assert len(await store.sweep()) == 1
    assert in_the_making(store) == []
    assert store.list() == []


async def told_pid(parent: int) -> int:
    return await asyncio.to_thread(wait_for_tool, parent)


def wait_readable(descriptor: int) -> None:
    assert select.select([descriptor], [], [], 20)[0], "the tool lives on"


@pytest.mark.slow
async def test_the_tool_is_confined(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        chosen = choose_confinement(out.fileno())
        command = await chosen.wrap(["cat", "/proc/self/status"], most_file=4096, disk=MIB)
        status = dict(line.split(":\t", 1) for line in (await output_of(command)).splitlines())
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapEff"], 16) == 0
        if os.geteuid() == 0 and chosen.user is not None:
            assert str(chosen.user) in status["Uid"]
            assert os.fstat(out.fileno()).st_uid == chosen.user
            assert status["Groups"].strip() in ("", str(chosen.user))
            assert int(status["CapBnd"], 16) == 0
        chosen.take_back(out.fileno())
        assert os.fstat(out.fileno()).st_uid == os.geteuid()
    shell = ["sh", "-c", "ulimit -f; ulimit -v; ulimit -c"]
    limits = await output_of(await chosen.wrap(shell, most_file=4096, disk=MIB))
    assert limits.split()[0] == "8"
    assert "unlimited" not in limits
    if confinement._namespaces[os.geteuid() == 0]:
        seen = await output_of(await chosen.wrap(["cat", "/proc/net/dev"], most_file=1, disk=1))
        assert [line.split(":")[0].strip() for line in seen.splitlines()[2:]] == ["lo"]


async def output_of(command: list[str]) -> str:
    return (await run(command)).stdout.decode()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's files are closed to the tool's user")
@needs_tool
async def test_a_private_file_is_imported_too(tmp_path: Path, disk: Path, store: ImageStore) -> None:
    path = Path(shutil.copy(disk, tmp_path / "private"))
    path.chmod(0o600)
    await take(path, store)
    assert (store.directory("web") / "disk.raw").read_bytes() == disk.read_bytes()


def written_by_steps(path: Path, steps: Callable[[int], None]) -> str:
    """The digest of a file that grows while it is followed."""
    with path.open("w+b") as stream:
        stream.truncate(SIZE)
        ended, turns = threading.Event(), iter(range(20))

        def look() -> None:
            number = next(turns, None)
            if number is None:
                ended.set()
            else:
                steps(number)

        return Follower(stream.fileno(), SIZE).follow(ended, look)


@pytest.mark.slow
def test_a_digest_computed_meanwhile_is_the_digest(tmp_path: Path) -> None:
    rng = random.Random(3)
    path = tmp_path / "growing"

    def write(number: int) -> None:
        with path.open("r+b") as stream:
            stream.seek(number * 400_000)
            stream.write(rng.randbytes(400_000) if number % 3 else bytes(400_000))

    digest = written_by_steps(path, write)
    with path.open("rb") as stream:
        assert digest_of(stream.fileno(), SIZE) == digest


def test_holes_and_zeros_are_the_same_content(tmp_path: Path) -> None:
    sparse, full, other = tmp_path / "sparse", tmp_path / "full", tmp_path / "other"
    with sparse.open("wb") as stream:
        stream.truncate(5 * MIB + 512)
        stream.seek(3 * MIB)
        stream.write(b"here")
    full.write_bytes(sparse.read_bytes())
    other.write_bytes(full.read_bytes()[MIB:] + bytes(MIB))

    def digest(path: Path) -> str:
        with path.open("rb") as stream:
            return digest_of(stream.fileno(), 5 * MIB + 512)

    assert digest(sparse) == digest(full)
    assert digest(full) != digest(other)


@needs_tool
async def test_an_iso_is_kept_byte_for_byte(store: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "tools.iso"
    iso = pycdlib.PyCdlib()
    iso.new(vol_ident="TOOLS")
    iso.add_fp(io.BytesIO(b"hello"), 5, "/HELLO.;1")
    iso.write(str(path))
    iso.close()
    image = await import_file(path, "tools", ImageProperties(), store, nothing)
    assert image.disk is not None
    assert image.disk.format == "raw"
    assert image.summary == "imported from iso"
    assert (store.directory("tools") / image.disk.file).read_bytes() == path.read_bytes()

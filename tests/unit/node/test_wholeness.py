"""What documents miss, disks that are damaged inside, and processes that have lost their directory."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.engine import frozen
from insula.engine.strays import find_strays
from insula.kit.clock import boot_id, utc_now
from insula.kit.paths import Home
from insula.kit.run import run
from insula.model.base import new_uid
from insula.model.operation import OperationState
from insula.model.snapshot import Snapshot
from insula.storage.chain import freeze, layer_name
from insula.storage.images import ImageStore
from insula.storage.volumes import create_empty, create_overlay
from insula.store.protocol import Delete, Put
from tests.support.homes import MIB, age, check, make, problem, prune, uid_of, usage
from tests.support.host import FakeHost, publish_fake_image

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[FakeHost]:
    host = FakeHost(tmp_path / "home", template_budget=2**30)
    publish_fake_image(ImageStore(host.home.images))
    await host.boot()
    yield host
    await host.close()


async def test_a_machine_without_its_directory(host: FakeHost) -> None:
    await host.do("create", "web")
    shutil.rmtree(host.home.machine(uid_of(host, "web")))
    found = await problem(host)
    assert found.code == "missing-directory"
    assert "insula rm -f web" in found.mend
    assert not found.note
    await host.do("rm", "web", force=True)
    assert (await check(host)).clean


async def test_an_image_whose_files_are_gone(host: FakeHost) -> None:
    await host.do("create", "web")
    age(host.home.images / "claims")
    (blob,) = (host.home.images / "blobs").iterdir()
    shutil.rmtree(blob)
    codes = sorted(p.code for p in (await check(host)).problems)
    assert codes == ["missing-image", "missing-image", "orphan-image"]  # machine, name; and its claims


@needs_qemu_img
async def test_a_volume_without_its_disk(host: FakeHost) -> None:
    await host.do("volume-create", "data", size="1MiB")
    (directory,) = host.home.volumes.iterdir()
    disk = directory / "disk.qcow2"
    kept = disk.read_bytes()
    disk.unlink()
    assert (await problem(host)).code == "missing-disk"
    disk.write_bytes(b"")
    assert (await problem(host)).code == "damaged-disk"
    disk.write_bytes(kept)
    assert (await check(host)).clean
    shutil.rmtree(directory)
    found = await problem(host)
    assert (found.code, "insula volume rm data" in found.mend) == ("missing-directory", True)


async def with_disk(host: FakeHost) -> Path:
    """The directory of a machine with a disk of three layers, aaa to ccc; the lowest has no backing."""
    from insula.model.device.disk import Disk

    assert host.store is not None
    await host.do("create", "web")
    machine = host.machine("web")
    assert machine is not None
    disk = Disk(id="disk0", source="image", file="disk0.qcow2", format="qcow2", size_bytes=MIB)
    await host.store.commit([Put(machine.changed(devices=[*machine.devices, disk]))])
    directory = host.home.machine(machine.uid)
    await create_empty(directory / "disk0.qcow2", MIB, "disk0")
    (directory / "disk0.qcow2").rename(directory / layer_name("disk0.qcow2", "aaa"))
    (directory / "disk0.qcow2").symlink_to(layer_name("disk0.qcow2", "aaa"))
    for tag in ("bbb", "ccc"):
        await freeze(directory, "disk0.qcow2", tag)
    return directory


@needs_qemu_img
async def test_a_chain_that_is_whole_and_one_that_is_broken(host: FakeHost) -> None:
    directory = await with_disk(host)
    assert (await check(host)).clean
    lowest = directory / layer_name("disk0.qcow2", "aaa")
    lowest.rename(directory.parent.parent / "elsewhere")
    (found,) = [p for p in (await check(host)).problems if not p.note]
    assert found.code == "missing-backing"
    assert "disk0-aaa.qcow2" in found.why
    assert found.path.endswith("disk0-bbb.qcow2")


@needs_qemu_img
async def test_an_overlay_of_an_image_that_is_gone(host: FakeHost, tmp_path: Path) -> None:
    directory = await with_disk(host)
    base = tmp_path / "base.raw"
    base.write_bytes(bytes(MIB))
    (directory / "disk0.qcow2").unlink()
    await create_overlay(directory / "disk0.qcow2", base, "raw", MIB)
    for frozen_file in directory.glob("disk0-*"):
        frozen_file.unlink()
    assert (await check(host)).clean
    base.unlink()
    found = await problem(host)
    assert found.code == "missing-backing"
    assert str(base) in found.why


@needs_qemu_img
async def test_a_frozen_disk_that_nothing_stands_on(host: FakeHost) -> None:
    directory = await with_disk(host)
    left = directory / "disk0-ddd.qcow2"
    os.link(directory / "disk0-aaa.qcow2", left)  # as a freeze leaves it that was cut short
    (directory / ".disk0.qcow2.new").symlink_to(left.name)
    found = await problem(host)
    assert (found.code, found.path, found.size_bytes) == ("leftover", str(left), 0)
    await prune(host)
    assert not left.exists()
    assert {path.name for path in directory.glob("disk0*")} == {
        "disk0.qcow2",
        "disk0-aaa.qcow2",
        "disk0-bbb.qcow2",
        "disk0-ccc.qcow2",
    }
    # Where the chain is broken, nobody can say what stands on what.
    os.link(directory / "disk0-aaa.qcow2", left)
    (directory / "disk0-bbb.qcow2").write_bytes(b"not a disk")
    assert [p.code for p in (await check(host)).problems] == ["damaged-disk"]


@needs_qemu_img
async def test_snapshots_are_known_by_their_documents(host: FakeHost) -> None:
    assert host.store is not None
    await host.do("create", "web")
    machine = host.machine("web")
    assert machine is not None
    snapshot = Snapshot(
        uid=new_uid(),
        name="before",
        created=utc_now(),
        machine_uid=machine.uid,
        machine=machine,
        disks=({"id": "disk0", "file": "disk0-abc.qcow2", "size_bytes": MIB},),
        whole=True,
    )
    directory = make(host.home.snapshot(snapshot.uid))
    await create_empty(directory / "disk0-abc.qcow2", MIB, "disk0")
    await host.store.commit([Put(snapshot)])
    assert (await check(host)).clean
    (directory / "disk0-abc.qcow2").unlink()
    assert (await problem(host)).code == "missing-disk"
    shutil.rmtree(directory)
    assert (await problem(host)).code == "missing-directory"
    await host.store.commit([Delete(Snapshot, snapshot.uid)])


@needs_qemu_img
async def test_snapshots_that_come_and_go_leave_nothing(host: FakeHost) -> None:
    async def do(verb: str, **parameters: str) -> None:
        assert (await host.do(verb, **parameters)).state is OperationState.DONE
        assert (await check(host)).problems == ()

    await with_disk(host)
    await do("snapshot-create", name="one")
    await do("start")
    await do("snapshot-create", name="two")
    await do("stop")
    await do("snapshot-restore", name="one")
    await do("snapshot-rm", name="one")
    await do("rm")
    assert list(host.home.snapshots.iterdir()) == []


# -- disks


@needs_qemu_img
async def test_disks_are_looked_into_when_asked(host: FakeHost) -> None:
    await host.do("volume-create", "data", size="64MiB")
    (disk,) = host.home.volumes.rglob("*.qcow2")
    done = await host.do("system-check", "", disks=True)
    assert done.outcome is not None
    assert (done.outcome["clean"], done.outcome["disks_checked"]) == (True, 1)
    await leak(disk)
    assert (await check(host)).clean
    done = await host.do("system-check", "", disks=True)
    assert done.outcome is not None
    (found,) = done.outcome["problems"]
    assert (found["code"], found["path"]) == ("leaking-disk", str(disk))
    assert "qemu-img check -r leaks" in found["mend"]
    await run(["qemu-img", "check", "-q", "-r", "leaks", str(disk)], check=False)
    done = await host.do("system-check", "", disks=True)
    assert done.outcome is not None
    assert done.outcome["clean"]


@needs_qemu_img
async def test_what_a_running_machine_has_open_is_not_looked_into(host: FakeHost) -> None:
    await host.do("volume-create", "data", size="1MiB")
    await host.run("web", volumes=["data"])
    done = await host.do("system-check", "", disks=True)
    assert done.outcome is not None
    assert done.outcome["disks_checked"] == 0
    await host.do("stop", "web")
    done = await host.do("system-check", "", disks=True)
    assert done.outcome is not None
    assert done.outcome["disks_checked"] == 1


async def leak(disk: Path) -> None:
    """Count a cluster of a qcow2 disk as used that nothing uses: that of a new one at its end becomes 1."""
    raw = bytearray(disk.read_bytes())
    cluster = -(-len(raw) // 65536)
    raw += bytes((cluster + 1) * 65536 - len(raw))
    table = int.from_bytes(raw[48:56], "big")
    block = int.from_bytes(raw[table : table + 8], "big")
    at = block + 2 * cluster
    raw[at : at + 2] = (1).to_bytes(2, "big")
    disk.write_bytes(raw)


# -- processes without a directory


@pytest.mark.slow
async def test_memory_kept_for_a_directory_that_is_gone(host: FakeHost) -> None:
    directory = host.home.templates / "0123456789ab"
    directory.mkdir(parents=True)
    memory = frozen.create_memory(4 * MIB)
    os.pwrite(memory, bytes(range(256)) * 4096, 0)
    await frozen.hold(directory, memory)
    os.close(memory)
    pid = int((directory / "qemu.pid").read_text().split()[0])
    watch = os.pidfd_open(pid)
    while b"sleep" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
        pass  # for a moment it is still a copy of its supervisor
    try:
        assert find_strays([host.home.templates]) == []
        shutil.rmtree(directory)
        found = await problem(host)
        assert (found.code, found.pid) == ("stray-memory", pid)
        assert found.memory_bytes == MIB
        assert (await usage(host)).total.memory_bytes == MIB
        outcome = await prune(host)
        assert outcome["freed_memory_bytes"] == MIB
        await asyncio.to_thread(_wait_readable, watch)
        assert (await check(host)).clean
    finally:
        _end(pid, watch)


@pytest.mark.slow
async def test_a_machine_that_runs_without_its_directory_is_never_ended(host: FakeHost) -> None:
    directory = host.home.machines / new_uid()
    directory.mkdir(parents=True)
    guest = _start_in(directory)
    try:
        shutil.rmtree(directory)
        found = await problem(host)
        assert (found.code, found.remedy) == ("stray-process", "none")
        assert f"kill {guest.pid}" in found.mend
        await prune(host)
        assert guest.poll() is None
    finally:
        guest.communicate(timeout=10)


def _start_in(directory: Path) -> subprocess.Popen[bytes]:
    """A process that does nothing but be there, until its input ends."""
    return subprocess.Popen(["cat"], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def _wait_readable(descriptor: int) -> None:
    import select

    assert select.select([descriptor], [], [], 5)[0]


def _end(pid: int, watch: int) -> None:
    import contextlib
    import signal

    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(watch, signal.SIGKILL)
    os.close(watch)


def test_another_home_is_not_looked_at(tmp_path: Path) -> None:
    assert boot_id()
    assert find_strays([Home(tmp_path).templates]) == []

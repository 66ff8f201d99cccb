"""Disks of machines that were killed: what was reserved and never used is given back, and only that."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.model.observation import Phase
from insula.model.volume import Volume
from insula.storage.images import ImageStore
from tests.support.host import FakeHost, publish_fake_image

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

_CLUSTER = 2**16
_REFCOUNT_TABLE_AT = 48  # docs/interop/qcow2.txt: offset of the refcount table, in the header


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[FakeHost]:
    host = FakeHost(tmp_path / "home")
    publish_fake_image(ImageStore(host.home.images))
    await host.boot()
    await host.do("volume-create", "data", size="1MiB")
    await host.run("web", run_policy="once")
    await host.do("attach", "web", volume="data")
    yield host
    await host.close()


def disk(host: FakeHost) -> Path:
    assert host.store is not None
    volume = host.store.find(Volume, "default", "data")
    assert volume is not None
    return host.home.volume(volume.document.uid) / "disk.qcow2"


def lose_a_cluster(path: Path) -> None:
    """As a monitor does that is killed between reserving a cluster and using it."""
    with path.open("r+b") as stream:
        end = (stream.seek(0, 2) + _CLUSTER - 1) // _CLUSTER
        stream.seek(_REFCOUNT_TABLE_AT)
        (table,) = struct.unpack(">Q", stream.read(8))
        stream.seek(table)
        (block,) = struct.unpack(">Q", stream.read(8))
        stream.seek(block + 2 * end)
        stream.write(struct.pack(">H", 1))
        stream.truncate((end + 1) * _CLUSTER)
    assert not is_clean(path)


def is_clean(path: Path) -> bool:
    return subprocess.run(["qemu-img", "check", "-q", str(path)], check=False).returncode == 0


async def crash(host: FakeHost) -> None:
    host.world.machine("web").crash(128 + 9)
    await host.until((Phase.CRASHED, Phase.STOPPED))


@pytest.mark.parametrize("verb", ["start", "snapshot-create"])
async def test_after_a_kill_the_disks_are_mended_before_anything_is_made_of_them(
    host: FakeHost, verb: str
) -> None:
    await crash(host)
    lose_a_cluster(disk(host))
    assert (await host.do(verb, "web")).problem is None
    layers = [path for path in disk(host).parent.glob("*.qcow2") if not path.is_symlink()]
    assert len(layers) == (1 if verb == "start" else 2)
    assert all(is_clean(path) for path in layers)


@pytest.mark.parametrize("verb", ["detach", "rm"])
async def test_a_volume_that_leaves_a_killed_machine_is_mended_before(host: FakeHost, verb: str) -> None:
    """Nobody would know afterwards that it is to be looked at."""
    await crash(host)
    lose_a_cluster(disk(host))
    parameters = {"volume": "data"} if verb == "detach" else {}
    assert (await host.do(verb, "web", **parameters)).problem is None
    assert is_clean(disk(host))


async def test_a_volume_of_a_machine_that_is_removed_while_it_runs_is_mended(host: FakeHost) -> None:
    lose_a_cluster(disk(host))
    assert (await host.do("rm", "web", force=True)).problem is None
    assert is_clean(disk(host))


async def test_a_layer_between_is_mended_too(host: FakeHost) -> None:
    """It was the one that layers were merged into, or the top when a snapshot was made of it later."""
    await host.do("snapshot-create", "web", name="one")
    frozen = next(path for path in disk(host).parent.glob("disk-*") if path != disk(host).resolve())
    await crash(host)
    lose_a_cluster(frozen)
    await host.do("start", "web")
    assert is_clean(frozen)


async def test_a_machine_that_ended_by_itself_is_left_alone(host: FakeHost) -> None:
    host.world.machine("web").power_off()
    await host.until(Phase.STOPPED)
    lose_a_cluster(disk(host))
    await host.do("start", "web")
    assert not is_clean(disk(host))


async def test_a_disk_that_cannot_be_mended_is_no_reason_not_to_start(host: FakeHost) -> None:
    await crash(host)
    disk(host).resolve().write_bytes(b"damaged")
    assert (await host.do("start", "web")).problem is None  # the fake monitor does not mind

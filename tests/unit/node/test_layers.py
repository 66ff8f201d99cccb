"""Layers of several disks of one machine, on a whole host with fake machines."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.storage.images import ImageStore
from tests.support.host import FakeHost, publish_fake_image


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[FakeHost]:
    host = FakeHost(tmp_path / "home")
    publish_fake_image(ImageStore(host.home.images))
    await host.boot()
    yield host
    await host.close()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
async def test_no_two_volumes_of_a_machine_have_a_layer_of_one_name(host: FakeHost) -> None:
    """A monitor is asked for layers by their names: one volume's would be merged in place of the other's."""
    for name in ("data", "logs"):
        await host.do("volume-create", name, size="1MiB")
    await host.run(volumes=["data", "logs"])
    for name in ("one", "two"):
        await host.do("snapshot-create", name=name)
    await host.do("snapshot-restore", name="one")
    layers = [path.name for path in host.home.volumes.rglob("disk-*.qcow2")]
    assert len(layers) >= 4
    assert len(layers) == len(set(layers))

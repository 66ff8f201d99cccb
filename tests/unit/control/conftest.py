from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.host import FakeHost, publish_fake_image


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[FakeHost]:
    """A host with the image micro and a daemon."""
    from insula.storage.images import ImageStore

    host = FakeHost(tmp_path / "home")
    publish_fake_image(ImageStore(host.home.images))
    await host.boot()
    yield host
    await host.close()

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.client.sdk import Client
from tests.unit.client.stub import Stub


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    with Stub(tmp_path / "home") as stub:
        yield stub


@pytest.fixture
def client(stub: Stub) -> Client:
    return Client(stub.home, start=False)

"""A host on which nothing is installed: what is refused, and how it is told. The real daemon and engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.storage.images import ImageStore
from tests.support.host import publish_fake_image

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "home"
    publish_fake_image(ImageStore(home / "images"))
    yield home
    insula(home, "daemon", "stop")


def insula(home: Path, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "INSULA_HOME": str(home), "NO_COLOR": "1", "PATH": "/nonexistent"}
    environment.pop("INSULA_IMAGES", None)
    done = subprocess.run(
        [sys.executable, "-m", "insula", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done


def test_run_says_what_to_install_and_leaves_nothing(home: Path) -> None:
    said = insula(home, "run", "micro", status=69).stderr
    assert "QEMU is not installed" in said
    assert "apt-get install qemu-system-x86" in said
    assert "No machines" in insula(home, "ls", "--all").stderr
    assert list((home / "machines").iterdir()) == []


def test_the_doctor_lists_it_with_the_command_that_mends_it(home: Path) -> None:
    said = insula(home, "doctor", status=69).stdout
    assert "MISSING  qemu" in said
    assert "mend:" in said


def test_building_an_image_says_what_it_needs(home: Path) -> None:
    said = insula(home, "image", "build", "debian-12", status=69).stderr
    assert "mmdebstrap" in said
    assert "hint:" in said

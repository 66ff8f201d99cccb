"""The memory of forks on the host's disk: all of it is there again, and their template stays small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.boots import ROOT, RealShell, has_image, real_home

pytestmark = [
    pytest.mark.boot,
    pytest.mark.slow,
    pytest.mark.skipif(not has_image("micro"), reason="the image micro is not built (./scripts/test does)"),
]

SUM = "md5sum </tmp/mind"
LITTLE = 4 * 2**20  # bytes; all that is not used of micro's template is 380 MB


@pytest.fixture(scope="module")
def insula(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealShell]:
    home = tmp_path_factory.mktemp("saved-forks") / "home"
    with real_home(home, ROOT / "test-artifacts" / "saved-forks") as shell:
        yield shell


@pytest.fixture
def fork(insula: RealShell) -> Iterator[str]:
    """A machine that is a fork of a template of its own: what fills it fills it for good."""
    insula("template", "prune")
    insula("run", "--rm", "micro", "--", "true")
    insula("run", "-d", "--name", "web", "micro")
    made = [o for o in insula.data("op", "ls", "--all") if (o["verb"], o["name"]) == ("create", "web")]
    assert made[-1]["outcome"]["booted"] == ""
    yield "web"
    insula("rm", "-f", "web")


def held(insula: RealShell) -> int:
    """Bytes of the host's memory that the template holds."""
    (template,) = insula.data("template", "ls")
    return int(template["held_bytes"])


def said(insula: RealShell, script: str) -> str:
    return insula.text("exec", "--agent-timeout", "60s", "web", "--", "sh", "-c", script)


def fill(insula: RealShell, size: str) -> str:
    """Have the guest use so much memory; the checksum of what is in it."""
    script = (
        f"head -c 6m /dev/urandom >/tmp/a; while cat /tmp/a; do :; done | head -c {size} >/tmp/mind; {SUM}"
    )
    return said(insula, script)


@contextmanager
def nothing_new(insula: RealShell) -> Iterator[None]:
    """The template holds no more than before; what a guest uses that the template did not is held, too."""
    before = held(insula)
    assert before < 400 * 2**20, "what is not used of it is held already"
    yield
    assert held(insula) - before < LITTLE


@pytest.mark.parametrize("size", ["24m", "150m"])
def test_a_fork_goes_on_from_its_memory_and_its_template_stays_small(
    insula: RealShell, fork: str, size: str
) -> None:
    mind = fill(insula, size)
    with nothing_new(insula):
        insula("snapshot", "create", fork, "moment", "--memory")
    told = insula.data("snapshot", "info", fork, "moment")
    assert 0 < told["stood_seconds"] < 5
    assert told["memory_bytes"] < 350 * 2**20, "zeros are in the file"
    said(insula, "echo other >/tmp/mind")
    for _ in range(2):
        insula("snapshot", "restore", "-y", fork, "moment")
        assert said(insula, SUM) == mind
        said(insula, "echo other >/tmp/mind")
    insula("snapshot", "restore", "-y", fork, "moment")
    insula("suspend", fork)  # one whose memory was saved before: all of it is its own
    insula("start", fork)
    assert said(insula, SUM) == mind
    insula("reset", fork)  # it still has its firmware
    script = "test -e /tmp/mind || echo anew"
    assert insula.text("exec", "--agent-timeout", "2m", fork, "--", "sh", "-c", script) == "anew\n"


def test_a_fork_sleeps_and_leaves_its_template_as_it_was(insula: RealShell, fork: str) -> None:
    mind = fill(insula, "150m")
    with nothing_new(insula):
        insula("suspend", fork)
    insula("template", "prune")  # what is on the disk needs nobody
    insula("start", fork)
    assert said(insula, SUM) == mind


def test_a_paused_fork_is_kept(insula: RealShell, fork: str) -> None:
    mind = fill(insula, "24m")
    insula("pause", fork)
    with nothing_new(insula):
        for name in ("still", "again"):
            insula("snapshot", "create", fork, name, "--memory")
            assert insula.info(fork)["phase"] == "paused"
    insula("resume", fork)
    said(insula, "echo other >/tmp/mind")
    insula("snapshot", "restore", "-y", fork, "again")
    assert insula.info(fork)["phase"] == "paused"
    insula("resume", fork)
    assert said(insula, SUM) == mind

"""Snapshots, restoring, merging and suspending, with a real guest that writes two volumes all the time.

One machine for the whole module. What it holds is told by `tests.support.pattern`: checksums that the guest
makes past its caches, and a log by which it is seen that both disks and the memory are of one moment.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.boots import ROOT, RealShell, has_image, real_home
from tests.support.pattern import Pattern

pytestmark = [
    pytest.mark.boot,
    pytest.mark.slow,
    pytest.mark.skipif(not has_image("micro"), reason="the image micro is not built (./scripts/test does)"),
]


@pytest.fixture(scope="module")
def insula(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealShell]:
    home = tmp_path_factory.mktemp("snapshots") / "home"
    with real_home(home, ROOT / "test-artifacts" / "snapshots") as shell:
        for name in ("one", "two"):
            shell("volume", "create", name, "--size", "16MiB")
        volumes = ["--volume", "one", "--volume", "two:scsi"]
        shell("run", "-d", "--name", "web", "--memory", "160MiB", *volumes, "micro")
        yield shell


@pytest.fixture(scope="module")
def writer(insula: RealShell) -> Pattern:
    """The guest, as it writes. Tests leave the machine running, and without snapshots."""
    serials = [insula.data("volume", "info", name)["serial"] for name in ("one", "two")]
    pattern = Pattern(insula, "web", *serials)
    pattern.begin()
    return pattern


@pytest.fixture(autouse=True)
def _leave_no_snapshots(insula: RealShell) -> Iterator[None]:
    yield
    for snapshot in insula.data("snapshot", "ls", "web"):
        insula("snapshot", "rm", "web", snapshot["name"])
    if insula.info("web")["phase"] != "running":
        insula("start", "web", status=None)


def layers(insula: RealShell, volume: str) -> list[Path]:
    directory = Path(insula.data("volume", "info", volume)["directory"])
    return [path for path in directory.glob("*.qcow2") if not path.is_symlink()]


def snapshots(insula: RealShell) -> dict[str, Any]:
    return {snapshot["name"]: snapshot for snapshot in insula.data("snapshot", "ls", "web")}


def random_bytes(insula: RealShell) -> str:
    return insula.text("exec", "web", "--", "sh", "-c", "head -c 16 /dev/urandom | od -An -tx1")


def test_disks_of_one_moment_are_restored_and_the_tree_says_from_where(
    insula: RealShell, writer: Pattern
) -> None:
    first = writer.write_mark()
    insula("snapshot", "create", "web", "first", "--description", "before it all")
    second = writer.write_mark()
    insula("snapshot", "create", "web", "second")
    third = writer.write_mark()
    least = writer.told()
    assert len(layers(insula, "one")) == 3
    for name, mark in (("first", first), ("second", second)):
        insula("snapshot", "restore", "-y", "--start", "web", name)
        seen = writer.look()
        assert seen.is_one_moment
        assert seen.mark[0] == mark
        assert seen.told is None  # it booted
        assert seen.newest[1] <= least
    assert third not in (first, second)
    insula("snapshot", "restore", "-y", "web", "first")
    assert insula.info("web")["phase"] == "stopped"
    insula("snapshot", "create", "web", "branch")
    tree = snapshots(insula)
    assert [tree[name]["parent"] for name in ("first", "second", "branch")] == [None, "first", "first"]
    assert [name for name, snapshot in tree.items() if snapshot["current"]] == ["branch"]
    assert tree["branch"]["phase"] == "off"
    insula("start", "web")
    assert writer.look().mark[0] == first


def test_with_memory_it_goes_on_from_that_moment_again_and_again(insula: RealShell, writer: Pattern) -> None:
    mark = writer.write_mark()
    insula("exec", "web", "--", "sh", "-c", "echo before >/tmp/mind")
    insula("snapshot", "create", "web", "moment", "--memory")
    least = writer.told()
    insula("exec", "web", "--", "sh", "-c", "echo after >/tmp/mind")
    writer.write_mark()
    drawn = set()
    for number in range(2):
        if number:
            insula.kill_daemon()
        insula("snapshot", "restore", "-y", "web", "moment")
        drawn.add(random_bytes(insula))
        before = time.time()
        now = int(insula.text("exec", "web", "--", "date", "+%s"))
        assert before - 2 < now < time.time() + 2
        assert insula.text("exec", "web", "--", "cat", "/tmp/mind") == "before\n"
        seen = writer.look()
        assert seen.is_one_moment
        assert seen.mark[0] == mark
        assert seen.told == seen.newest[0] == seen.newest[1]
        assert seen.newest[0] < least + 200
        insula("exec", "web", "--", "sh", "-c", "echo other >/tmp/mind")
    assert len(drawn) == 2, "two lives of one moment have the same random numbers"
    insula("snapshot", "restore", "-y", "--disks-only", "--start", "--keep", "kept", "web", "moment")
    seen = writer.look()
    assert seen.told is None
    assert seen.mark[0] == mark
    assert seen.is_one_moment
    insula("snapshot", "restore", "-y", "web", "kept")
    assert insula.text("exec", "web", "--", "cat", "/tmp/mind") == "other\n"
    assert writer.look().told is not None


def test_a_paused_machine_is_kept_and_comes_back_paused(insula: RealShell, writer: Pattern) -> None:
    insula("pause", "web")
    for name in ("still", "again"):
        insula("snapshot", "create", "web", name, "--memory")
        assert insula.info("web")["phase"] == "paused"
    insula("resume", "web")
    mark = writer.write_mark()
    insula("snapshot", "restore", "-y", "web", "still")
    assert insula.info("web")["phase"] == "paused"
    insula.kill_daemon()
    assert insula.info("web")["phase"] == "paused"
    insula("resume", "web")
    seen = writer.look()
    assert seen.is_one_moment
    assert seen.told == seen.newest[0]
    assert seen.mark[0] != mark


def test_a_volume_has_its_size_and_its_past_again(insula: RealShell, writer: Pattern) -> None:
    insula("snapshot", "create", "web", "small")
    insula("volume", "resize", "one", "24MiB")
    insula("volume", "detach", "two", "web")
    refused = insula("volume", "rm", "two", status=73).stderr.decode()
    assert "snapshot 'small' of machine 'web' holds its past" in refused
    insula("snapshot", "restore", "-y", "--start", "web", "small")
    assert insula.data("volume", "info", "one")["size_bytes"] == 16 * 2**20
    assert insula.data("volume", "info", "two")["attached_to"] == [{"machine": "web", "read_only": False}]
    assert writer.look().is_one_moment


def test_what_a_removed_snapshot_leaves_is_merged_while_the_machine_runs(
    insula: RealShell, writer: Pattern
) -> None:
    for name in ("a", "b", "c"):
        mark = writer.write_mark()
        insula("snapshot", "create", "web", name)
    assert len(layers(insula, "two")) == 4
    insula("snapshot", "rm", "web", "b")
    assert len(layers(insula, "two")) == 3
    seen = writer.look()
    assert seen.is_one_moment
    assert seen.mark[0] == mark
    insula("snapshot", "restore", "-y", "--start", "web", "a")
    insula("snapshot", "rm", "web", "a", "c")
    for name in ("one", "two"):
        (only,) = layers(insula, name)
        insula("pause", "web")
        assert subprocess.run(["qemu-img", "check", "-q", "-U", str(only)], check=False).returncode == 0
        insula("resume", "web")
    assert writer.look().is_one_moment
    assert not any((insula.home / "snapshots").iterdir())


def test_a_merge_gives_way_to_whoever_wants_the_machine(insula: RealShell, writer: Pattern) -> None:
    mark = writer.write_mark()
    insula("snapshot", "create", "web", "gone")
    insula("snapshot", "rm", "--no-wait", "web", "gone")
    insula("stop", "--timeout", "60s", "web")
    insula("start", "web")
    seen = writer.look()
    assert seen.is_one_moment
    assert seen.mark[0] == mark


def test_it_sleeps_on_the_disk_and_goes_on(insula: RealShell, writer: Pattern) -> None:
    insula("exec", "web", "--", "sh", "-c", "echo dream >/tmp/mind")
    mark = writer.write_mark()
    insula("suspend", "web")
    told = insula.info("web")
    assert told["phase"] == "suspended"
    insula("daemon", "stop")
    refused = insula("volume", "resize", "one", "32MiB", status=73).stderr.decode()
    assert "is suspended" in refused
    insula("start", "web")
    assert insula.text("exec", "web", "--", "cat", "/tmp/mind") == "dream\n"
    before = time.time()
    assert before - 2 < int(insula.text("exec", "web", "--", "date", "+%s")) < time.time() + 2
    seen = writer.look()
    assert seen.is_one_moment
    assert seen.told == seen.newest[0]
    assert seen.mark[0] == mark
    assert not list(Path(told["directory"]).glob("suspended*"))


def test_suspended_memory_is_not_let_loose_on_disks_that_were_written_since(
    insula: RealShell, writer: Pattern
) -> None:
    mark = writer.write_mark()
    insula("suspend", "web")
    disk = Path(insula.data("volume", "info", "one")["directory"]) / "disk.qcow2"
    argv = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 12M 64k", str(disk)]
    subprocess.run(argv, check=True, capture_output=True)
    refused = insula("start", "web", status=73).stderr.decode()
    assert "its disks have been written since" in refused
    assert insula.info("web")["phase"] == "suspended"
    insula("start", "--cold", "web")
    seen = writer.look()
    assert seen.told is None
    assert seen.is_one_moment
    assert seen.mark[0] == mark


@pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd(2) is for root here")
def test_it_stands_only_for_a_blink(insula: RealShell, writer: Pattern) -> None:
    writer.write_mark()
    insula("snapshot", "create", "web", "blink", "--memory")
    found = insula.data("snapshot", "info", "web", "blink")
    assert 0 < found["stood_seconds"] < 5  # 0.1 s on an idle host
    assert found["memory_bytes"] > 2**20

"""Machines that boot by UEFI, with a guest that writes its variables: they are kept as disks are.

Each mark is a variable of the guest's own, and which of them are there tells whose past a firmware remembers.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from insula.engine.firmware import find_uefi
from tests.support.aftermath import require_nothing_found
from tests.support.boots import ROOT, RealShell, has_image, real_home

pytestmark = [
    pytest.mark.boot,
    pytest.mark.slow,
    pytest.mark.skipif(not has_image("micro"), reason="the image micro is not built (./scripts/test does)"),
    pytest.mark.skipif(find_uefi("pc") is None, reason="no UEFI is installed (package ovmf)"),
]

GUID = "6f1a3f0e-5b0c-4d0e-9c56-1a9e7a3b1c11"
VARIABLES = "/sys/firmware/efi/efivars"
KEPT = r"\7\0\0\0"  # EFI_VARIABLE_NON_VOLATILE | _BOOTSERVICE_ACCESS | _RUNTIME_ACCESS (UEFI 2.10, 8.2.1)


@pytest.fixture(scope="module")
def insula(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealShell]:
    home = tmp_path_factory.mktemp("uefi") / "home"
    with real_home(home, ROOT / "test-artifacts" / "uefi") as shell:
        shell("run", "-d", "--name", "web", "--firmware", "uefi", "--memory", "384MiB", "micro")
        yield shell


def in_guest(insula: RealShell, name: str, script: str) -> str:
    return insula.text("exec", "--agent-timeout", "60s", name, "--", "sh", "-c", script).strip()


def mark(insula: RealShell, name: str, letter: str) -> None:
    """The firmware of this guest has remembered something."""
    # Whole, in one write: the file system makes a call of the firmware of each (Linux, fs/efivarfs).
    in_guest(insula, name, f"printf '{KEPT}x' >/tmp/mark && cat /tmp/mark >{VARIABLES}/Mark{letter}-{GUID}")


def marks(insula: RealShell, name: str) -> str:
    listed = in_guest(insula, name, f"cd {VARIABLES} && ls")
    return "".join(sorted(line[4] for line in listed.splitlines() if line.endswith(GUID)))


def test_they_go_the_ways_of_disks(insula: RealShell) -> None:
    """A snapshot, one with memory, forks, and what comes of these at a reset, a restore, a boot."""
    assert marks(insula, "web") == ""
    mark(insula, "web", "A")
    insula("snapshot", "create", "web", "disks")
    insula("snapshot", "create", "web", "moment", "--memory")
    mark(insula, "web", "B")

    insula("fork", "web", "--name", "sib")
    mark(insula, "sib", "C")
    assert (marks(insula, "web"), marks(insula, "sib")) == ("AB", "ABC")
    insula("reset", "sib")  # its firmware begins anew, with what is in its flash memory
    assert marks(insula, "sib") == "ABC"
    insula("restart", "sib")  # another process, with what is on its disk
    assert marks(insula, "sib") == "ABC"
    insula("fork", "sib", "--name", "cousin")
    insula("rm", "-f", "sib")
    assert marks(insula, "cousin") == "ABC"
    insula("rm", "-f", "cousin")

    insula("snapshot", "restore", "-y", "web", "moment")
    assert marks(insula, "web") == "A"
    insula("reset", "web")
    assert marks(insula, "web") == "A"
    mark(insula, "web", "D")
    insula("snapshot", "restore", "-y", "--start", "web", "disks")
    assert marks(insula, "web") == "A"
    insula("snapshot", "rm", "web", "disks", "moment")


def test_it_sleeps_and_wakes_and_boots_with_what_it_remembers(insula: RealShell) -> None:
    mark(insula, "web", "E")
    before = marks(insula, "web")
    insula("suspend", "web")
    insula("start", "web")
    mark(insula, "web", "F")
    insula("restart", "web")
    assert marks(insula, "web") == before + "F"


def test_a_machine_that_wrote_much_is_captured_by_the_other_way(insula: RealShell) -> None:
    """By a background snapshot, into a process that has flash memory of the same size."""
    mark(insula, "web", "G")
    in_guest(insula, "web", "dd if=/dev/urandom of=/tmp/much bs=1M count=110 2>/dev/null")
    insula("fork", "web", "--name", "other")
    in_guest(insula, "web", "rm /tmp/much")
    assert marks(insula, "other") == marks(insula, "web")
    insula("reset", "other")
    assert marks(insula, "other") == marks(insula, "web")
    insula("rm", "-f", "other")


def test_nothing_is_left_and_nothing_is_missing(insula: RealShell) -> None:
    require_nothing_found(insula)
    assert insula.info("web")["firmware"] == "uefi"

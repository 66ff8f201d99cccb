"""Templates and their forks, for real: every launch but the first of a kind wakes up instead of booting."""

from __future__ import annotations

import datetime
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support.boots import ROOT, RealShell, has_image, real_home

pytestmark = [
    pytest.mark.boot,
    pytest.mark.slow,
    pytest.mark.skipif(not has_image("micro"), reason="the image micro is not built (./scripts/test does)"),
]


@pytest.fixture(scope="module")
def insula(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealShell]:
    """A home with the template of micro."""
    home = tmp_path_factory.mktemp("templates") / "home"
    with real_home(home, ROOT / "test-artifacts" / "templates") as shell:
        shell("run", "--rm", "micro", "--", "true")
        yield shell


@pytest.fixture
def siblings(insula: RealShell) -> Iterator[tuple[str, str]]:
    """Two forks that run at once."""
    for name in ("one", "two"):
        insula("run", "-d", "--name", name, "micro")
    yield ("one", "two")
    for name in ("one", "two"):
        insula("rm", "-f", name)


def outcome(insula: RealShell, name: str) -> dict[str, object]:
    """Of the machine's creation."""
    made = [o for o in insula.data("op", "ls", "--all") if (o["verb"], o["name"]) == ("create", name)]
    found: dict[str, object] = made[-1]["outcome"]
    return found


def said(insula: RealShell, name: str, script: str) -> str:
    return insula.text("exec", name, "--", "sh", "-c", script).strip()


def test_siblings_are_not_each_other(insula: RealShell, siblings: tuple[str, str]) -> None:
    assert len(insula.data("template", "ls")) == 1
    for name in siblings:
        assert outcome(insula, name)["booted"] == ""
        assert said(insula, name, "hostname") == name
    for script in ("cat /etc/machine-id", "head -c 32 /dev/urandom | od -An -tx1"):
        first, second = (said(insula, name, script) for name in siblings)
        assert first
        assert first != second


def test_a_fork_has_the_hosts_time(insula: RealShell, siblings: tuple[str, str]) -> None:
    for name in siblings:
        before = datetime.datetime.now(datetime.UTC).timestamp()
        guest = int(said(insula, name, "date +%s"))
        after = datetime.datetime.now(datetime.UTC).timestamp()
        assert before - 1 <= guest <= after + 1


def test_memory_is_private(insula: RealShell, siblings: tuple[str, str]) -> None:
    said(insula, "one", "echo mine > /tmp/mark")
    assert said(insula, "two", "test -e /tmp/mark || echo absent") == "absent"
    insula("run", "-d", "--name", "three", "micro")
    assert said(insula, "three", "test -e /tmp/mark || echo absent") == "absent"
    insula("rm", "-f", "three")


def test_a_fork_boots_when_its_guest_reboots(insula: RealShell) -> None:
    insula("run", "-d", "--name", "again", "micro")
    said(insula, "again", "echo old > /tmp/mark")
    with insula.popen("events", "--follow", stdout=subprocess.PIPE) as events:
        assert events.stdout is not None
        insula("exec", "again", "--", "reboot", status=None)
        for line in events.stdout:
            if b"machine.reset" in line:
                break
        events.terminate()
    assert said(insula, "again", "test -e /tmp/mark || hostname") == "again"
    insula("rm", "-f", "again")


def test_a_fork_that_is_restarted_boots(insula: RealShell) -> None:
    insula("run", "-d", "--name", "anew", "micro")
    insula("restart", "anew")
    assert said(insula, "anew", "hostname") == "anew"
    insula("rm", "-f", "anew")


def test_a_template_outlives_the_daemon(insula: RealShell) -> None:
    before = insula.data("template", "ls")
    insula.kill_daemon()
    insula("run", "-d", "--name", "later", "micro")
    assert outcome(insula, "later")["booted"] == ""
    after = insula.data("template", "ls")
    assert [(t["key"], t["created"]) for t in after] == [(t["key"], t["created"]) for t in before]
    insula("rm", "-f", "later")


def test_cold_boots(insula: RealShell) -> None:
    insula("run", "-d", "--cold", "--name", "cold", "micro")
    assert "asked for" in str(outcome(insula, "cold")["booted"])
    assert said(insula, "cold", "hostname") == "cold"
    insula("rm", "-f", "cold")


def test_forks_outlive_their_template(insula: RealShell, siblings: tuple[str, str]) -> None:
    """Last: it takes the module's template away."""
    key = insula.data("template", "ls")[0]["key"]
    assert insula.text("template", "rm", key[:4]).split() == [key[:4]]
    assert insula.data("template", "ls") == []
    deadline = time.monotonic() + 10
    while any(line.startswith("sleep 2147483647") for line in insula.processes()):
        assert time.monotonic() < deadline, "the process that held the memory lives on"
    for name in siblings:
        assert said(insula, name, "hostname") == name
    assert insula("template", "rm", "micro", status=66).stderr

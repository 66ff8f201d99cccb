"""Forks of machines that run: what siblings share, what they do not, and what a kill in the middle leaves."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula as sdk
from tests.support.boots import ROOT, RealShell, has_image, real_home

pytestmark = [
    pytest.mark.boot,
    pytest.mark.slow,
    pytest.mark.skipif(not has_image("micro"), reason="the image micro is not built (./scripts/test does)"),
]

COUNTER = "i=0; while :; do i=$((i+1)); echo $i >/tmp/new; mv /tmp/new /tmp/count; usleep 20000; done"
WHO = "hostname; cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1"


@pytest.fixture(scope="module")
def insula(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealShell]:
    """A home with a machine 'web' in which something is going on."""
    home = tmp_path_factory.mktemp("fork") / "home"
    with real_home(home, ROOT / "test-artifacts" / "fork") as shell:
        shell("run", "-d", "--name", "web", "--network", "isolated", "micro")
        shell("exec", "web", "--", "sh", "-c", f"echo before >/tmp/mark; ({COUNTER}) >/dev/null 2>&1 &")
        yield shell


def count(insula: RealShell, name: str) -> int:
    return int(insula.text("exec", name, "--", "sh", "-c", "until cat /tmp/count 2>/dev/null; do :; done"))


def test_siblings_go_on_with_what_the_machine_was_doing_as_themselves(insula: RealShell) -> None:
    began = count(insula, "web")
    done = insula("fork", "web", "--count", "2", "--name", "twin{n}")
    assert done.stdout == b"twin1\ntwin2\n"
    told = done.stderr.decode()
    assert "'web' stood for" in told
    for renewed in ("random", "clock", "hostname", "machine-id", "mac"):
        assert renewed in told
    names = ["web", "twin1", "twin2"]
    who = {name: insula.text("exec", name, "--", "sh", "-c", WHO).split("\n", 2) for name in names}
    assert [who[name][0] for name in names] == names
    assert len({who[name][1] for name in names}) == 3
    assert len({who[name][2] for name in names}) == 3
    cards = {insula.text("exec", name, "--", "cat", "/sys/class/net/eth0/address") for name in names}
    assert len(cards) == 3
    for name in names:
        assert insula.text("exec", name, "--", "cat", "/tmp/mark") == "before\n"
        first = count(insula, name)
        assert first > began
        while count(insula, name) == first:
            pass  # it counts
        before = time.time()
        now = int(insula.text("exec", name, "--", "date", "+%s"))
        assert before - 2 < now < time.time() + 2
    insula("exec", "twin1", "--", "sh", "-c", "echo mine >/tmp/mark")
    assert insula.text("exec", "twin2", "--", "cat", "/tmp/mark") == "before\n"
    insula("rm", "-f", "twin1", "twin2")
    assert list((insula.home / "captures").iterdir()) == []


def test_a_fork_of_a_fork_lives_without_its_parents(insula: RealShell) -> None:
    insula("fork", "web", "--name", "child")
    insula("fork", "child", "--name", "grandchild")
    insula("rm", "-f", "child")
    assert insula.text("exec", "grandchild", "--", "cat", "/tmp/mark") == "before\n"
    assert insula.text("exec", "grandchild", "--", "hostname") == "grandchild\n"
    insula("reset", "grandchild")  # it keeps what it boots from
    script = "cat /tmp/mark 2>/dev/null; hostname"
    assert insula.text("exec", "--agent-timeout", "2m", "grandchild", "--", "sh", "-c", script).endswith(
        "grandchild\n"
    )
    insula("rm", "-f", "grandchild")


def test_siblings_that_wait(insula: RealShell) -> None:
    insula("fork", "web", "--name", "still", "--paused")
    assert insula.info("still")["phase"] == "paused"
    insula("resume", "still")
    assert insula.text("exec", "still", "--", "hostname") == "still\n"
    insula("rm", "-f", "still")


def test_a_stopped_machine_is_forked_by_its_disks(insula: RealShell) -> None:
    insula("run", "-d", "--name", "off", "micro")
    insula("kill", "off")
    assert insula.text("fork", "off") == "off-1\n"
    assert insula.info("off-1")["phase"] == "created"
    insula("rm", "off", "off-1")


def test_python_forks_and_removes(insula: RealShell) -> None:
    web = sdk.connect(insula.home).machine("web")
    with web.fork(2) as siblings:
        assert [vm.exec("hostname").stdout.strip() for vm in siblings] == [vm.name for vm in siblings]
        assert all("random" in str(siblings.renewed[vm.name]["renewed"]) for vm in siblings)
    assert {machine["name"] for machine in insula.data("ls", "--all")} == {"web"}


ROUNDS = 3


@pytest.mark.timeout(240)
def test_a_kill_at_any_moment_leaves_the_machine_and_whole_siblings_or_none(insula: RealShell) -> None:
    seed = int(os.environ.get("INSULA_SEED") or random.SystemRandom().randrange(2**32))
    print(f"INSULA_SEED={seed}")
    draw = random.Random(seed)
    for _ in range(ROUNDS):
        victim, moment = draw.choice(["daemon", "keeper", "sibling"]), draw.uniform(0, 1.5)
        with insula.popen("fork", "web", "--count", "2", "--name", "k{n}", stderr=subprocess.PIPE) as forking:
            time.sleep(moment)  # what is drawn is the moment
            kill(insula, victim)
            forking.wait(60)
        while operations := insula.data("op", "ls"):  # a fork that is done gives its siblings theirs
            for operation in operations:
                insula("op", "wait", operation["uid"], status=None)
        machines = {machine["name"]: machine for machine in insula.data("ls", "--all")}
        told = f"seed {seed}: {victim} killed after {moment:.3f}s; {json.dumps(machines, indent=1)[:3000]}"
        assert machines.pop("web")["phase"] == "running", told
        before = count(insula, "web")
        while count(insula, "web") == before:
            pass  # it goes on
        for name, machine in machines.items():
            assert machine["phase"] in ("running", "crashed"), told
            if machine["phase"] == "running":
                assert insula.text("exec", name, "--", "hostname") == f"{name}\n", told
        for name in machines:
            insula("rm", "-f", name)
        assert list((insula.home / "captures").iterdir()) == [], told


def kill(insula: RealShell, victim: str) -> None:
    """kill -9 of the daemon, or of a process of the fork, if there is one just now."""
    if victim == "daemon":
        insula.kill_daemon()
        return
    place = insula.home / ("captures" if victim == "keeper" else "machines")
    web = insula.info("web")["directory"]
    for path in place.glob("*/qemu.pid"):
        if str(path.parent) != web and (pid := pid_of(path)) is not None:
            os.kill(pid, signal.SIGKILL)
            return


def pid_of(path: Path) -> int | None:
    """The process that the file names, if it is still that one."""
    try:
        pid, start_time, _ = path.read_text().split()
        words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, ValueError):
        return None
    return int(pid) if words[19] == start_time else None

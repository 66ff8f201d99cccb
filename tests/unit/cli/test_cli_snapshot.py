"""insula snapshot and insula suspend: trees, the question before a restore, and waiting for merges."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from insula.cli.snapshot import describe, draw
from insula.client.operation import Operation
from insula.client.types import OperationInfo
from tests.unit.cli.conftest import Command
from tests.unit.client.stub import OPERATION, WEB, Stub, losses, machine, operation, snapshot

SNAPSHOTS = f"{WEB}/snapshots"
OLD = f"{SNAPSHOTS}/old"


class Keyboard(io.StringIO):
    """A terminal at which somebody types."""

    def isatty(self) -> bool:
        return True


def restorable(stub: Stub, phase: str = "running") -> None:
    stub.answer("GET", WEB, machine(phase=phase))
    stub.answer("GET", f"{OLD}/losses", losses())
    stub.answer("POST", f"{OLD}/restore", operation("snapshot-restore", outcome={"running": True}))


@pytest.mark.parametrize(
    ("depths", "drawn"),
    [
        ([], []),
        ([0, 0], ["", ""]),
        ([0, 1, 2], ["", "└─ ", "   └─ "]),
        ([0, 1, 1], ["", "├─ ", "└─ "]),
        ([0, 1, 2, 1], ["", "├─ ", "│  └─ ", "└─ "]),
        ([0, 1, 2, 2, 0, 1], ["", "└─ ", "   ├─ ", "   └─ ", "", "└─ "]),
        ([0, 1, 2, 3, 1], ["", "├─ ", "│  └─ ", "│     └─ ", "└─ "]),
    ],
)
def test_a_tree_is_drawn(depths: list[int], drawn: list[str]) -> None:
    assert draw(depths) == drawn


def test_ls(stub: Stub, insula: Command) -> None:
    found = [
        snapshot("old", description="before the upgrade"),
        snapshot("quiet", parent="old", depth=1, memory_bytes=None, quiesced=True, exclusive_bytes=4096),
        snapshot("new", parent="old", depth=1, current=True, phase="paused"),
        snapshot("next", whole=False, taken=None),
    ]
    stub.answer("GET", SNAPSHOTS, found)
    head, *lines = insula("snapshot", "ls", "web").out.splitlines()
    assert head.split() == ["NAME", "AGE", "PHASE", "MEMORY", "OWN", "DESCRIPTION"]
    assert [line[: head.index("AGE")].rstrip() for line in lines] == ["old", "├─ quiet", "└─ new *", "next"]
    assert [line[head.index("PHASE") : head.index("MEMORY")].rstrip() for line in lines] == [
        "running",
        "running, quiesced",
        "paused",
        "running",
    ]
    assert [line[head.index("MEMORY") :].split()[:2] for line in lines[:2]] == [
        ["2MiB", "3MiB"],
        ["-", "4KiB"],
    ]
    assert "being made" in lines[3]
    assert insula("snapshot", "ls", "web", "-q").out.split() == ["old", "quiet", "new", "next"]
    assert json.loads(insula("snapshot", "ls", "web", "--json").out) == found


def test_ls_of_nothing(stub: Stub, insula: Command) -> None:
    stub.answer("GET", SNAPSHOTS, [])
    ran = insula("snapshot", "ls", "web")
    assert (ran.out, ran.err) == ("", "Machine 'web' has none. Make one: insula snapshot create web\n")
    assert insula("snapshot", "ls", "web", "--json").out == "[]\n"


def test_info(stub: Stub, insula: Command) -> None:
    stub.answer("GET", OLD, snapshot("old", current=True))
    lines = insula("snapshot", "info", "web", "old").out.splitlines()
    assert "name:        old (the machine stands on it)" in lines
    assert "stood for:   64ms" in lines
    assert "disk:        data, 64MiB" in lines
    stub.answer("GET", f"{SNAPSHOTS}/disks", snapshot("disks", memory_bytes=None, stood_seconds=0.0))
    out = insula("snapshot", "info", "web", "disks").out
    assert "memory:      not kept\n" in out
    assert "stood for" not in out
    assert json.loads(insula("snapshot", "info", "web", "old", "--json").out)["name"] == "old"


def test_create(stub: Stub, insula: Command) -> None:
    outcome = {"name": "snap1", "stood_seconds": 0.064}
    stub.answer("POST", SNAPSHOTS, operation("snapshot-create", outcome=outcome))
    ran = insula("snapshot", "create", "web")
    assert (ran.out, ran.err) == ("snap1\n", "Machine 'web' stood for 64ms.\n")
    assert stub.requests[-1].json == {}
    assert insula("snapshot", "create", "web", "old", "--quiesce", "--description", "why", "-q").err == ""
    assert stub.requests[-1].json == {"name": "old", "quiesce": True, "description": "why"}
    stub.answer("GET", f"{SNAPSHOTS}/snap1", snapshot("snap1"))
    ran = insula("snapshot", "create", "web", "--memory", "--json")
    assert json.loads(ran.out) == snapshot("snap1")


def test_nobody_there_to_ask_is_refused(stub: Stub, insula: Command) -> None:
    restorable(stub)
    ran = insula("snapshot", "restore", "web", "old")
    assert (ran.status, ran.out) == (64, "")
    assert "lost: what it has in memory\n" in ran.err
    assert "lost: what was written to 'data' since: up to 9MiB\n" in ran.err
    assert "hint: Give --yes, or --keep NAME" in ran.err
    assert stub.asked("POST", f"{OLD}/restore") == []


@pytest.mark.parametrize("typed", ["n\n", "\n", ""])
def test_who_does_not_say_yes_changes_nothing(
    stub: Stub, insula: Command, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    restorable(stub)
    monkeypatch.setattr(sys, "stdin", Keyboard(typed))
    ran = insula("snapshot", "restore", "web", "old")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.endswith("Go on? [y/N] Nothing was changed.\n")
    assert {asked.method for asked in stub.requests} == {"GET"}


def test_who_says_yes_gets_it(stub: Stub, insula: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    restorable(stub)
    monkeypatch.setattr(sys, "stdin", Keyboard("Yes\n"))
    ran = insula("snapshot", "restore", "web", "old", "--disks-only")
    assert (ran.status, ran.out) == (0, "web\n")
    assert stub.requests[-1].json == {"start": False, "disks_only": True}


def test_yes_asks_nothing_and_off_is_told(stub: Stub, insula: Command) -> None:
    stub.answer("GET", f"{OLD}/losses", losses())
    stub.answer("POST", f"{OLD}/restore", operation("snapshot-restore", outcome={"running": False}))
    ran = insula("snapshot", "restore", "web", "old", "-y")
    assert (ran.status, ran.out, ran.err) == (0, "web\n", "It is off; start it: insula start web\n")
    ran = insula("snapshot", "restore", "web", "old", "-y", "--json")
    assert (json.loads(ran.out)["verb"], ran.err) == ("snapshot-restore", "")


@pytest.mark.parametrize("phase", ["running", "stopped"])
def test_keep_makes_a_snapshot_of_all_there_is_first(stub: Stub, insula: Command, phase: str) -> None:
    restorable(stub, phase)
    stub.answer("POST", SNAPSHOTS, operation("snapshot-create", outcome={"name": "now"}))
    ran = insula("snapshot", "restore", "web", "old", "--keep", "now")
    assert (ran.status, ran.err) == (0, "What machine 'web' was until now is kept as 'now'.\n")
    kept, restored = [asked for asked in stub.requests if asked.method == "POST"]
    assert (kept.path, restored.path) == (SNAPSHOTS, f"{OLD}/restore")
    assert kept.json == ({"name": "now", "memory": True} if phase == "running" else {"name": "now"})


def test_nothing_is_restored_when_it_could_not_be_kept(stub: Stub, insula: Command) -> None:
    restorable(stub)
    stub.refuse("POST", SNAPSHOTS, code="snapshot-name-taken", detail="There is one.")
    assert insula("snapshot", "restore", "web", "old", "--keep", "now").status == 73
    assert stub.asked("POST", f"{OLD}/restore") == []


def test_what_is_lost_is_described() -> None:
    nothing: Any = losses(memory=False, written_bytes={})
    assert describe(nothing) == ["nothing"]
    detached: Any = losses(memory=False, written_bytes={}, detached=["logs"])
    assert describe(detached) == ["its attachment to volume 'logs', which stays as it is"]


def merging(state: str, **fields: Any) -> dict[str, Any]:
    return operation("merge", state, **{"uid": "0123456789abcdef", **fields})


def removable(stub: Stub) -> None:
    stub.answer("GET", WEB, machine())
    stub.answer("DELETE", OLD, operation("snapshot-rm", uid="fedcba9876543210"))
    other = operation("merge", "running", target="another", uid="0000000000000000")
    stub.answer("GET", "/v1/operations", [merging("running"), other])


def test_rm_waits_until_what_it_leaves_is_merged(stub: Stub, insula: Command) -> None:
    removable(stub)
    progress = {"message": "Merging layers", "fraction": 0.5}
    note = "Layers of disk 'disk0' are not merged yet: There is too little space."
    stub.answer("GET", OPERATION, merging("running", progress=progress), merging("done", notes=[note]))
    ran = insula("snapshot", "rm", "web", "old")
    assert (ran.status, ran.out, ran.err) == (0, "old\n", f"Merging layers\n{note}\n")
    assert stub.asked("GET", "/v1/operations/0000000000000000") == []


def test_a_merge_that_gives_way_is_no_error(stub: Stub, insula: Command) -> None:
    removable(stub)
    problem = {
        "code": "superseded",
        "family": "conflict",
        "detail": "It gave way to 'stop'.",
        "exit_status": 73,
    }
    stub.answer("GET", OPERATION, merging("cancelled", problem=problem))
    ran = insula("snapshot", "rm", "web", "old")
    assert (ran.status, ran.out) == (0, "old\n")
    assert ran.err.startswith("What it leaves is merged later: ")


def test_rm_without_waiting(stub: Stub, insula: Command) -> None:
    removable(stub)
    ran = insula("snapshot", "rm", "web", "old", "--no-wait", "--json")
    assert [done["verb"] for done in json.loads(ran.out)] == ["snapshot-rm"]
    assert stub.asked("GET", "/v1/operations") == []


def test_ctrl_c_ends_the_waiting_for_a_merge_and_no_merge(
    stub: Stub, insula: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    removable(stub)

    def wait(operation: Operation, *_: object) -> OperationInfo:
        if operation.info["verb"] == "merge":
            raise KeyboardInterrupt
        return operation.info

    monkeypatch.setattr(Operation, "wait", wait)
    ran = insula("snapshot", "rm", "web", "old")
    assert (ran.status, ran.out) == (130, "old\n")
    assert ran.err == "What it leaves is merged all the same; wait for it: insula op wait 0123456789abcdef\n"
    assert stub.asked("POST", f"{OPERATION}/cancel") == []


def test_some_removals_fail(stub: Stub, insula: Command) -> None:
    removable(stub)
    stub.answer("GET", OPERATION, merging("done"))
    stub.refuse(
        "DELETE",
        f"{SNAPSHOTS}/none",
        code="snapshot-not-found",
        family="invalid",
        status=404,
        exit_status=66,
        detail="There is none.",
    )
    ran = insula("snapshot", "rm", "web", "none", "old")
    assert (ran.status, ran.out, ran.err) == (66, "old\n", "error: There is none.\n")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("snapshot crate web", "Did you mean 'insula snapshot create'?"),
        ("snapshot create", "needs MACHINE"),
        ("snapshot create web a b", "'b' is more than 'insula snapshot create' takes."),
        ("snapshot restore web", "needs NAME"),
        ("snapshot rm web", "needs at least one NAME"),
    ],
)
def test_usage_errors(insula: Command, line: str, error: str) -> None:
    ran = insula(*line.split())
    assert (ran.status, ran.out) == (64, "")
    assert error in ran.err


def test_suspend_and_start_cold(stub: Stub, insula: Command) -> None:
    stub.answer("POST", f"{WEB}/suspend", operation("suspend"))
    assert insula("suspend", "web").out == "web\n"
    stub.answer("POST", f"{WEB}/start", operation())
    assert insula("start", "web", "--cold").out == "web\n"
    assert stub.requests[-1].json == {"cold": True}
    assert insula("start", "web").out == "web\n"
    assert stub.requests[-1].json == {}


def test_a_suspended_machine_is_listed_and_did_not_die(stub: Stub, insula: Command) -> None:
    last = {"at": "2026-05-01T12:00:00Z", "cause": "host-kill", "exit_status": 137, "signal": 9}
    last |= {"command": "qemu-system-x86_64 -m 512", "stderr": "", "serial": "login:"}
    asleep = machine(
        phase="suspended", reason="Its memory is on the disk (118MiB).", last_exit=last, pid=None
    )
    stub.answer("GET", "/v1/machines", [asleep])
    assert insula("ls").out.splitlines()[1].split()[:3] == ["web", "micro", "suspended"]
    stub.answer("GET", WEB, asleep, machine(last_exit=last), machine(phase="stopped", last_exit=last))
    out = insula("info", "web").out
    assert "because:     Its memory is on the disk (118MiB).\n" in out
    assert "last exit" not in out
    assert "qemu-system" not in insula("info", "web").out, "it runs: what was killed is of no use"
    assert "qemu-system" in insula("info", "web").out
    stub.answer("GET", f"{WEB}/wait", asleep)
    assert insula("wait", "web", "--phase", "suspended").out == "suspended\n"

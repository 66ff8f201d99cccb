"""Snapshots by the SDK: what is asked of the daemon, in which order."""

from __future__ import annotations

import pytest

import insula
from insula.client.sdk import Client
from tests.unit.client.stub import OPERATION, WEB, Stub, losses, machine, operation, snapshot

SNAPSHOTS = f"{WEB}/snapshots"
OLD = f"{SNAPSHOTS}/old"


def test_one_is_made_and_is_the_answer(stub: Stub, client: Client) -> None:
    outcome = {"name": "snap1", "stood_seconds": 0.064}
    stub.answer("POST", SNAPSHOTS, operation("snapshot-create", "running"))
    stub.answer("GET", OPERATION, operation("snapshot-create", outcome=outcome))
    stub.answer("GET", f"{SNAPSHOTS}/snap1", snapshot("snap1"))
    made = client.machine("web").snapshot(memory=True, description="why")
    assert (made["name"], made["memory_bytes"]) == ("snap1", 2 * 2**20)
    assert stub.requests[0].json == {"memory": True, "description": "why"}


def test_they_are_listed_and_found(stub: Stub, client: Client) -> None:
    stub.answer("GET", SNAPSHOTS, [snapshot("old"), snapshot("new", depth=1)])
    stub.answer("GET", OLD, snapshot("old"))
    stub.refuse(
        "GET", f"{SNAPSHOTS}/none", code="snapshot-not-found", family="invalid", status=404, detail="None."
    )
    web = client.machine("web")
    assert [(found["name"], found["depth"]) for found in web.snapshots()] == [("old", 0), ("new", 1)]
    assert web.find_snapshot("old")["uid"] == "uid-old"
    with pytest.raises(insula.NotFound):
        web.find_snapshot("none")


def test_a_restore_tells_what_it_did(stub: Stub, client: Client) -> None:
    stub.answer("GET", f"{OLD}/losses", losses())
    stub.answer("POST", f"{OLD}/restore", operation("snapshot-restore", outcome={"running": True}))
    web = client.machine("web")
    assert web.losses("old")["written_bytes"] == {"data": 9 * 2**20}
    assert web.restore("old", start=True)["outcome"] == {"running": True}
    assert stub.requests[-1].json == {"start": True, "disks_only": False}


@pytest.mark.parametrize(("phase", "memory"), [("running", True), ("paused", True), ("stopped", False)])
def test_what_is_to_be_kept_is_kept_before_it_is_lost(
    stub: Stub, client: Client, phase: str, memory: bool
) -> None:
    stub.answer("GET", WEB, machine(phase=phase))
    stub.answer("POST", SNAPSHOTS, operation("snapshot-create", outcome={"name": "now"}))
    stub.answer("POST", f"{OLD}/restore", operation("snapshot-restore"))
    client.machine("web").restore("old", keep="now")
    kept, restored = [asked for asked in stub.requests if asked.method == "POST"]
    assert (kept.path, restored.path) == (SNAPSHOTS, f"{OLD}/restore")
    assert kept.json == ({"name": "now", "memory": True} if memory else {"name": "now"})


def test_nothing_is_lost_that_could_not_be_kept(stub: Stub, client: Client) -> None:
    problem = {"code": "disk-full", "family": "unavailable", "detail": "There is too little space."}
    stub.answer("GET", WEB, machine())
    stub.answer("POST", SNAPSHOTS, operation("snapshot-create", "failed", problem=problem))
    with pytest.raises(insula.Unavailable, match="too little space"):
        client.machine("web").restore("old", keep="now")
    assert stub.asked("POST", f"{OLD}/restore") == []


@pytest.mark.parametrize("state", ["done", "cancelled"])
def test_a_removal_waits_for_its_machines_merges_whatever_becomes_of_them(
    stub: Stub, client: Client, state: str
) -> None:
    merge = operation("merge", "running")
    other = operation("merge", "running", target="another", uid="0000000000000000")
    stub.answer("GET", WEB, machine())
    stub.answer("DELETE", OLD, operation("snapshot-rm", uid="fedcba9876543210"))
    stub.answer("GET", "/v1/operations", [operation(uid="1111111111111111"), other, merge])
    stub.answer("GET", OPERATION, merge, operation("merge", state))
    assert client.machine("web").remove_snapshot("old")["verb"] == "snapshot-rm"
    assert len(stub.asked("GET", OPERATION)) == 2
    assert stub.asked("GET", "/v1/operations/0000000000000000") == []


def test_suspend_and_start(stub: Stub, client: Client) -> None:
    stub.answer("POST", f"{WEB}/suspend", operation("suspend", outcome={"memory_bytes": 7}))
    stub.answer("POST", f"{WEB}/start", operation())
    web = client.machine("web")
    assert web.suspend()["outcome"] == {"memory_bytes": 7}
    web.start(cold=True)
    assert stub.requests[-1].json == {"cold": True}

"""The routes of snapshots: what they show, and which verb with which parameters they ask for."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from insula.control.snapshots import SnapshotState
from insula.model.device.disk import Disk, VolumeRef
from insula.model.snapshot import SavedMemory, Snapshot, SnapshotDisk
from tests.unit.server.fake_control import NOW, FakeControl, machine

SNAPSHOTS = "/v1/projects/default/machines/web/snapshots"


def state(name: str, *, memory: bool = True, **shown: Any) -> SnapshotState:
    reference = VolumeRef(uid="09d3c1a45b7e2f68", name="data")
    volume = Disk(id="vol-1", source="volume", file="disk.qcow2", format="qcow2", volume=reference)
    owner = machine("web")
    document = Snapshot(
        uid=f"{name:0<16}",
        name=name,
        created=NOW,
        machine_uid=owner.uid,
        machine=owner.changed(devices=(*owner.devices, volume)),
        description="why",
        phase="running",
        memory=SavedMemory(size_bytes=2**21, machine_type="pc-i440fx-7.2") if memory else None,
        disks=(
            SnapshotDisk(id="vol-1", file="vol-1/disk-a.qcow2", size_bytes=2**26, volume_uid=reference.uid),
        ),
        taken=NOW,
        stood_seconds=0.064 if memory else 0.0,
        whole=True,
    )
    told = {"parent": None, "depth": 0, "current": False, "exclusive_bytes": 2**21, **shown}
    return SnapshotState(document=document, machine="web", **told)


async def test_a_tree_is_listed_in_order(api: httpx.AsyncClient, control: FakeControl) -> None:
    control.snapshots.states = [state("old"), state("new", parent="old", depth=1, current=True, memory=False)]
    old, new = (await api.get(SNAPSHOTS)).json()
    assert old == {
        "name": "old",
        "uid": "old0000000000000",
        "project": "default",
        "machine": "web",
        "parent": None,
        "depth": 0,
        "current": False,
        "whole": True,
        "taken": "2026-01-01T00:00:00Z",
        "description": "why",
        "phase": "running",
        "memory_bytes": 2**21,
        "quiesced": False,
        "stood_seconds": 0.064,
        "exclusive_bytes": 2**21,
        "disks": [{"id": "vol-1", "size_bytes": 2**26, "volume": "data"}],
    }
    assert (new["parent"], new["depth"], new["current"], new["memory_bytes"]) == ("old", 1, True, None)
    assert (await api.get(f"{SNAPSHOTS}/new")).json() == new


async def test_what_would_be_lost(api: httpx.AsyncClient, control: FakeControl) -> None:
    control.snapshots.states = [state("old")]
    assert (await api.get(f"{SNAPSHOTS}/old/losses")).json() == {
        "since": "2026-01-01T00:00:00Z",
        "memory": True,
        "written_bytes": {"data": 2**20},
        "detached": ["logs"],
    }


async def test_verbs(api: httpx.AsyncClient, control: FakeControl) -> None:
    said = {"name": "old", "memory": True, "description": "why"}
    assert (await api.post(SNAPSHOTS)).status_code == 202
    made = await api.post(SNAPSHOTS, json=said, params={"wait": 5}, headers={"If-Match": '"3"'})
    assert (made.status_code, made.json()["state"]) == (201, "done")
    assert (await api.post(f"{SNAPSHOTS}/old/restore", params={"wait": 5})).status_code == 200
    assert (await api.post(f"{SNAPSHOTS}/old/restore", json={"start": True})).status_code == 202
    assert (await api.delete(f"{SNAPSHOTS}/old")).status_code == 202
    nothing = {"memory": False, "quiesce": False, "description": ""}
    assert [(request.verb, request.parameters) for request in control.requests] == [
        ("snapshot-create", nothing),
        ("snapshot-create", {**nothing, **said}),
        ("snapshot-restore", {"name": "old", "start": False, "disks_only": False}),
        ("snapshot-restore", {"name": "old", "start": True, "disks_only": False}),
        ("snapshot-rm", {"name": "old"}),
    ]
    assert control.requests[1].if_generation == 3


async def test_only_if_nobody_was_faster(api: httpx.AsyncClient, control: FakeControl) -> None:
    for asked in (
        api.post(SNAPSHOTS, headers={"If-Match": '"2"'}),
        api.post(f"{SNAPSHOTS}/old/restore", headers={"If-Match": '"2"'}),
        api.delete(f"{SNAPSHOTS}/old", headers={"If-Match": '"2"'}),
    ):
        answer = await asked
        assert (answer.status_code, answer.json()["code"]) == (412, "stale-generation")
    assert not control.operations


@pytest.mark.parametrize("path", ["", "/losses"])
async def test_what_is_not_there(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.get(f"{SNAPSHOTS}/none{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "snapshot-not-found")
    elsewhere = SNAPSHOTS.replace("web", "nope")
    assert (await api.get(elsewhere)).json()["code"] == "machine-not-found"
    assert (await api.post(elsewhere)).status_code == 404


@pytest.mark.parametrize("said", [{"name": "Bad_Name"}, {"memory": "perhaps"}, {"nmae": "old"}])
async def test_what_can_never_be(api: httpx.AsyncClient, control: FakeControl, said: dict[str, Any]) -> None:
    answer = await api.post(SNAPSHOTS, json=said)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad-document")
    assert next(iter(said)) in answer.json()["fields"][0]["path"]
    assert control.requests == []

"""Every route once, and what it hands to control."""

from __future__ import annotations

import httpx
import pytest

from insula.control.request import VolumeState
from insula.model.observation import Phase
from insula.model.volume import Volume
from insula.server.info import DaemonInfo
from tests.unit.server.fake_control import DIGEST, NOW, FakeControl, machine

WEB = "/v1/projects/default/machines/web"


async def test_version(api: httpx.AsyncClient) -> None:
    assert (await api.get("/v1/version")).json() == {"version": "1.2.3", "api": "v1"}


async def test_daemon(api: httpx.AsyncClient, daemon: DaemonInfo, control: FakeControl) -> None:
    daemon.recovered.append("Machine 'web' was adopted.")
    control.add(machine("old"), Phase.STOPPED)
    told = (await api.get("/v1/daemon")).json()
    assert told["machines"] == {"running": 1, "total": 2}
    assert told["recovered"] == ["Machine 'web' was adopted."]
    assert told["resident_bytes"] > 2**20
    assert told["socket"] == str(daemon.socket)
    assert told["home"] == str(daemon.home.root)


async def test_stop_sets_closing(api: httpx.AsyncClient, daemon: DaemonInfo) -> None:
    assert (await api.post("/v1/daemon/stop")).status_code == 202
    assert daemon.closing.is_set()


async def test_host_and_findings(api: httpx.AsyncClient) -> None:
    assert (await api.get("/v1/host")).json()["accelerator"] == {"name": "tcg", "reason": "no KVM here"}
    assert [finding["name"] for finding in (await api.get("/v1/host/findings")).json()] == ["QEMU"]


async def test_images_and_recipes(api: httpx.AsyncClient, control: FakeControl) -> None:
    assert [image["name"] for image in (await api.get("/v1/images")).json()] == ["micro"]
    assert (await api.get("/v1/images/micro")).json()["digest"] == DIGEST
    assert (await api.get("/v1/images/nope")).status_code == 404
    recipes = (await api.get("/v1/recipes")).json()
    assert recipes[0] == {"name": "micro", "summary": "", "kind": "initramfs", "built": True}
    assert not recipes[1]["built"]
    assert (await api.post("/v1/images/micro/build")).json()["verb"] == "image-build"
    assert (await api.delete("/v1/images/micro", params={"wait": 1})).status_code == 200
    assert [(r.verb, r.name) for r in control.requests] == [("image-build", "micro"), ("image-rm", "micro")]


async def test_system(api: httpx.AsyncClient, control: FakeControl) -> None:
    usage = (await api.get("/v1/system/usage")).json()
    assert usage["kinds"][0]["exclusive_bytes"] == 10
    assert usage["parts"] == []
    (part,) = (await api.get("/v1/system/usage", params={"parts": True})).json()["parts"]
    assert (part["owner"], part["state"]) == ("machine 'web'", "needed")
    found = (await api.get("/v1/system/check")).json()
    assert (found["clean"], found["problems"][0]["remedy"]) == (False, "prune")
    assert (await api.post("/v1/system/check", json={"disks": True})).json()["target_kind"] == "system"
    assert (await api.post("/v1/system/prune")).status_code == 202
    assert (await api.post("/v1/system/prune", json={"lost": ["0" * 16]})).status_code == 202
    assert (await api.post("/v1/system/prune", json={"lost": ["../.."]})).status_code == 422
    assert [(request.verb, request.parameters) for request in control.requests] == [
        ("system-check", {"disks": True}),
        ("system-prune", {"lost": []}),
        ("system-prune", {"lost": ["0" * 16]}),
    ]


async def test_templates(api: httpx.AsyncClient, control: FakeControl) -> None:
    (template,) = (await api.get("/v1/templates")).json()
    assert (template["key"], template["held_bytes"]) == ("0123456789ab", 2**27)
    assert template["image"] == {"name": "micro", "digest": DIGEST}
    assert (await api.delete("/v1/templates/0123", params={"wait": 1})).json()["target_kind"] == "template"
    assert (await api.post("/v1/templates/prune")).status_code == 202
    assert (await api.post("/v1/templates/prune", json={"unused_for": "2h"})).status_code == 202
    assert (await api.post("/v1/templates/prune", json={"unused_for": -1})).status_code == 422
    assert [(r.verb, r.name, r.parameters) for r in control.requests] == [
        ("template-rm", "0123", {}),
        ("template-prune", "", {"unused_for": 0.0}),
        ("template-prune", "", {"unused_for": 7200.0}),
    ]


async def test_images_that_come_and_go(api: httpx.AsyncClient, control: FakeControl) -> None:
    catalogue = {entry["name"]: entry for entry in (await api.get("/v1/catalogue")).json()}
    assert catalogue["arch"]["os"] == "Arch Linux"
    spec = {"path": "/disks/web.vmdk", "format": "vmdk", "memory": "2GiB"}
    assert (await api.post("/v1/images/web/import", json=spec)).status_code == 202
    assert (await api.post("/v1/images/web/import", json={"path": "/x", "what": 1})).status_code == 422
    assert (await api.post("/v1/images/mine/pull", json={"source": "arch"})).status_code == 202
    assert (await api.post("/v1/images/web/export", json={"path": "/out"})).status_code == 202
    assert (await api.post("/v1/images/prune", params={"wait": 1})).status_code == 200
    assert [(r.verb, r.name) for r in control.requests] == [
        ("image-import", "web"),
        ("image-pull", "mine"),
        ("image-export", "web"),
        ("image-prune", ""),
    ]
    imported, pulled, exported, _ = (request.parameters for request in control.requests)
    assert (imported["path"], imported["format"], imported["memory"]) == ("/disks/web.vmdk", "vmdk", 2**31)
    assert pulled == {"source": "arch"}
    assert exported == {"path": "/out", "format": "qcow2", "replace": False}


async def test_machine_object(api: httpx.AsyncClient, daemon: DaemonInfo, control: FakeControl) -> None:
    answer = await api.get(WEB)
    uid = control.machines[("default", "web")].document.uid
    assert answer.headers["etag"] == '"3"'
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "name": "web",
        "project": "default",
        "uid": uid,
        "generation": 3,
        "phase": "running",
        "since": "2026-01-01T00:00:00Z",
        "reason": "",
        "image": "micro",
        "image_digest": DIGEST,
        "cpus": 2,
        "memory_bytes": 2**29,
        "pid": 4711,
        "addresses": ["10.0.2.15"],
        "created": "2026-01-01T00:00:00Z",
        "power": "off",
        "run_policy": "keep",
        "ephemeral": False,
        "boot": "direct",
        "firmware": "bios",
        "network": "isolated",
        "publish": [{"host_port": 2222, "guest_port": 22, "host_address": "127.0.0.1", "protocol": "tcp"}],
        "volumes": [],
        "cdrom": None,
        "accelerator": {"name": "tcg", "reason": "no KVM here"},
        "engine_version": "7.2",
        "agent": "connected",
        "restarts": 0,
        "directory": str(daemon.home.machine(uid)),
        "last_exit": None,
    }


async def test_machine_without_process_has_no_pid(api: httpx.AsyncClient, control: FakeControl) -> None:
    control.add(machine("old").changed(devices=()), Phase.STOPPED)
    told = (await api.get("/v1/projects/default/machines/old")).json()
    assert (told["pid"], told["network"], told["publish"]) == (None, "none", [])


async def test_lists_are_by_project(api: httpx.AsyncClient, control: FakeControl) -> None:
    control.add(machine("db", project="shop"))
    assert [m["name"] for m in (await api.get("/v1/machines")).json()] == ["web", "db"]
    assert [m["name"] for m in (await api.get("/v1/projects/shop/machines")).json()] == ["db"]


async def test_create(api: httpx.AsyncClient, control: FakeControl) -> None:
    spec = {"image": "micro", "name": "new", "memory": "1GiB", "publish": ["8080:80"]}
    answer = await api.post("/v1/projects/shop/machines", json=spec, params={"start": "true"})
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/operations/{answer.json()['uid']}"
    assert answer.json()["kind"] == "operation"
    (request,) = control.requests
    assert (request.verb, request.project, request.name) == ("create", "shop", "new")
    assert request.parameters["start"] is True
    # Only what was said: what was not is the image's to fill in.
    assert request.parameters["spec"].keys() == spec.keys()
    assert request.parameters["spec"]["memory"] == 2**30


@pytest.mark.parametrize("verb", ["start", "reset", "pause", "resume", "suspend", "kill", "stop", "restart"])
@pytest.mark.parametrize("body", [None, {}])
async def test_verbs_without_parameters(
    api: httpx.AsyncClient, control: FakeControl, verb: str, body: dict[str, str] | None
) -> None:
    answer = await (api.post(f"{WEB}/{verb}") if body is None else api.post(f"{WEB}/{verb}", json=body))
    assert answer.status_code == 202, answer.text
    (request,) = control.requests
    assert (request.verb, request.name, request.parameters, request.if_generation) == (verb, "web", {}, None)


async def test_verbs_with_parameters(api: httpx.AsyncClient, control: FakeControl) -> None:
    await api.post(f"{WEB}/stop", json={"timeout": "1m30s", "force": False})
    await api.post(f"{WEB}/restart", json={"timeout": 5})
    await api.post(f"{WEB}/start", json={"cold": True})
    await api.post(f"{WEB}/rename", json={"name": "new"})
    await api.post(f"{WEB}/cdrom-insert", json={"image": "tools", "bus": "scsi"})
    await api.post(f"{WEB}/cdrom-eject")
    await api.post(f"{WEB}/cdrom-eject", json={"force": True})
    await api.delete(WEB, params={"force": "true"})
    assert [(request.verb, request.parameters) for request in control.requests] == [
        ("stop", {"timeout": 90.0, "force": False}),
        ("restart", {"timeout": 5.0}),
        ("start", {"cold": True}),
        ("rename", {"name": "new"}),
        ("cdrom-insert", {"image": "tools", "bus": "scsi"}),
        ("cdrom-eject", {}),
        ("cdrom-eject", {"force": True}),
        ("rm", {"force": True}),
    ]


async def test_operations(api: httpx.AsyncClient, control: FakeControl) -> None:
    control.holds = True
    uid = (await api.post(f"{WEB}/start")).json()["uid"]
    assert [operation["uid"] for operation in (await api.get("/v1/operations")).json()] == [uid]
    assert (await api.post(f"/v1/operations/{uid}/cancel")).json()["cancel_requested"] is True
    control.finish(uid)
    assert (await api.get("/v1/operations")).json() == []
    assert (await api.get("/v1/operations", params={"all": "true"})).json()[0]["state"] == "done"
    assert (await api.get(f"/v1/operations/{uid}")).json()["state"] == "done"
    assert (await api.get("/v1/operations/nope")).status_code == 404


async def test_log(api: httpx.AsyncClient) -> None:
    answer = await api.get(f"{WEB}/log")
    assert answer.content == b"one\ntwo\n"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert (await api.get(f"{WEB}/log", params={"tail": 1})).content == b"two\n"
    assert (await api.get("/v1/projects/default/machines/nope/log")).status_code == 404


async def test_events_that_are_kept(api: httpx.AsyncClient, control: FakeControl) -> None:
    control.tell("machine.created")
    control.tell("machine.phase", phase="running")
    answer = await api.get("/v1/events", params={"follow": "false"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    first, second = answer.text.strip().split("\n\n")
    assert first.startswith("id: 1\nevent: machine.created\ndata: {")
    assert '"phase":"running"' in second
    later = await api.get("/v1/events", params={"follow": "false", "after": 1})
    assert later.text.startswith("id: 2\n")
    resumed = await api.get(
        "/v1/events", params={"follow": "false", "after": 0}, headers={"Last-Event-ID": "1"}
    )
    assert resumed.text == later.text


async def test_volumes(api: httpx.AsyncClient, control: FakeControl) -> None:
    volume = Volume(uid="09d3c1a45b7e2f68", name="data", created=NOW, size_bytes=2**30)
    control.volumes[("default", "data")] = VolumeState(volume, (("web", True),))
    told = (await api.get("/v1/projects/default/volumes/data")).json()
    assert told["size_bytes"] == 2**30
    assert told["serial"] == "09d3c1a45b7e2f68"
    assert told["attached_to"] == [{"machine": "web", "read_only": True}]
    assert (await api.get("/v1/volumes")).json() == [told]
    path = "/v1/projects/default/volumes"
    assert (await api.post(path, json={"name": "new", "size": "1GiB"})).status_code == 202
    assert (await api.post(f"{path}/data/resize", json={"size": "2GiB"})).status_code == 202
    assert (await api.post(f"{path}/data/clone", json={"name": "copy"})).status_code == 202
    assert (await api.delete(f"{path}/data")).status_code == 202
    said = [(request.verb, request.name, request.parameters) for request in control.requests]
    assert said == [
        ("volume-create", "new", {"size": 2**30}),
        ("volume-resize", "data", {"size": 2**31}),
        ("volume-clone", "data", {"name": "copy"}),
        ("volume-rm", "data", {}),
    ]
    assert (await api.get(f"{path}/dato")).status_code == 404
    assert (await api.post(path, json={"name": "new", "size": 1})).status_code == 422

"""Images as operations: refused before anything changes, done once whatever dies in between, joined when the
same."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest

from insula.control.request import VerbRequest
from insula.kit.errors import InsulaError
from insula.model.operation import OperationState
from insula.node import image_actor
from insula.node.procedure import DaemonDied
from insula.storage import download
from insula.storage.images import ImageStore
from tests.support.host import FakeHost, publish_fake_image
from tests.support.hostile import MIB, qcow2
from tests.support.mirror import Mirror
from tests.unit.control.test_faults import Scripted, faults_reached

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
DISK = bytes(510) + b"\x55\xaa" + b"disk" * (MIB // 4)
VERBS = ("image-import", "image-pull", "image-export", "image-prune")
PLACES = [(verb, f"{when} {verb}") for verb in VERBS for when in ("before", "after")]


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setattr(download, "_opener", build_opener(ProxyHandler({}), download._Redirects))
    with Mirror({"/disk": DISK}) as mirror:
        yield mirror


@pytest.fixture
async def host(tmp_path: Path, mirror: Mirror) -> AsyncIterator[FakeHost]:
    """A host that is not booted, with a file to import, an image to export and one to pull."""
    host = FakeHost(tmp_path / "home")
    publish_fake_image(ImageStore(host.home.images))
    (tmp_path / "disk").write_bytes(DISK)
    catalogues = host.home.root / "catalogues"
    catalogues.mkdir()
    entry = {"name": "far", "version": "1", "os": "Far", "format": "raw", "url": mirror.url("/disk")}
    entry["sha256"] = hashlib.sha256(DISK).hexdigest()
    (catalogues / "own.json").write_text(json.dumps({"version": 1, "images": [entry]}))
    yield host
    await host.close()


def asked(host: FakeHost, verb: str) -> tuple[str, dict[str, Any]]:
    """The name and the parameters of a verb on this host."""
    place = host.root.parent
    return {
        "image-import": ("near", {"path": str(place / "disk"), "os": "Near", "memory": "128MiB"}),
        "image-pull": ("far", {}),
        "image-export": ("near", {"path": str(place / "out"), "format": "raw"}),
        "image-prune": ("*", {}),
    }[verb]


async def prepare(host: FakeHost, verb: str) -> None:
    if verb == "image-export":
        name, parameters = asked(host, "image-import")
        assert (await host.do("image-import", name, **parameters)).problem is None
    if verb == "image-prune":
        publish_fake_image(ImageStore(host.home.images), "dead")
        (host.home.images / "dead").unlink()


def is_done(host: FakeHost, verb: str) -> bool:
    names = [image.name for image in ImageStore(host.home.images).list()]
    return {
        "image-import": "near" in names,
        "image-pull": "far" in names,
        "image-export": (host.root.parent / "out").exists(),
        "image-prune": not (host.home.images / "blobs" / b"dead".hex().ljust(64, "0")).exists(),
    }[verb]


def left(host: FakeHost) -> list[Path]:
    """What should not be there once nothing is under way."""
    places = [host.home.images / "builds", host.home.images / "downloads", host.root.parent]
    found = [path for place in places if place.exists() for path in place.iterdir()]
    return [path for path in found if path.name not in ("disk", "out", "home")]


@pytest.mark.parametrize(("verb", "place"), PLACES)
async def test_a_failure_is_told_and_leaves_the_old_state(host: FakeHost, verb: str, place: str) -> None:
    faults = Scripted(verb=verb)
    await host.boot(faults)
    await prepare(host, verb)
    faults.place = place
    name, parameters = asked(host, verb)
    operation = await host.do(verb, name, **parameters)
    assert operation.state is OperationState.FAILED
    assert left(host) == []
    if place.startswith("before"):
        assert not is_done(host, verb)
        assert (await host.do(verb, name, **parameters)).state is OperationState.DONE
    assert is_done(host, verb)


@pytest.mark.parametrize(("verb", "place"), PLACES)
async def test_a_daemon_that_dies_is_followed_by_one_that_finishes(
    host: FakeHost, verb: str, place: str
) -> None:
    faults = Scripted(verb=verb, error=DaemonDied)
    await host.boot(faults)
    await prepare(host, verb)
    faults.place = place
    name, parameters = asked(host, verb)
    submitted = await host.submit(verb, name, **parameters)
    await faults_reached(faults)
    await host.die()
    await host.boot()
    operation = await host.ended(submitted.uid)
    assert operation.state is OperationState.DONE, operation.problem
    assert operation.recovered == 1
    assert is_done(host, verb)
    assert left(host) == []


async def test_an_imported_image_is_run_from_its_disk(host: FakeHost) -> None:
    await host.boot()
    name, parameters = asked(host, "image-import")
    operation = await host.do("image-import", name, **parameters)
    assert operation.outcome is not None
    assert operation.outcome["digest"].startswith("sha256:")
    await host.run("web", image="near")
    machine = host.machine()
    assert machine is not None
    assert (machine.boot, machine.memory_bytes, machine.image.digest) == (
        "disk",
        128 * MIB,
        operation.outcome["digest"],
    )
    # Its files stay, whatever becomes of the name.
    assert (await host.do("image-rm", "near")).outcome == {"name": "near", "freed": False}
    assert (await host.do("image-prune", "*")).outcome == {"removed": []}
    await host.do("rm", force=True)
    assert (await host.do("image-prune", "*")).outcome == {"removed": [operation.outcome["digest"]]}


@pytest.mark.parametrize(
    ("verb", "name", "parameters", "code"),
    [
        ("image-import", "Bad Name", {"path": "/x"}, "bad-name"),
        ("image-import", "web", {}, "bad-document"),
        ("image-import", "web", {"path": "/x", "agent": "insula"}, "bad-document"),
        ("image-import", "web", {"path": "/nowhere"}, "image-source-unreadable"),
        ("image-import", "web", {"path": "HOSTILE"}, "image-refused"),
        ("image-import", "web", {"path": "HOSTILE", "format": "vmdk"}, "image-format-unknown"),
        ("image-import", "micro", {"path": "HOSTILE"}, "image-name-taken"),
        ("image-pull", "farr", {}, "not-in-catalogue"),
        ("image-pull", "web", {"source": "../x"}, "bad-document"),
        ("image-export", "web", {"path": "/tmp/x"}, "image-not-found"),
        ("image-export", "micro", {"path": "/tmp/x"}, "image-has-no-disk"),
    ],
)
async def test_bad_input_is_refused_before_anything_changes(
    host: FakeHost, verb: str, name: str, parameters: dict[str, Any], code: str
) -> None:
    hostile = host.root.parent / "disk"
    hostile.write_bytes(qcow2(backing=b"/etc/shadow"))
    control = await host.boot()
    given = {key: str(hostile) if value == "HOSTILE" else value for key, value in parameters.items()}
    with pytest.raises(InsulaError) as refused:
        await control.submit(VerbRequest(verb, name=name, parameters=given))
    assert refused.value.code == code
    assert await control.list_operations(active=False) == []
    assert left(host) == []


async def test_the_same_pull_is_joined_and_another_waits(host: FakeHost, mirror: Mirror) -> None:
    control = await host.boot()
    first = await host.submit("image-pull", "far")
    same = await host.submit("image-pull", "far")
    await host.submit("image-pull", "mine", source="far")
    ended = [await host.ended(first.uid), await host.ended(same.uid)]
    assert ended[0].outcome == ended[1].outcome
    assert ended[1].steps == (), "it did nothing of its own"
    assert control is host.control


async def test_a_cancelled_import_is_gone(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    async def endless(*_: object) -> dict[str, Any]:
        begun.set()
        await asyncio.Event().wait()
        return {}

    monkeypatch.setattr(image_actor, "find_work", lambda _: endless)
    control = await host.boot()
    name, parameters = asked(host, "image-import")
    operation = await host.submit("image-import", name, **parameters)
    await asyncio.wait_for(begun.wait(), 5)
    await control.cancel_operation(operation.uid)
    assert (await host.ended(operation.uid)).state is OperationState.CANCELLED

"""Looking at made-up homes: whom everything belongs to, what is wrong, and what prune removes."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from insula.kit.paths import MACHINE_DOCUMENT
from insula.model.base import new_uid
from insula.model.housekeeping import Part
from insula.model.machine import Machine
from insula.model.operation import OperationState
from insula.node.housekeeping.reading import look_at
from insula.storage.images import ImageStore
from insula.store.protocol import Delete, Put
from tests.support.homes import LONG_AGO, MIB, age, check, make, part, problem, prune, remember, uid_of, usage
from tests.support.host import FakeHost, publish_fake_image


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[FakeHost]:
    host = FakeHost(tmp_path / "home", template_budget=2**30)
    publish_fake_image(ImageStore(host.home.images))
    await host.boot()
    yield host
    await host.close()


# -- what is well


async def test_a_home_in_use_is_clean(host: FakeHost) -> None:
    await host.run("web")
    await host.run("db")
    if shutil.which("qemu-img"):
        await host.do("volume-create", "data", size="1MiB")
    assert (await host.do("fork", "web", count=2)).state is OperationState.DONE
    found = await check(host)
    assert found.problems == ()
    assert found.clean
    states = {(part.kind, part.state) for part in (await usage(host)).parts}
    assert ("machine", "needed") in states
    assert ("template", "cache") in states
    assert ("image", "needed") in states
    assert ("ledger", "needed") in states
    assert not {state for _, state in states} & {"orphan", "lost", "foreign"}


async def test_an_empty_home(tmp_path: Path) -> None:
    host = FakeHost(tmp_path / "home")
    await host.boot()
    assert (await check(host)).clean
    assert (await usage(host)).reclaimable_bytes == 0
    await host.close()


async def test_prune_removes_nothing_that_is_needed(host: FakeHost) -> None:
    await host.run("web")
    before = sorted(str(path) for path in host.home.root.rglob("*"))
    outcome = await prune(host)
    assert outcome == {"removed": [], "left": [], "freed_bytes": 0, "freed_memory_bytes": 0}
    assert sorted(str(path) for path in host.home.root.rglob("*")) == before


# -- sizes


async def test_what_machines_share_is_counted_once(host: FakeHost) -> None:
    await host.do("create", "web")
    await host.do("create", "db")
    directories = {name: host.home.machine(uid_of(host, name)) for name in ("web", "db")}
    shared = directories["web"] / "disk0-abc.qcow2"
    shared.write_bytes(os.urandom(MIB))
    os.link(shared, directories["db"] / shared.name)
    (directories["db"] / "own").write_bytes(os.urandom(MIB))
    web, db = await part(host, uid_of(host, "web")), await part(host, uid_of(host, "db"))
    assert web.shared_bytes == db.shared_bytes == MIB
    assert MIB <= db.exclusive_bytes < MIB + 65536
    assert web.exclusive_bytes < 65536
    (machines,) = [kind for kind in (await usage(host)).kinds if kind.kind == "machine"]
    assert machines.count == 2
    assert machines.shared_bytes == 0  # of all machines together, the file is exclusive
    assert machines.size_bytes == web.size_bytes + db.size_bytes - MIB
    for each in (web, db):
        assert each.size_bytes == each.exclusive_bytes + each.shared_bytes


async def test_a_link_to_elsewhere_frees_nothing(host: FakeHost, tmp_path: Path) -> None:
    await host.do("create", "web")
    kept = tmp_path / "kept"
    kept.write_bytes(os.urandom(MIB))
    os.link(kept, host.home.machine(uid_of(host, "web")) / "disk1.qcow2")
    assert (await part(host, uid_of(host, "web"))).shared_bytes == MIB


async def test_templates_hold_memory(host: FakeHost) -> None:
    await host.run("web")
    found = await usage(host)
    (template,) = [kind for kind in found.kinds if kind.kind == "template"]
    assert template.memory_bytes == template.reclaimable_memory_bytes == 128 * MIB
    assert found.total.memory_bytes == found.reclaimable_memory_bytes == 128 * MIB


# -- what is nobody's


@pytest.mark.parametrize("room", ["machines", "volumes", "snapshots"])
async def test_what_the_ledger_remembers_to_be_gone_is_an_orphan(host: FakeHost, room: str) -> None:
    uid = new_uid()
    directory = make(host.home.root / room / uid, file=MIB)
    await remember(host, uid, OperationState.FAILED)
    found = await problem(host)
    assert found.code == f"orphan-{room.removesuffix('s')}"
    assert found.remedy == "prune"
    assert found.size_bytes >= MIB
    assert "create of 'web', failed" in found.why
    assert (await usage(host)).reclaimable_bytes == found.size_bytes
    outcome = await prune(host)
    assert outcome["freed_bytes"] == found.size_bytes
    assert not directory.exists()
    assert (await check(host)).clean
    assert (await prune(host))["removed"] == []


@pytest.mark.parametrize("room", ["machines", "volumes", "snapshots"])
async def test_what_the_ledger_has_never_heard_of_is_lost_and_kept(host: FakeHost, room: str) -> None:
    directory = make(host.home.root / room / new_uid(), file=MIB)
    found = await problem(host)
    assert found.code == f"lost-{room.removesuffix('s')}"
    assert found.remedy == "lost"
    assert f"--lost {directory.name}" in found.mend
    assert "--recover-ledger" not in found.mend
    document = directory / f"{room.removesuffix('s')}.json"
    document.write_text("{}")
    age(directory)
    assert ("--recover-ledger" in (await problem(host)).mend) is (room != "snapshots")
    assert (await prune(host))["removed"] == []
    assert (directory / "file").exists()
    outcome = await prune(host, lost=[directory.name])
    assert [removed["path"] for removed in outcome["removed"]] == [str(directory)]
    assert not directory.exists()


async def test_only_what_is_lost_can_be_named(host: FakeHost) -> None:
    from insula.control.housekeeping import NothingLost
    from insula.model.base import BadDocument

    await host.do("create", "web")
    with pytest.raises(NothingLost):
        await host.submit("system-prune", "", lost=[uid_of(host, "web")])
    with pytest.raises(BadDocument):
        await host.submit("system-prune", "", lost=["../../etc"])
    assert host.home.machine(uid_of(host, "web")).is_dir()


async def test_a_lost_ledger_makes_nothing_garbage(host: FakeHost) -> None:
    await host.run("web")
    directory = host.home.machine(uid_of(host, "web"))
    await host.do("stop", "web")
    await host.close()
    host.home.ledger.unlink()
    await host.boot()
    age(directory)
    (found,) = [p for p in (await check(host)).problems if not p.note]
    assert found.code == "lost-machine"
    await prune(host)
    assert (directory / MACHINE_DOCUMENT).exists()


async def test_what_an_operation_works_on_is_kept(host: FakeHost) -> None:
    uid = new_uid()
    make(host.home.machines / uid, file=1)
    await remember(host, uid, OperationState.FAILED)
    await remember(host, uid, OperationState.QUEUED)
    assert (await check(host)).clean
    assert (await part(host, uid)).state == "making"
    assert (await prune(host))["removed"] == []


async def test_what_an_operation_names_anywhere_is_kept(host: FakeHost) -> None:
    assert host.store is not None
    uid, other = new_uid(), new_uid()
    for room in ("captures", "snapshots"):
        make(host.home.root / room / uid, file=1)
    operation = await remember(host, new_uid(), OperationState.QUEUED, verb="fork")
    named = operation.model_copy(
        update={"remembered": {"deep": [{"captured": uid}]}, "parameters": {"siblings": [other]}}
    )
    await host.store.commit([Put(named)])
    assert (await check(host)).clean


async def test_what_is_younger_than_the_look_is_kept(host: FakeHost) -> None:
    uid = new_uid()
    directory = make(host.home.machines / uid, file=1)
    await remember(host, uid, OperationState.FAILED)
    later = time.time() + 60
    os.utime(directory, (later, later))
    assert (await check(host)).clean
    assert (await part(host, uid)).state == "making"


async def test_a_removal_that_was_cut_short(host: FakeHost) -> None:
    rooms = [host.home.machines, host.home.volumes, host.home.snapshots]
    for room in rooms:
        make(room / f".removing-{new_uid()}", file=MIB)
    found = await check(host)
    assert {p.code for p in found.problems} == {"orphan-machine", "orphan-volume", "orphan-snapshot"}
    assert (await prune(host))["freed_bytes"] >= 3 * MIB
    assert not [path for room in rooms for path in room.iterdir()]


async def test_a_machine_removed_by_half_is_not_garbage(host: FakeHost) -> None:
    await host.do("create", "web")
    directory = host.home.machine(uid_of(host, "web"))
    directory.rename(directory.with_name(f".removing-{directory.name}"))
    found = await problem(host)
    assert (found.code, found.mend) == ("half-removed", "insula rm -f web")
    assert (await prune(host))["removed"] == []
    await host.do("rm", "web", force=True)
    assert (await check(host)).clean
    assert list(host.home.machines.iterdir()) == []


async def test_half_a_template(host: FakeHost) -> None:
    directory = make(host.home.templates / "0123456789ab", file=MIB)
    assert (await problem(host)).code == "orphan-template"
    assert (await prune(host))["freed_bytes"] >= MIB
    assert not directory.exists()


async def test_a_template_that_is_being_made_is_kept(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.node is not None
    templates = host.node.rooms.templates
    begun, go_on = asyncio.Event(), asyncio.Event()
    bring_to_rest = templates._bring_to_rest

    async def held(*arguments: Any) -> None:
        begun.set()
        await go_on.wait()
        await bring_to_rest(*arguments)

    monkeypatch.setattr(templates, "_bring_to_rest", held)
    create = await host.submit("create", "web", start=True)
    await begun.wait()
    (directory,) = host.home.templates.iterdir()
    age(directory)
    assert (await check(host)).clean
    assert (await part(host, directory.name)).state == "making"
    assert (await prune(host))["removed"] == []
    go_on.set()
    assert (await host.ended(create.uid)).state is OperationState.DONE
    assert (await part(host, directory.name)).state == "cache"


async def test_a_capture_whose_fork_has_ended(host: FakeHost) -> None:
    operation = await remember(host, new_uid(), OperationState.DONE, verb="fork")
    directory = make(host.home.captures / operation.uid, file=1)
    assert (await problem(host)).code == "orphan-capture"
    await prune(host)
    assert not directory.exists()


async def test_dead_builds_names_claims_and_downloads(host: FakeHost) -> None:
    images = host.home.images
    make(images / "builds" / "abc", file=MIB)
    make(images / "claims" / ("a" * 64), file=1)
    old = make(images / "downloads" / "old", data=1)
    young = images / "downloads" / "young"
    young.mkdir()
    link = images / ".micro.1234"
    link.symlink_to("blobs/none")
    os.utime(link, (LONG_AGO, LONG_AGO), follow_symlinks=False)
    found = await check(host)
    assert sorted(p.code for p in found.problems) == [
        "orphan-build",
        "orphan-download",
        "orphan-image",
        "orphan-image",
    ]
    outcome = await prune(host)
    assert len(outcome["removed"]) == 4
    assert outcome["freed_bytes"] >= MIB
    assert not old.exists()
    assert young.exists()
    assert host.home.images.joinpath("micro", "manifest.json").exists()


async def test_a_build_under_way_is_kept(host: FakeHost) -> None:
    store = ImageStore(host.home.images)
    with store.new_build() as work, store.download("key") as download:
        age(work)
        age(download)
        assert (await check(host)).clean
        assert (await part(host, work.name)).state == "making"
        assert (await prune(host))["removed"] == []
        assert work.exists()
        assert download.exists()


async def test_an_image_without_a_name_is_unused_until_a_machine_has_it(host: FakeHost) -> None:
    await host.do("create", "web")
    publish_fake_image(ImageStore(host.home.images), digest=f"sha256:{'b' * 64}")
    machine = host.machine("web")
    assert machine is not None
    old = await part_of_blob(host, machine)
    assert old.state == "needed"
    assert "web" in old.reason
    await host.do("rm", "web")
    old = await part_of_blob(host, machine)
    assert old.state == "unused"
    assert (await check(host)).clean
    assert (await usage(host)).reclaimable_bytes >= old.exclusive_bytes > 0
    assert (await prune(host))["removed"] == []  # that is `image prune`'s
    await host.do("image-prune", "*")
    assert (await check(host)).clean


async def part_of_blob(host: FakeHost, machine: Machine) -> Part:
    digest = machine.image.digest.removeprefix("sha256:")
    (found,) = [p for p in (await usage(host)).parts if p.name == digest and "/blobs/" in p.path]
    return found


async def test_files_about_to_be_renamed(host: FakeHost) -> None:
    await host.do("create", "web")
    directory = host.home.machine(uid_of(host, "web"))
    (host.home.root / "daemon").mkdir(exist_ok=True)
    places = [directory, host.home.root, host.home.daemon]
    for place in places:
        (place / ".file.7.new").write_bytes(os.urandom(4096))
    assert (await check(host)).clean  # somebody may be at it
    for place in places:
        os.utime(place / ".file.7.new", (LONG_AGO, LONG_AGO))
    found = await check(host)
    assert [p.remedy for p in found.problems] == ["prune"] * 3
    outcome = await prune(host)
    assert len(outcome["removed"]) == 3
    assert outcome["freed_bytes"] == 3 * 4096
    assert not [place for place in places if (place / ".file.7.new").exists()]


async def test_what_is_not_insulas_is_named_and_never_touched(host: FakeHost, tmp_path: Path) -> None:
    outside = make(tmp_path / "outside", precious=MIB)
    (host.home.root / "notes.txt").write_text("mine")
    make(host.home.machines / "my-backup", file=1)
    uid = new_uid()
    (host.home.volumes).mkdir(exist_ok=True)
    (host.home.volumes / uid).symlink_to(outside)
    (host.home.volumes / f".removing-{uid}").symlink_to(outside)
    await remember(host, uid, OperationState.FAILED)
    found = await check(host)
    assert found.clean
    assert {p.code for p in found.problems} == {"foreign"}
    assert len(found.problems) == 4
    assert (await prune(host))["removed"] == []
    assert (outside / "precious").exists()
    assert (host.home.volumes / uid).is_symlink()


async def test_a_room_that_is_a_link_is_not_pruned(host: FakeHost, tmp_path: Path) -> None:
    elsewhere = tmp_path / "large-disk"
    uid = new_uid()
    make(elsewhere / uid, file=1)
    make(elsewhere / f".removing-{new_uid()}", file=1)
    host.home.volumes.symlink_to(elsewhere)
    await remember(host, uid, OperationState.FAILED)
    found = await check(host)
    assert {p.code for p in found.problems} == {"orphan-volume"}
    assert {p.remedy for p in found.problems} == {"none"}
    assert (await usage(host)).reclaimable_bytes == 0
    assert (await prune(host))["removed"] == []
    assert len(list(elsewhere.iterdir())) == 2


async def test_links_in_what_is_removed_are_not_followed(host: FakeHost, tmp_path: Path) -> None:
    outside = make(tmp_path / "outside", precious=MIB)
    directory = make(host.home.machines / f".removing-{new_uid()}", file=1)
    (directory / "link").symlink_to(outside)
    (directory / "file-link").symlink_to(outside / "precious")
    age(directory)
    assert (await prune(host))["freed_bytes"] < MIB
    assert (outside / "precious").exists()
    assert not directory.exists()


async def test_a_process_keeps_its_orphaned_directory(host: FakeHost) -> None:
    await host.run("web")
    uid = uid_of(host, "web")
    directory = host.home.machine(uid)
    assert host.store is not None
    await host.store.commit([Delete(Machine, uid)])
    age(directory)
    (found,) = (await check(host)).problems
    assert found.code == "orphan-machine"
    assert found.remedy == "none"
    assert "a process runs in it" in found.why
    assert (await prune(host))["removed"] == []
    assert directory.exists()


async def test_what_is_needed_by_the_time_it_is_to_go_stays(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operation that begins between the look and the removal."""
    from insula.node.housekeeping import pruning

    uid = new_uid()
    directory = make(host.home.machines / uid, file=1)
    await remember(host, uid, OperationState.FAILED)

    async def meanwhile(*arguments: Any) -> Any:
        await remember(host, uid, OperationState.QUEUED)
        return await look_at(*arguments)

    monkeypatch.setattr(pruning, "look_at", meanwhile)
    outcome = await prune(host)
    assert outcome["removed"] == []
    assert "operation is at it" in outcome["left"][0]["why"]
    assert directory.exists()

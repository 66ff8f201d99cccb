"""Launches as forks of templates, on a whole host with fake machines."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from insula.control.port import ExecRequest
from insula.engine.agent.protocol import Identity, Renewal
from insula.engine.fake import FakeEngine, Script
from insula.engine.fakeguest import COMMANDS, Call, FakeAgent
from insula.engine.protocol import Instance
from insula.kit.errors import InsulaError
from insula.kit.paths import TEMPLATE_DOCUMENT
from insula.model.image import Image
from insula.model.observation import Phase
from insula.model.operation import Operation, OperationState
from insula.node import renewal, templates
from insula.node.disks import stand_on
from insula.node.templates import Report, TemplateNotFound, Templates
from insula.storage import builder
from insula.storage.images import ImageStore
from insula.storage.recipe import Recipe
from tests.support.host import FakeHost, publish_fake_image

MIB = 2**20


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[FakeHost]:
    host = FakeHost(tmp_path / "home", template_budget=512 * MIB)
    publish_fake_image(ImageStore(host.home.images))
    await host.boot()
    yield host
    await host.close()


def rooms_of(host: FakeHost) -> Templates:
    assert host.node is not None
    return host.node.rooms.templates


def keys(host: FakeHost) -> list[str]:
    return [view.key for view in rooms_of(host).all()]


def booted(operation: Operation) -> str:
    assert operation.outcome is not None, operation.problem
    reason: str = operation.outcome["booted"]
    return reason


async def hostname(host: FakeHost, name: str) -> str:
    return host.world.machine(name).hostname


async def test_every_launch_is_a_fork_with_a_name_of_its_own(host: FakeHost) -> None:
    first = await host.run("one")
    assert booted(first) == ""
    assert first.outcome is not None
    assert "random" in first.outcome["renewed"]["renewed"]
    before = host.world.launches
    second = await host.run("two", ephemeral=True, run_policy="once")
    assert booted(second) == ""
    assert host.world.launches == before + 1
    assert len(keys(host)) == 1
    assert [await hostname(host, name) for name in ("one", "two")] == ["one", "two"]
    template = rooms_of(host).directory(keys(host)[0])
    for name in ("one", "two"):
        assert host.world.machine(name).plan.memory.template == template
        assert host.seen(name).phase is Phase.RUNNING


async def test_launches_at_once_make_one_template(host: FakeHost) -> None:
    await asyncio.gather(*(host.run(f"m{number}") for number in range(4)))
    assert len(keys(host)) == 1
    assert host.world.launches == 5


async def test_another_kind_has_another_template(host: FakeHost) -> None:
    await host.run("one")
    await host.run("big", memory="256MiB")
    assert len(keys(host)) == 2


async def test_cold_boots(host: FakeHost) -> None:
    assert "asked for" in booted(await host.do("create", "one", start=True, cold=True))
    assert keys(host) == []
    assert host.world.machine("one").plan.memory.template is None


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"agent": "qemu"}, "no agent"),
        ({"agent": "none"}, "no agent"),
        ({"memory": "1GiB"}, "would not fit"),
    ],
)
async def test_why_it_boots_is_told(host: FakeHost, spec: dict[str, Any], why: str) -> None:
    assert why in booted(await host.run("one", **spec))
    assert keys(host) == []


async def test_no_budget_no_templates(tmp_path: Path) -> None:
    host = FakeHost(tmp_path / "none")
    publish_fake_image(ImageStore(host.home.images))
    await host.boot()
    assert "switched off" in booted(await host.run("one"))
    await host.close()


async def test_cloud_init_that_is_taken_at_the_first_boot_only(host: FakeHost) -> None:
    publish_fake_image(ImageStore(host.home.images), "cloudy", cloud_init=True)
    operation = await host.do(
        "create", "one", start=True, spec={"image": "cloudy", "cloud_init": {"user": "joe"}}
    )
    assert "cloud-init" in booted(operation)


async def test_a_kind_whose_guest_never_answers_boots_and_is_not_tried_again(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "BOOT_PATIENCE", 0.01)
    host.world.scripts["template"] = Script(agent="silent")
    assert "could not be made" in booted(await host.run("one"))
    assert not any(host.home.templates.iterdir())
    before = host.world.launches
    assert "could not be made" in booted(await host.run("two"))
    assert host.world.launches == before + 1
    await host.close()
    host.world.scripts.clear()
    await host.boot()
    assert booted(await host.run("three")) == ""


async def test_a_host_that_is_full_makes_no_template_and_boots(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def freeze(self: FakeEngine, instance: Instance) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(FakeEngine, "freeze", freeze)
    assert "No space left" in booted(await host.run("one"))
    assert not any(host.home.templates.iterdir())
    assert {machine.plan.name for machine in host.world.machines.values()} == {"one"}


async def test_a_template_that_goes_before_the_launch_is_no_failure(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.run("one")
    host.world.frozen.clear()  # its memory, while the template is being used
    monkeypatch.setattr(Templates, "is_whole", lambda self, key: True)
    operation = await host.run("two")
    assert "went before" in booted(operation)
    assert host.world.machine("two").plan.memory.template is None


async def test_the_one_used_longest_ago_gives_way(host: FakeHost) -> None:
    for name, memory in (("a", "160MiB"), ("b", "161MiB"), ("c", "162MiB")):
        await host.run(name, memory=memory)
    first, second, third = (_key_of(host, size * MIB) for size in (160, 161, 162))
    for age, key in ((30, first), (20, second), (10, third)):
        document = rooms_of(host).directory(key) / TEMPLATE_DOCUMENT
        then = document.stat().st_mtime - age
        os.utime(document, (then, then))
    await host.run("again", memory="160MiB")  # used now, so `b` is the oldest
    await host.run("d", memory="163MiB")
    assert set(keys(host)) == {first, third, _key_of(host, 163 * MIB)}
    assert host.seen("b").phase is Phase.RUNNING


def _key_of(host: FakeHost, memory_bytes: int) -> str:
    return next(view.key for view in rooms_of(host).all() if view.memory_bytes == memory_bytes)


async def test_sweep_removes_what_is_none_and_nothing_else(host: FakeHost) -> None:
    await host.run("one")
    await host.run("big", memory="256MiB")
    whole, lost = _key_of(host, 128 * MIB), _key_of(host, 256 * MIB)
    half = host.home.templates / "half"
    half.mkdir()
    (half / "disk0.qcow2").write_text("half")
    del host.world.frozen[rooms_of(host).directory(lost)]
    await rooms_of(host).sweep()
    assert [path.name for path in host.home.templates.iterdir()] == [whole]
    assert keys(host) == [whole]


async def test_nobody_speaks_to_a_fork_that_is_not_itself_yet(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.run("one")
    asked, go_on = asyncio.Event(), asyncio.Event()
    real = FakeAgent.renew

    async def slow(self: FakeAgent, identity: Identity) -> Renewal:
        asked.set()
        await go_on.wait()
        return await real(self, identity)

    monkeypatch.setattr(FakeAgent, "renew", slow)
    operation = await host.submit("create", "two", start=True)
    await asked.wait()
    assert host.seen("two").phase is Phase.STARTING
    machine = host.machine("two")
    assert machine is not None
    assert host.node is not None
    execing = asyncio.create_task(host.node.open_exec(machine.uid, ExecRequest(("hostname",))))
    console = asyncio.create_task(host.node.open_console(machine.uid))
    await asyncio.wait({execing, console}, timeout=0.05)
    assert not execing.done()
    assert not console.done()
    go_on.set()
    assert (await host.ended(operation.uid)).state is OperationState.DONE
    session = await execing
    assert [data async for _, data in session.output()] == [b"two\n"]
    await (await console).close()


def renewing(monkeypatch: pytest.MonkeyPatch, renewal: Renewal) -> None:
    async def renew(self: FakeAgent, identity: Identity) -> Renewal:
        return renewal

    monkeypatch.setattr(FakeAgent, "renew", renew)


async def test_a_guest_with_its_siblings_random_numbers_is_not_let_loose(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewing(monkeypatch, Renewal(("hostname",), (("random", "Operation not permitted"),)))
    operation = await host.do("create", "one", start=True)
    assert operation.problem is not None
    assert operation.problem["code"] == "not-itself"
    assert "Operation not permitted" in operation.problem["detail"]
    assert "--cold" in operation.problem["hint"]
    assert host.machine("one") is None
    assert not any(host.home.machines.iterdir())
    assert not host.world.machines


async def test_what_else_could_not_be_renewed_is_told(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewing(monkeypatch, Renewal(("random",), (("clock", "Operation not permitted"),)))
    operation = await host.run("one")
    assert operation.notes == ("The guest could not renew its clock: Operation not permitted.",)
    assert operation.outcome is not None
    assert operation.outcome["renewed"] == {
        "renewed": ["random"],
        "failed": {"clock": "Operation not permitted"},
    }


async def test_the_images_own_program_is_heard(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[list[str]] = []

    async def hook(call: Call) -> int:
        said.append(list(call.argv))
        call.out("done ssh-host-keys\nfailed dhcp: no answer\nfailed odd\nwhatever\n")
        return 3

    monkeypatch.setitem(COMMANDS, "renew", hook)
    renewing(monkeypatch, Renewal(("random",), hook=True))
    operation = await host.run("one", network="isolated")
    machine = host.machine("one")
    assert machine is not None
    mac = next(device.mac for device in machine.devices if device.device == "nic")
    assert said == [[templates.HOOK, "wake", "one", mac]]
    assert operation.outcome is not None
    assert operation.outcome["renewed"]["renewed"] == ["random", "ssh-host-keys"]
    failed = operation.outcome["renewed"]["failed"]
    assert failed["dhcp"] == "no answer"
    assert failed["odd"] == "it does not say why"
    assert "status 3" in failed["hook"]
    assert len(operation.notes) == 3


async def test_a_program_that_hangs_holds_nobody_up(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hook(call: Call) -> int:
        await asyncio.Event().wait()
        return 0

    monkeypatch.setitem(COMMANDS, "renew", hook)
    monkeypatch.setattr(renewal, "HOOK_PATIENCE", 0.01)
    renewing(monkeypatch, Renewal(("random",), hook=True))
    operation = await host.run("one", network="isolated")
    assert "did not end" in operation.notes[0]


async def test_remove_by_key_its_beginning_or_the_images_name(host: FakeHost) -> None:
    for name in ("whole", "beginning", "image"):
        await host.run(name)
        (key,) = keys(host)
        said = {"whole": key, "beginning": key[:5], "image": "micro"}[name]
        operation = await host.do("template-rm", said)
        assert operation.outcome == {"removed": [key], "freed_bytes": 128 * MIB}
        assert operation.target_kind == "template"
        assert keys(host) == []
        assert not any(host.home.templates.iterdir())
        assert host.seen(name).phase is Phase.RUNNING
    for unknown in ("micro", ""):
        with pytest.raises(TemplateNotFound):
            await host.submit("template-rm", unknown)


async def test_prune_spares_what_was_used(host: FakeHost) -> None:
    await host.run("one")
    await host.run("big", memory="256MiB")
    old = _key_of(host, 256 * MIB)
    document = rooms_of(host).directory(old) / TEMPLATE_DOCUMENT
    then = document.stat().st_mtime - 7200
    os.utime(document, (then, then))
    operation = await host.do("template-prune", "", unused_for=3600)
    assert operation.outcome == {"removed": [old], "freed_bytes": 256 * MIB}
    assert len(keys(host)) == 1
    operation = await host.do("template-prune", "")
    assert operation.outcome is not None
    assert len(operation.outcome["removed"]) == 1
    assert keys(host) == []
    with pytest.raises(InsulaError, match="not a duration"):
        await host.submit("template-prune", "", unused_for="soon")


async def test_an_image_takes_its_templates_with_it(host: FakeHost) -> None:
    await host.run("one")
    await host.do("rm", "one", force=True)
    operation = await host.do("image-rm", "micro")
    assert operation.outcome == {"name": "micro", "freed": True}
    assert operation.notes == ()
    assert keys(host) == []


async def test_an_image_that_is_built_anew_leaves_its_old_templates(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = iter([{}, {"digest": f"sha256:{'9' * 64}"}])

    async def build(recipe: Recipe, images: ImageStore, report: object) -> Image:
        return publish_fake_image(images, recipe.name, **next(built))

    monkeypatch.setattr(builder, "build", build)
    await host.run("one")
    await host.do("image-build", "micro")
    assert len(keys(host)) == 1  # the same files, so the same template
    operation = await host.do("image-build", "micro")
    assert operation.outcome is not None, operation.problem
    assert operation.outcome["digest"] == f"sha256:{'9' * 64}"
    assert keys(host) == []


async def test_a_daemon_that_dies_while_it_makes_one_leaves_nothing(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def leave(self: Templates, key: str) -> None:
        """kill -9 clears nothing away."""

    reached = asyncio.Event()

    async def never(self: Templates, instance: Instance, report: Report) -> None:
        reached.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(Templates, "_clear", leave)
        patch.setattr(Templates, "_bring_to_rest", never)
        asked = await host.submit("create", "one", start=True)
        await reached.wait()
        await host.die()
    (half,) = host.home.templates.iterdir()
    assert half in host.world.machines
    await host.boot()
    operation = await host.ended(asked.uid)
    assert operation.state is OperationState.DONE, operation.problem
    assert booted(operation) == ""
    assert len(keys(host)) == 1
    assert {machine.plan.name for machine in host.world.machines.values()} == {"one"}


def test_a_machine_is_no_fork_of_a_template_that_was_made_anew(tmp_path: Path) -> None:
    from tests.unit.model.test_template import machine

    template, directory = tmp_path / "template", tmp_path / "machine"
    for path in (template, directory):
        path.mkdir()
    frozen = template / "disk0-key.qcow2"
    frozen.write_text("old")
    assert not stand_on(machine(), template, "key", directory)
    os.link(frozen, directory / frozen.name)
    assert stand_on(machine(), template, "key", directory)
    frozen.unlink()
    assert not stand_on(machine(), template, "key", directory)
    frozen.write_text("new")
    assert not stand_on(machine(), template, "key", directory)

"""What is true of every engine. Subclass `EngineConformance` and give it a fixture `bench`.

Nothing here needs a guest: a machine without disk and kernel can be launched, adopted, stopped and killed.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import pytest

from insula.engine.agent.protocol import AgentSilent
from insula.engine.errors import (
    ConsoleBusy,
    DiskFileInUse,
    DiskNotReleased,
    EngineLost,
    EngineRefused,
    LaunchFailed,
    MachineDirectoryBusy,
    NoAgent,
    NoConsole,
    TemplateGone,
)
from insula.engine.protocol import (
    AgentPortChanged,
    BootFiles,
    Engine,
    EngineEvent,
    Exited,
    GuestReset,
    Instance,
    LaunchPlan,
    Memory,
    Paused,
    Resumed,
)
from insula.kit.clock import boot_id, monotonic
from insula.kit.paths import COMMAND, EXIT_STATUS, LAUNCH_PLAN, PID_FILE, QEMU_STDERR, RUN_LOCK, SERIAL_LOG
from insula.model.device.agent import AgentPort
from insula.model.device.disk import Bus, Disk, VolumeRef, volume_disk
from insula.model.device.serial import Serial
from insula.model.image import ImageRef
from insula.model.machine import Machine

# An empty qcow2 file of 1 MiB (docs/interop/qcow2.txt): version 2, refcount table at 0x10000, L1 table at
# 0x30000, in clusters of 64 KiB.
_CLUSTER = 2**16
_QCOW2 = b"".join(
    part.ljust(_CLUSTER, b"\0")
    for part in (
        struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, 2**20, 0, 1, 0x30000, 0x10000, 1, 0, 0),
        struct.pack(">Q", 0x20000),
        struct.pack(">4H", 1, 1, 1, 1),
        b"",
    )
)

PATIENCE = 10.0  # seconds after which a wait has failed


def machine(name: str = "web", **fields: Any) -> Machine:
    """A machine with a console and an agent port, and nothing to boot from."""
    given: dict[str, Any] = {
        "uid": "0123456789abcdef",
        "name": name,
        "created": datetime(2026, 1, 2, tzinfo=UTC),
        "image": ImageRef(name="micro", digest="sha256:0"),
        "cpus": 1,
        "memory_bytes": 64 * 2**20,
        "boot": "disk",
        "machine_type": "pc",
        "accelerator": "tcg",
        "devices": (Serial(id="serial0"), AgentPort(id="agent0", protocol="insula")),
    }
    return Machine(**{**given, **fields})


class Bench(Protocol):
    """A host under test."""

    directory: Path
    engine: Engine

    def new_daemon(self) -> Engine:
        """An engine that knows nothing but the host's files and processes."""

    def kill_from_outside(self, instance: Instance) -> None:
        """kill -9 of the monitor by somebody else."""

    async def plan_failure(self) -> LaunchPlan:
        """A plan whose launch fails with words on stderr."""


async def planned(bench: Bench, **fields: Any) -> LaunchPlan:
    facts = await bench.engine.facts()
    return bench.engine.plan(machine(**fields), BootFiles(), bench.directory, facts)


async def launched(bench: Bench, **fields: Any) -> Instance:
    return await bench.engine.launch(await planned(bench, **fields))


async def next_transition(events: AsyncIterator[EngineEvent]) -> EngineEvent:
    """The next event that is not the guest agent's, whose coming depends on the guest."""
    while isinstance(event := await next_event(events), AgentPortChanged):
        pass
    return event


async def next_event(events: AsyncIterator[EngineEvent]) -> EngineEvent:
    async with asyncio.timeout(PATIENCE):
        return await anext(events)


def volume(bench: Bench, name: str = "data", *, read_only: bool = False, bus: Bus = "scsi") -> Disk:
    """An empty volume of 1 MiB, beside the machine's directory, as a disk."""
    path = bench.directory.parent / f"{name}.qcow2"
    if not path.exists():
        path.write_bytes(_QCOW2)
    return volume_disk(VolumeRef(uid=f"{name:0<16}", name=name), str(path), read_only=read_only, bus=bus)


async def freeze_template(bench: Bench) -> Path:
    """The directory of a machine that was resumed and then frozen."""
    directory = bench.directory.parent / "template"
    facts = await bench.engine.facts()
    plan = bench.engine.plan(machine("template"), BootFiles(), directory, facts, Memory(shareable=True))
    instance = await bench.engine.launch(plan)
    await instance.resume()
    await bench.engine.freeze(instance)
    return directory


async def launch_fork(bench: Bench, template: Path, name: str, **fields: Any) -> Instance:
    facts = await bench.engine.facts()
    directory = bench.directory.parent / f"fork-{name}"
    plan = bench.engine.plan(
        machine(name, **fields), BootFiles(), directory, facts, Memory(template=template)
    )
    return await bench.engine.launch(plan)


class EngineConformance:
    # Launch

    async def test_a_launched_machine_stands_until_it_is_resumed(self, bench: Bench) -> None:
        instance = await launched(bench)
        assert await instance.state() == "prepared"
        assert instance.identity.boot_id == boot_id()
        await instance.resume()
        assert await next_transition(instance.events()) == Resumed()
        assert await instance.state() == "running"

    async def test_a_plan_is_a_pure_function(self, bench: Bench) -> None:
        assert await planned(bench) == await planned(bench)

    async def test_a_second_launch_finds_the_first(self, bench: Bench) -> None:
        plan = await planned(bench)
        first = await bench.engine.launch(plan)
        second = await bench.engine.launch(plan)
        assert second.identity == first.identity

    async def test_two_launches_at_once_make_one_process(self, bench: Bench) -> None:
        plan = await planned(bench)
        first, second = await asyncio.gather(bench.engine.launch(plan), bench.engine.launch(plan))
        assert first.identity == second.identity

    async def test_a_failed_launch_says_why_and_leaves_nothing(self, bench: Bench) -> None:
        with pytest.raises(LaunchFailed) as caught:
            await bench.engine.launch(await bench.plan_failure())
        evidence = caught.value.evidence
        assert evidence["exit_status"] == 1
        assert evidence["stderr"]
        assert "qemu-system" in evidence["command"]
        assert evidence["serial"] == ""
        assert await bench.engine.adopt(bench.directory) is None
        assert bench.engine.read_exit(bench.directory) is None

    async def test_a_launch_after_a_failed_one_succeeds(self, bench: Bench) -> None:
        with pytest.raises(LaunchFailed):
            await bench.engine.launch(await bench.plan_failure())
        instance = await launched(bench, name="mended")
        assert await instance.state() == "prepared"

    async def test_a_machine_is_launched_again_after_its_end(self, bench: Bench) -> None:
        first = await launched(bench)
        await first.kill()
        second = await launched(bench)
        assert second.identity != first.identity
        assert await second.state() == "prepared"

    # Requests and events

    async def test_pause_and_resume_are_told(self, bench: Bench) -> None:
        instance = await launched(bench)
        events = instance.events()
        await instance.resume()
        await instance.pause()
        assert await next_transition(events) == Resumed()
        paused = await next_transition(events)
        assert isinstance(paused, Paused)
        assert paused.reason
        assert not paused.io_error
        assert await instance.state() == "paused"
        await instance.resume()
        assert await next_transition(events) == Resumed()

    async def test_a_reset_by_us_is_told_as_ours(self, bench: Bench) -> None:
        instance = await launched(bench)
        events = instance.events()
        await instance.resume()
        await instance.reset()
        assert await next_transition(events) == Resumed()
        assert await next_transition(events) == GuestReset(by_guest=False)
        assert await instance.state() == "running"

    async def test_a_machine_reset_while_paused_stays_paused(self, bench: Bench) -> None:
        instance = await launched(bench)
        events = instance.events()
        await instance.resume()
        await instance.pause()
        assert await next_transition(events) == Resumed()
        assert isinstance(await next_transition(events), Paused)
        await instance.reset()
        assert await next_transition(events) == GuestReset(by_guest=False)
        assert await instance.state() == "paused"

    async def test_requests_may_be_repeated(self, bench: Bench) -> None:
        instance = await launched(bench)
        await instance.resume()
        await instance.resume()
        await instance.pause()
        await instance.pause()
        assert await instance.state() == "paused"

    # The end

    async def test_a_killed_machine_leaves_evidence(self, bench: Bench) -> None:
        instance = await launched(bench)
        evidence = await instance.kill()
        assert (evidence.cause, evidence.exit_status, evidence.signal) == ("host-kill", 137, 9)
        assert "qemu-system" in evidence.command
        assert await instance.wait_exit() == evidence
        assert await instance.kill() == evidence

    async def test_the_last_event_is_the_end(self, bench: Bench) -> None:
        instance = await launched(bench)
        evidence = await instance.kill()
        async with asyncio.timeout(PATIENCE):
            told = [event async for event in instance.events()]
        assert told[-1] == Exited(evidence)

    async def test_a_kill_from_outside_is_a_crash_and_seen_at_once(self, bench: Bench) -> None:
        instance = await launched(bench)
        await instance.resume()
        began = monotonic()
        bench.kill_from_outside(instance)
        async with asyncio.timeout(PATIENCE):
            evidence = await instance.wait_exit()
        assert monotonic() - began < 0.3
        assert (evidence.cause, evidence.exit_status, evidence.signal) == ("crash", 137, 9)

    async def test_requests_after_the_end_say_that_it_is_lost(self, bench: Bench) -> None:
        instance = await launched(bench)
        await instance.kill()
        for request in (instance.state, instance.resume, instance.pause, instance.reset):
            with pytest.raises(EngineLost):
                await request()
        with pytest.raises(EngineLost):
            await instance.agent(timeout=1)

    async def test_whoever_waits_for_the_agent_hears_of_the_end(self, bench: Bench) -> None:
        instance = await launched(bench)
        waiting = asyncio.create_task(instance.agent(timeout=PATIENCE))
        await asyncio.sleep(0)
        bench.kill_from_outside(instance)
        with pytest.raises(EngineLost):
            await waiting

    async def test_an_end_that_nobody_saw_is_read_from_the_directory(self, bench: Bench) -> None:
        instance = await launched(bench)
        await instance.detach()
        bench.kill_from_outside(instance)
        daemon = bench.new_daemon()
        assert await daemon.adopt(bench.directory) is None
        evidence = daemon.read_exit(bench.directory)
        assert evidence is not None
        assert (evidence.cause, evidence.exit_status) == ("crash", 137)

    async def test_an_end_before_the_hosts_last_boot_is_told_as_such(self, bench: Bench) -> None:
        instance = await launched(bench)
        await instance.kill()
        (bench.directory / EXIT_STATUS).unlink()
        (bench.directory / PID_FILE).write_text("1234 5678 00000000-0000-0000-0000-000000000000\n")
        assert await bench.new_daemon().adopt(bench.directory) is None
        evidence = bench.new_daemon().read_exit(bench.directory)
        assert evidence is not None
        assert (evidence.cause, evidence.exit_status) == ("host-reboot", None)

    async def test_nothing_was_launched_and_nothing_ended(self, bench: Bench) -> None:
        assert await bench.engine.adopt(bench.directory) is None
        assert bench.engine.read_exit(bench.directory) is None

    async def test_a_live_machine_has_no_end(self, bench: Bench) -> None:
        await launched(bench)
        assert bench.engine.read_exit(bench.directory) is None

    # Adoption

    async def test_a_machine_outlives_its_daemon(self, bench: Bench) -> None:
        first = await launched(bench)
        await first.resume()
        await first.detach()
        second = await bench.new_daemon().adopt(bench.directory)
        assert second is not None
        assert (second.identity, second.plan) == (first.identity, first.plan)
        assert await second.state() == "running"
        events = second.events()
        await second.pause()
        assert isinstance(await next_transition(events), Paused)
        evidence = await second.kill()
        assert (evidence.cause, evidence.exit_status) == ("host-kill", 137)

    async def test_the_events_of_a_detached_instance_end(self, bench: Bench) -> None:
        instance = await launched(bench)
        await instance.detach()
        async with asyncio.timeout(PATIENCE):
            assert [event async for event in instance.events()] == []
        again = await bench.engine.adopt(bench.directory)
        assert again is not None
        assert await again.state() == "prepared"

    async def test_a_process_that_the_pid_file_does_not_name_is_left_alone(self, bench: Bench) -> None:
        instance = await launched(bench)
        await instance.detach()
        path = bench.directory / PID_FILE
        written = path.read_text()
        pid, start_time, boot = written.split()
        path.write_text(f"{pid} {int(start_time) - 1} {boot}\n")
        with pytest.raises(MachineDirectoryBusy):
            await bench.new_daemon().adopt(bench.directory)
        path.write_text(written)
        assert await bench.new_daemon().adopt(bench.directory) is not None

    async def test_a_recycled_pid_is_no_machine(self, bench: Bench) -> None:
        instance = await launched(bench)
        await instance.kill()
        (bench.directory / PID_FILE).write_text(f"{os.getpid()} 1 {boot_id()}\n")
        assert await bench.new_daemon().adopt(bench.directory) is None

    # The directory

    async def test_what_a_launch_leaves_is_forgotten_but_not_its_evidence(self, bench: Bench) -> None:
        instance = await launched(bench)
        with pytest.raises(MachineDirectoryBusy):
            bench.engine.forget(bench.directory)
        await instance.kill()
        bench.engine.forget(bench.directory)
        bench.engine.forget(bench.directory)
        left = {path.name for path in bench.directory.iterdir()}
        assert left == {LAUNCH_PLAN, COMMAND, QEMU_STDERR, SERIAL_LOG}
        assert not left & {PID_FILE, EXIT_STATUS, RUN_LOCK}
        assert bench.engine.read_exit(bench.directory) is None

    async def test_the_serial_log_is_followed_while_it_grows(self, bench: Bench) -> None:
        log = bench.engine.follow_log(bench.directory, follow=True, tail=None)
        bench.directory.mkdir(exist_ok=True)
        first = asyncio.ensure_future(anext(log))
        instance = await launched(bench)
        await instance.resume()
        async with asyncio.timeout(PATIENCE):
            assert await first
        await log.aclose()  # type: ignore[attr-defined]

    # Templates and forks

    async def test_forks_wake_up_where_the_template_was_frozen(self, bench: Bench) -> None:
        template = await freeze_template(bench)
        assert bench.engine.frozen_bytes(template) is not None  # 0 if it had not touched any of it yet
        forks = [await launch_fork(bench, template, name) for name in ("a", "b")]
        for fork in forks:
            assert await fork.state() == "prepared"
            await fork.resume()
            assert await fork.state() == "running"
            await fork.pause()
        assert len({fork.identity.pid for fork in forks}) == 2
        await bench.engine.discard(template)
        for fork in forks:
            await fork.resume()
            assert await fork.state() == "running"
            await fork.kill()

    async def test_a_template_outlives_its_daemon_and_leaves_no_process(self, bench: Bench) -> None:
        template = await freeze_template(bench)
        assert await bench.engine.adopt(template) is None
        daemon = bench.new_daemon()
        assert daemon.frozen_bytes(template) is not None
        await daemon.discard(template)
        await daemon.discard(template)
        assert daemon.frozen_bytes(template) is None
        assert bench.engine.frozen_bytes(template) is None
        assert {path.name for path in template.iterdir()} <= {LAUNCH_PLAN, COMMAND, QEMU_STDERR, SERIAL_LOG}

    async def test_a_captured_machine_goes_on_and_has_forks(self, bench: Bench) -> None:
        instance = await launched(bench)
        await instance.resume()
        facts = await bench.engine.facts()
        directory = bench.directory.parent / "captured"
        vessel = bench.engine.plan(
            machine("vessel"), BootFiles(), directory, facts, Memory(shareable=True, vessel=True)
        )
        assert 0 <= await bench.engine.capture(instance, vessel, []) < PATIENCE
        assert await instance.state() == "running"
        assert bench.engine.frozen_bytes(directory) is not None
        fork = await launch_fork(bench, directory, "a")
        await fork.resume()
        assert await fork.state() == "running"
        await bench.engine.discard(directory)
        await fork.kill()

    async def test_a_paused_machine_is_captured_and_stays_paused(self, bench: Bench) -> None:
        instance = await launched(bench)
        await instance.resume()
        await instance.pause()
        facts = await bench.engine.facts()
        directory = bench.directory.parent / "captured"
        vessel = bench.engine.plan(
            machine("vessel"), BootFiles(), directory, facts, Memory(shareable=True, vessel=True)
        )
        assert await bench.engine.capture(instance, vessel, []) == 0
        assert await instance.state() == "paused"
        await bench.engine.discard(directory)

    async def test_what_was_not_frozen_to_the_end_is_ended(self, bench: Bench) -> None:
        facts = await bench.engine.facts()
        plan = bench.engine.plan(machine(), BootFiles(), bench.directory, facts, Memory(shareable=True))
        instance = await bench.engine.launch(plan)
        assert await instance.processor_seconds() >= 0
        daemon = bench.new_daemon()
        await instance.detach()
        assert daemon.frozen_bytes(bench.directory) is None
        await daemon.discard(bench.directory)
        assert await daemon.adopt(bench.directory) is None

    async def test_a_fork_of_what_is_not_there_is_refused(self, bench: Bench) -> None:
        template = await freeze_template(bench)
        await bench.engine.discard(template)
        with pytest.raises(TemplateGone):
            await launch_fork(bench, template, "late")
        instance = await launched(bench)  # the directory is free
        await instance.kill()

    # Agent and console

    async def test_a_machine_without_ports_has_neither_agent_nor_console(self, bench: Bench) -> None:
        instance = await launched(bench, devices=())
        with pytest.raises(NoAgent):
            await instance.agent(timeout=1)
        with pytest.raises(NoConsole):
            await instance.console()

    async def test_an_agent_that_does_not_come_is_silent(self, bench: Bench) -> None:
        instance = await launched(bench)
        with pytest.raises(AgentSilent) as caught:
            await instance.agent(timeout=0.02)
        assert caught.value.evidence["waited_seconds"] == 0.02

    async def test_the_console_is_for_one(self, bench: Bench) -> None:
        instance = await launched(bench)
        console = await instance.console()
        with pytest.raises(ConsoleBusy):
            await instance.console()
        await console.close()
        again = await instance.console()
        await instance.kill()
        async with asyncio.timeout(PATIENCE):
            while await again.read():
                pass
        with pytest.raises(EngineLost):
            await again.write(b"x" * 2**22)

    # Disks

    @pytest.mark.parametrize("bus", ["scsi", "virtio"])
    async def test_a_disk_is_attached_once_however_often_it_is_said(self, bench: Bench, bus: Bus) -> None:
        instance = await launched(bench)
        disk = volume(bench, bus=bus)
        await instance.disks.attach(disk)
        await instance.disks.attach(disk)
        await instance.disks.grow(disk, 2**21)
        await instance.disks.grow(disk, 2**21)

    async def test_a_disk_is_detached_and_another_takes_its_place(self, bench: Bench) -> None:
        instance = await launched(bench)
        await instance.disks.attach(volume(bench, read_only=True))
        await instance.disks.detach(volume(bench, read_only=True), PATIENCE)
        await instance.disks.detach(volume(bench), PATIENCE)
        await instance.disks.attach(volume(bench))
        await instance.disks.attach(volume(bench, "other"))

    async def test_a_machine_is_launched_with_its_disks(self, bench: Bench) -> None:
        disk = volume(bench)
        instance = await launched(bench, devices=(disk,))
        await instance.disks.attach(disk)
        await instance.disks.grow(disk, 2**21)
        await instance.disks.detach(disk, PATIENCE)
        with pytest.raises(EngineRefused):
            await instance.disks.grow(disk, 2**22)

    async def test_a_disk_whose_file_is_not_there_is_refused_and_leaves_nothing(self, bench: Bench) -> None:
        instance = await launched(bench)
        disk = volume(bench)
        Path(disk.file).rename(f"{disk.file}.away")
        with pytest.raises(EngineRefused):
            await instance.disks.attach(disk)
        Path(f"{disk.file}.away").rename(disk.file)
        await instance.disks.attach(disk)

    async def test_a_disk_is_written_by_one_and_read_by_many(self, bench: Bench) -> None:
        first = await launched(bench)
        plan = replace(
            await planned(bench, name="second", uid="f" * 16), directory=bench.directory / "second"
        )
        second = await bench.engine.launch(plan)
        try:
            await first.disks.attach(volume(bench))
            for read_only in (False, True):
                with pytest.raises(DiskFileInUse):
                    await second.disks.attach(volume(bench, read_only=read_only))
            await first.disks.attach(volume(bench, "shared", read_only=True))
            await second.disks.attach(volume(bench, "shared", read_only=True))
        finally:
            await second.kill()

    async def test_a_guest_that_does_not_let_go_keeps_its_disk(self, bench: Bench) -> None:
        """A machine without a guest hears no request to let go of a device that needs its help."""
        instance = await launched(bench, name="deaf")
        disk = volume(bench, bus="virtio")
        await instance.disks.attach(disk)
        assert not await instance.disks.wait_seen(disk, 0.05)
        for _ in range(2):
            with pytest.raises(DiskNotReleased) as caught:
                await instance.disks.detach(disk, 0.05)
        assert "'deaf'" in caught.value.message
        await instance.disks.grow(disk, 2**21)

    async def test_the_disks_of_an_adopted_machine_are_known(self, bench: Bench) -> None:
        first = await launched(bench)
        await first.disks.attach(volume(bench))
        await first.detach()
        second = await bench.new_daemon().adopt(bench.directory)
        assert second is not None
        await second.disks.attach(volume(bench))
        await second.disks.grow(volume(bench), 2**21)
        await second.disks.detach(volume(bench), PATIENCE)

    async def test_disks_of_a_machine_that_has_ended_are_lost(self, bench: Bench) -> None:
        instance = await launched(bench)
        disk = volume(bench)
        await instance.kill()
        with pytest.raises(EngineLost):
            await instance.disks.attach(disk)
        with pytest.raises(EngineLost):
            await instance.disks.detach(disk, PATIENCE)

"""When repair starts a machine, and when it keeps its hands off."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from insula.model.image import ImageRef
from insula.model.machine import Machine, Power, RunPolicy
from insula.model.observation import ExitCause, ExitEvidence, Observation, Phase
from insula.planner.repair import LONGEST_DELAY, plan_restart, restart_delay

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def plan(
    policy: RunPolicy, cause: ExitCause, power: Power = Power.ON, restarts: int = 0, **fields: bool
) -> datetime | None:
    machine = Machine(
        uid="u",
        name="web",
        created=NOW,
        image=ImageRef(name="micro", digest="sha256:0"),
        cpus=1,
        memory_bytes=2**29,
        boot="direct",
        machine_type="pc",
        run_policy=policy,
        power=power,
        **fields,
    )
    seen = Observation(
        uid="u",
        name="web",
        created=NOW,
        phase=Phase.CRASHED if cause == "crash" else Phase.STOPPED,
        since=NOW,
        last_exit=ExitEvidence(at=NOW, cause=cause, exit_status=1),
        restarts=restarts,
    )
    return plan_restart(machine, seen)


@pytest.mark.parametrize("policy", RunPolicy)
@pytest.mark.parametrize("cause", ["guest-shutdown", "host-stop", "host-kill"])
def test_what_was_asked_for_is_never_undone(policy: RunPolicy, cause: ExitCause) -> None:
    assert plan(policy, cause) is None


def test_a_crash_is_followed_by_a_start_under_always_alone() -> None:
    assert plan(RunPolicy.KEEP, "crash") is None
    assert plan(RunPolicy.ONCE, "crash") is None
    assert plan(RunPolicy.ALWAYS, "crash") == NOW + timedelta(seconds=1)
    assert plan(RunPolicy.ALWAYS, "crash", restarts=3) == NOW + timedelta(seconds=8)


def test_a_host_that_comes_back_brings_always_and_keep() -> None:
    assert plan(RunPolicy.ALWAYS, "host-reboot") == NOW
    assert plan(RunPolicy.KEEP, "host-reboot") == NOW
    assert plan(RunPolicy.ONCE, "host-reboot") is None


def test_off_removing_and_ephemeral_are_left_alone() -> None:
    assert plan(RunPolicy.ALWAYS, "crash", power=Power.OFF) is None
    assert plan(RunPolicy.ALWAYS, "crash", removing=True) is None
    assert plan(RunPolicy.ALWAYS, "crash", ephemeral=True) is None


def test_delays_double_up_to_a_bound() -> None:
    assert [restart_delay(n) for n in (0, 1, 2)] == [1, 2, 4]
    assert restart_delay(1000) == LONGEST_DELAY

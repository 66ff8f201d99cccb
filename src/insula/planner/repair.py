"""What repair does about a machine that nobody asked about just now. It may start; it never removes."""

from __future__ import annotations

from datetime import datetime, timedelta

from insula.model.machine import Machine, Power, RunPolicy
from insula.model.observation import Observation, Phase

FIRST_DELAY = 1.0  # seconds before the first restart after a crash; doubled with each further one
LONGEST_DELAY = 300.0
CALM = 600.0  # seconds of running after which earlier crashes are forgotten


def restart_delay(restarts: int) -> float:
    """Seconds to wait before restart number `restarts` + 1."""
    return min(FIRST_DELAY * 2.0 ** min(restarts, 20), LONGEST_DELAY)


def plan_restart(machine: Machine, seen: Observation) -> datetime | None:
    """When repair should start this machine (perhaps now or in the past), or None: not its business.

    A machine whose owner wants it off, that powered itself off, or whose policy is `once` is left alone.
    `keep` comes back with the host; `always` after a crash too.
    """
    if machine.power is not Power.ON or machine.removing or machine.ephemeral:
        return None
    if seen.phase not in (Phase.STOPPED, Phase.CRASHED) or seen.last_exit is None:
        return None
    cause = seen.last_exit.cause
    if cause == "host-reboot" and machine.run_policy in (RunPolicy.ALWAYS, RunPolicy.KEEP):
        return seen.since
    if cause == "crash" and machine.run_policy is RunPolicy.ALWAYS:
        return seen.since + timedelta(seconds=restart_delay(seen.restarts))
    return None

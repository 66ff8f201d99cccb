"""The judge, as a table: verb and phase (or what is under way) to verdict."""

from __future__ import annotations

import pytest

from insula.model.observation import Phase
from insula.planner.lifecycle import Situation, judge

PHASES = {
    "C": Phase.CREATED,
    "g": Phase.STARTING,
    "R": Phase.RUNNING,
    "P": Phase.PAUSED,
    "s": Phase.STOPPING,
    "S": Phase.STOPPED,
    "X": Phase.CRASHED,
}
# verb -> phases in which it is accepted while nothing else is under way; refused in all others
ACCEPTED = {
    "start": "CSX",
    "restart": "CgRPsSX",
    "stop": "gRPs",
    "kill": "gRPs",
    "pause": "R",
    "reset": "R",
    "resume": "P",
    "rm": "CSX",
    "create": "CgRPsSX",
    "attach": "CRPSX",
    "volume-resize": "CRPSX",
    "detach": "CRSX",
}


@pytest.mark.parametrize("verb", ACCEPTED)
@pytest.mark.parametrize("letter", PHASES)
def test_idle(verb: str, letter: str) -> None:
    verdict = judge(verb, Situation("web", PHASES[letter]))
    assert verdict.action == ("accept" if letter in ACCEPTED[verb] else "refuse")
    if verdict.action == "refuse":
        assert verdict.error is not None
        assert "'web'" in verdict.error.message
        assert verdict.error.hint


def test_rm_with_force_is_accepted_anywhere() -> None:
    for phase in Phase:
        assert judge("rm", Situation("web", phase, force=True)).action == "accept"


@pytest.mark.parametrize(
    ("verb", "busy", "action"),
    [
        ("start", "start", "refuse"),
        ("start", "create", "refuse"),
        ("start", "stop", "queue"),
        ("stop", "stop", "join"),
        ("stop", "start", "preempt"),
        ("stop", "create", "queue"),
        ("kill", "stop", "preempt"),
        ("kill", "kill", "join"),
        ("pause", "start", "queue"),
        ("rm", "rm", "join"),
        ("start", "rm", "refuse"),
        ("kill", "rm", "refuse"),
        ("attach", "start", "queue"),
        ("attach", "detach", "queue"),
        ("detach", "attach", "queue"),
        ("kill", "detach", "preempt"),
        ("stop", "detach", "preempt"),
        ("stop", "attach", "queue"),
    ],
)
def test_busy(verb: str, busy: str, action: str) -> None:
    assert judge(verb, Situation("web", Phase.STARTING, busy=busy)).action == action


def test_rm_pre_empts_only_by_force() -> None:
    assert judge("rm", Situation("web", Phase.RUNNING, busy="stop")).action == "refuse"
    assert judge("rm", Situation("web", Phase.RUNNING, busy="stop", force=True)).action == "preempt"

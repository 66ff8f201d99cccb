"""May this verb be done to this machine now? One table for control and for the machine's actor.

verb \\ phase   created  starting  running  paused  stopping  stopped  crashed  (suspended: see below)
start          accept   refuse    refuse   refuse  queue     accept   accept
stop           refuse   pre-empt  accept   accept  join      refuse   refuse
restart        accept   queue     accept   accept  queue     accept   accept
reset, pause   refuse   queue     accept   (pause: refuse)   refuse ...
resume         refuse   queue     refuse   accept  refuse    refuse   refuse
kill           refuse   pre-empt  accept   accept  pre-empt  refuse   refuse
rm             accept   with force only (pre-empts)          accept   accept
attach         accept   queue     accept   accept  refuse    accept   accept
volume-resize  accept   queue     accept   accept  refuse    accept   accept
detach         accept   queue     accept   refuse  refuse    accept   accept
cdrom-...      accept   queue     accept   accept  refuse    accept   accept
fork           accept   queue     accept   accept  queue     accept   accept
suspend        refuse   queue     accept   accept  refuse    refuse   refuse
snapshot-...   accept   queue     accept   accept  queue     accept   accept

A suspended machine may be started, removed, and restored to a snapshot, of which it also may lose some; what
would change its disks is refused, for its memory is of them as they are. `merge`, which nobody waits for,
gives way to everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from insula.kit.errors import Conflict, InsulaError
from insula.model.observation import Phase


class AlreadyRunning(Conflict):
    """The machine runs, or is being started."""

    code = "already-running"


class NotRunning(Conflict):
    """The machine has no process, so the verb has nothing to act on."""

    code = "not-running"


class WrongPhase(Conflict):
    """The verb does not fit the machine's phase."""

    code = "wrong-phase"


class StillRunning(Conflict):
    """The machine must be stopped first, or the removal forced."""

    code = "still-running"


class BeingRemoved(Conflict):
    """The machine is being removed."""

    code = "being-removed"


class BeingForked(Conflict):
    """The machine is a fork that is still being made."""

    code = "being-forked"


class Superseded(Conflict):
    """Another operation took precedence and this one was undone or given up."""

    code = "superseded"


class Cancelled(Conflict):
    """Somebody cancelled the operation; it was undone."""

    code = "cancelled"
    exit_status = 130


@dataclass(frozen=True)
class Verdict:
    """What to do with an operation.

    accept: now. queue: when the current operation has ended, then judge again. join: the same is under way;
    share its end. preempt: cancel the current operation, then judge again. refuse: with `error`.
    """

    action: Literal["accept", "queue", "join", "preempt", "refuse"]
    error: InsulaError | None = None


@dataclass(frozen=True)
class Situation:
    """A machine as the judge sees it. busy: the verb of the operation that is being performed, if any.

    unborn: another machine's fork operation is still making it.
    """

    name: str
    phase: Phase
    busy: str | None = None
    force: bool = False
    unborn: bool = False


Rule = Callable[[Situation], Verdict]

ACCEPT = Verdict("accept")
QUEUE = Verdict("queue")
JOIN = Verdict("join")
PREEMPT = Verdict("preempt")

_ASK_THE_GUEST = ("detach", "cdrom-insert", "cdrom-eject")  # these wait for it to let go of something

# What may cut short what: each of these undoes itself cleanly when cancelled.
_PREEMPTS = {
    "stop": {"start", "restart", *_ASK_THE_GUEST},
    "kill": {"start", "restart", "stop", "pause", "resume", "reset", *_ASK_THE_GUEST},
    "rm": {"create", "start", "restart", "stop", "pause", "resume", "reset", "kill", *_ASK_THE_GUEST},
}
_JOINS = {"stop", "kill", "rm"}
_ENDED = (Phase.CREATED, Phase.STOPPED, Phase.CRASHED)
_UNSETTLED = (Phase.STARTING, Phase.STOPPING)


def judge(verb: str, now: Situation) -> Verdict:
    """The verdict on `verb` in this situation."""
    if now.unborn:
        return _refuse(
            BeingForked(
                f"Machine '{now.name}' is a fork that is still being made.", hint="Try again in a moment."
            )
        )
    if now.busy is not None:
        return _judge_busy(verb, now.busy, now)
    rule = _RULES.get(verb)
    return ACCEPT if rule is None else rule(now)


def _judge_busy(verb: str, busy: str, now: Situation) -> Verdict:
    if busy == "rm" and verb != "rm":
        return _refuse(BeingRemoved(f"Machine '{now.name}' is being removed."))
    if busy == verb and verb in _JOINS:
        return JOIN
    if verb == "start" and busy in ("start", "create", "restart"):
        return _refuse(
            AlreadyRunning(
                f"Cannot start machine '{now.name}': it is being started already.",
                hint=f"Wait for it: insula wait {now.name} --phase running",
            )
        )
    if verb == "rm" and not now.force and now.phase.has_process:
        return _still_running(now)
    if busy == "merge":
        return JOIN if verb == "merge" else PREEMPT
    return PREEMPT if busy in _PREEMPTS.get(verb, ()) else QUEUE


def _start(now: Situation) -> Verdict:
    if now.phase in (*_ENDED, Phase.SUSPENDED):
        return ACCEPT
    if now.phase is Phase.PAUSED:
        hint = f"Let it go on: insula resume {now.name}"
    else:
        hint = f"Start it anew with: insula restart {now.name}"
    return _refuse(
        AlreadyRunning(f"Cannot start machine '{now.name}': it is {now.phase} already.", hint=hint)
    )


def _needs_process(verb: str) -> Rule:
    def rule(now: Situation) -> Verdict:
        if now.phase.has_process:
            return ACCEPT
        return _refuse(
            NotRunning(
                f"Cannot {verb} machine '{now.name}': it is {now.phase}.",
                hint=f"Start it: insula start {now.name}",
            )
        )

    return rule


def _needs_phase(verb: str, phase: Phase) -> Rule:
    def rule(now: Situation) -> Verdict:
        if now.phase is phase:
            return ACCEPT
        if not now.phase.has_process:
            return _needs_process(verb)(now)
        return _refuse(
            WrongPhase(
                f"Cannot {verb} machine '{now.name}': it is {now.phase}, not {phase}.",
                hint=f"See: insula info {now.name}",
            )
        )

    return rule


def _settled(what: str, *phases: Phase) -> Rule:
    """Changes of devices want a guest that answers, or none. what: 'attach to'."""

    def rule(now: Situation) -> Verdict:
        if now.phase in (*_ENDED, *phases):
            return ACCEPT
        if now.phase is Phase.SUSPENDED:
            return _wants_its_disks(now)
        paused = now.phase is Phase.PAUSED
        return _refuse(
            WrongPhase(
                f"Cannot {what} machine '{now.name}': it is {now.phase}"
                + (", so its guest cannot let go of anything." if paused else "."),
                hint=f"Let it go on: insula resume {now.name}"
                if paused
                else f"Wait for it: insula wait {now.name}",
            )
        )

    return rule


def _rm(now: Situation) -> Verdict:
    return ACCEPT if now.force or not now.phase.has_process else _still_running(now)


def _still_running(now: Situation) -> Verdict:
    return _refuse(
        StillRunning(
            f"Cannot remove machine '{now.name}': it is {now.phase}.",
            hint=f"Stop it first: insula stop {now.name}. To remove it all the same: insula rm -f {now.name}",
        )
    )


def _refuse(error: InsulaError) -> Verdict:
    return Verdict("refuse", error)


def _wants_its_disks(now: Situation) -> Verdict:
    return _refuse(
        WrongPhase(
            f"Machine '{now.name}' is suspended, and its memory is of its disks as they are.",
            hint=f"Let it go on first: insula start {now.name}",
        )
    )


def _keeps_moment(now: Situation) -> Verdict:
    """Forks and snapshots want a machine that stands, or goes on, by itself."""
    if now.phase is Phase.SUSPENDED:
        return _wants_its_disks(now)
    return QUEUE if now.phase in _UNSETTLED else ACCEPT


def _restore(now: Situation) -> Verdict:
    return QUEUE if now.phase in _UNSETTLED else ACCEPT


def _suspend(now: Situation) -> Verdict:
    if now.phase is Phase.STARTING:
        return QUEUE
    if now.phase in (Phase.RUNNING, Phase.PAUSED):
        return ACCEPT
    return _refuse(
        NotRunning(
            f"Cannot suspend machine '{now.name}': it is {now.phase}.",
            hint=f"See: insula info {now.name}",
        )
    )


_RULES = {
    "fork": _keeps_moment,
    "snapshot-create": _keeps_moment,
    "snapshot-restore": _restore,
    "suspend": _suspend,
    "merge": _keeps_moment,
    "start": _start,
    "stop": _needs_process("stop"),
    "kill": _needs_process("kill"),
    "reset": _needs_phase("reset", Phase.RUNNING),
    "pause": _needs_phase("pause", Phase.RUNNING),
    "resume": _needs_phase("resume", Phase.PAUSED),
    "rm": _rm,
    "attach": _settled("attach to", Phase.RUNNING, Phase.PAUSED),
    "volume-resize": _settled("resize a volume of", Phase.RUNNING, Phase.PAUSED),
    "detach": _settled("detach from", Phase.RUNNING),
    "cdrom-insert": _settled("insert a medium into", Phase.RUNNING, Phase.PAUSED),
    "cdrom-eject": _settled("eject the medium of", Phase.RUNNING, Phase.PAUSED),
}

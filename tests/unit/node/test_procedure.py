"""Steps, their undo, and going on after a crash, on a world that is a list of words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from insula.model.operation import StepRecord
from insula.node.procedure import DaemonDied, Faults, Step, perform

World = list[str]


class PlainJournal:
    def __init__(self) -> None:
        self.kept: tuple[StepRecord, ...] = ()
        self.notes: list[str] = []
        self.abandoned = False

    def records(self) -> tuple[StepRecord, ...]:
        return self.kept

    async def record(self, records: tuple[StepRecord, ...]) -> None:
        self.kept = records

    def note(self, text: str) -> None:
        self.notes.append(text)

    def states(self) -> dict[str, str]:
        return {record.name: record.state for record in self.kept}


class Breaking(Faults):
    """Raises `error` the first time `where` ('before a', 'after b') is reached."""

    def __init__(self, where: str, error: Callable[[], BaseException]) -> None:
        self.where: str | None = where
        self.error = error

    def before(self, verb: str, step: str) -> None:
        self._at(f"before {step}")

    def after(self, verb: str, step: str) -> None:
        self._at(f"after {step}")

    def _at(self, place: str) -> None:
        if place == self.where:
            self.where = None
            raise self.error()


def step(name: str, at_most_once: bool = False) -> Step[World]:
    async def do(world: World) -> None:
        await asyncio.sleep(0)
        if name not in world:
            world.append(name)

    async def undo(world: World) -> None:
        await asyncio.sleep(0)
        if name in world:
            world.remove(name)

    return Step(name, do, undo, at_most_once)


STEPS = [step("a"), step("b"), step("c")]
PLACES = [f"{when} {name}" for name in "abc" for when in ("before", "after")]


async def test_steps_are_done_in_order() -> None:
    world: World = []
    journal = PlainJournal()
    await perform("v", STEPS, world, journal, Faults())
    assert world == ["a", "b", "c"]
    assert journal.states() == {"a": "done", "b": "done", "c": "started"}  # the operation's end records c


@pytest.mark.parametrize("place", PLACES)
async def test_a_failure_anywhere_puts_the_world_back(place: str) -> None:
    world: World = []
    journal = PlainJournal()
    with pytest.raises(OSError, match="no"):
        await perform("v", STEPS, world, journal, Breaking(place, lambda: OSError("no")))
    assert world == []
    assert set(journal.states().values()) <= {"undone"}


@pytest.mark.parametrize("place", PLACES)
async def test_a_daemon_that_dies_anywhere_is_followed_by_one_that_goes_on(place: str) -> None:
    world: World = []
    journal = PlainJournal()
    with pytest.raises(DaemonDied):
        await perform("v", STEPS, world, journal, Breaking(place, DaemonDied))
    await perform("v", STEPS, world, journal, Faults())
    assert world == ["a", "b", "c"]
    assert journal.notes == []


@pytest.mark.parametrize("place", PLACES)
async def test_a_daemon_that_dies_anywhere_can_be_followed_by_one_that_undoes(place: str) -> None:
    world: World = []
    journal = PlainJournal()
    with pytest.raises(DaemonDied):
        await perform("v", STEPS, world, journal, Breaking(place, DaemonDied))
    with pytest.raises(OSError, match="given up"):
        await perform("v", STEPS, world, journal, Faults(), backwards=OSError("given up"))
    assert world == []


async def test_a_step_that_must_not_be_repeated_is_not() -> None:
    steps = [step("a"), step("press", at_most_once=True), step("c")]
    world: World = []
    journal = PlainJournal()
    with pytest.raises(DaemonDied):
        await perform("v", steps, world, journal, Breaking("before press", DaemonDied))
    await perform("v", steps, world, journal, Faults())
    assert world == ["a", "c"]
    assert "'press'" in journal.notes[0]


async def test_an_undo_that_fails_is_told_and_the_rest_is_undone() -> None:
    world: World = []
    journal = PlainJournal()

    class Twice(Faults):
        def before(self, verb: str, step: str) -> None:
            if step in ("c", "undo b"):
                raise OSError(step)

    with pytest.raises(OSError, match="c"):
        await perform("v", STEPS, world, journal, Twice())
    assert world == ["b"]
    assert "'b' could not be undone" in journal.notes[0]


async def test_cancellation_undoes_and_an_abandoned_one_does_not() -> None:
    for abandoned, left in ((False, []), (True, ["a"])):
        world: World = []
        journal = PlainJournal()
        reached = asyncio.Event()

        async def hang(_: World, reached: asyncio.Event = reached) -> None:
            reached.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(perform("v", [step("a"), Step("hang", hang)], world, journal, Faults()))
        await reached.wait()
        journal.abandoned = abandoned
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert world == left


async def test_a_second_cancellation_does_not_cut_the_undo_short() -> None:
    world: World = ["kept"]
    undoing = asyncio.Event()
    go_on = asyncio.Event()

    async def fail(_: World) -> None:
        raise OSError("no")

    async def slow_undo(world: World) -> None:
        undoing.set()
        await go_on.wait()
        world.clear()

    task = asyncio.create_task(perform("v", [Step("s", fail, slow_undo)], world, PlainJournal(), Faults()))
    await undoing.wait()
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(task, return_exceptions=True)
    assert world == []

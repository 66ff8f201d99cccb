"""Whom an entry of a home belongs to, and what it takes: from values alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from insula.model.housekeeping import Usage
from insula.model.operation import Operation, OperationState
from insula.planner.housekeeping.belonging import NEW_PATIENCE, find_leftovers, judge, judge_all
from insula.planner.housekeeping.disks import choose_disks
from insula.planner.housekeeping.sight import Ledger, Section, SeenEntry, SeenFile, Sight, Stray
from insula.planner.housekeeping.usage import sum_up
from insula.planner.housekeeping.wholeness import find_problems, is_clean

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BEGAN = 1_000_000.0
UID, KEY, DIGEST = "0" * 16, "0" * 12, "0" * 64
EMPTY = Ledger()


def entry(section: Section, name: str, *files: SeenFile, changed: float = 0.0, **fields: Any) -> SeenEntry:
    own = SeenFile("", "directory", (1, abs(hash((section, name)))), 0, changed=changed)
    return SeenEntry(section, name, f"/home/{section}/{name}", (own, *files), **fields)


def operation(target: str, state: OperationState, **fields: Any) -> Operation:
    return Operation(
        uid="f" * 16,
        name="web",
        created=NOW,
        verb=fields.pop("verb", "create"),
        target_kind=fields.pop("target_kind", "machine"),
        target=target,
        state=state,
        **fields,
    )


def ledger(*operations: Operation) -> Ledger:
    return Ledger.of([], [], [], operations)


def usage(sight: Sight, known: Ledger = EMPTY) -> Usage:
    return sum_up(sight, known, judge_all(sight, known), NOW, "/home", "/home/images", 1)


CASES: list[tuple[SeenEntry, str]] = [
    (entry("machines", UID), "lost"),
    (entry("machines", UID, changed=BEGAN), "making"),
    (entry("machines", f".removing-{UID}"), "orphan"),
    (entry("machines", "backup"), "foreign"),
    (entry("machines", f".removing-{UID}x"), "foreign"),
    (entry("machines", UID.upper().replace("0", "A")), "foreign"),
    (entry("volumes", UID), "lost"),
    (entry("snapshots", UID), "lost"),
    (entry("templates", KEY), "orphan"),
    (entry("templates", KEY, whole=True), "cache"),
    (entry("templates", KEY, busy=True), "making"),
    (entry("templates", "mine"), "foreign"),
    (entry("captures", UID), "orphan"),
    (entry("captures", "mine"), "foreign"),
    (entry("blobs", DIGEST), "unused"),
    (entry("blobs", DIGEST, names=("micro",)), "needed"),
    (entry("blobs", DIGEST, holders=("/elsewhere/machines/1",)), "needed"),
    (entry("blobs", "mine"), "foreign"),
    (entry("claims", DIGEST), "orphan"),
    (entry("claims", DIGEST, whole=True), "needed"),
    (entry("names", "micro"), "needed"),
    (entry("names", ".micro.1a2b"), "orphan"),
    (entry("builds", "abc"), "orphan"),
    (entry("builds", "abc", busy=True), "making"),
    (entry("downloads", "abc"), "orphan"),
    (entry("downloads", "abc", changed=BEGAN - 60), "cache"),
    (entry("downloads", "abc", busy=True), "making"),
    (entry("images", ".lock"), "needed"),
    (entry("images", "mine"), "foreign"),
    (entry("home", "insula.db"), "needed"),
    (entry("home", "insula.db-wal"), "needed"),
    (entry("home", "insula.db.damaged-20260101T000000"), "kept"),
    (entry("home", "daemon"), "needed"),
    (entry("home", "catalogues"), "needed"),
    (entry("home", ".host.json.7.new"), "orphan"),
    (entry("home", ".host.json.7.new", changed=BEGAN - 1), "making"),
    (entry("home", "mine"), "foreign"),
]


@pytest.mark.parametrize(("seen", "state"), CASES, ids=lambda case: str(getattr(case, "path", case)))
def test_whom_an_entry_belongs_to(seen: SeenEntry, state: str) -> None:
    found = judge(seen, EMPTY, BEGAN)
    assert found.state == state
    assert found.reason
    assert not found.reason.endswith(".")


@pytest.mark.parametrize("name", [UID, f".removing-{UID}"])
@pytest.mark.parametrize("state", [s for s in OperationState if not s.is_final])
def test_an_unfinished_operation_keeps_what_it_names(name: str, state: OperationState) -> None:
    for section in ("machines", "volumes", "snapshots"):
        seen = entry(section, name)
        named = [
            operation(UID, state),
            operation("x", state, parameters={"siblings": ["y", UID]}),
            operation("x", state, remembered={"deep": {"er": [UID]}}),
        ]
        for one in named:
            assert judge(seen, ledger(one), BEGAN).state == "making"


def test_an_ended_operation_makes_it_an_orphan_and_an_unfinished_one_outweighs_it() -> None:
    ended, begun = operation(UID, OperationState.CANCELLED), operation(UID, OperationState.RUNNING)
    assert judge(entry("machines", UID), ledger(ended), BEGAN).state == "orphan"
    assert judge(entry("machines", UID), ledger(ended, begun), BEGAN).state == "making"


def test_what_was_only_named_may_have_been_lost_before() -> None:
    """A volume that no ledger could recover, and a machine that is rid of it since."""
    detach = operation("1" * 16, OperationState.DONE, verb="detach", parameters={"volume_uid": UID})
    assert judge(entry("volumes", UID), ledger(detach), BEGAN).state == "lost"
    clone = operation("1" * 16, OperationState.DONE, verb="volume-clone", parameters={"source_uid": UID})
    assert judge(entry("volumes", UID), ledger(clone), BEGAN).state == "lost"
    fork = operation("1" * 16, OperationState.FAILED, verb="fork", parameters={"siblings": [UID]})
    assert judge(entry("machines", UID), ledger(fork), BEGAN).state == "orphan"


def test_our_own_operations_name_what_they_look_at() -> None:
    mine = operation("system:store", OperationState.DONE, target_kind="system", parameters={"lost": [UID]})
    assert judge(entry("machines", UID), ledger(mine), BEGAN).state == "lost"


def test_sizes_are_counted_once_per_inode() -> None:
    shared = SeenFile("disk0-a.qcow2", "file", (1, 7), 1000, links=3)
    own = SeenFile("disk0.qcow2", "file", (1, 8), 10)
    twice = [SeenFile(name, "file", (1, 9), 100, links=2) for name in ("a", "b")]
    sight = Sight(
        BEGAN,
        (
            entry("machines", f".removing-{UID}", shared, own),
            entry("captures", UID, shared, *twice),
            entry("templates", KEY, shared, whole=True, memory=50),
        ),
    )
    found = usage(sight)
    by_kind = {kind.kind: kind for kind in found.kinds}
    machine, capture, template = by_kind["machine"], by_kind["capture"], by_kind["template"]
    assert (machine.size_bytes, machine.exclusive_bytes, machine.shared_bytes) == (1010, 10, 1000)
    assert (capture.size_bytes, capture.exclusive_bytes) == (1100, 100)
    assert (template.memory_bytes, template.reclaimable_memory_bytes) == (50, 50)
    # Each alone frees little; all three together free what they share.
    assert [kind.reclaimable_bytes for kind in (machine, capture, template)] == [10, 100, 0]
    assert found.reclaimable_bytes == found.total.size_bytes == 1110
    assert found.total.memory_bytes == 50


def test_a_name_outside_the_home_keeps_an_inode() -> None:
    kept = SeenFile("disk", "file", (1, 7), 1000, links=2)
    found = usage(Sight(BEGAN, (entry("machines", f".removing-{UID}", kept),)))
    assert (found.total.size_bytes, found.total.exclusive_bytes, found.reclaimable_bytes) == (1000, 0, 0)


def test_what_is_outside_is_never_offered() -> None:
    sight = Sight(BEGAN, (entry("machines", f".removing-{UID}", outside=True),))
    (found,) = find_problems(sight, EMPTY, judge_all(sight, EMPTY), "/home", "/home/images")
    assert found.remedy == "none"
    assert usage(sight).reclaimable_bytes == 0


def test_leftovers_wait_until_nobody_can_be_at_them() -> None:
    new = [SeenFile(".a.new", "file", (1, 1), 8, changed=BEGAN - NEW_PATIENCE + n) for n in (-1, 1)]
    seen = entry("templates", KEY, *new, whole=True)
    found = list(find_leftovers(seen, judge(seen, EMPTY, BEGAN), EMPTY, BEGAN))
    assert [left.file for left in found] == [new[0]]
    making = entry("templates", KEY, *new, busy=True)
    assert not list(find_leftovers(making, judge(making, EMPTY, BEGAN), EMPTY, BEGAN))


def test_strays() -> None:
    strays = (Stray(1, 2, "/home/templates/a", True, 100), Stray(3, 4, "/home/machines/b", False))
    sight = Sight(BEGAN, (), strays)
    keeper, guest = find_problems(sight, EMPTY, [], "/home", "/home/images")
    assert (keeper.remedy, keeper.memory_bytes, guest.remedy) == ("prune", 100, "none")
    assert usage(sight).total.memory_bytes == 100


def test_every_problem_says_what_mends_it() -> None:
    sight = Sight(BEGAN, tuple(seen for seen, _ in CASES), (Stray(1, 2, "/home/x/y", True),))
    problems = find_problems(sight, EMPTY, judge_all(sight, EMPTY), "/home", "/home/images")
    assert not is_clean(problems)
    for found in problems:
        assert found.mend, found
        assert found.why.endswith("."), found
        assert found.what[0].isupper(), found
        assert not found.what.endswith("."), found
        assert found.note == (found.code in ("foreign", "kept-ledger"))


def test_disks_that_a_running_machine_has_open_are_left_alone() -> None:
    shared = SeenFile("disk0-a.qcow2", "file", (1, 7), 10, links=2)
    mine, other = SeenFile("disk0.qcow2", "file", (1, 8), 1), SeenFile("disk0.qcow2", "file", (1, 9), 1)
    new = SeenFile(".disk0.qcow2.new", "file", (1, 10), 1)
    sight = Sight(
        BEGAN,
        (
            entry("machines", UID, shared, mine, lives=True),
            entry("templates", KEY, shared, other, new, whole=True),
        ),
    )
    chosen = choose_disks(sight, EMPTY, judge_all(sight, EMPTY))
    assert [disk.path for disk in chosen] == [f"/home/templates/{KEY}/disk0.qcow2"]

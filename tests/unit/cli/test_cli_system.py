"""insula system df, check, prune: what is printed, asked and submitted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from insula.cli import system_prune
from tests.unit.cli.conftest import Command
from tests.unit.client.stub import Stub, operation

MIB = 2**20
LINE = "/h/machines/.removing-1"


def taken(size: int, exclusive: int, memory: int = 0) -> dict[str, int]:
    return {
        "size_bytes": size,
        "exclusive_bytes": exclusive,
        "shared_bytes": size - exclusive,
        "memory_bytes": memory,
    }


def part(kind: str, name: str, state: str, memory: int = 0) -> dict[str, Any]:
    said = {"kind": kind, "name": name, "owner": f"{kind} '{name}'", "state": state, "reason": "r"}
    return {**said, "path": f"/h/{kind}/{name}", **taken(2 * MIB, MIB, memory)}


USAGE: dict[str, Any] = {
    "looked": "2026-01-01T00:00:00Z",
    "home": "/h",
    "images": "/h/images",
    "free_bytes": 2**30,
    "kinds": [
        {
            "kind": "template",
            "count": 1,
            **taken(2 * MIB, MIB, 64 * MIB),
            "reclaimable_bytes": MIB,
            "reclaimable_memory_bytes": 64 * MIB,
        }
    ],
    "total": taken(2 * MIB, 2 * MIB, 64 * MIB),
    "reclaimable_bytes": MIB,
    "reclaimable_memory_bytes": 64 * MIB,
    "parts": [
        part("template", "abc", "cache", 64 * MIB),
        part("image", "d1", "unused"),
        part("image", "d2", "needed"),
        part("download", "x", "cache"),
    ],
}
ORPHAN: dict[str, Any] = {
    "code": "orphan-machine",
    "what": "A machine's directory belongs to nobody",
    "path": LINE,
    "why": "Its removal began.",
    "mend": "insula system prune",
    "remedy": "prune",
    "note": False,
    "uid": "",
    "size_bytes": MIB,
    "memory_bytes": 0,
    "pid": None,
}
LOST = {
    **ORPHAN,
    "code": "lost-machine",
    "remedy": "lost",
    "uid": "2" * 16,
    "path": f"/h/machines/{'2' * 16}",
}
FOREIGN = {**ORPHAN, "code": "foreign", "remedy": "none", "note": True, "path": "/h/notes"}


def found(*problems: dict[str, Any], disks: int | None = None) -> dict[str, Any]:
    clean = all(problem["note"] for problem in problems)
    return {"looked": "now", "clean": clean, "problems": list(problems), "disks_checked": disks}


def done(**outcome: Any) -> dict[str, Any]:
    return operation(state="done", outcome=outcome)


def removed(problem: dict[str, Any]) -> dict[str, Any]:
    freed = {"freed_bytes": problem["size_bytes"], "freed_memory_bytes": problem["memory_bytes"]}
    return {**{key: problem[key] for key in ("code", "what", "path")}, **freed}


def test_df(stub: Stub, insula: Command) -> None:
    stub.answer("GET", "/v1/system/usage", USAGE)
    ran = insula("system", "df")
    assert ran.out.splitlines() == [
        "WHAT      COUNT  SIZE  EXCLUSIVE  SHARED  MEMORY  RECLAIMABLE",
        "template  1      2MiB  1MiB       1MiB    64MiB   1MiB + 64MiB memory",
        "total            2MiB  2MiB       0B      64MiB   1MiB + 64MiB memory",
    ]
    assert ran.err == "1GiB are free on the disk of /h.\n"
    assert stub.requests[-1].query == ""
    verbose = insula("system", "df", "--verbose").out
    assert "image     d1    image 'd1'      unused  2MiB" in verbose
    assert "parts" in stub.requests[-1].query
    assert json.loads(insula("system", "df", "--json").out) == USAGE


def test_check_that_finds_nothing(stub: Stub, insula: Command) -> None:
    stub.answer("GET", "/v1/system/check", found(FOREIGN))
    ran = insula("system", "check")
    assert (ran.status, ran.err) == (0, "All is well.\n")
    assert "note: A machine's directory" in ran.out
    assert insula("system", "check", "-q").out == ""


def test_check_that_finds_something(stub: Stub, insula: Command) -> None:
    stub.answer("GET", "/v1/system/check", found(ORPHAN, LOST))
    ran = insula("system", "check")
    assert ran.status == 65
    assert ran.out.splitlines()[:4] == [
        "wrong: A machine's directory belongs to nobody.",
        f"  path: {LINE}",
        "  why:  Its removal began.",
        "  mend: insula system prune",
    ]
    assert ran.err == "2 things found, of which `insula system prune` clears 1.\n"
    ran = insula("system", "check", "--json")
    assert (ran.status, json.loads(ran.out)) == (65, found(ORPHAN, LOST))


def test_check_of_disks_is_an_operation(stub: Stub, insula: Command) -> None:
    stub.answer("POST", "/v1/system/check", done(**found(disks=3)), status=202)
    ran = insula("system", "check", "--disks")
    assert (ran.status, ran.err) == (0, "All is well. 3 disks looked into.\n")
    assert stub.requests[-1].json == {"disks": True}


def test_prune(stub: Stub, insula: Command) -> None:
    stub.answer("GET", "/v1/system/check", found(ORPHAN, LOST))
    outcome = {"removed": [removed(ORPHAN)], "left": []}
    stub.answer("POST", "/v1/system/prune", done(**outcome), status=202)
    ran = insula("system", "prune")
    assert (ran.status, ran.out, ran.err) == (0, f"{LINE}\n", "Freed 1MiB.\n")
    assert stub.requests[-1].json == {"lost": []}
    told = json.loads(insula("system", "prune", "--json", "--lost", "2" * 16).out)
    assert told == {**outcome, "freed_bytes": MIB, "freed_memory_bytes": 0}
    assert stub.requests[-1].json == {"lost": ["2" * 16]}


def test_dry_run(stub: Stub, insula: Command) -> None:
    stub.answer("GET", "/v1/system/check", found(ORPHAN, LOST))
    stub.answer("GET", "/v1/system/usage", USAGE)
    ran = insula("system", "prune", "--dry-run")
    assert ran.out == f"{LINE}  1MiB  A machine's directory belongs to nobody\n"
    ran = insula("system", "prune", "-n", "-q", "--all", "--lost", "2" * 16)
    assert ran.out.split() == [LINE, LOST["path"], "/h/template/abc", "/h/image/d1", "/h/download/x"]
    told = json.loads(insula("system", "prune", "-n", "--images", "--json").out)
    assert [one["path"] for one in told["would_remove"]] == [LINE, "/h/image/d1", "/h/download/x"]
    assert not [asked for asked in stub.requests if asked.method == "POST"]


def test_all_has_the_other_verbs_do_theirs_first(stub: Stub, insula: Command) -> None:
    stub.answer("GET", "/v1/system/check", found())
    stub.answer("GET", "/v1/system/usage", USAGE)
    stub.answer("POST", "/v1/templates/prune", done(removed=["abc"], freed_bytes=64 * MIB), status=202)
    stub.answer("POST", "/v1/images/prune", done(removed=["sha256:d1", "sha256:d2"]), status=202)
    stub.answer("POST", "/v1/system/prune", done(removed=[], left=[]), status=202)
    ran = insula("system", "prune", "--all", "--yes")
    assert ran.out.split() == ["/h/template/abc", "/h/image/d1", "/h/image/d2", "/h/download/x"]
    assert ran.err == "Freed 4MiB and 64MiB of memory.\n"
    posts = [asked.path for asked in stub.requests if asked.method == "POST"]
    assert posts == ["/v1/templates/prune", "/v1/images/prune", "/v1/system/prune"]


@pytest.mark.parametrize(("answer", "goes"), [("y\n", True), ("n\n", False), ("", False)])
def test_on_a_terminal_one_is_asked(
    stub: Stub, insula: Command, monkeypatch: pytest.MonkeyPatch, answer: str, goes: bool
) -> None:
    stub.answer("GET", "/v1/system/check", found(ORPHAN))
    stub.answer("POST", "/v1/system/prune", done(removed=[removed(ORPHAN)], left=[]), status=202)
    monkeypatch.setattr(system_prune.os, "isatty", lambda _: True)
    monkeypatch.setattr(system_prune.sys.stdin, "readline", lambda: answer, raising=False)
    ran = insula("system", "prune")
    assert ran.status == 0
    assert "Remove this? [y/N]" in ran.err
    assert (ran.out == f"{LINE}\n") is goes
    assert any(asked.method == "POST" for asked in stub.requests) is goes
    assert "[y/N]" not in insula("system", "prune", "--yes").err


def test_the_sdk_has_it(stub: Stub) -> None:
    from insula.client.sdk import Client

    stub.answer("GET", "/v1/system/usage", USAGE)
    stub.answer("GET", "/v1/system/check", found(ORPHAN))
    stub.answer("POST", "/v1/system/check", done(**found(disks=1)), status=202)
    outcome = {"removed": [], "left": [], "freed_bytes": 0, "freed_memory_bytes": 0}
    stub.answer("POST", "/v1/system/prune", done(**outcome), status=202)
    system = Client(stub.home).system
    assert system.usage(parts=True)["parts"]
    assert not system.check()["clean"]
    assert system.check(disks=True)["disks_checked"] == 1
    assert system.prune(lost=["2" * 16]) == outcome
    assert stub.requests[-1].json == {"lost": ["2" * 16]}

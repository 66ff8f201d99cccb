"""insula system df, check; prune is in cli/system_prune.py."""

from __future__ import annotations

import sys

from insula.cli.groups import run_subcommand
from insula.cli.operate import perform
from insula.cli.output import RED, YELLOW, paint, print_json, print_table, say, size
from insula.cli.parser import Parser
from insula.cli.system_prune import prune
from insula.client.sdk import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from insula.client.types import BytesInfo, CheckInfo, PartInfo, StoreProblemInfo, UsageInfo

FOUND_STATUS = 65  # EX_DATAERR: what is stored is not as it should be
_SUMMARY = "What the files of this home take, what is wrong with them, and removing what nobody needs."


def run(_command: str, argv: list[str]) -> int:
    table = {
        "df": ("Say what everything takes, on the disk and in memory", _df),
        "check": ("Say what is wrong, and the command that mends it", _check),
        "prune": ("Remove what nobody needs", prune),
    }
    return run_subcommand("system", _SUMMARY, table, argv)


# -- df


def _df(argv: list[str]) -> int:
    parser = Parser(
        "system df",
        "Say what everything takes. EXCLUSIVE would be freed if that alone were removed, SHARED is what\n"
        "others have, too; RECLAIMABLE is what `insula system prune --all` frees. -v shows each one.",
    )
    options = parser.parse(argv)
    usage = connect().system.usage(parts=options.verbose or options.json)
    if options.json:
        print_json(usage)
        return 0
    _print_kinds(usage)
    if options.verbose:
        print()
        _print_parts(usage["parts"])
    if not options.quiet:
        say(f"{size(usage['free_bytes'])} are free on the disk of {usage['home']}.")
    return 0


def _print_kinds(usage: UsageInfo) -> None:
    rows = [
        [
            kind["kind"],
            str(kind["count"]),
            *_sizes(kind),
            _reclaimable(kind["reclaimable_bytes"], kind["reclaimable_memory_bytes"]),
        ]
        for kind in usage["kinds"]
    ]
    reclaimable = _reclaimable(usage["reclaimable_bytes"], usage["reclaimable_memory_bytes"])
    rows.append(["total", "", *_sizes(usage["total"]), reclaimable])
    print_table(["WHAT", "COUNT", "SIZE", "EXCLUSIVE", "SHARED", "MEMORY", "RECLAIMABLE"], rows)


def _sizes(taken: BytesInfo) -> list[str]:
    memory = size(taken["memory_bytes"]) if taken["memory_bytes"] else "-"
    return [size(taken["size_bytes"]), size(taken["exclusive_bytes"]), size(taken["shared_bytes"]), memory]


def _reclaimable(disk: int, memory: int) -> str:
    return size(disk) + (f" + {size(memory)} memory" if memory else "")


def _print_parts(parts: Sequence[PartInfo]) -> None:
    rows = [[p["kind"], p["name"][:16], p["owner"], p["state"], *_sizes(p)] for p in parts]
    colours = {"STATE": {"orphan": YELLOW, "lost": RED}}
    print_table(["WHAT", "NAME", "OWNER", "STATE", "SIZE", "EXCLUSIVE", "SHARED", "MEMORY"], rows, colours)


# -- check


def _check(argv: list[str]) -> int:
    parser = Parser(
        "system check",
        "Say what is wrong, why, and the command that mends it; nothing is changed. Exits with "
        f"{FOUND_STATUS} when\nsomething is wrong.",
    )
    parser.flag("--disks", help="look into every disk that no running machine has open, too; minutes")
    options = parser.parse(argv)
    system = connect().system
    if options.disks:
        outcome = perform(lambda: system.submit_check(disks=True), quiet=options.quiet)["outcome"]
        found: CheckInfo = outcome  # type: ignore[assignment]
    else:
        found = system.check()
    if options.json:
        print_json(found)
    else:
        _print_problems([p for p in found["problems"] if not (options.quiet and p["note"])])
        if not options.quiet:
            say(_verdict(found))
    return 0 if found["clean"] else FOUND_STATUS


def _print_problems(problems: Sequence[StoreProblemInfo]) -> None:
    for problem in problems:
        mark = "note" if problem["note"] else paint("wrong", RED, sys.stdout)
        sys.stdout.write(f"{mark}: {problem['what']}.\n")
        for key in ("path", "why", "mend"):
            sys.stdout.write(f"  {key + ':':<6}{problem[key]}\n")


def _verdict(found: CheckInfo) -> str:
    disks = found["disks_checked"]
    looked = "" if disks is None else f" {disks} disk{'' if disks == 1 else 's'} looked into."
    if found["clean"]:
        return f"All is well.{looked}"
    wrong = [problem for problem in found["problems"] if not problem["note"]]
    pruned = [problem for problem in wrong if problem["remedy"] == "prune"]
    cleared = f", of which `insula system prune` clears {len(pruned)}" if pruned else ""
    return f"{len(wrong)} thing{'' if len(wrong) == 1 else 's'} found{cleared}.{looked}"

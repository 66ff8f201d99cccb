"""insula snapshot create, ls, info, restore, rm."""

from __future__ import annotations

import sys

from insula.cli.groups import run_subcommand
from insula.cli.interrupts import Ended, arm
from insula.cli.operate import ProgressLine, perform, perform_each, tell_notes
from insula.cli.output import age, ago, print_json, print_table, say
from insula.cli.output import size as shown_size
from insula.cli.parser import Parser, UsageError
from insula.client.sdk import connect
from insula.kit.errors import InsulaError
from insula.kit.units import format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula.cli.parser import Options
    from insula.client.machine import Machine
    from insula.client.operation import Operation
    from insula.client.types import LossesInfo, SnapshotInfo


def run(_command: str, argv: list[str]) -> int:
    table = {
        "create": ("Keep a machine's disks, or disks and memory, as they are now", _create),
        "ls": ("List a machine's snapshots as a tree", _ls),
        "info": ("Show a snapshot", _info),
        "restore": ("Make a machine what it was in a snapshot", _restore),
        "rm": ("Remove snapshots", _rm),
    }
    return run_subcommand("snapshot", "Machines as they were at one moment.", table, argv)


def _parser(command: str, summary: str, *, name: bool = True, examples: str = "") -> Parser:
    parser = Parser(f"snapshot {command}", summary, examples=examples)
    parser.argument("machine", "MACHINE", "name of the machine")
    if name:
        parser.argument("name", "NAME", "name of the snapshot")
    parser.add_project()
    return parser


def _machine(options: Options) -> Machine:
    return connect().machine(options.machine, options.project)


def _create(argv: list[str]) -> int:
    parser = _parser(
        "create",
        "Keep a machine's disks as they are now, all at one moment; it goes on after a blink.",
        name=False,
        examples="insula snapshot create web before-upgrade --memory\ninsula snapshot create web --quiesce",
    )
    parser.argument("name", "NAME", "name of the snapshot (default: snap1, snap2, ...)", "?")
    parser.flag("--memory", help="keep what it has in memory too, so that it can go on from this moment")
    parser.flag("--quiesce", help="have its file systems written out and at rest, if its agent can")
    parser.option("--description", metavar="TEXT", default="", help="what it is for")
    options = parser.parse(argv)
    machine = _machine(options)

    def submit() -> Operation:
        return machine.submit_snapshot(
            options.name, memory=options.memory, quiesce=options.quiesce, description=options.description
        )

    info = perform(submit, quiet=options.quiet)
    outcome = info["outcome"] or {}
    if options.json:
        print_json(machine.find_snapshot(outcome["name"]))
        return 0
    print(outcome["name"])
    if outcome.get("stood_seconds") and not options.quiet:
        say(f"Machine '{options.machine}' stood for {format_duration(outcome['stood_seconds'])}.")
    return 0


def _ls(argv: list[str]) -> int:
    options = _parser(
        "ls", "List a machine's snapshots as a tree; '*' is where it stands.", name=False
    ).parse(argv)
    snapshots = _machine(options).snapshots()
    if options.json:
        print_json(snapshots)
    elif options.quiet:
        for snapshot in snapshots:
            print(snapshot["name"])
    elif not snapshots:
        say(f"Machine '{options.machine}' has none. Make one: insula snapshot create {options.machine}")
    else:
        branches = draw([snapshot["depth"] for snapshot in snapshots])
        rows = [_row(snapshot, branch) for snapshot, branch in zip(snapshots, branches, strict=True)]
        print_table(["NAME", "AGE", "PHASE", "MEMORY", "OWN", "DESCRIPTION"], rows)
    return 0


def draw(depths: list[int]) -> list[str]:
    """What stands before each name of a tree in order: lines to its parent. depths: 0 for a root."""
    drawn = []
    for at, depth in enumerate(depths):
        if depth == 0:
            drawn.append("")
            continue
        lines = ["│  " if _goes_on(depths, at, level) else "   " for level in range(1, depth)]
        lines.append("├─ " if _goes_on(depths, at, depth) else "└─ ")
        drawn.append("".join(lines))
    return drawn


def _goes_on(depths: list[int], at: int, level: int) -> bool:
    """Whether another child comes at this level before the tree goes back above it."""
    for depth in depths[at + 1 :]:
        if depth <= level:
            return depth == level
    return False


def _row(snapshot: SnapshotInfo, branch: str) -> list[str]:
    here = " *" if snapshot["current"] else ""
    memory = shown_size(snapshot["memory_bytes"]) if snapshot["memory_bytes"] is not None else "-"
    made = age(snapshot["taken"]) if snapshot["taken"] else "being made"
    return [
        f"{branch}{snapshot['name']}{here}",
        made,
        snapshot["phase"] + (", quiesced" if snapshot["quiesced"] else ""),
        memory,
        shown_size(snapshot["exclusive_bytes"]),
        snapshot["description"] or "-",
    ]


def _info(argv: list[str]) -> int:
    options = _parser("info", "Show a snapshot.").parse(argv)
    machine = _machine(options)
    snapshot = machine.find_snapshot(options.name)
    if options.json:
        print_json(snapshot)
        return 0
    memory = shown_size(snapshot["memory_bytes"]) if snapshot["memory_bytes"] is not None else "not kept"
    rows = [
        ("name", snapshot["name"] + (" (the machine stands on it)" if snapshot["current"] else "")),
        ("description", snapshot["description"] or "-"),
        ("parent", snapshot["parent"] or "-"),
        ("taken", ago(snapshot["taken"]) if snapshot["taken"] else "being made"),
        ("machine was", snapshot["phase"] + (", quiesced" if snapshot["quiesced"] else "")),
        *([("stood for", format_duration(snapshot["stood_seconds"]))] if snapshot["stood_seconds"] else []),
        ("memory", memory),
        *(
            ("disk", f"{disk['volume'] or disk['id']}, {shown_size(disk['size_bytes'])}")
            for disk in snapshot["disks"]
        ),
        ("own files", shown_size(snapshot["exclusive_bytes"])),
    ]
    print("\n".join(f"{key + ':':<13}{value}" for key, value in rows))
    return 0


def _restore(argv: list[str]) -> int:
    parser = _parser(
        "restore",
        "Make a machine what it was in a snapshot. What it is now is lost: that is said, and asked.\n"
        "With its memory it goes on from that moment; without, it is off.",
        examples="insula snapshot restore web before-upgrade --keep broken",
    )
    parser.flag("-y", "--yes", help="do not ask")
    parser.option("--keep", metavar="NEW", help="keep what it is now as a snapshot of that name first")
    parser.flag("--start", help="let it run, also where no memory was kept")
    parser.flag("--disks-only", help="leave the memory that was kept: it is off, or boots with --start")
    options = parser.parse(argv)
    machine = _machine(options)
    losses = machine.losses(options.name)
    if options.keep is None and not options.yes and not _is_wanted(options, losses):
        say("Nothing was changed.")
        return 1
    if options.keep is not None:
        perform(lambda: machine.submit_keep(options.keep), quiet=options.quiet)
        if not options.quiet:
            say(f"What machine '{options.machine}' was until now is kept as '{options.keep}'.")
    info = perform(
        lambda: machine.submit_restore(options.name, start=options.start, disks_only=options.disks_only),
        quiet=options.quiet,
    )
    if options.json:
        print_json(info)
    elif not options.quiet:
        print(options.machine)
        running = (info["outcome"] or {}).get("running")
        if not running:
            say(f"It is off; start it: insula start {options.machine}")
    return 0


def _is_wanted(options: Options, losses: LossesInfo) -> bool:
    """Say what will be lost and ask. Raises UsageError when nobody can answer."""
    then = ago(losses["since"]) if losses["since"] else "then"
    say(f"Machine '{options.machine}' becomes what it was {then}.")
    for line in describe(losses):
        say(f"  lost: {line}")
    if not sys.stdin.isatty():
        raise UsageError(
            "Nobody is there to say that this may be lost.",
            hint="Give --yes, or --keep NAME to keep what it is now as a snapshot.",
        )
    sys.stderr.write("Go on? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def describe(losses: LossesInfo) -> list[str]:
    """What a restore loses, a line each."""
    lines = ["what it has in memory"] if losses["memory"] else []
    for disk, size in losses["written_bytes"].items():
        lines.append(f"what was written to '{disk}' since: up to {shown_size(size)}")
    lines += [f"its attachment to volume '{volume}', which stays as it is" for volume in losses["detached"]]
    return lines or ["nothing"]


def _rm(argv: list[str]) -> int:
    parser = Parser(
        "snapshot rm",
        "Remove snapshots. What others stand on stays; the rest is merged while the machine runs.",
        examples="insula snapshot rm web before-upgrade",
    )
    parser.argument("machine", "MACHINE", "name of the machine")
    parser.add_names("snapshot")
    parser.add_project()
    parser.flag("--no-wait", help="do not wait until what it leaves is merged")
    options = parser.parse(argv)
    machine = _machine(options)
    status = perform_each(options, options.names, machine.submit_remove_snapshot)
    if not options.no_wait:
        _wait_merged(options, machine)
    return status


def _wait_merged(options: Options, machine: Machine) -> None:
    """Until nothing is merged any more. That it gave way to something else is told, and no error.

    Ctrl-C ends the waiting only: the snapshots are gone already, and what they leave is merged all the same.
    """
    arm()
    for operation in machine.merges():
        try:
            with ProgressLine(options.quiet) as line:
                info = operation.wait(line.show)
            tell_notes(info, options.quiet)
        except InsulaError as error:
            if not options.quiet:
                say(f"What it leaves is merged later: {error.message}")
        except (KeyboardInterrupt, Ended):
            say(f"What it leaves is merged all the same; wait for it: insula op wait {operation.uid}")
            raise

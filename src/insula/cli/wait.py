"""insula wait NAME: until a machine is in a phase."""

from __future__ import annotations

from insula.cli.output import print_json
from insula.cli.parser import Parser, UsageError, duration
from insula.client.sdk import connect
from insula.kit.errors import nearest

PHASES = ("created", "starting", "running", "paused", "stopping", "stopped", "crashed", "suspended")


def parser() -> Parser:
    p = Parser("wait", "Wait until a machine is in a phase, and print which.")
    p.add_name()
    p.option(
        "--phase",
        metavar="PHASE[,...]",
        default="stopped,crashed",
        help=f"any of these: {', '.join(PHASES)} (default: stopped,crashed)",
    )
    p.option("--timeout", metavar="TIME", convert=duration, help="give up after this time, exit 69")
    p.add_project()
    return p


def run(_command: str, argv: list[str]) -> int:
    options = parser().parse(argv)
    phases = tuple(options.phase.split(","))
    for phase in phases:
        if phase not in PHASES:
            meant = nearest(phase, PHASES)
            hint = f"Did you mean {meant}? " if meant else ""
            raise UsageError(f"There is no phase '{phase}'.", hint=f"{hint}Phases: {', '.join(PHASES)}")
    info = connect().machine(options.name, options.project).wait(phases, timeout=options.timeout)
    if options.json:
        print_json(info)
    elif not options.quiet:
        print(info["phase"])
    return 0

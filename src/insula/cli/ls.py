"""insula ls: one request, one table. What stands between the two is what users wait for, so it imports
little."""

from __future__ import annotations

import sys

from insula.cli.output import PHASE_COLOURS, age, print_json, print_table, say, size
from insula.cli.parser import Parser
from insula.client.transport import Transport
from insula.client.wire import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula.client.types import MachineInfo

# A machine that crashed wants to be looked at: it is not hidden like those that ended in peace.
QUIET_PHASES = ("created", "stopped")


def parser() -> Parser:
    p = Parser("ls", "List machines that run or have crashed; with --all also stopped ones.")
    p.flag("-a", "--all", help="stopped and never started machines too")
    p.option("--project", metavar="P", help="only machines of this project")
    return p


def run(_command: str, argv: list[str]) -> int:
    options = parser().parse(argv)
    target = f"/v1/projects/{quote(options.project)}/machines" if options.project else "/v1/machines"
    found: list[MachineInfo] = Transport().call("GET", target)
    shown = [machine for machine in found if options.all or machine["phase"] not in QUIET_PHASES]
    if options.json:
        print_json(shown)
    elif options.quiet:
        sys.stdout.write("".join(f"{machine['name']}\n" for machine in shown))
    else:
        _print(shown, len(found) - len(shown))
    return 0


def _print(machines: list[MachineInfo], hidden: int) -> None:
    several_projects = len({machine["project"] for machine in machines}) > 1
    headers = ["NAME", "IMAGE", "PHASE", "CPUS", "MEMORY", "ADDRESSES", "AGE"]
    rows = [
        [
            m["name"],
            m["image"],
            m["phase"],
            str(m["cpus"]),
            size(m["memory_bytes"]),
            ",".join(m["addresses"]) or "-",
            age(m["created"]),
        ]
        for m in sorted(machines, key=lambda m: (m["project"], m["name"]))
    ]
    if several_projects:
        headers.insert(0, "PROJECT")
        for row, machine in zip(rows, sorted(machines, key=lambda m: (m["project"], m["name"])), strict=True):
            row.insert(0, machine["project"])
    if rows:
        print_table(headers, rows, {"PHASE": PHASE_COLOURS})
    if hidden:
        sys.stdout.flush()
        say(f"{hidden} more not running: insula ls --all")
    elif not rows:
        say("No machines. Start one: insula run micro")

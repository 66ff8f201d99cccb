"""insula shell NAME: the machine's serial console on our terminal."""

from __future__ import annotations

from insula.cli.attach import hold_console
from insula.cli.interrupts import arm
from insula.cli.parser import Parser
from insula.cli.terminal import require_terminal, write_all
from insula.client.sdk import connect

CONTEXT_LINES = 10  # of the log, so that the prompt one is standing at is seen


def parser() -> Parser:
    p = Parser(
        "shell",
        "Sit down at a machine's serial console. Ctrl-] leaves it, and the machine goes on.\n"
        "One person at a time. For a shell of its own through the agent: insula exec -t NAME -- sh",
        json=False,
    )
    p.add_name()
    p.add_project()
    return p


def run(_command: str, argv: list[str]) -> int:
    options = parser().parse(argv)
    require_terminal()
    arm()
    machine = connect().machine(options.name, options.project)
    with machine.console() as console:
        if not options.quiet:
            write_all(1, b"".join(machine.logs(tail=CONTEXT_LINES)))
        hold_console(console, options.name)
    return 0

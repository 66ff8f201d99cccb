"""insula logs NAME: what the machine wrote to its serial console, byte for byte."""

from __future__ import annotations

from insula.cli.parser import Parser, UsageError, whole_number
from insula.cli.terminal import write_all
from insula.client.sdk import connect


def parser() -> Parser:
    p = Parser("logs", "Print what a machine has written to its serial console.", json=False)
    p.flag("-f", "--follow", help="go on as it grows, until the machine ends")
    p.option("-n", "--tail", metavar="N", convert=whole_number, help="only the last N lines")
    p.add_name()
    p.add_project()
    return p


def run(_command: str, argv: list[str]) -> int:
    options = parser().parse(argv)
    if options.tail is not None and options.tail < 0:
        raise UsageError(f"--tail cannot be negative: {options.tail}.")
    machine = connect().machine(options.name, options.project)
    for piece in machine.logs(follow=options.follow, tail=options.tail):
        write_all(1, piece)
    return 0

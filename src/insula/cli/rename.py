"""insula rename OLD NEW."""

from __future__ import annotations

from insula.cli.operate import perform
from insula.cli.output import print_json
from insula.cli.parser import Parser
from insula.client.sdk import connect


def parser() -> Parser:
    p = Parser("rename", "Give a machine another name.")
    p.add_name()
    p.argument("new_name", "NEW", "its new name")
    p.add_project()
    return p


def run(_command: str, argv: list[str]) -> int:
    options = parser().parse(argv)
    machine = connect().machine(options.name, options.project)
    info = perform(lambda: machine.submit("rename", {"name": options.new_name}), quiet=options.quiet)
    if options.json:
        print_json(info)
    elif not options.quiet:
        print(options.new_name)
    return 0

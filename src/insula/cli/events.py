"""insula events: what happened and what happens, a line each."""

from __future__ import annotations

import sys

from insula.cli.output import DIM, paint
from insula.cli.parser import Parser, whole_number
from insula.client.sdk import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula.client.types import EventInfo


def parser() -> Parser:
    p = Parser(
        "events",
        "Print the events that are kept, oldest first; with --follow new ones as they happen.\n"
        "With --json one object a line.",
    )
    p.flag("-f", "--follow", help="print new events until Ctrl-C")
    p.option("--after", metavar="SEQ", convert=whole_number, help="only those after this number")
    return p


def run(_command: str, argv: list[str]) -> int:
    import json

    options = parser().parse(argv)
    for event in connect().events(after=options.after, follow=options.follow):
        line = json.dumps(event, ensure_ascii=False) if options.json else _render(event)
        sys.stdout.write(f"{line}\n")
        if options.follow:
            sys.stdout.flush()
    return 0


def _render(event: EventInfo) -> str:
    details = " ".join(
        f"{key}={value}"
        for key, value in event["data"].items()
        if isinstance(value, (str, int, float)) and value != ""
    )
    at = paint(f"{event['at'][:23].replace('T', ' ')}", DIM, sys.stdout)
    who = event["name"] or event["target"]
    return f"{at}  {event['seq']:>5}  {event['kind']:<20}  {who:<16}  {details}".rstrip()

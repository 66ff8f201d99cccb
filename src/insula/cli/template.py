"""insula template ls, rm, prune."""

from __future__ import annotations

from insula.cli.groups import run_subcommand
from insula.cli.operate import perform, perform_each
from insula.cli.output import age, print_json, print_table, say
from insula.cli.parser import Parser, duration
from insula.client.sdk import connect
from insula.kit.units import format_size

_SUMMARY = (
    "List and remove templates: machines that were booted once and frozen.\n"
    "`insula run` makes them by itself and forks machines of them; forks live on when their template goes."
)


def run(_command: str, argv: list[str]) -> int:
    table = {
        "ls": ("List templates", _ls),
        "rm": ("Remove templates", _rm),
        "prune": ("Remove templates that nobody has used for a while", _prune),
    }
    return run_subcommand("template", _SUMMARY, table, argv)


def _ls(argv: list[str]) -> int:
    options = Parser("template ls", "List templates, the one used last first.").parse(argv)
    templates = connect().templates()
    if options.json:
        print_json(templates)
        return 0
    if options.quiet:
        for template in templates:
            print(template["key"])
        return 0
    rows = [
        [
            t["key"],
            t["image"]["name"],
            str(t["cpus"]),
            format_size(t["memory_bytes"]),
            format_size(t["held_bytes"]),
            format_size(t["disk_bytes"]),
            age(t["last_used"]),
        ]
        for t in templates
    ]
    print_table(["KEY", "IMAGE", "CPUS", "MEMORY", "HELD", "DISK", "LAST-USED"], rows)
    return 0


def _rm(argv: list[str]) -> int:
    parser = Parser("template rm", "Remove templates. Machines that were forked from them live on.")
    parser.argument("names", "NAME", "a template's key, its beginning, or an image's name", "+")
    options = parser.parse(argv)
    return perform_each(options, options.names, connect().submit_remove_template)


def _prune(argv: list[str]) -> int:
    parser = Parser("template prune", "Remove every template that no launch has used for a while.")
    parser.option(
        "--unused-for",
        metavar="TIME",
        convert=duration,
        default=0.0,
        help="only those that no launch has used for so long: 1h, 2d (default: all)",
    )
    options = parser.parse(argv)
    client = connect()
    info = perform(lambda: client.submit_prune_templates(options.unused_for), quiet=options.quiet)
    outcome = info["outcome"] or {}
    if options.json:
        print_json(outcome)
        return 0
    if not options.quiet:
        for key in outcome["removed"]:
            print(key)
        say(f"Freed {format_size(outcome['freed_bytes'])} of memory.")
    return 0

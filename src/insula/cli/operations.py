"""insula op ls, info, wait, cancel."""

from __future__ import annotations

from insula.cli.groups import run_subcommand
from insula.cli.operate import ProgressLine, tell_notes
from insula.cli.output import GREEN, RED, YELLOW, age, ago, print_json, print_table, say
from insula.cli.parser import Parser
from insula.client.sdk import connect
from insula.kit.errors import InsulaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula.client.types import OperationInfo

_COLOURS = {"done": GREEN, "failed": RED, "cancelled": YELLOW}


def run(_command: str, argv: list[str]) -> int:
    table = {
        "ls": ("List operations that have not ended", _ls),
        "info": ("Show an operation, its steps and its error", _info),
        "wait": ("Wait for an operation's end; its error is ours", _wait),
        "cancel": ("Cancel an operation and wait for its undo", _cancel),
    }
    return run_subcommand("op", "List, show, wait for and cancel operations.", table, argv)


def _parser(name: str, summary: str) -> Parser:
    parser = Parser(f"op {name}", summary)
    parser.argument("uid", "UID", "as insula op ls shows it")
    return parser


def _ls(argv: list[str]) -> int:
    parser = Parser("op ls", "List operations that have not ended; with --all those that have, too.")
    parser.flag("-a", "--all", help="ended ones too")
    options = parser.parse(argv)
    found = [operation.info for operation in connect().operations(all=options.all)]
    if options.json:
        print_json(found)
        return 0
    if not found:
        say("No operation is under way." if not options.all else "No operations.")
        return 0
    rows = [[o["uid"], o["verb"], o["name"], o["state"], age(o["created"]), _word(o)] for o in found]
    print_table(["UID", "VERB", "TARGET", "STATE", "AGE", ""], rows, {"STATE": _COLOURS})
    return 0


def _word(info: OperationInfo) -> str:
    """Where it stands, or why it failed, in a line."""
    if info["problem"]:
        return str(info["problem"].get("detail", ""))
    return info["progress"]["message"] if info["progress"] and info["state"] != "done" else ""


def _info(argv: list[str]) -> int:
    options = _parser("info", "Show an operation, its steps and its error.").parse(argv)
    info = connect().operation(options.uid).info
    if options.json:
        print_json(info)
        return 0
    rows = [
        ("uid", info["uid"]),
        ("verb", f"{info['verb']} of {info['target_kind']} '{info['name']}'"),
        ("state", info["state"]),
        ("asked", ago(info["created"])),
        ("finished", ago(info["finished"]) if info["finished"] else ""),
        ("recovered", f"{info['recovered']} times by a daemon that came back" if info["recovered"] else ""),
        ("steps", ", ".join(f"{step['name']} ({step['state']})" for step in info["steps"])),
        ("notes", " ".join(info["notes"])),
        ("word", _word(info)),
    ]
    print("\n".join(f"{key + ':':<13}{value}" for key, value in rows if value))
    return 0


def _wait(argv: list[str]) -> int:
    options = _parser(
        "wait", "Wait for an operation's end. Ctrl-C stops the waiting, not the operation."
    ).parse(argv)
    operation = connect().operation(options.uid)
    with ProgressLine(options.quiet) as line:
        info = operation.wait(line.show)
    tell_notes(info, options.quiet)
    if options.json:
        print_json(info)
    elif not options.quiet:
        print(info["state"])
    return 0


def _cancel(argv: list[str]) -> int:
    from insula.cli.operate import describe_end

    options = _parser("cancel", "Cancel an operation and wait until what it had done is undone.").parse(argv)
    operation = connect().operation(options.uid)
    operation.cancel()
    try:
        operation.wait()
    except InsulaError:
        if not operation.ended:
            raise
    if options.json:
        print_json(operation.info)
    else:
        say(describe_end(operation.info))
    return 0 if operation.info["state"] == "cancelled" else 73

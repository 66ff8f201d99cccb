"""The entry: which command was typed, and how it ended.

The help of all commands stands here as text, so that neither help nor a command imports another one's module.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# command -> one line. The module is insula.cli.COMMAND, or what MODULES says.
GROUPS = {
    "Machines": {
        "run": "Start a machine of an image, and perhaps a command in it",
        "ls": "List machines",
        "info": "Show all about a machine",
        "start": "Start machines",
        "stop": "Ask machines to shut down, and force them when they do not",
        "restart": "Stop and start machines",
        "reset": "Press the reset button of machines",
        "pause": "Stand machines still",
        "resume": "Let paused machines go on",
        "suspend": "Let machines sleep on the disk; start wakes them",
        "kill": "Pull the plug of machines",
        "rm": "Remove machines with their disks",
        "fork": "Make siblings of a machine as it is now, memory and disks",
        "rename": "Give a machine another name",
        "wait": "Wait until a machine has stopped, or for another phase",
    },
    "Inside a machine": {
        "exec": "Run a command in a machine",
        "shell": "Sit down at a machine's serial console",
        "logs": "Print what a machine has written to its serial console",
    },
    "Snapshots": {
        "snapshot": "Keep machines as they are, list them as a tree, restore and remove them",
    },
    "Volumes": {
        "volume": "Make, list, attach, detach, resize, clone and remove volumes",
        "cdrom": "Insert and eject the media of CD drives",
    },
    "Images and templates": {
        "image": "Pull, import, export, build, list and remove images",
        "template": "List and remove the templates that launches are forked from",
    },
    "The host": {
        "doctor": "Say what this host has and lacks, and how to mend it",
        "system": "Say what files take, what is wrong with them, and remove what nobody needs",
        "events": "Print what happened, and what happens",
        "op": "List, wait for and cancel operations",
        "daemon": "Show, stop and start the daemon",
        "version": "Print versions",
    },
}
_LIFE = ("start", "stop", "restart", "reset", "pause", "resume", "suspend", "kill", "rm")
MODULES = {**dict.fromkeys(_LIFE, "life"), "exec": "execute", "op": "operations"}

USAGE = """Insula runs many operating systems side by side on one Linux host.

  insula run micro -- uname -a          a machine for one command
  insula run --name web -d debian-12    one that stays
  insula shell web                      its console (Ctrl-] leaves)
  insula ls                             what runs
  insula rm -f web                      and away with it

  insula --help lists every command; insula COMMAND --help explains one; insula doctor examines this host.
"""

INTERRUPTED = 130  # 128 + SIGINT, as a shell has it
BROKEN_PIPE = 141  # 128 + SIGPIPE


def commands() -> dict[str, str]:
    """Every command with its line of help."""
    return {name: line for group in GROUPS.values() for name, line in group.items()}


def main() -> NoReturn:
    """The program `insula`. Ends the process without tearing the interpreter down, which takes as long as
    `ls`."""
    status = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or BROKEN_PIPE
    os._exit(status)


def run(argv: list[str]) -> int:
    """Run a command line (without the program's name); its exit status. Errors are told on stderr."""
    try:
        status = _dispatch(argv)
        sys.stdout.flush()
    except SystemExit as end:  # argparse after --help
        return end.code if isinstance(end.code, int) else 0
    except BrokenPipeError:
        _drop_stdout()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as error:
        from insula.cli.report import tell

        return tell(error, as_json=_asked_for(argv, "--json"), verbose=_asked_for(argv, "-v", "--verbose"))
    return status


def _dispatch(argv: list[str]) -> int:
    name = argv[0] if argv else ""
    if name in ("", "-h", "--help", "help"):
        if name == "help" and len(argv) > 1:
            return _dispatch([*argv[1:], "--help"])
        sys.stdout.write(_full_help() if name else USAGE)
        return 0
    if name == "--version":
        name = "version"
    if name not in commands():
        _refuse(name)
    module = getattr(__import__(f"insula.cli.{MODULES.get(name, name)}").cli, MODULES.get(name, name))
    status: int = module.run(name, argv[1:])
    return status


def _full_help() -> str:
    lines = ["Usage: insula COMMAND [OPTIONS] ...", ""]
    for title, group in GROUPS.items():
        lines += [f"{title}:", *(f"  {name:<9} {line}" for name, line in group.items()), ""]
    lines += [
        "insula COMMAND --help explains a command. Every command that prints data takes --json.",
        "$INSULA_HOME holds all state (default: /var/lib/insula as root, else ~/.local/share/insula).",
        "",
    ]
    return "\n".join(lines)


def _refuse(name: str) -> NoReturn:
    from insula.cli.parser import UsageError
    from insula.kit.errors import nearest

    if name.startswith("-"):
        raise UsageError(f"There is no option '{name}' before a command.", hint="See: insula --help")
    meant = nearest(name, list(commands()))
    hint = f"Did you mean 'insula {meant}'? " if meant else ""
    raise UsageError(f"There is no command '{name}'.", hint=f"{hint}All commands: insula --help")


def _asked_for(argv: list[str], *options: str) -> bool:
    """Whether an option was given, known even where the command line cannot be parsed."""
    own = argv[: argv.index("--")] if "--" in argv else argv
    return any(option in own for option in options)


def _drop_stdout() -> None:
    """Nobody reads stdout any more: let nothing complain when what is left in its buffer is flushed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)

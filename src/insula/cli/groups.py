"""Commands with commands of their own: insula image build, insula daemon stop."""

from __future__ import annotations

import sys

from insula.cli.parser import UsageError
from insula.kit.errors import nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def run_subcommand(
    group: str, summary: str, table: Mapping[str, tuple[str, Callable[[list[str]], int]]], argv: list[str]
) -> int:
    """Run the subcommand that argv[0] names. table: name -> (one line of help, what runs it)."""
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        lines = [f"Usage: insula {group} COMMAND ...", "", summary, ""]
        lines += [f"  {key:<8} {line}" for key, (line, _) in table.items()]
        sys.stdout.write("\n".join(lines) + "\n")
        return 0
    if name not in table:
        meant = nearest(name, list(table))
        hint = f"Did you mean 'insula {group} {meant}'? " if meant else ""
        raise UsageError(
            f"'insula {group}' has no command '{name}'.", hint=f"{hint}It has: {', '.join(table)}."
        )
    return table[name][1](argv[1:])

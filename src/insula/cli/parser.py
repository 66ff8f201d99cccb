"""argparse in our words: errors are raised in Insula's form, options are never abbreviated, help is plain.

The formatter's width is fixed: argparse otherwise imports shutil (10 ms) to ask the terminal, even where no
help is printed.
"""

from __future__ import annotations

import argparse

from insula.kit.errors import Invalid
from insula.kit.units import parse_duration, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["Parser", "UsageError", "duration", "size", "split_command", "whole_number"]


class UsageError(Invalid):
    """A command line that cannot be understood."""

    code = "usage"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)


class Parser(argparse.ArgumentParser):
    """The parser of one command, with the options every command has: --json (where it prints data), -q, -v.

    guest_command: takes `-- CMD...`, which `split_command` has cut off before.
    """

    def __init__(
        self,
        command: str,
        summary: str,
        *,
        examples: str = "",
        json: bool = True,
        usage: str | None = None,
        guest_command: bool = False,
    ) -> None:
        super().__init__(
            prog=f"insula {command}",
            description=summary,
            usage=usage,
            epilog=f"examples:\n{examples}" if examples else None,
            allow_abbrev=False,
            formatter_class=_Formatter,
        )
        self._command = command
        self._guest_command = guest_command
        if json:
            self.add_argument("--json", action="store_true", help="print JSON, errors too")
        self.add_argument("-q", "--quiet", action="store_true", help="print only what is asked for")
        self.add_argument("-v", "--verbose", action="store_true", help="say more, also about errors")

    def add_names(self, what: str = "machine") -> None:
        self.add_argument("names", metavar="NAME", nargs="+", help=f"name of a {what}; several may be given")

    def add_name(self, what: str = "machine") -> None:
        self.add_argument("name", metavar="NAME", help=f"name of the {what}")

    def add_project(self) -> None:
        self.add_argument("--project", metavar="P", default="default", help="project (default: default)")

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """Raises UsageError with the nearest option."""
        options, unknown = self.parse_known_args(argv)
        if unknown:
            self._refuse(unknown)
        return options

    def error(self, message: str) -> NoReturn:
        """What argparse calls with its own faults."""
        if message.startswith("the following arguments are required: "):
            message = f"missing: {message.partition(': ')[2]}"
        elif message.startswith("argument "):
            message = message.removeprefix("argument ")
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", hint=f"See: insula {self._command} --help")

    def _refuse(self, unknown: list[str]) -> NoReturn:
        first = next((word for word in unknown if word.startswith("-")), unknown[0])
        word = first.partition("=")[0]
        help_line = f"See: insula {self._command} --help"
        if not word.startswith("-"):
            what = f"'{word}' is more than 'insula {self._command}' takes."
            if self._guest_command:
                raise UsageError(what, hint=f"Put -- before the command in the guest: -- {' '.join(unknown)}")
            raise UsageError(what, hint=help_line)
        from insula.kit.errors import nearest

        meant = nearest(word, list(self._option_string_actions))
        hint = f"Did you mean {meant}? {help_line}" if meant else help_line
        if self._guest_command:
            hint += "; what belongs to the guest's command comes after --"
        raise UsageError(f"'insula {self._command}' has no option '{word}'.", hint=hint)


def split_command(argv: list[str]) -> tuple[list[str], list[str] | None]:
    """What is ours and what follows `--`; None when there is no `--`."""
    if "--" not in argv:
        return argv, None
    cut = argv.index("--")
    return argv[:cut], argv[cut + 1 :]


def whole_number(text: str) -> int:
    """An option's value that is a count."""
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"'{text}' is not a whole number.") from None


def size(text: str) -> int:
    """An option's value that is a size: 512MiB, 1GiB. Raises BadUnit."""
    return parse_size(text)


def duration(text: str) -> float:
    """An option's value that is a duration: 10s, 1m30s. Raises BadUnit."""
    return parse_duration(text)

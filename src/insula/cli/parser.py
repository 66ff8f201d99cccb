"""Command lines: options, positional arguments, help. Small, and ours, for two reasons.

argparse (with re, enum, gettext and locale behind it) takes 10 to 20 ms, half of `insula ls`. And its errors,
abbreviations and way with `--` had to be worked around anyway.

    --name VALUE  --name=VALUE  -n VALUE  -nVALUE  -it      options and arguments in any order
    --                                                      what follows are arguments, or the guest's command
"""

from __future__ import annotations

import sys

from insula.kit.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_HELP_WIDTH = 100
_HELP_COLUMN = 30


class UsageError(Invalid):
    """A command line that cannot be understood."""

    code = "usage"


class Options:
    """What was given: an attribute per option and argument."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class _Option:
    """One option. convert: text -> value, None for a flag. repeat: it may be given several times."""

    def __init__(
        self,
        names: tuple[str, ...],
        convert: Callable[[str], Any] | None,
        default: Any,
        value: Any,
        metavar: str,
        choices: Sequence[str],
        repeat: bool,
        help: str,
    ) -> None:
        self.names = names
        self.attribute = max(names, key=len).lstrip("-").replace("-", "_")
        self.convert = convert
        self.default = default
        self.value = value
        self.metavar = metavar
        self.choices = choices
        self.repeat = repeat
        self.help = help


_USAGE = {"1": "{}", "?": "[{}]", "+": "{} ...", "*": "[{} ...]"}  # by count


class Parser:
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
        guest_command: bool = False,
    ) -> None:
        self._command = command
        self._summary = summary
        self._examples = examples
        self._guest_command = guest_command
        self._options: list[_Option] = []
        self._positional: list[tuple[str, str, str, str]] = []  # attribute, metavar, count, help
        self.json = json

    def flag(
        self, *names: str, help: str, value: bool = True, default: bool = False, attribute: str = ""
    ) -> None:
        """An option without a value. value: what giving it means. attribute: shared with another flag."""
        option = _Option(names, None, default, value, "", (), False, help)
        option.attribute = attribute or option.attribute
        self._options.append(option)

    def option(
        self,
        *names: str,
        help: str,
        metavar: str = "",
        convert: Callable[[str], Any] = str,
        default: Any = None,
        choices: Sequence[str] = (),
        repeat: bool = False,
    ) -> None:
        """An option with a value; repeat: a list of all that were given."""
        shown = metavar or "|".join(choices)
        self._options.append(_Option(names, convert, default, None, shown, choices, repeat, help))

    def argument(self, attribute: str, metavar: str, help: str, count: str = "1") -> None:
        """A positional argument; count: '1', '?' (at most one), '+' (at least one) or '*' (any number)."""
        self._positional.append((attribute, metavar, count, help))

    def add_names(self, what: str = "machine", count: str = "+") -> None:
        self.argument("names", "NAME", f"name of the {what}; several may be given", count)

    def add_name(self, what: str = "machine") -> None:
        self.argument("name", "NAME", f"name of the {what}")

    def add_project(self) -> None:
        self.option("--project", metavar="P", default="default", help="project (default: default)")

    def parse(self, argv: Sequence[str]) -> Options:
        """Raises UsageError; with --help prints it and raises SystemExit."""
        self._add_common()
        options = Options()
        for option in self._options:
            setattr(options, option.attribute, [] if option.repeat else option.default)
        words: list[str] = []
        rest = list(argv)
        while rest:
            word = rest.pop(0)
            if word == "--":
                words += rest
                break
            if word.startswith("--"):
                self._take_long(options, word, rest)
            elif word.startswith("-") and word != "-":
                self._take_short(options, word, rest)
            else:
                words.append(word)
        self._take_arguments(options, words)
        return options

    def _add_common(self) -> None:
        if self.json:
            self.flag("--json", help="print JSON, errors too")
        self.flag("-q", "--quiet", help="print only what is asked for")
        self.flag("-v", "--verbose", help="say more, also about errors")

    def _take_long(self, options: Options, word: str, rest: list[str]) -> None:
        name, equals, value = word.partition("=")
        option = self._find(name)
        if option.convert is None and equals:
            raise self._error(f"The option {name} takes no value.")
        self._set(options, option, name, value if equals else None, rest)

    def _take_short(self, options: Options, word: str, rest: list[str]) -> None:
        letters = word[1:]
        while letters:
            name, letters = f"-{letters[0]}", letters[1:]
            option = self._find(name, word)
            if option.convert is None:
                self._set(options, option, name, None, rest)
            else:
                self._set(options, option, name, letters.removeprefix("=") if letters else None, rest)
                return

    def _set(self, options: Options, option: _Option, name: str, value: str | None, rest: list[str]) -> None:
        if option.convert is None:
            setattr(options, option.attribute, option.value)
            return
        if value is None:
            if not rest or (
                rest[0].startswith("-") and any(rest[0] in known.names for known in self._options)
            ):
                raise self._error(f"The option {name} needs a value: {name} {option.metavar}.")
            value = rest.pop(0)
        if option.choices and value not in option.choices:
            raise self._error(f"'{value}' is no value for {name}: {', '.join(option.choices)}.")
        converted = option.convert(value)
        if option.repeat:
            getattr(options, option.attribute).append(converted)
        else:
            setattr(options, option.attribute, converted)

    def _take_arguments(self, options: Options, words: list[str]) -> None:
        left = list(words)
        for attribute, metavar, count, _ in self._positional:
            if count == "1":
                if not left:
                    raise self._error(f"'insula {self._command}' needs {metavar}.")
                setattr(options, attribute, left.pop(0))
            elif count == "?":
                setattr(options, attribute, left.pop(0) if left else None)
            else:
                if count == "+" and not left:
                    raise self._error(f"'insula {self._command}' needs at least one {metavar}.")
                setattr(options, attribute, left)
                left = []
        if left:
            what = f"'{left[0]}' is more than 'insula {self._command}' takes."
            if self._guest_command:
                raise UsageError(what, hint=f"Put -- before the guest's command: -- {' '.join(left)}")
            meant = [option for option in self._options if _takes(option, left[0])]
            hint = f"Did you mean {_longest(meant[0])} {left[0]}? " if len(meant) == 1 else ""
            raise self._error(what, f"{hint}See: insula {self._command} --help")

    def _find(self, name: str, word: str = "") -> _Option:
        for option in self._options:
            if name in option.names:
                return option
        if name in ("-h", "--help"):
            sys.stdout.write(self.help())
            raise SystemExit(0)
        meant = self._guess(name) if name.startswith("--") else None
        hint = f"Did you mean {meant}? See: insula {self._command} --help" if meant else ""
        if self._guest_command:
            hint = f"{hint or f'See: insula {self._command} --help'}; the guest's command comes after --"
        raise self._error(f"'insula {self._command}' has no option '{word or name}'.", hint)

    def _guess(self, name: str) -> str | None:
        """What a long option that there is not may have meant: a value that one takes, or a name like it."""
        for option in self._options:
            if name[2:] in option.choices:
                return f"{_longest(option)} {name[2:]}"
        from insula.kit.errors import nearest

        return nearest(name, [*(name for option in self._options for name in option.names), "--help"])

    def _error(self, message: str, hint: str = "") -> UsageError:
        return UsageError(message, hint=hint or f"See: insula {self._command} --help")

    def help(self) -> str:
        """What --help prints."""
        usage = [f"Usage: insula {self._command} [OPTIONS]"]
        for _, metavar, count, _ in self._positional:
            usage.append(_USAGE[count].format(metavar))
        if self._guest_command:
            usage.append("-- COMMAND ..." if self._command == "exec" else "[-- COMMAND ...]")
        lines = [" ".join(usage), "", self._summary, ""]
        for _, metavar, _, help in self._positional:
            lines += _entry(metavar, help)
        for option in self._options:
            shown = ", ".join(sorted(option.names, key=len))
            lines += _entry(f"{shown} {option.metavar}".rstrip(), help_of(option))
        lines += _entry("-h, --help", "print this")
        if self._examples:
            lines += ["", "Examples:", *(f"  {line}" for line in self._examples.splitlines())]
        return "\n".join(lines) + "\n"


def _longest(option: _Option) -> str:
    return max(option.names, key=len)


def _takes(option: _Option, word: str) -> bool:
    """Whether a word without its option is a value of it: a size, a number, a choice, but not any text."""
    if option.choices or option.convert in (None, str):
        return word in option.choices
    assert option.convert is not None
    try:
        option.convert(word)
    except Invalid:
        return False
    return True


def help_of(option: _Option) -> str:
    return f"{option.help}; may be repeated" if option.repeat else option.help


def _entry(left: str, right: str) -> list[str]:
    """A line of help, its explanation wrapped in a column of its own."""
    lines = []
    start = f"  {left:<{_HELP_COLUMN - 2}}"
    if len(left) + 4 > _HELP_COLUMN:
        lines.append(start)
        start = " " * _HELP_COLUMN
    for word in right.split():
        if len(start) > _HELP_COLUMN and len(start) + len(word) >= _HELP_WIDTH:
            lines.append(start)
            start = " " * _HELP_COLUMN
        start += word if len(start) == _HELP_COLUMN else f" {word}"
    return [*lines, start]


def split_command(argv: list[str]) -> tuple[list[str], list[str] | None]:
    """What is ours and what follows `--`; None when there is no `--`."""
    if "--" not in argv:
        return argv, None
    cut = argv.index("--")
    return argv[:cut], argv[cut + 1 :]


def whole_number(text: str) -> int:
    """An option's value that is a count."""
    if not text.lstrip("+-").isdecimal():
        raise UsageError(f"'{text}' is not a whole number.")
    return int(text)


def size(text: str) -> int:
    """An option's value that is a size: 512MiB, 1GiB. Raises BadUnit."""
    from insula.kit.units import parse_size

    return parse_size(text)


def duration(text: str) -> float:
    """An option's value that is a duration: 10s, 1m30s. Raises BadUnit."""
    from insula.kit.units import parse_duration

    return parse_duration(text)

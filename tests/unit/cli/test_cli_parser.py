from __future__ import annotations

import pytest

from insula.cli import output
from insula.cli.main import commands, run
from insula.cli.parser import Parser, UsageError, duration, size, split_command, whole_number
from insula.kit.units import BadUnit, format_size


def sample() -> Parser:
    p = Parser("sample", "What it does.", guest_command=True)
    p.flag("-t", "--tty", help="a terminal")
    p.flag("-i", "--interactive", help="stdin")
    p.option("-e", "--env", metavar="K=V", repeat=True, help="a variable")
    p.option("--memory", "-m", metavar="SIZE", convert=size, help="memory")
    p.option("--boot", choices=("direct", "disk"), default="direct", help="how")
    p.option("--disk-size", metavar="SIZE", convert=size, help="disk")
    p.argument("name", "NAME", "a name")
    return p


@pytest.mark.parametrize(
    "line",
    [
        "-it -e A=1 -eB=2 --memory 1GiB web",
        "web -i -t --env A=1 --env=B=2 -m1GiB",
        "-ti --memory=1GiB -e=A=1 web -e B=2",
    ],
)
def test_ways_to_write_it(line: str) -> None:
    options = sample().parse(line.split())
    assert (options.tty, options.interactive, options.env) == (True, True, ["A=1", "B=2"])
    assert (options.memory, options.boot, options.disk_size, options.name) == (2**30, "direct", None, "web")
    assert not options.json


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("web --memroy 1GiB", "has no option '--memroy'", "Did you mean --memory?"),
        ("web --mem 1GiB", "has no option '--mem'", "--memory"),
        ("web --memory", "--memory needs a value", "--help"),
        ("web --memory --tty", "--memory needs a value", "--help"),
        ("web --tty=yes", "takes no value", "--help"),
        ("web -x", "no option '-x'", "after --"),
        ("web --boot usb", "'usb' is no value for --boot: direct, disk", "--help"),
        ("", "needs NAME", "--help"),
        ("web uname -a", "no option '-a'", "after --"),
        ("web uname", "'uname' is more than", "-- uname"),
    ],
)
def test_what_cannot_be_understood(line: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        sample().parse(line.split())
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_status == 64


def test_two_dashes_end_the_options() -> None:
    assert sample().parse(["--", "-web"]).name == "-web"
    assert split_command(["a", "--", "b", "--", "c"]) == (["a"], ["b", "--", "c"])
    assert split_command(["a"]) == (["a"], None)
    assert split_command(["a", "--"]) == (["a"], [])


def test_values() -> None:
    assert whole_number("-3") == -3
    assert duration("1m30s") == 90
    with pytest.raises(UsageError, match="not a whole number"):
        whole_number("two")
    with pytest.raises(BadUnit):
        size("much")


def test_help_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sample().parse(["-h"])
    text = capsys.readouterr().out
    assert text.startswith("Usage: insula sample [OPTIONS] NAME [-- COMMAND ...]\n\nWhat it does.\n")
    assert "  -e, --env K=V               a variable; may be repeated\n" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in commands():
        assert run([name, "--help"]) == 0
        assert f"Usage: insula {name}" in capsys.readouterr().out


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1536, 2**20, 5 * 2**29, 2**40, 3 * 2**50 + 1])
def test_sizes_are_those_of_kit_units(count: int) -> None:
    assert output.size(count) == format_size(count)


@pytest.mark.parametrize(
    "text",
    [
        "1970-01-01T00:00:00Z",
        "2000-02-29T23:59:59.999Z",
        "2026-05-01T12:00:00.250Z",
        "2100-03-01T00:00:00+00:00",
    ],
)
def test_timestamps(text: str) -> None:
    from datetime import datetime

    assert output.seconds_since_epoch(text) == pytest.approx(datetime.fromisoformat(text).timestamp())

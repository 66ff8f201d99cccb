"""What commands print: tables, colours on a terminal, JSON, ages; and messages, which go to stderr."""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

RED, GREEN, YELLOW, BOLD, DIM = "31", "32", "33", "1", "2"
PHASE_COLOURS = {
    "running": GREEN,
    "starting": YELLOW,
    "paused": YELLOW,
    "stopping": YELLOW,
    "suspended": YELLOW,
    "crashed": RED,
    "stopped": DIM,
    "created": DIM,
}


def uses_colour(stream: TextIO) -> bool:
    """Colour only on a terminal that is not dumb, and not against https://no-color.org."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def paint(text: str, colour: str, stream: TextIO) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if colour and uses_colour(stream) else text


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], colours: dict[str, dict[str, str]] | None = None
) -> None:
    """Columns as wide as their widest cell, two blanks between. colours: header -> cell -> colour."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    coloured = uses_colour(sys.stdout)
    lines = []
    for row in (headers, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[-1] = row[-1]
        if coloured:
            for i, header in enumerate(headers):
                colour = BOLD if row is headers else (colours or {}).get(header, {}).get(row[i], "")
                if colour:
                    cells[i] = f"\x1b[{colour}m{cells[i]}\x1b[0m"
        lines.append("  ".join(cells).rstrip() + "\n")
    sys.stdout.write("".join(lines))


def print_json(value: object) -> None:
    """The one form of JSON we print: indented, UTF-8 as it is."""
    import json

    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def say(message: str) -> None:
    """A message for the person, on stderr; a terminal that is gone keeps nobody from cleaning up."""
    try:
        sys.stderr.write(message + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def seconds_since_epoch(timestamp: str) -> float:
    """A UTC timestamp of the daemon's ('2026-05-01T12:00:00.250Z') as seconds since 1970.

    time.strptime and datetime cost 8 ms. Days by Howard Hinnant's `days_from_civil`.
    """
    year, month, day = int(timestamp[0:4]), int(timestamp[5:7]), int(timestamp[8:10])
    year -= month <= 2
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days = year // 400 * 146097 + year % 400 * 365 + year % 400 // 4 - year % 400 // 100 + of_year - 719468
    clock = timestamp[11:].rstrip("Z").partition("+")[0]
    return days * 86400 + int(clock[0:2]) * 3600 + int(clock[3:5]) * 60 + float(clock[6:] or 0)


def age(timestamp: str) -> str:
    """How long ago, in one unit: 12s, 5m, 3h, 9d."""
    seconds = max(0.0, time.time() - seconds_since_epoch(timestamp))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"


def size(count: int) -> str:
    """Bytes for people, as kit.units.format_size has them (a test holds them equal); its `re` costs 8 ms."""
    for unit, factor in (("PiB", 2**50), ("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            value = count / factor
            return f"{value:.0f}{unit}" if value == int(value) else f"{value:.1f}{unit}"
    return f"{count}B"


def ago(timestamp: str) -> str:
    """The timestamp and how long ago that was, for people."""
    return f"{timestamp[:19].replace('T', ' ')} UTC ({age(timestamp)} ago)"

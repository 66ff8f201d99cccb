"""Sizes and durations: parsed once at the edge, written so that people can read them.

Sizes are whole bytes. `K M G T` and `KiB MiB GiB TiB` are powers of 1024, `kB MB GB TB` powers of 1000
(IEC 80000-13). Durations are seconds.
"""

from __future__ import annotations

import re

from insula.kit.errors import Invalid

_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "p": 2**50}
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgtp])(i?b)?|b)?\s*", re.IGNORECASE)
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|min|s|m|h|d)")


class BadUnit(Invalid):
    """A size or duration that cannot be read."""

    code = "bad-unit"


def parse_size(text: str | int) -> int:
    """Bytes from '512MiB', '1G', '2GB', '4096' or a number of bytes. Raises BadUnit."""
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise BadUnit(f"A size cannot be negative: {text}.", hint="Write it as 512MiB or 1GiB.")
        return text
    found = _SIZE.fullmatch(str(text))
    if found is None:
        raise BadUnit(f"'{text}' is not a size.", hint="Write it as 512MiB, 1GiB or 2GB.")
    number, letter, suffix = found.groups()
    if letter is None:
        factor = 1
    elif suffix is not None and suffix.lower() == "b":
        factor = _DECIMAL[letter.lower()]
    else:
        factor = _BINARY[letter.lower()]
    size = float(number) * factor if "." in number else int(number) * factor
    if size != int(size):
        raise BadUnit(f"'{text}' is not a whole number of bytes.", hint="Write it as 512MiB or 1GiB.")
    return int(size)


def format_size(size: int) -> str:
    """The shortest exact-enough binary form: 1GiB, 512MiB, 1.5GiB, 300B."""
    for unit, factor in (("PiB", 2**50), ("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            value = size / factor
            return f"{value:.0f}{unit}" if value == int(value) else f"{value:.1f}{unit}"
    return f"{size}B"


def parse_duration(text: str | float) -> float:
    """Seconds from '10s', '1m30s', '250ms', '2h' or a number of seconds. Raises BadUnit."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        seconds = float(text)
    else:
        compact = str(text).strip().replace(" ", "")
        try:
            seconds = float(compact)
        except ValueError:
            pieces = _DURATION.findall(compact)
            if not pieces or "".join(number + unit for number, unit in pieces) != compact:
                raise BadUnit(f"'{text}' is not a duration.", hint="Write it as 10s, 1m30s or 2h.") from None
            seconds = sum(float(number) * _DURATION_UNITS[unit] for number, unit in pieces)
    if not 0 <= seconds < float("inf"):
        raise BadUnit(f"A duration must be finite and not negative: {text}.", hint="Write it as 10s or 2h.")
    return seconds


def format_duration(seconds: float) -> str:
    """'85ms', '4.2s', '3m10s', '2h05m', '5d3h': two units at most."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"

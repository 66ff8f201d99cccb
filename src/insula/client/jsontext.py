"""JSON read by the C scanner that `json` is built on, without `json`.

`import json` compiles regular expressions and so imports re, enum and functools: 11 ms, as much as all the
rest of `insula ls`. Where an interpreter has no `_json`, `json` does the work. Writing is left to `json`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_WHITESPACE = " \t\r\n"

try:
    from _json import make_scanner
except ImportError:  # another Python than CPython
    make_scanner = None  # type: ignore[assignment, misc]


class _Context:
    """What json.scanner.c_make_scanner asks of a decoder: the defaults of json.JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float  # NaN, Infinity, -Infinity: float reads them all
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner wants one and clears it


def read_json(data: bytes) -> Any:
    """The value of a JSON text. Raises ValueError."""
    text = data.decode()
    if make_scanner is None:
        import json

        return json.loads(text)
    start = len(text) - len(text.lstrip(_WHITESPACE))
    try:
        value, end = make_scanner(_Context)(text, start)  # type: ignore[arg-type]
    except StopIteration as error:
        raise ValueError(f"no JSON value at character {error.value}") from None
    if text[end:].strip(_WHITESPACE):
        raise ValueError(f"something follows the JSON value at character {end}")
    return value

"""How an error is told: once, in one form, with its hint, its evidence and what caused it.

error: Cannot start machine 'web': volume 'data' is in use by machine 'db'.
hint: Stop 'db' or detach the volume: insula volume detach data
  stderr:
    qemu-system-x86_64: ...
caused by: ...
"""

from __future__ import annotations

import sys

from insula.cli.interrupts import Ended
from insula.cli.output import BOLD, RED, paint, say
from insula.client.errors import DaemonLost
from insula.client.wire import WireError
from insula.kit.errors import Bug, InsulaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def tell(error: BaseException, *, as_json: bool = False, verbose: bool = False) -> int:
    """Tell the error on stderr; the exit status it means."""
    if isinstance(error, Ended):
        return 128 + error.number
    told = _as_told(error)
    if verbose and told is not error:
        import traceback

        say("".join(traceback.format_exception(error)).rstrip())
    if as_json:
        import json

        say(json.dumps(told.to_problem(), ensure_ascii=False, default=str))
    else:
        say(render(told))
    return told.exit_status


def _as_told(error: BaseException) -> InsulaError:
    if isinstance(error, InsulaError):
        return error
    if isinstance(error, WireError):
        told: InsulaError = DaemonLost(
            "The daemon went away in the middle of its answer.", hint="Look at: insula daemon status"
        )
    else:
        told = Bug(
            f"Insula itself failed: {type(error).__name__}: {error}.".replace("..", "."),
            hint="Run it again with -v and report what it prints.",
        )
    told.__cause__ = error.__cause__
    return told


def render(error: InsulaError) -> str:
    """The error as a person reads it."""
    lines = [f"{paint('error:', RED, sys.stderr)} {error.message}"]
    for field in error.fields:
        lines.append(f"  {field.get('path')}: {field.get('rule')} (given: {field.get('value')!r})")
    if error.hint:
        lines.append(f"{paint('hint:', BOLD, sys.stderr)} {error.hint}")
    for key, value in error.evidence.items():
        if value not in (None, "", [], {}):
            lines += _evidence(key.replace("_", " "), value)
    seen = {error.message}
    for cause in error.causes():
        if cause not in seen:
            seen.add(cause)
            lines.append(f"caused by: {cause}")
    return "\n".join(lines)


def _evidence(key: str, value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        value = "\n".join(str(item) for item in value)
    rows = str(value).rstrip("\n").split("\n")
    if len(rows) == 1:
        return [f"  {key}: {rows[0]}"]
    return [f"  {key}:", *(f"    {row}" for row in rows)]

"""The verbs, a file each: what must hold before, what is written down, what its end changes.

A module named like the verb ('-' as '_') has

    async def intend(desk, request) -> Intent            raises; nothing is changed then
    def conclude(desk, operation, succeeded) -> Conclusion   documents to change with the operation's end

and is found by its name; there is no list to keep.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Protocol, cast

from insula.control.desk import Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.kit.errors import Invalid, nearest
from insula.model.operation import Operation


class UnknownVerb(Invalid):
    """There is no such verb."""

    code = "unknown-verb"


class Verb(Protocol):
    async def intend(self, desk: Desk, request: VerbRequest) -> Intent: ...

    def conclude(self, desk: Desk, operation: Operation, succeeded: bool) -> Conclusion: ...


@functools.cache
def verb_names() -> tuple[str, ...]:
    """Every verb there is."""
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))


def find_verb(name: str) -> Verb:
    """The verb's module. Raises UnknownVerb."""
    names = verb_names()
    if name not in names:
        guess = nearest(name, names)
        raise UnknownVerb(f"There is no verb '{name}'.", hint=f"Did you mean '{guess}'?" if guess else "")
    return cast(Verb, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))

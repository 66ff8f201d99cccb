"""Insula: many operating systems side by side on shared hardware, each isolated from the others.

    import insula

    with insula.run("micro") as vm:
        print(vm.exec("uname", "-r").stdout)

What stands here is the Python SDK (the room `client`), loaded on first use so that the command line does not
pay for what it does not call. The rooms and who may import whom: docs/design/0001-backbone.md.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing.TYPE_CHECKING; importing typing would be a third of `insula ls`

__version__ = "0.1.0"

if TYPE_CHECKING:
    from typing import Any

    from insula.client.sdk import Client, ExecResult, Machine, connect, run
    from insula.kit.errors import Bug, Conflict, InsulaError, Invalid, NotFound, Unavailable

_SDK = ("Client", "ExecResult", "Machine", "connect", "run")
_ERRORS = ("Bug", "Conflict", "InsulaError", "Invalid", "NotFound", "Unavailable")
__all__ = [  # noqa: RUF022 - by what they are for
    "run",
    "connect",
    "Client",
    "Machine",
    "ExecResult",
    "InsulaError",
    "Invalid",
    "NotFound",
    "Conflict",
    "Unavailable",
    "Bug",
]


def __getattr__(name: str) -> Any:
    if name in _SDK:
        from insula.client import sdk

        return getattr(sdk, name)
    if name in _ERRORS:
        from insula.kit import errors

        return getattr(errors, name)
    raise AttributeError(f"module 'insula' has no attribute {name!r}")

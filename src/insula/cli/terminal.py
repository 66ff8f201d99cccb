"""The person's terminal: raw while a guest has it, and always as it was before afterwards."""

from __future__ import annotations

import os
import termios
import tty

from insula.cli.parser import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

_RESET = b"\x1b[0m\x1b[?25h"  # a guest may have left a colour and hidden the cursor


class RawTerminal:
    """Every key goes through as it is, until the block is left, however it is left. Raises UsageError."""

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> Self:
        require_terminal(self._descriptor)
        self._before: list[Any] = termios.tcgetattr(self._descriptor)
        tty.setraw(self._descriptor)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)
            os.write(1, _RESET)
        except (OSError, termios.error):
            pass  # the terminal is gone


def require_terminal(descriptor: int = 0) -> None:
    """Raises UsageError unless stdin is a terminal."""
    if not os.isatty(descriptor):
        raise UsageError(
            "This needs a terminal, and the standard input is none.",
            hint="Without one: insula exec NAME -- COMMAND, and insula logs NAME",
        )


def window_size() -> tuple[int, int]:
    """Rows and columns of the terminal; 24 and 80 where there is none."""
    for descriptor in (0, 1, 2):
        try:
            size = os.get_terminal_size(descriptor)
        except OSError:
            continue
        if size.lines and size.columns:
            return size.lines, size.columns
    return 24, 80


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything, also to a terminal that somebody has made non-blocking. Raises BrokenPipeError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            import select

            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()

"""Signals that end us, as exceptions, so that every `finally` and `with` runs; and how they are held back.

SIGINT                       KeyboardInterrupt
SIGTERM, SIGHUP              Ended(number)
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Self

_holding: list[Held] = []


class Ended(BaseException):
    """Somebody ended us with SIGTERM or SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by signal {number}")
        self.number = number


def _raise(number: int, _frame: FrameType | None) -> None:
    if _holding and _holding[-1].number is None:
        _holding[-1].number = number
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Ended(number)


def arm() -> None:
    """From now on SIGINT, SIGTERM and SIGHUP are exceptions that `Held` can hold back."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # which nohup(1) sets
            signal.signal(number, _raise)


class Held:
    """Holds one signal back while something short must not be torn: asking the daemon for what must be
    undone.

    A second signal gets through. `release` raises what was held back.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> Self:
        _holding.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _holding.remove(self)

    def release(self) -> None:
        """Raise the signal that came meanwhile, if one did."""
        if self.number is not None:
            _raise(self.number, None)


class SignalInbox:
    """Signals as bytes on a descriptor, for a loop that waits on descriptors; the old handlers come back
    after."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = numbers
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._old[number] = signal.signal(number, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        return self._reader

    def take(self) -> list[int]:
        """The numbers of the signals that came, oldest first."""
        try:
            return [number for number in os.read(self._reader, 4096) if number in self._old]
        except BlockingIOError:
            return []

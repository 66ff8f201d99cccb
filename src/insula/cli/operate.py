"""Operations as a person lives them: submitted, watched, and cancelled by Ctrl-C with word of what was
undone.

    perform       one; its error is raised
    perform_each  several at once; each failure is told, the exit status is the first one's
"""

from __future__ import annotations

import sys

from insula.cli.interrupts import Ended, Held, arm
from insula.cli.output import print_json, say
from insula.kit.errors import InsulaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from insula.cli.parser import Options
    from insula.client.operation import Operation
    from insula.client.types import OperationInfo


class ProgressLine:
    """The last word of a long operation: one line that changes on a terminal, a line per change elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty()
        self._shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live and self._shown:
            self._write("\r\x1b[K")
            self._shown = ""

    def show(self, info: OperationInfo) -> None:
        progress = info.get("progress")
        if self._quiet or not progress:
            return
        fraction = progress.get("fraction")
        if not self._live:
            text = progress["message"]  # without the percentage: a log wants steps
        else:
            text = f"{fraction:4.0%} {progress['message']}" if fraction is not None else progress["message"]
        if text == self._shown:
            return
        self._shown = text
        if self._live:
            from insula.cli.terminal import window_size

            self._write(f"\r\x1b[K{text[: window_size()[1] - 1]}")
        else:
            self._write(text + "\n")

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            pass


def perform(submit: Callable[[], Operation], *, quiet: bool = False) -> OperationInfo:
    """Submit an operation and wait for its end, showing its progress and its notes.

    Ctrl-C (and SIGTERM, SIGHUP) cancels it and waits for its undo; then KeyboardInterrupt (Ended) goes on.
    Raises the error the operation ended with.
    """
    arm()
    with Held() as held:
        operation = submit()
    try:
        held.release()
        with ProgressLine(quiet) as line:
            info = operation.wait(line.show)
    except (KeyboardInterrupt, Ended):
        give_up([operation])
        raise
    tell_notes(info, quiet)
    return info


def perform_each(
    options: Options, names: Sequence[str], submit: Callable[[str], Operation], *, echo: bool = True
) -> int:
    """The same verb on several targets at once; the names of those that succeeded go to stdout (echo)."""
    from insula.cli.report import tell

    arm()
    operations: list[tuple[str, Operation]] = []
    ended: list[OperationInfo] = []
    status = 0

    def failed(error: InsulaError) -> None:
        nonlocal status
        told = tell(error, as_json=options.json, verbose=options.verbose)
        status = status or told

    with Held() as held:
        for name in dict.fromkeys(names):
            try:
                operations.append((name, submit(name)))
            except InsulaError as error:
                failed(error)
    try:
        held.release()
        for name, operation in operations:
            try:
                with ProgressLine(options.quiet) as line:
                    info = operation.wait(line.show)
            except InsulaError as error:
                failed(error)
                ended.append(operation.info)
                continue
            ended.append(info)
            tell_notes(info, options.quiet)
            if echo and not options.json and not options.quiet:
                print(name, flush=True)
    except (KeyboardInterrupt, Ended):
        give_up([operation for _, operation in operations if not operation.ended])
        raise
    if options.json:
        print_json(ended)
    return status


def tell_notes(info: OperationInfo, quiet: bool = False) -> None:
    """What a person should hear besides the outcome, such as that force was needed."""
    if not quiet:
        for note in info.get("notes") or ():
            say(note)


def give_up(operations: Sequence[Operation]) -> None:
    """Cancel operations, wait until what they had done is undone, and say what was and what was not."""
    if not operations:
        return
    say("Cancelling, and undoing what was done (Ctrl-C again leaves that to the daemon) ...")
    for position, operation in enumerate(operations):
        try:
            operation.cancel()
            operation.wait()
        except InsulaError as error:
            if not operation.ended:
                say(f"It cannot be cancelled: {error.message} Its end: insula op wait {operation.uid}")
                continue
        except (KeyboardInterrupt, Ended):
            for left in operations[position:]:
                say(f"The daemon goes on with it: insula op wait {left.uid}")
            raise
        say(describe_end(operation.info))
        tell_notes(operation.info)


def describe_end(info: OperationInfo) -> str:
    """How an operation that was to be cancelled ended, in a sentence."""
    what = f"'{info['verb']}' of {info['target_kind']} '{info['name']}'"
    if info["state"] == "done":
        return f"Too late: {what} had already been done."
    undone = [step["name"] for step in info["steps"] if step["state"] == "undone"]
    left = [step["name"] for step in info["steps"] if step["state"] != "undone"]
    sentence = f"{what[0]}{what[1:]} was {'cancelled' if info['state'] == 'cancelled' else 'given up'}"
    sentence += f"; undone: {', '.join(undone)}" if undone else "; nothing had to be undone"
    return f"{sentence}; left: {', '.join(left)}." if left else f"{sentence}."

"""An operation that was asked for: waiting for its end, watching its progress, cancelling it."""

from __future__ import annotations

from insula.client.transport import ANSWER_TIMEOUT
from insula.client.wire import quote, with_query
from insula.kit.errors import error_from_problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from insula.client.transport import Transport
    from insula.client.types import OperationInfo

    Progress = Callable[[OperationInfo], None]

FINAL = ("done", "failed", "cancelled")
QUIET_WAIT = (
    30.0  # seconds a request waits when nobody watches; the daemon answers earlier at the operation's end
)
FIRST_WAIT = 1.0  # most operations end within it, and nobody wants to see their progress
WATCHED_WAIT = 0.5  # how fresh the progress is that somebody watches


class Operation:
    """A durable operation of the daemon's; it goes on whether or not anybody waits for it.

    info: as it was last heard of.
    """

    def __init__(self, transport: Transport, info: OperationInfo) -> None:
        self._transport = transport
        self.info = info

    @property
    def uid(self) -> str:
        return self.info["uid"]

    @property
    def ended(self) -> bool:
        return self.info["state"] in FINAL

    def poll(self, wait: float = 0) -> OperationInfo:
        """Ask how it stands, giving it up to `wait` seconds to end. Failure raises nothing here: see
        `info`."""
        target = with_query(f"/v1/operations/{quote(self.uid)}", wait=f"{wait:g}" if wait else None)
        try:
            self.info = self._transport.call("GET", target, timeout=wait + ANSWER_TIMEOUT)
        except Exception as error:
            # The daemon tells an operation that failed within the wait as its problem; what we want is the
            # whole.
            if getattr(error, "operation", None) is None or not wait:
                raise
            self.info = self._transport.call("GET", f"/v1/operations/{quote(self.uid)}")
        return self.info

    def wait(self, progress: Progress | None = None, *, timeout: float | None = None) -> OperationInfo:
        """Wait for its end and return it. progress: called with the operation now and then while it lasts.

        Raises the error it ended with (a cancelled one: Conflict with code 'cancelled'), and TimeoutError
        after `timeout` seconds; then it goes on.
        """
        import time

        deadline = None if timeout is None else time.monotonic() + timeout
        pause = QUIET_WAIT if progress is None else FIRST_WAIT
        while not self.ended:
            left = pause if deadline is None else min(pause, deadline - time.monotonic())
            if left <= 0:
                raise TimeoutError(
                    f"operation {self.uid} ({self.info['verb']}) has not ended within {timeout:g}s"
                )
            self.poll(left)
            if progress is not None and not self.ended:
                progress(self.info)
                pause = WATCHED_WAIT
        return self.result()

    def result(self) -> OperationInfo:
        """The ended operation, or the error it ended with."""
        if self.info["state"] == "done":
            return self.info
        error = error_from_problem(self.info["problem"] or _cancelled(self.info))
        vars(error)["operation"] = self.uid
        raise error

    def cancel(self) -> OperationInfo:
        """Ask that it be given up and undone; `wait` tells how that ended. Does nothing once it has ended."""
        self.info = self._transport.call("POST", f"/v1/operations/{quote(self.uid)}/cancel", {})
        return self.info


def _cancelled(info: OperationInfo) -> dict[str, object]:
    what = f"{info['verb']} of {info['target_kind']} '{info['name']}'"
    if info["state"] == "cancelled":
        return {
            "code": "cancelled",
            "family": "conflict",
            "status": 409,
            "exit_status": 130,
            "detail": f"The {what} was cancelled.",
        }
    return {"code": "bug", "family": "bug", "detail": f"The {what} failed without saying why."}

"""A home's files: what everything takes, what is wrong, and removing what nobody needs; `Client.system`."""

from __future__ import annotations

from insula.client.operation import Operation
from insula.client.wire import with_query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from insula.client.operation import Progress
    from insula.client.transport import Transport
    from insula.client.types import CheckInfo, PruneInfo, UsageInfo


class System:
    """The housekeeping of one home."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def usage(self, *, parts: bool = False) -> UsageInfo:
        """What everything takes, by kind. parts: each machine, volume, image ... too."""
        found: UsageInfo = self._transport.call(
            "GET", with_query("/v1/system/usage", parts=parts or None), timeout=300
        )
        return found

    def check(self, *, disks: bool = False, progress: Progress | None = None) -> CheckInfo:
        """What is not as it should be. disks: look into every disk that nobody has open, too; minutes."""
        if disks:
            outcome: Any = self.submit_check(disks=True).wait(progress)["outcome"]
            return outcome  # type: ignore[no-any-return]
        found: CheckInfo = self._transport.call("GET", "/v1/system/check", timeout=300)
        return found

    def submit_check(self, *, disks: bool = False) -> Operation:
        said = {"disks": disks}
        return Operation(self._transport, self._transport.call("POST", "/v1/system/check", said))

    def prune(self, *, lost: Sequence[str] = (), progress: Progress | None = None) -> PruneInfo:
        """Remove what nobody needs; what was removed, and what that freed. lost: uids of machines, volumes
        and snapshots without a document whose files are to go, too. Templates and images have verbs of their
        own: `prune_templates`, `prune_images`."""
        outcome: Any = self.submit_prune(lost=lost).wait(progress)["outcome"]
        return outcome  # type: ignore[no-any-return]

    def submit_prune(self, *, lost: Sequence[str] = ()) -> Operation:
        said = {"lost": list(lost)}
        return Operation(self._transport, self._transport.call("POST", "/v1/system/prune", said))

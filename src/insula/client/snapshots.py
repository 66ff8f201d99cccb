"""A machine's snapshots, as `Machine` offers them."""

from __future__ import annotations

from insula.client.operation import Operation
from insula.client.wire import quote
from insula.kit.errors import Conflict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula.client.operation import Progress
    from insula.client.transport import Transport
    from insula.client.types import LossesInfo, OperationInfo, SnapshotInfo


class SnapshotsOfMachine:
    """The part of a machine that is about snapshots of it."""

    _transport: Transport

    @property
    def path(self) -> str:
        """Where the machine is in the REST interface."""
        raise NotImplementedError

    def snapshots(self) -> list[SnapshotInfo]:
        """All of them as a tree: parents before their children, oldest first."""
        found: list[SnapshotInfo] = self._transport.call("GET", f"{self.path}/snapshots")
        return found

    def submit_snapshot(
        self,
        name: str | None = None,
        *,
        memory: bool = False,
        quiesce: bool = False,
        description: str = "",
    ) -> Operation:
        body = {"name": name, "memory": memory, "quiesce": quiesce, "description": description}
        said = {key: value for key, value in body.items() if value}
        return Operation(self._transport, self._transport.call("POST", f"{self.path}/snapshots", said))

    def snapshot(
        self,
        name: str | None = None,
        *,
        memory: bool = False,
        quiesce: bool = False,
        description: str = "",
        progress: Progress | None = None,
    ) -> SnapshotInfo:
        """Keep the machine's disks as they are now; it goes on after a blink.

        memory: what it has in memory too, so that a restore lets it go on from this moment. quiesce: have its
        file systems at rest, if its agent can. name: without one, snap1, snap2 and so on.
        """
        operation = self.submit_snapshot(name, memory=memory, quiesce=quiesce, description=description)
        made = operation.wait(progress)["outcome"] or {}
        return self.find_snapshot(made["name"])

    def find_snapshot(self, name: str) -> SnapshotInfo:
        """Raises NotFound."""
        info: SnapshotInfo = self._transport.call("GET", f"{self.path}/snapshots/{quote(name)}")
        return info

    def losses(self, name: str) -> LossesInfo:
        """What a restore to this snapshot would lose now."""
        info: LossesInfo = self._transport.call("GET", f"{self.path}/snapshots/{quote(name)}/losses")
        return info

    def submit_restore(self, name: str, *, start: bool = False, disks_only: bool = False) -> Operation:
        target = f"{self.path}/snapshots/{quote(name)}/restore"
        body = {"start": start, "disks_only": disks_only}
        return Operation(self._transport, self._transport.call("POST", target, body))

    def restore(
        self,
        name: str,
        *,
        start: bool = False,
        disks_only: bool = False,
        keep: str | None = None,
        progress: Progress | None = None,
    ) -> OperationInfo:
        """Make the machine what it was in this snapshot. What it is now is lost, unless `keep` names another
        snapshot that is made of it first (with its memory, if it has any).

        start: let it run even where no memory was kept. disks_only: leave the memory that was kept.
        """
        if keep is not None:
            self.submit_keep(keep).wait(progress)
        return self.submit_restore(name, start=start, disks_only=disks_only).wait(progress)

    def submit_keep(self, name: str) -> Operation:
        """Ask for a snapshot of all that the machine is now: with memory if it has any."""
        phase = self._transport.call("GET", self.path)["phase"]
        return self.submit_snapshot(name, memory=phase in ("running", "paused"))

    def submit_remove_snapshot(self, name: str) -> Operation:
        target = f"{self.path}/snapshots/{quote(name)}"
        return Operation(self._transport, self._transport.call("DELETE", target))

    def remove_snapshot(self, name: str, *, progress: Progress | None = None) -> OperationInfo:
        """Remove a snapshot, and wait until the layers that it leaves are merged into those above them.

        A merge that gives way to something else that is asked of the machine is done later, and no error.
        """
        import contextlib

        info = self.submit_remove_snapshot(name).wait(progress)
        for merge in self.merges():
            with contextlib.suppress(Conflict):
                merge.wait(progress)
        return info

    def merges(self) -> list[Operation]:
        """The operations that merge what removed snapshots leave, as long as there are any."""
        uid = self._transport.call("GET", self.path)["uid"]
        found = self._transport.call("GET", "/v1/operations")
        wanted = [info for info in found if info["verb"] == "merge" and info["target"] == uid]
        return [Operation(self._transport, info) for info in wanted]

"""One volume: what it is, and the verbs on it."""

from __future__ import annotations

from insula.client.operation import Operation
from insula.client.wire import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula.client.operation import Progress
    from insula.client.transport import Transport
    from insula.client.types import OperationInfo, VolumeInfo


class Volume:
    """A volume by its name; the verbs wait for their end. last_info: as last heard."""

    def __init__(
        self, transport: Transport, name: str, project: str = "default", *, info: VolumeInfo | None = None
    ) -> None:
        self._transport = transport
        self.name = name
        self.project = project
        self.last_info = info

    def __repr__(self) -> str:
        return f"Volume({self.name!r}, project={self.project!r})"

    @property
    def path(self) -> str:
        """Where the volume is in the REST interface."""
        return f"/v1/projects/{quote(self.project)}/volumes/{quote(self.name)}"

    @property
    def info(self) -> VolumeInfo:
        """The volume as it is now (asked anew each time)."""
        info: VolumeInfo = self._transport.call("GET", self.path)
        self.last_info = info
        return info

    def submit_resize(self, size: int | str) -> Operation:
        return Operation(self._transport, self._transport.call("POST", f"{self.path}/resize", {"size": size}))

    def resize(self, size: int | str) -> OperationInfo:
        """Let it grow, also while a machine that has it runs. size: bytes, or text such as '20GiB'."""
        return self.submit_resize(size).wait()

    def submit_clone(self, name: str) -> Operation:
        return Operation(self._transport, self._transport.call("POST", f"{self.path}/clone", {"name": name}))

    def clone(self, name: str, *, progress: Progress | None = None) -> Volume:
        """A whole, independent copy. Conflict 'volume-in-use' while a machine may be writing to this one."""
        self.submit_clone(name).wait(progress)
        return Volume(self._transport, name, self.project)

    def submit_remove(self) -> Operation:
        return Operation(self._transport, self._transport.call("DELETE", self.path))

    def remove(self) -> OperationInfo:
        """Remove it with all that is on it. Conflict 'volume-in-use' as long as a machine has it."""
        return self.submit_remove().wait()

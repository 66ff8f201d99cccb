"""A host's volumes, as `Client` offers them."""

from __future__ import annotations

from insula.client.operation import Operation
from insula.client.volume import Volume
from insula.client.wire import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula.client.transport import Transport
    from insula.client.types import VolumeInfo


class VolumesOfHost:
    """The part of a client that is about volumes."""

    transport: Transport

    def volumes(self, project: str | None = None) -> list[Volume]:
        """All volumes (of a project), each with its `last_info`."""
        target = f"/v1/projects/{quote(project)}/volumes" if project else "/v1/volumes"
        found: list[VolumeInfo] = self.transport.call("GET", target)
        return [Volume(self.transport, info["name"], info["project"], info=info) for info in found]

    def volume(self, name: str, project: str = "default") -> Volume:
        """The volume of that name. Asks nothing: a name nobody has is an error of the first verb."""
        return Volume(self.transport, name, project)

    def submit_create_volume(self, name: str, size: int | str, project: str = "default") -> Operation:
        target = f"/v1/projects/{quote(project)}/volumes"
        return Operation(self.transport, self.transport.call("POST", target, {"name": name, "size": size}))

    def create_volume(self, name: str, size: int | str, project: str = "default") -> Volume:
        """A new, empty volume. size: bytes, or text such as '10GiB'."""
        self.submit_create_volume(name, size, project).wait()
        return Volume(self.transport, name, project)

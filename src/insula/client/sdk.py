"""Where the SDK begins: `run` a machine, `connect` to a home.

with insula.run("micro") as vm:
    print(vm.exec("uname", "-r").stdout)
"""

from __future__ import annotations

import os

from insula.client.host import HostItself
from insula.client.images import ImagesOfHost
from insula.client.machine import ExecResult, Machine
from insula.client.operation import Operation
from insula.client.transport import Transport
from insula.client.volume import Volume
from insula.client.volumes import VolumesOfHost
from insula.client.wire import quote, with_query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from insula.client.operation import Progress
    from insula.client.system import System
    from insula.client.types import MachineInfo

__all__ = ["Client", "ExecResult", "Machine", "Operation", "Volume", "connect", "run"]


class Client(ImagesOfHost, VolumesOfHost, HostItself):
    """One home's daemon, started when something is asked of it. Safe to use from several threads.

    Here are its machines; the other facets have modules of their own.
    """

    def __init__(self, home: str | os.PathLike[str] | None = None, *, start: bool = True) -> None:
        self.transport = Transport(home, start=start)

    @property
    def system(self) -> System:
        """What its files take, what is wrong with them, and removing what nobody needs."""
        from insula.client.system import System

        return System(self.transport)

    def machines(self, project: str | None = None) -> list[Machine]:
        """All machines (of a project), each with its `last_info`."""
        target = f"/v1/projects/{quote(project)}/machines" if project else "/v1/machines"
        found: list[MachineInfo] = self.transport.call("GET", target)
        return [Machine(self.transport, info["name"], info["project"], info=info) for info in found]

    def machine(self, name: str, project: str = "default") -> Machine:
        """The machine of that name. Asks nothing: a name nobody has is an error of the first verb."""
        return Machine(self.transport, name, project)

    def submit_create(
        self, spec: dict[str, Any], project: str = "default", *, start: bool = True, cold: bool = False
    ) -> Operation:
        """Ask for a machine as docs/reference/rest.md's MachineSpec describes it, without waiting."""
        target = with_query(f"/v1/projects/{quote(project)}/machines", start=start, cold=cold or None)
        return Operation(self.transport, self.transport.call("POST", target, spec))

    def create(
        self,
        image: str,
        *,
        name: str | None = None,
        cpus: int | None = None,
        memory: int | str | None = None,
        disk_size: int | str | None = None,
        boot: str | None = None,
        firmware: str | None = None,
        accelerator: str | None = None,
        cpu_model: str | None = None,
        agent: str | None = None,
        network: str | None = None,
        publish: Sequence[str] = (),
        volumes: Sequence[str] = (),
        cdrom: str | None = None,
        hostname: str | None = None,
        user: str | None = None,
        ssh_keys: Sequence[str] = (),
        user_data: str | None = None,
        run_policy: str | None = None,
        ephemeral: bool = False,
        project: str = "default",
        start: bool = False,
        cold: bool = False,
        progress: Progress | None = None,
    ) -> Machine:
        """A new machine of an image, which is built if need be. What is None is the image's default.

        memory, disk_size: bytes, or text such as '1GiB'. publish: 'HOST:GUEST' ports. volumes: names, as
        'data', 'data:ro' or 'data:scsi'. cdrom: an image in its CD drive, as 'tools' or 'tools:scsi', or
        'none' for an empty one. ssh_keys, user_data: the keys and the document themselves.
        ephemeral: removed by itself once it has ended. start: start it too, as a fork of a template where
        that can be; cold: boot it all the same.
        """
        spec = machine_spec(
            image,
            name=name,
            cpus=cpus,
            memory=memory,
            disk_size=disk_size,
            boot=boot,
            firmware=firmware,
            accelerator=accelerator,
            cpu_model=cpu_model,
            agent=agent,
            network=network,
            publish=list(publish),
            volumes=list(volumes),
            cdrom=cdrom,
            cloud_init={
                "hostname": hostname,
                "user": user,
                "ssh_keys": list(ssh_keys),
                "user_data": user_data,
            },
            run_policy=run_policy,
            ephemeral=ephemeral,
        )
        operation = self.submit_create(spec, project, start=start, cold=cold)
        try:
            info = operation.wait(progress)
        except KeyboardInterrupt:
            operation.cancel()
            raise
        return Machine(self.transport, info["name"], project, uid=info["target"])

    def run(self, image: str, *, rm: bool = True, **options: Any) -> Machine:
        """Create a machine and start it; see `create` for the options. rm: remove it at the end of a
        `with`."""
        machine = self.create(image, start=True, **options)
        machine.rm = rm
        return machine


def machine_spec(image: str, **fields: Any) -> dict[str, Any]:
    """The MachineSpec of what was said: what is None, empty or false is left out, so that defaults hold."""
    cloud_init = {key: value for key, value in (fields.pop("cloud_init", None) or {}).items() if value}
    spec = {"image": image, **{key: value for key, value in fields.items() if value not in (None, [], False)}}
    if cloud_init:
        spec["cloud_init"] = cloud_init
    return spec


def connect(home: str | os.PathLike[str] | None = None) -> Client:
    """The host whose state is under `home` ($INSULA_HOME, else this user's own). Starts nothing yet."""
    return Client(home)


def run(
    image: str, *, rm: bool = True, home: str | os.PathLike[str] | None = None, **options: Any
) -> Machine:
    """Create a machine of an image and start it: `connect(home).run(image, ...)`.

    The options are those of `Client.create`: name, cpus, memory, disk_size, boot, network, publish, ....
    As a context manager the machine is removed at the end (unless rm=False).
    """
    return connect(home).run(image, rm=rm, **options)

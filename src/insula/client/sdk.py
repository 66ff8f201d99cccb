"""Where the SDK begins: `run` a machine, `connect` to a home.

with insula.run("micro") as vm:
    print(vm.exec("uname", "-r").stdout)
"""

from __future__ import annotations

import os

from insula.client.errors import DaemonUnreachable, LedgerInUse
from insula.client.events import watch_events
from insula.client.machine import ExecResult, Machine
from insula.client.operation import Operation
from insula.client.transport import Transport
from insula.client.volume import Volume
from insula.client.wire import quote, with_query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from insula.client.operation import Progress
    from insula.client.types import (
        CatalogueInfo,
        DaemonInfo,
        EventInfo,
        FindingInfo,
        HostInfo,
        ImageInfo,
        MachineInfo,
        RecipeInfo,
        TemplateInfo,
        VolumeInfo,
    )

__all__ = ["Client", "ExecResult", "Machine", "Operation", "Volume", "connect", "run"]

_STOP_TIMEOUT = 30.0  # seconds a daemon gets to end: it finishes what it writes, no more


class Client:
    """One home's daemon, started when something is asked of it. Safe to use from several threads."""

    def __init__(self, home: str | os.PathLike[str] | None = None, *, start: bool = True) -> None:
        self.transport = Transport(home, start=start)

    @property
    def home(self) -> str:
        return self.transport.home

    # Machines

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
        accelerator: str | None = None,
        cpu_model: str | None = None,
        agent: str | None = None,
        network: str | None = None,
        publish: Sequence[str] = (),
        volumes: Sequence[str] = (),
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
        'data', 'data:ro' or 'data:scsi'. ssh_keys, user_data: the keys and the document themselves.
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
            accelerator=accelerator,
            cpu_model=cpu_model,
            agent=agent,
            network=network,
            publish=list(publish),
            volumes=list(volumes),
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

    # Volumes

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

    # Images

    def images(self) -> list[ImageInfo]:
        found: list[ImageInfo] = self.transport.call("GET", "/v1/images")
        return found

    def image(self, name: str) -> ImageInfo:
        found: ImageInfo = self.transport.call("GET", f"/v1/images/{quote(name)}")
        return found

    def recipes(self) -> list[RecipeInfo]:
        """What can be built here, and whether it is."""
        found: list[RecipeInfo] = self.transport.call("GET", "/v1/recipes")
        return found

    def submit_build(self, name: str) -> Operation:
        return Operation(self.transport, self.transport.call("POST", f"/v1/images/{quote(name)}/build", {}))

    def build_image(self, name: str, *, progress: Progress | None = None) -> ImageInfo:
        """Build the image of a recipe; minutes."""
        self.submit_build(name).wait(progress)
        return self.image(name)

    def catalogue(self) -> list[CatalogueInfo]:
        """What can be pulled by name."""
        found: list[CatalogueInfo] = self.transport.call("GET", "/v1/catalogue")
        return found

    def submit_pull(self, name: str, source: str | None = None) -> Operation:
        target = f"/v1/images/{quote(name)}/pull"
        return Operation(self.transport, self.transport.call("POST", target, {"source": source}))

    def pull_image(
        self, source: str, *, name: str | None = None, progress: Progress | None = None
    ) -> ImageInfo:
        """Download an image of a catalogue. name: what it is to be called here, unless as there."""
        self.submit_pull(name or source, source).wait(progress)
        return self.image(name or source)

    def submit_import(self, path: str | os.PathLike[str], name: str, **fields: Any) -> Operation:
        """fields: as in docs/reference/rest.md's ImportSpec; what is None is left out."""
        said = {key: value for key, value in fields.items() if value is not None}
        spec = {"path": os.path.abspath(path), **said}  # noqa: PTH100
        target = f"/v1/images/{quote(name)}/import"
        return Operation(self.transport, self.transport.call("POST", target, spec))

    def import_image(
        self, path: str | os.PathLike[str], name: str, *, progress: Progress | None = None, **fields: Any
    ) -> ImageInfo:
        """Make an image of a disk in a file. fields: format, replace, os, summary, default_user, cloud_init,
        agent, memory."""
        self.submit_import(path, name, **fields).wait(progress)
        return self.image(name)

    def submit_export(
        self, name: str, path: str | os.PathLike[str], format: str = "qcow2", replace: bool = False
    ) -> Operation:
        spec = {"path": os.path.abspath(path), "format": format, "replace": replace}  # noqa: PTH100
        target = f"/v1/images/{quote(name)}/export"
        return Operation(self.transport, self.transport.call("POST", target, spec))

    def export_image(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        format: str = "qcow2",
        replace: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Write an image's disk to a file."""
        self.submit_export(name, path, format, replace).wait(progress)

    def submit_prune_images(self) -> Operation:
        return Operation(self.transport, self.transport.call("POST", "/v1/images/prune", {}))

    def prune_images(self) -> list[str]:
        """Remove what no name means and no machine uses; the digests."""
        outcome = self.submit_prune_images().wait()["outcome"] or {}
        return list(outcome.get("removed", ()))

    def submit_remove_image(self, name: str) -> Operation:
        return Operation(self.transport, self.transport.call("DELETE", f"/v1/images/{quote(name)}"))

    def remove_image(self, name: str) -> None:
        self.submit_remove_image(name).wait()

    # Templates

    def templates(self) -> list[TemplateInfo]:
        """The frozen machines that launches are forked from, the one used last first."""
        found: list[TemplateInfo] = self.transport.call("GET", "/v1/templates")
        return found

    def submit_remove_template(self, name: str) -> Operation:
        return Operation(self.transport, self.transport.call("DELETE", f"/v1/templates/{quote(name)}"))

    def remove_template(self, name: str) -> int:
        """Remove the templates that a key, its beginning or an image's name means; bytes of memory freed."""
        return _freed(self.submit_remove_template(name))

    def submit_prune_templates(self, unused_for: float = 0) -> Operation:
        said = {"unused_for": unused_for}
        return Operation(self.transport, self.transport.call("POST", "/v1/templates/prune", said))

    def prune_templates(self, unused_for: float = 0) -> int:
        """Remove the templates that no launch has used for so many seconds; bytes of memory freed."""
        return _freed(self.submit_prune_templates(unused_for))

    # What happens

    def events(self, *, after: int | None = None, follow: bool = False) -> Iterator[EventInfo]:
        """Events with a seq above `after`. Without `after`: all that are kept, or with follow only new
        ones."""
        return watch_events(self.transport, after, follow)

    def operations(self, *, all: bool = False) -> list[Operation]:
        """Operations that have not ended, or all that are remembered."""
        found = self.transport.call("GET", with_query("/v1/operations", all=all or None))
        return [Operation(self.transport, info) for info in found]

    def operation(self, uid: str) -> Operation:
        return Operation(self.transport, self.transport.call("GET", f"/v1/operations/{quote(uid)}"))

    # The host and its daemon

    def host(self) -> HostInfo:
        found: HostInfo = self.transport.call("GET", "/v1/host")
        return found

    def findings(self) -> list[FindingInfo]:
        """What the host has and lacks, each with the command that mends it."""
        found: list[FindingInfo] = self.transport.call("GET", "/v1/host/findings")
        return found

    def daemon_status(self) -> DaemonInfo | None:
        """The daemon as it runs, None when it does not. Never starts it."""
        try:
            found: DaemonInfo = Transport(self.home, start=False).call("GET", "/v1/daemon")
        except DaemonUnreachable as error:
            if isinstance(error.__cause__, (FileNotFoundError, ConnectionRefusedError)):
                return None
            raise
        return found

    def daemon_stop(self) -> bool:
        """Stop the daemon and wait for its end; no machine is stopped. False when it does not run."""
        from insula.client.daemon import wait_ended

        status = self.daemon_status()
        if status is None:
            return False
        try:
            descriptor = os.pidfd_open(status["pid"])
        except ProcessLookupError:
            return True
        try:
            Transport(self.home, start=False).call("POST", "/v1/daemon/stop", {})
            if not wait_ended(descriptor, _STOP_TIMEOUT):
                raise DaemonUnreachable(
                    f"The daemon (process {status['pid']}) has not ended within {_STOP_TIMEOUT:g}s.",
                    hint=f"End it by force, no machine is harmed: kill -9 {status['pid']}",
                )
        finally:
            os.close(descriptor)
        return True

    def daemon_start(self, *, recover_ledger: bool = False) -> DaemonInfo:
        """Start the daemon unless it runs. recover_ledger: set a damaged ledger aside and make a new one from
        the machines' directories first; refused (LedgerInUse) while a daemon runs."""
        if recover_ledger:
            if self.daemon_status() is not None:
                raise LedgerInUse(
                    "The daemon runs, so its ledger is whole and in use; nothing was changed.",
                    hint="If it must be made anew all the same: insula daemon stop, then try again.",
                )
            from insula.client.daemon import start_daemon

            start_daemon(self.transport.home, arguments=["--recover-ledger"]).close()
        found: DaemonInfo = self.transport.call("GET", "/v1/daemon")
        return found


def _freed(operation: Operation) -> int:
    freed: int = (operation.wait()["outcome"] or {})["freed_bytes"]
    return freed


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

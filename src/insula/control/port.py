"""The little that control (and the server through it) asks of a node; everything else goes by documents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from insula.engine.agent.protocol import ExecSession
from insula.engine.protocol import Console
from insula.model.host import Finding, HostFacts
from insula.model.image import ExportSpec, Image, ImportSpec
from insula.model.machine import Machine
from insula.model.snapshot import Snapshot
from insula.model.template import TemplateView
from insula.storage.recipe import Recipe

if TYPE_CHECKING:
    from insula.control.housekeeping import Housekeeping
    from insula.storage.catalogue import CatalogueEntry


@dataclass(frozen=True)
class ExecRequest:
    """A command for a machine's guest. environment: additions.

    timeout: seconds to wait for the agent; None: as long as a guest that is still booting may need.
    """

    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    working_directory: str | None = None
    user: str | None = None
    tty: bool = False
    rows: int = 24
    columns: int = 80
    timeout: float | None = None


class SnapshotPort(Protocol):
    """What a node knows of the files of snapshots."""

    def written_since(self, machine: Machine, snapshot: Snapshot) -> dict[str, int]:
        """Bytes that each disk of the machine has taken since, at most: id of the disk -> bytes."""

    def exclusive_bytes(self, uid: str) -> int:
        """What the removal of a snapshot would free at once."""


class ImagePort(Protocol):
    """What a node knows of its images, and of what can become one."""

    def all(self) -> list[Image]: ...

    def get(self, name: str) -> Image:
        """Raises ImageNotFound, naming the nearest."""

    def recipes(self) -> list[Recipe]:
        """What can be built here."""

    def catalogue(self) -> list[CatalogueEntry]:
        """What can be pulled. Raises BadCatalogue."""

    async def check_import(self, name: str, spec: ImportSpec) -> None:
        """Raises ImageNameTaken, SourceUnreadable, UnknownFormat, ImageDamaged and ImageRefused."""

    def check_pull(self, entry: str) -> None:
        """Raises NotInCatalogue, BadCatalogue and ImageRefused."""

    def check_export(self, name: str, spec: ExportSpec) -> None:
        """Raises ImageNotFound, ImageHasNoDisk, UnusableTarget and TargetExists."""


class TemplatePort(Protocol):
    """What a node knows of its templates."""

    def all(self) -> list[TemplateView]:
        """The one used last first."""

    def find(self, name: str) -> list[str]:
        """The keys that a key, its beginning, or an image's name means. Raises TemplateNotFound."""


class NodePort(Protocol):
    """What a node does for control at once, without an operation."""

    @property
    def images(self) -> ImagePort: ...

    @property
    def templates(self) -> TemplatePort: ...

    @property
    def snapshots(self) -> SnapshotPort: ...

    @property
    def housekeeping(self) -> Housekeeping:
        """What looks after the home's files."""

    def nudge(self, uid: str) -> None:
        """Something was written that concerns the machine, image or template `uid`: look at it now."""

    def release(self, uid: str) -> None:
        """The target is gone for good."""

    async def host_facts(self) -> HostFacts: ...

    async def examine_host(self) -> list[Finding]:
        """What the host has and lacks, each with the command that mends it."""

    async def open_exec(self, uid: str, request: ExecRequest) -> ExecSession:
        """Raises AgentSilent, NoAgent, GuestCommandNotFound, Conflict when the machine does not run."""

    async def open_console(self, uid: str) -> Console:
        """Raises ConsoleBusy, NoConsole, Conflict when the machine does not run."""

    def read_log(self, uid: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        """The serial log."""

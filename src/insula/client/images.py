"""A host's images and templates, as `Client` offers them."""

from __future__ import annotations

import os

from insula.client.operation import Operation
from insula.client.wire import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from insula.client.operation import Progress
    from insula.client.transport import Transport
    from insula.client.types import CatalogueInfo, ImageInfo, RecipeInfo, TemplateInfo


class ImagesOfHost:
    """The part of a client that is about images and the templates made of them."""

    transport: Transport

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
        agent, memory, firmware."""
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


def _freed(operation: Operation) -> int:
    freed: int = (operation.wait()["outcome"] or {})["freed_bytes"]
    return freed

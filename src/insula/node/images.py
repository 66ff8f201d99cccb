"""What control asks at once of the images of this host, and of what can become one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from insula.kit.paths import Home
from insula.model.image import ExportSpec, Image, ImportSpec
from insula.storage.images import ImageStore
from insula.storage.recipe import Recipe, list_recipes

if TYPE_CHECKING:
    from insula.storage.catalogue import CatalogueEntry


class Images:
    """Implements `control.port.ImagePort`. What imports and pulls need is loaded when it is asked for, since
    whoever starts the daemon waits for it."""

    def __init__(self, home: Home, store: ImageStore) -> None:
        self._home = home
        self._store = store

    def all(self) -> list[Image]:
        return self._store.list()

    def get(self, name: str) -> Image:
        return self._store.get(name)

    def recipes(self) -> list[Recipe]:
        return list_recipes([self._home.root / "recipes"])

    def catalogue(self) -> list[CatalogueEntry]:
        from insula.storage.catalogue import DIRECTORY, list_catalogue

        return list_catalogue([self._home.root / DIRECTORY])

    async def check_import(self, name: str, spec: ImportSpec) -> None:
        from insula.storage.importing import check_file

        if not spec.replace:
            self._store.require_free_name(name)
        await asyncio.to_thread(check_file, Path(spec.path), spec.format)

    def check_pull(self, entry: str) -> None:
        from insula.storage.catalogue import DIRECTORY, find_entry
        from insula.storage.pulling import check_entry

        check_entry(find_entry(entry, [self._home.root / DIRECTORY]))

    def check_export(self, name: str, spec: ExportSpec) -> None:
        from insula.storage.exporting import check_export

        check_export(self._store.get(name), Path(spec.path), spec.format, replace=spec.replace)

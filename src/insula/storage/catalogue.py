"""Catalogues: JSON files that say which images there are, where, and who vouches for them.

{"version": 1, "images": [{"name": ..., "url": ..., "checksum_url": ...}, ...]}; docs/reference/images.md has
the fields. The shipped one lists official cloud images with their publishers' own checksum files. A user's
own (HOME/catalogues/*.json) come first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from insula.kit.errors import nearest
from insula.model.base import Name, Size, Value, bad_document
from insula.model.image import Firmware, ImageProperties
from insula.storage.errors import BadCatalogue, NotInCatalogue

SHIPPED = Path(__file__).with_name("catalogue.json")
DIRECTORY = "catalogues"  # within a home
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MOST_BYTES = 4 * 2**20  # of a catalogue


class CatalogueEntry(Value):
    """An image that can be pulled.

    url, mirrors: where its file is. sha256, sha512: its digest in hexadecimal; or checksum_url: the
    publisher's file of checksums, fetched anew for each pull. size: of the file in bytes, where it is known.
    compression: what the file is packed with. The rest is what the image will be (`ImageProperties`).
    """

    name: Name
    version: str = Field(max_length=100)
    architecture: str = "x86_64"
    os: str = Field(max_length=100)
    summary: str = Field(default="", max_length=200)
    url: str
    mirrors: tuple[str, ...] = ()
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")
    sha512: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{128}$")
    checksum_url: str | None = None
    size: Size | None = None
    format: Literal["raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "qed", "parallels", "iso"]
    compression: Literal["none", "gzip", "xz"] = "none"
    default_user: str = "root"
    cloud_init: bool = True
    agent: Literal["qemu", "none"] = "none"
    memory: Size = 2**30
    firmware: Firmware = "bios"

    @field_validator("url", "checksum_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None:
            check_url(url)
        return url

    @field_validator("mirrors")
    @classmethod
    def _are_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            check_url(url)
        return urls

    @model_validator(mode="after")
    def _somebody_vouches(self) -> Self:
        if not (self.sha256 or self.sha512 or self.checksum_url):
            raise ValueError("one of sha256, sha512 and checksum_url is needed")
        if self.checksum_url and not (self.sha256 or self.sha512):
            parts = urlsplit(self.checksum_url)
            if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
                raise ValueError("checksum_url must be https, or who is in between could exchange both")
        self.properties()
        return self

    def properties(self) -> ImageProperties:
        """What the image will be."""
        return ImageProperties(
            summary=self.summary or f"{self.os} {self.version}",
            os=self.os,
            default_user=self.default_user,
            cloud_init=self.cloud_init,
            agent=self.agent,
            memory=self.memory,
            firmware=self.firmware,
        )


class Catalogue(Value):
    """The file. version: of its format."""

    version: Literal[1]
    images: tuple[CatalogueEntry, ...]


def check_url(url: str) -> None:
    """Raises ValueError unless it is one of http or https with a host and without a password."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must begin with https:// or http://")
    if parts.username or parts.password:
        raise ValueError("must not hold a user or password")


def load_catalogue(path: Path) -> Catalogue:
    """Raises BadCatalogue with every faulty field."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise BadCatalogue(f"The catalogue '{path}' is longer than any can be.")
        return Catalogue.model_validate(json.loads(raw))
    except ValidationError as error:
        found = bad_document(error.errors(include_url=False), f"catalogue '{path}'")
        raise BadCatalogue(found.message, hint=found.hint, fields=found.fields) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadCatalogue(
            f"The catalogue '{path}' cannot be read as JSON.",
            hint="See docs/reference/images.md for its format.",
        ) from error


def list_catalogue(directories: Sequence[Path] = ()) -> list[CatalogueEntry]:
    """All that can be pulled, by name; of two of a name the first directory's counts. Raises BadCatalogue."""
    files = [path for directory in directories for path in sorted(directory.glob("*.json"))]
    found: dict[str, CatalogueEntry] = {}
    for path in [*files, SHIPPED]:
        for entry in load_catalogue(path).images:
            found.setdefault(entry.name, entry)
    return [found[name] for name in sorted(found)]


def find_entry(name: str, directories: Sequence[Path] = ()) -> CatalogueEntry:
    """Raises NotInCatalogue with the nearest name, and BadCatalogue."""
    entries = {entry.name: entry for entry in list_catalogue(directories)}
    if name not in entries:
        guess = nearest(name, list(entries))
        hint = f"Did you mean '{guess}'? " if guess else ""
        raise NotInCatalogue(
            f"No catalogue has an image '{name}'.",
            hint=f"{hint}See what there is: insula image ls --catalogue",
        )
    return entries[name]

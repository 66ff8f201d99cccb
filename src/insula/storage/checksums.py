"""Publishers' files of checksums, in every style in which they come.

GNU       9f86d0...  FILE   or   9f86d0... *FILE      sha256sum(1), sha512sum(1)
BSD       SHA256 (FILE) = 9f86d0...                   also within a clear-signed OpenPGP message
alone     9f86d0...                                   a file for one file

The algorithm is known by the digest's length. A signature is not verified: what vouches for the file is the
address it comes from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_GNU = re.compile(r"\\?([0-9a-fA-F]{128}|[0-9a-fA-F]{64})\s+\*?(?:\./)?(\S.*)")
_BSD = re.compile(r"(SHA256|SHA512)\s*\((.+)\)\s*=\s*([0-9a-fA-F]{128}|[0-9a-fA-F]{64})", re.IGNORECASE)
_ALONE = re.compile(r"[0-9a-fA-F]{128}|[0-9a-fA-F]{64}")
_LENGTHS: dict[int, Literal["sha256", "sha512"]] = {64: "sha256", 128: "sha512"}


@dataclass(frozen=True)
class Checksum:
    """digest: in lower-case hexadecimal."""

    algorithm: Literal["sha256", "sha512"]
    digest: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"


def checksum(digest: str) -> Checksum:
    """The checksum of 64 or 128 hexadecimal digits."""
    return Checksum(_LENGTHS[len(digest)], digest.lower())


def find_checksum(text: str, file: str) -> Checksum | None:
    """What the publisher's text says of the file (a name without a path); the strongest where it says
    several things.

    None where it says nothing of it, or contradicts itself.
    """
    lines = [line.strip() for line in text.splitlines()]
    found: dict[str, set[str]] = {}
    for line in lines:
        if match := _BSD.fullmatch(line):
            name, digest = match[2], match[3]
        elif match := _GNU.fullmatch(line):
            digest, name = match[1], match[2]
        else:
            continue
        if name.rsplit("/", 1)[-1] == file:
            found.setdefault(_LENGTHS[len(digest)], set()).add(digest.lower())
    if not found:
        meant = [line for line in lines if line]
        if len(meant) == 1 and _ALONE.fullmatch(meant[0]):
            return checksum(meant[0])
        return None
    digests = found[max(found)]
    return checksum(digests.pop()) if len(digests) == 1 else None

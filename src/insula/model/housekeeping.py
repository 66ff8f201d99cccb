"""What a home is made of: what each part takes, who needs it, and what is wrong with it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from insula.model.base import Value

PartKind = Literal[
    "machine",
    "volume",
    "snapshot",
    "template",
    "capture",
    "image",
    "build",
    "download",
    "ledger",
    "daemon",
    "settings",
    "other",
]

# needed    a document, a name or a person's settings need it
# making    an unfinished operation is at it, or it is younger than the look
# cache     may go at any time, and costs time only: a template, a part of a download
# unused    nobody needs it now, and that is no fault: an image without a name, until `image prune`
# kept      set aside for a person: a ledger that was damaged
# foreign   not Insula's: looked at, never touched
# lost      a machine's or volume's files whose document the ledger has never heard of
# orphan    nobody needs it, and it should not be there
PartState = Literal["needed", "making", "cache", "unused", "kept", "foreign", "lost", "orphan"]


class Bytes(Value):
    """What something takes. size: allocated on the disk, each inode counted once.

    exclusive: of it, what would be freed if this alone were removed; shared: what others have, too, so that
    size = exclusive + shared. memory: of the host, held by templates and captures.
    """

    size_bytes: int = 0
    exclusive_bytes: int = 0
    shared_bytes: int = 0
    memory_bytes: int = 0


class Part(Bytes):
    """One thing in a home that comes and goes as a whole. name: a uid, key, digest or file name.

    owner: whom it belongs to, in words. reason: why it is in that state.
    """

    kind: PartKind
    name: str
    owner: str
    state: PartState
    reason: str
    path: str


class KindUsage(Bytes):
    """What all parts of a kind take together; `exclusive_bytes` would be freed if all of them went.

    reclaimable: of disk and memory, what `insula system prune --all` would free.
    """

    kind: PartKind
    count: int
    reclaimable_bytes: int = 0
    reclaimable_memory_bytes: int = 0


class Usage(Value):
    """What a home takes, by kind and in all. parts: each of them, if that was asked for.

    free_bytes: left on the home's file system.
    """

    looked: datetime
    home: str
    images: str
    free_bytes: int
    kinds: tuple[KindUsage, ...]
    total: Bytes
    reclaimable_bytes: int
    reclaimable_memory_bytes: int
    parts: tuple[Part, ...] = ()


Remedy = Literal["prune", "lost", "none"]


class StoreProblem(Value):
    """Something in a home that is not as it should be.

    code: stable, as in docs/reference/housekeeping.md. what: in words. path: where. why: how that is known.
    mend: the command that mends it. remedy: 'prune' removes it, prunes only what is named ('lost'), or does
    nothing about it. note: worth knowing, but no fault. size_bytes, memory_bytes: freed once it is removed.
    pid: of a process that has nothing left to serve.
    """

    code: str
    what: str
    path: str
    why: str
    mend: str
    remedy: Remedy = "none"
    note: bool = False
    uid: str = ""
    size_bytes: int = 0
    memory_bytes: int = 0
    pid: int | None = None


class StoreCheck(Value):
    """What was found. clean: nothing is wrong, but for notes. disks_checked: None unless asked."""

    looked: datetime
    clean: bool
    problems: tuple[StoreProblem, ...]
    disks_checked: int | None = None


class CheckSpec(Value):
    """disks: look into every disk that no running machine has open, too; takes minutes."""

    disks: bool = False


Uid = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class PruneSpec(Value):
    """lost: uids of machines, volumes and snapshots without a document whose files are to go, too."""

    lost: tuple[Uid, ...] = Field(default=(), max_length=1000)

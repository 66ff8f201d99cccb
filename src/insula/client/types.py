"""The shapes of what the daemon answers, for type checkers and readers: docs/reference/python.md."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

Phase = Literal["created", "starting", "running", "paused", "stopping", "stopped", "crashed", "suspended"]


class AcceleratorInfo(TypedDict):
    name: str
    reason: str


class PublishInfo(TypedDict):
    host_address: str
    host_port: int
    guest_port: int
    protocol: str


class ExitInfo(TypedDict):
    """How a machine's process ended. exit_status: 128+N for signal N, None if nobody can know."""

    at: str
    cause: str
    exit_status: int | None
    signal: int | None
    command: str
    stderr: str
    serial: str


class AttachedVolumeInfo(TypedDict):
    """A volume that a machine has. serial: by which its guest finds it."""

    name: str
    read_only: bool
    bus: str
    serial: str


class CdromInfo(TypedDict):
    """The CD drive of a machine. image, image_digest: of the medium in it, None where it is empty."""

    bus: str
    image: str | None
    image_digest: str | None


class VolumeUserInfo(TypedDict):
    machine: str
    read_only: bool


class VolumeInfo(TypedDict):
    """A volume as `GET .../volumes/NAME` and `insula volume ls --json` have it."""

    name: str
    project: str
    uid: str
    generation: int
    created: str
    size_bytes: int
    allocated_bytes: int
    format: str
    serial: str
    attached_to: list[VolumeUserInfo]
    directory: str


class MachineInfo(TypedDict):
    """A machine as `GET .../machines/NAME` and `insula ls --json` have it. Times are ISO 8601 in UTC."""

    name: str
    project: str
    uid: str
    generation: int
    phase: Phase
    since: str
    reason: str
    image: str
    image_digest: str
    cpus: int
    memory_bytes: int
    pid: int | None
    addresses: list[str]
    created: str
    power: str
    run_policy: str
    ephemeral: bool
    boot: str
    firmware: str
    network: str
    publish: list[PublishInfo]
    volumes: list[AttachedVolumeInfo]
    cdrom: CdromInfo | None
    accelerator: AcceleratorInfo | None
    engine_version: str
    agent: str
    restarts: int
    directory: str
    last_exit: ExitInfo | None


class ProgressInfo(TypedDict):
    message: str
    fraction: float | None


class StepInfo(TypedDict):
    name: str
    state: Literal["started", "done", "undone"]


class OperationInfo(TypedDict):
    """A verb somebody asked for. notes: what a person should hear besides the outcome."""

    uid: str
    project: str
    name: str
    generation: int
    created: str
    kind: str
    verb: str
    target_kind: str
    target: str
    parameters: dict[str, Any]
    state: Literal["queued", "running", "performed", "done", "failed", "cancelled"]
    steps: list[StepInfo]
    progress: ProgressInfo | None
    cancel_requested: bool
    outcome: dict[str, Any] | None
    problem: dict[str, Any] | None
    notes: list[str]
    recovered: int
    started: str | None
    finished: str | None


class SnapshotDiskInfo(TypedDict):
    id: str
    size_bytes: int
    volume: str | None


class SnapshotInfo(TypedDict):
    """A snapshot. depth: in the tree; current: the machine stands on it; docs/reference/snapshots.md."""

    name: str
    uid: str
    project: str
    machine: str
    parent: str | None
    depth: int
    current: bool
    whole: bool
    taken: str | None
    description: str
    phase: Literal["running", "paused", "off"]
    memory_bytes: int | None
    quiesced: bool
    stood_seconds: float
    exclusive_bytes: int
    disks: list[SnapshotDiskInfo]


class LossesInfo(TypedDict):
    """What a restore would lose. written_bytes: by disk or volume, at most."""

    since: str | None
    memory: bool
    written_bytes: dict[str, int]
    detached: list[str]


class EventInfo(TypedDict):
    seq: int
    at: str
    kind: str
    project: str
    target: str
    name: str
    data: dict[str, Any]


class ImageInfo(TypedDict):
    name: str
    digest: str
    summary: str
    os: str
    architecture: str
    created: str
    size_bytes: int
    kernel: dict[str, Any] | None
    disk: dict[str, Any] | None
    boots: list[str]
    agents: list[str]
    cloud_init: bool
    default_user: str
    minimum_memory_bytes: int
    defaults: dict[str, Any]
    origin: str


class CatalogueInfo(TypedDict):
    """An image that can be pulled; docs/reference/images.md tells of the fields."""

    name: str
    version: str
    architecture: str
    os: str
    summary: str
    url: str
    mirrors: list[str]
    sha256: str | None
    sha512: str | None
    checksum_url: str | None
    size: int | None
    format: str
    compression: str
    default_user: str
    cloud_init: bool
    agent: str
    memory: int
    firmware: str


class TemplateInfo(TypedDict):
    """A template. held_bytes: of the host's memory; disk_bytes: of its disks."""

    key: str
    image: dict[str, str]
    cpus: int
    memory_bytes: int
    accelerator: str
    engine_version: str
    created: str
    medium: str
    held_bytes: int
    disk_bytes: int
    last_used: str


class RecipeInfo(TypedDict):
    name: str
    summary: str
    kind: str
    built: bool


class HostInfo(TypedDict):
    cpus: int
    memory_bytes: int
    memory_available_bytes: int
    accelerator: AcceleratorInfo
    kvm_refused: str
    engine_version: str


class FindingInfo(TypedDict):
    name: str
    state: Literal["ok", "limited", "missing"]
    detail: str
    mend: str


class DaemonInfo(TypedDict):
    pid: int
    version: str
    started: str
    home: str
    socket: str
    resident_bytes: int
    machines: dict[str, int]
    recovered: list[str]


class BytesInfo(TypedDict):
    """On the disk, each inode once; exclusive: of it, freed with this alone. memory: of the host."""

    size_bytes: int
    exclusive_bytes: int
    shared_bytes: int
    memory_bytes: int


class PartInfo(BytesInfo):
    """What comes and goes as a whole. state: needed making cache unused kept foreign lost orphan."""

    kind: str
    name: str
    owner: str
    state: str
    reason: str
    path: str


class KindUsageInfo(BytesInfo):
    kind: str
    count: int
    reclaimable_bytes: int
    reclaimable_memory_bytes: int


class UsageInfo(TypedDict):
    """What a home takes: `insula system df --json`."""

    looked: str
    home: str
    images: str
    free_bytes: int
    kinds: list[KindUsageInfo]
    total: BytesInfo
    reclaimable_bytes: int
    reclaimable_memory_bytes: int
    parts: list[PartInfo]


class StoreProblemInfo(TypedDict):
    """Something that is not as it should be. remedy: prune, lost or none. note: worth knowing, no fault."""

    code: str
    what: str
    path: str
    why: str
    mend: str
    remedy: Literal["prune", "lost", "none"]
    note: bool
    uid: str
    size_bytes: int
    memory_bytes: int
    pid: int | None


class CheckInfo(TypedDict):
    """What `insula system check --json` prints. disks_checked: None unless they were looked into."""

    looked: str
    clean: bool
    problems: list[StoreProblemInfo]
    disks_checked: int | None


class RemovedInfo(TypedDict):
    code: str
    what: str
    path: str
    freed_bytes: int
    freed_memory_bytes: int


class PruneInfo(TypedDict):
    """What was removed. left: what could not be, each with `what`, `path` and `why`."""

    removed: list[RemovedInfo]
    left: list[dict[str, str]]
    freed_bytes: int
    freed_memory_bytes: int

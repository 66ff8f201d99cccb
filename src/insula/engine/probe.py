"""What the QEMU of this host has, asked of itself; kept in a file until the host boots or QEMU changes."""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insula.engine.accelerator import KvmVerdict, kvm_access, probe_kvm
from insula.engine.errors import EngineLost, EngineMissing
from insula.engine.inotify import CREATED, watching
from insula.engine.plan import MONITOR, STATE_FILES, SWITCHES
from insula.engine.protocol import EngineFacts
from insula.engine.qmp import Monitor
from insula.kit.clock import boot_id
from insula.kit.paths import QMP_SOCKET, write_atomically
from insula.kit.run import CommandFailed, run

_PROBE_VERSION = 2  # rises when other things are asked
_DEADLINE = 20.0  # seconds
_ALIASES = ("pc", "q35")


@dataclass(frozen=True)
class BinaryFacts:
    """version: as QEMU says it. machine_types: alias -> versioned name. features: 'sandbox', 'pc.hpet'..."""

    version: str
    machine_types: dict[str, str]
    features: frozenset[str]


async def load_facts(binary: Path, cache: Path | None) -> EngineFacts:
    """The facts of this host, from the cache file if it still holds. Raises EngineMissing."""
    key = _cache_key(binary)
    cached = _read_cache(cache, key) if cache is not None else None
    if cached is None:
        found, kvm = await asyncio.gather(probe_binary(binary), probe_kvm())
        cached = {
            "key": key,
            "version": found.version,
            "machine_types": found.machine_types,
            "features": sorted(found.features),
            "kvm_refused": kvm.refused,
            "kvm_mend": kvm.mend,
        }
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cache, json.dumps(cached, indent=1) + "\n")
    verdict = KvmVerdict(cached["kvm_refused"], cached["kvm_mend"])
    return EngineFacts(
        version=cached["version"],
        binary=binary,
        auto=verdict.auto,
        kvm_refused=verdict.refused,
        machine_types=dict(cached["machine_types"]),
        features=frozenset(cached["features"]),
        kvm_mend=verdict.mend,
        build=json.dumps(key[2:5]),
    )


def _cache_key(binary: Path) -> list[Any]:
    status = binary.stat()
    return [_PROBE_VERSION, boot_id(), str(binary), status.st_mtime_ns, status.st_size, kvm_access()]


def _read_cache(cache: Path, key: list[Any]) -> dict[str, Any] | None:
    try:
        stored = json.loads(cache.read_text())
        wanted = {"key", "version", "machine_types", "features", "kvm_refused", "kvm_mend"}
        return stored if stored["key"] == key and wanted <= stored.keys() else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


async def probe_binary(binary: Path) -> BinaryFacts:
    """Ask QEMU, started without a machine, over QMP. Raises EngineMissing when it does not even do that."""
    with tempfile.TemporaryDirectory(prefix="insula-probe-") as name:
        directory = Path(name)
        argv = [str(binary), "-nodefaults", "-no-user-config", "-S", "-display", "none", "-machine", "none"]
        running = asyncio.create_task(run([*argv, *MONITOR], cwd=directory), name="probe")
        try:
            async with asyncio.timeout(_DEADLINE):
                return await _ask(directory, running)
        except (TimeoutError, EngineLost, CommandFailed) as error:
            raise EngineMissing(
                f"{binary} does not work: it could not be asked what it can do.",
                hint=f"Try it by hand: {binary} -machine none -display none",
            ) from error
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def _ask(directory: Path, running: asyncio.Task[Any]) -> BinaryFacts:
    with watching(directory, CREATED) as created:
        while not (directory / QMP_SOCKET).exists():
            appeared = asyncio.create_task(created.wait())
            await asyncio.wait({appeared, running}, return_when=asyncio.FIRST_COMPLETED)
            appeared.cancel()
            if running.done():
                running.result()
                raise EngineLost("QEMU ended before it could be asked.")
    monitor = await connect_when_listening(directory / QMP_SOCKET, "probe", _DEADLINE)
    try:
        version = (await monitor.execute("query-version"))["qemu"]
        machines = await monitor.execute("query-machines")
        options = await monitor.execute("query-command-line-options")
        schema = await monitor.execute("query-qmp-schema")
        types = {m["alias"]: m["name"] for m in machines if m.get("alias") in _ALIASES}
        features = {"sandbox"} & {option["option"] for option in options}
        features |= {STATE_FILES} & {f"migrate.{transport}" for transport in _transports(schema)}
        for alias, name in types.items():
            properties = await monitor.execute("qom-list-properties", typename=f"{name}-machine")
            features |= {f"{alias}.{entry['name']}" for entry in properties if entry["name"] in SWITCHES}
    finally:
        await monitor.close()
    return BinaryFacts("{major}.{minor}.{micro}".format(**version), types, frozenset(features))


def _transports(schema: list[dict[str, Any]]) -> set[str]:
    """Ways of a state: the cases of MigrationAddress (qapi/migration.json, 8.2), told without its name."""
    return {
        str(variant["case"])
        for entry in schema
        if entry.get("tag") == "transport"
        for variant in entry["variants"]
    }


async def connect_when_listening(path: Path, name: str, timeout: float) -> Monitor:
    """Connect to a monitor whose socket has just appeared.

    Between QEMU's bind and listen lie some microseconds in which a connection is refused; no event marks
    their end. Raises EngineLost and TimeoutError.
    """
    async with asyncio.timeout(timeout):
        while True:
            try:
                return await Monitor.connect(path, name, timeout)
            except EngineLost as error:
                if not isinstance(error.__cause__, ConnectionRefusedError):
                    raise
            await asyncio.sleep(0.001)

"""The templates of this host: made at the first launch of a kind, kept within a budget, forked ever after.

    launch ── key known? ──> fork
                └── no ──> boot it ──> agent answers, guest idle ──> freeze ──> template.json ──> fork
                             └── killed, failed: swept

DIRECTORY/KEY/ holds the template's frozen disks and device state; its memory is kept by a process
(`engine.freeze`). Templates are a cache: any may go at any time, and machines that were forked from one live
on. `template.json` is written last, so a directory without it is nothing that anybody uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from weakref import WeakValueDictionary

from insula.engine.agent.protocol import capture
from insula.engine.protocol import BootFiles, Engine, Instance, Memory
from insula.kit.clock import utc_now
from insula.kit.errors import InsulaError, NotFound, Unavailable
from insula.kit.paths import TEMPLATE_DOCUMENT, write_atomically
from insula.kit.units import BadUnit, format_size, parse_size
from insula.model.machine import Machine
from insula.model.observation import AcceleratorFact
from insula.model.template import NAME, Template, TemplateView, as_template, why_not_forked
from insula.node.disks import made_with, make_overlays, make_seeds
from insula.node.firmware import make_variables
from insula.node.media import medium_of, place_medium
from insula.storage import late_boot
from insula.storage.chain import name_top
from insula.storage.images import MANIFEST, ImageStore

log = logging.getLogger(__name__)

BUDGET_VARIABLE = "INSULA_TEMPLATE_MEMORY"
HOOK = "/usr/lib/insula/renew"  # an image's own program: `freeze` before, `wake` after
BOOT_PATIENCE = 300.0  # seconds a guest may need until its agent answers
HOOK_PATIENCE = 300.0  # seconds its hook may need to bring the guest to rest
IDLE_SHARE = 0.08  # of a processor: below it a guest is at rest; an idle one takes 0.02 under emulation
IDLE_LOOK = 0.25  # seconds between two looks; nothing tells of idleness, so it must be looked for
IDLE_LOOKS = 2  # in a row
IDLE_PATIENCE = 120.0  # seconds, then it is frozen as it is
MEMORY_SHARE = 0.25  # of the host's memory, for all templates together
KEY_LENGTH = 12

Report = Callable[[str], None]


class TemplateNotFound(NotFound):
    """There is no template of this key."""

    code = "template-not-found"


class TemplateFailed(Unavailable):
    """A template could not be made; machines of its kind boot instead."""

    code = "template-failed"


def template_budget() -> int:
    """Bytes of the host's memory that templates may hold: $INSULA_TEMPLATE_MEMORY, else a share of all.

    Raises BadUnit.
    """
    said = os.environ.get(BUDGET_VARIABLE)
    if said:
        try:
            return parse_size(said)
        except BadUnit as error:
            hint = f"Write it as {BUDGET_VARIABLE}=4GiB, 0 for no templates, or leave it away."
            raise BadUnit(f"{BUDGET_VARIABLE} is '{said}', which is not a size.", hint=hint) from error
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MEMORY_SHARE)


class Templates:
    """See the module. budget: bytes of the host's memory that all templates may hold; 0: none is made.

    idle_look: seconds between two looks at whether a guest is at rest.
    """

    def __init__(
        self,
        directory: Path,
        engine: Engine,
        images: ImageStore,
        budget: int,
        idle_look: float = IDLE_LOOK,
    ) -> None:
        self._root = directory
        self._engine = engine
        self._images = images
        self._budget = budget
        self._idle_look = idle_look
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._failed: dict[str, str] = {}  # key -> why; not tried again by this daemon

    @property
    def budget(self) -> int:
        return self._budget

    def directory(self, key: str) -> Path:
        return self._root / key

    async def find_or_make(self, machine: Machine, files: BootFiles, report: Report) -> str:
        """The key of the template for a launch of this machine, made first if there is none.

        files: for direct kernel boot, of a machine called `model.template.NAME`.
        Raises TemplateFailed with the reason why it must boot instead.
        """
        reason = why_not_forked(machine) or self._why_no_room(machine)
        if reason is not None:
            raise TemplateFailed(f"Machine '{machine.name}' boots: {reason}.")
        common = place_medium(as_template(machine), self._images)
        facts = await self._engine.facts()
        plan = self._engine.plan(common, files, self._root / NAME, facts, Memory(shareable=True))
        described = "\0".join([facts.build, common.model_dump_json(), *plan.argv])
        key = hashlib.sha256(described.encode()).hexdigest()[:KEY_LENGTH]
        async with self._turn(key):
            if self.is_whole(key):
                os.utime(self.directory(key) / TEMPLATE_DOCUMENT)
                return key
            if key in self._failed:
                raise TemplateFailed(f"Machine '{machine.name}' boots: {self._failed[key]}")
            try:
                await self._make(key, common, files, plan.accelerator, report)
            except (InsulaError, OSError) as error:
                why = error.message if isinstance(error, InsulaError) else f"{error.strerror or error}."
                self._failed[key] = f"a template of its kind could not be made. {why}"
                log.warning("no template for '%s': %s", machine.name, why, exc_info=error)
                raise TemplateFailed(f"Machine '{machine.name}' boots: {self._failed[key]}") from error
        await self._keep_budget(key)
        return key

    def all(self) -> list[TemplateView]:
        """Every whole template, the one used last first."""
        if not self._root.is_dir():
            return []
        found = [view for path in self._root.iterdir() if (view := self._view(path)) is not None]
        return sorted(found, key=lambda view: view.last_used, reverse=True)

    def find(self, name: str) -> list[str]:
        """The keys that a key, its beginning, or an image's name means. Raises TemplateNotFound."""
        templates = self.all()
        keys = [t.key for t in templates if t.image.name == name or t.key.startswith(name)]
        if not keys or not name:
            images = sorted({template.image.name for template in templates})
            hint = f"There are templates of: {', '.join(images)}." if images else "There are none yet."
            raise TemplateNotFound(f"There is no template '{name}'.", hint=hint)
        return keys

    async def remove(self, key: str) -> int:
        """Let go of a template; the bytes of memory that frees at most. Idempotent."""
        async with self._turn(key):
            held = self._engine.frozen_bytes(self.directory(key)) or 0
            await self._clear(key)
            self._failed.pop(key, None)
            return held

    async def forget_image(self, digest: str) -> None:
        """Remove the templates of an image that is removed."""
        for template in self.all():
            if digest in (template.image.digest, template.medium):
                await self.remove(template.key)

    async def keep_images(self, digests: Collection[str]) -> None:
        """Remove the templates of all images but these."""
        for template in self.all():
            if not {template.image.digest, template.medium or template.image.digest} <= set(digests):
                await self.remove(template.key)

    async def sweep(self) -> None:
        """Remove what is no template any more: half made, or its memory went with the host's last boot."""
        if not self._root.is_dir():
            return
        for path in sorted(self._root.iterdir()):
            await self.drop_dead(path.name)

    async def drop_dead(self, key: str) -> bool:
        """Remove what is no template any more; False when it is one, or there is nothing."""
        async with self._turn(key):
            if self.is_whole(key) or not self.directory(key).exists():
                return False
            await self._clear(key)
            return True

    def is_busy(self, key: str) -> bool:
        """Whether it is being made or removed at this moment."""
        lock = self._turns.get(key)
        return lock is not None and lock.locked()

    # Making one

    async def _make(
        self, key: str, common: Machine, files: BootFiles, accelerator: AcceleratorFact, report: Report
    ) -> None:
        directory = self.directory(key)
        await self._clear(key)
        report(f"Making a template of '{common.image.name}', once: booting it")
        try:
            directory.mkdir(parents=True, mode=0o700)
            await asyncio.to_thread(self._images.hold, common.digests, directory)
            await self._furnish(common, files, directory)
            # A UEFI starts a kernel by another entry than that of the words which stand for it there.
            if files.kernel is not None and files.initrd is not None and files.uefi is None:
                await asyncio.to_thread(
                    late_boot.make, files.kernel, files.initrd, directory, common.memory_bytes
                )
            facts = await self._engine.facts()
            plan = self._engine.plan(common, files, directory, facts, Memory(shareable=True))
            instance = await self._engine.launch(plan)
            await instance.resume()
            await self._bring_to_rest(instance, report)
            await self._engine.freeze(instance)
            for disk in made_with(common):
                name_top(directory, disk.file, key)
            template = Template(
                key=key,
                image=common.image,
                cpus=common.cpus,
                memory_bytes=common.memory_bytes,
                accelerator=accelerator.name,
                engine_version=facts.version,
                created=utc_now(),
                medium=medium.digest if (medium := medium_of(common)) is not None else "",
            )
            write_atomically(directory / TEMPLATE_DOCUMENT, template.model_dump_json(indent=1) + "\n")
        except BaseException:
            await asyncio.shield(self._clear(key))
            raise

    async def _furnish(self, common: Machine, files: BootFiles, directory: Path) -> None:
        from insula.model.image import Image

        blob = self._images.blob(common.image.digest)
        image = Image.model_validate_json((blob / MANIFEST).read_bytes())
        await make_overlays(common, image, blob, directory)
        await make_variables(common, files.uefi, directory)
        await make_seeds(common, image, NAME, directory)

    async def _bring_to_rest(self, instance: Instance, report: Report) -> None:
        """Until the guest has nothing more to do that its forks would do again. Raises AgentSilent."""
        agent = await instance.agent(BOOT_PATIENCE)
        report("Making a template, once: waiting until its guest is at rest")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HOOK_PATIENCE):
                # What every command needs is then in the guest's memory, and so in that of every fork.
                await capture(await agent.exec(["sh", "-c", f"[ ! -x {HOOK} ] || exec {HOOK} freeze"]))
        calm = 0
        deadline = asyncio.get_running_loop().time() + IDLE_PATIENCE
        used = await instance.processor_seconds()
        while calm < IDLE_LOOKS and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(self._idle_look)
            now = await instance.processor_seconds()
            calm = calm + 1 if now - used <= IDLE_SHARE * self._idle_look else 0
            used = now

    # Keeping them

    def _why_no_room(self, machine: Machine) -> str | None:
        if self._budget == 0:
            return "templates are switched off on this host"
        if machine.memory_bytes > self._budget:
            return (
                f"a template of its {format_size(machine.memory_bytes)} of memory would not fit into the "
                f"{format_size(self._budget)} that templates may hold"
            )
        return None

    async def _keep_budget(self, newest: str) -> None:
        """Remove those used longest ago until all fit."""
        templates = self.all()
        held = sum(template.held_bytes for template in templates)
        for template in reversed(templates):
            if held <= self._budget or template.key == newest:
                continue
            log.info("template %s of '%s' gave way to %s", template.key, template.image.name, newest)
            held -= await self.remove(template.key)

    def is_whole(self, key: str) -> bool:
        """Whether launches can be forked from it."""
        directory = self.directory(key)
        return (directory / TEMPLATE_DOCUMENT).exists() and self._engine.frozen_bytes(directory) is not None

    def _view(self, path: Path) -> TemplateView | None:
        held = self._engine.frozen_bytes(path)
        try:
            template = Template.model_validate_json((path / TEMPLATE_DOCUMENT).read_bytes())
            used = (path / TEMPLATE_DOCUMENT).stat().st_mtime
            sizes = [entry.stat().st_blocks * 512 for entry in path.iterdir() if entry.is_file()]
        except (OSError, ValueError):
            return None
        if held is None:
            return None
        last_used = datetime.fromtimestamp(used, UTC)
        return TemplateView(
            **dict(template),
            held_bytes=held,
            disk_bytes=sum(sizes),
            last_used=last_used.replace(microsecond=last_used.microsecond // 1000 * 1000),
        )

    async def _clear(self, key: str) -> None:
        directory = self.directory(key)
        if not directory.exists():
            return
        # First what makes it one, so that a crash in the middle leaves nothing that is taken for a template.
        (directory / TEMPLATE_DOCUMENT).unlink(missing_ok=True)
        await self._engine.discard(directory)
        await asyncio.to_thread(shutil.rmtree, directory)

    @contextlib.asynccontextmanager
    async def _turn(self, key: str) -> AsyncIterator[None]:
        lock = self._turns.setdefault(key, asyncio.Lock())
        async with lock:
            yield

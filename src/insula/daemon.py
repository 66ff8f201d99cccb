"""insulad: the daemon of one home. Composition only: server + control + node.

    lock ── bind ── ledger ── node adopts, control goes on ── serve ── ... closing ── all closed, last first
      │       └── clients queue from here on               │                  └── SIGTERM, SIGINT,
      └── held for life, by the kernel                     │                      POST /v1/daemon/stop
                                                           └── the web framework is loaded meanwhile

Ending it, in whatever way, ends no machine. It ends by itself when its home is removed and nothing of that
runs. Exit statuses: 0 ended in order; 73 another daemon has this home; 64 a setting that cannot be read; 69
cannot start now (the ledger is damaged, the socket cannot be made); 70 a fault of our own.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import gc
import json
import logging
import logging.handlers
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from insula import __version__
from insula.kit.aio import cancel_and_wait
from insula.kit.clock import utc_now
from insula.kit.errors import Bug, Conflict, InsulaError, Unavailable
from insula.kit.paths import (
    DAEMON_LOCK,
    DAEMON_LOG,
    DAEMON_STATUS,
    Home,
    write_atomically,
)
from insula.server.info import DaemonInfo
from insula.server.listen import Listener, open_listener
from insula.server.ready import Ready

if TYPE_CHECKING:
    from insula.control.control import Control
    from insula.engine.protocol import Engine

LOG_BYTES = 5 * 2**20  # of each of the two log files
LOCK_TRIES, LOCK_PAUSE = 5, 0.02  # a client that probes whether the lock is held has it for a moment
log = logging.getLogger("insula.daemon")  # __name__ is __main__ when started with -m


class DaemonRunning(Conflict):
    """Another daemon serves this home."""

    code = "daemon-running"


class HomeRefused(Unavailable):
    """The home's directories cannot be made or written."""

    code = "home-refused"


def main(argv: Sequence[str] | None = None) -> int:
    """The command `insulad`; its exit status."""
    gc.disable()  # what is made while starting stays: looking through it again and again is wasted
    arguments = _parse_arguments(argv)
    ready = Ready.from_environment()
    home = Home.from_environment()
    if arguments.home is not None:
        home = Home(arguments.home.absolute(), home.images_override)
    try:
        prepare_home(home)
        start_log(home.daemon / DAEMON_LOG)
        with DaemonLock(home):
            asyncio.run(_run(home, ready, arguments.recover_ledger))
    except InsulaError as error:
        return _report_failure(error, ready)
    except Exception as error:
        bug = Bug("The daemon failed.", hint=f"Please report it with the log: {home.daemon / DAEMON_LOG}")
        bug.__cause__ = error
        return _report_failure(bug, ready)
    return 0


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="insulad",
        description="The daemon of one Insula home. The command `insula` starts it by itself.",
        epilog="Ending it ends no machine. Exit status 73: another daemon has this home.",
    )
    parser.add_argument("--home", type=Path, metavar="DIR", help="where everything is kept ($INSULA_HOME)")
    parser.add_argument(
        "--recover-ledger",
        action="store_true",
        help="set a damaged ledger aside and make a new one from the machines' own directories",
    )
    parser.add_argument("--version", action="version", version=f"insulad {__version__}")
    return parser.parse_args(argv)


async def _run(home: Home, ready: Ready, recover: bool) -> None:
    closing = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, closing.set)
    await serve(home, closing=closing, ready=ready, recover=recover)


async def serve(
    home: Home,
    *,
    closing: asyncio.Event | None = None,
    ready: Ready | None = None,
    recover: bool = False,
    engine: Engine | None = None,
) -> None:
    """Serve a prepared home, whose lock is held, until `closing` is set.

    recover: set the ledger aside and read the machines back from their directories.
    engine: QEMU if not given.

    Raises CannotListen, LedgerCorrupt, LedgerTooNew and what else keeps it from starting.
    """
    told = ready or Ready()
    async with AsyncExitStack() as stack:
        listener = open_listener(home.daemon_socket)
        stack.callback(listener.close)
        info = DaemonInfo(
            version=__version__,
            started=utc_now(),
            home=home,
            socket=home.daemon_socket,
            closing=closing or asyncio.Event(),
        )
        _write_status(info)
        stack.callback((home.daemon / DAEMON_STATUS).unlink, missing_ok=True)
        log.info("insulad %s starts for '%s' (process %d)", __version__, home.root, info.pid)
        control = await _compose(stack, info, recover, engine)
        watcher = asyncio.create_task(_end_with(home, info.closing), name="home")
        stack.push_async_callback(cancel_and_wait, watcher)
        await _serve_requests(control, info, listener, told)
        told.stop()
    log.info("insulad has ended; machines go on")


async def _end_with(home: Home, closing: asyncio.Event) -> None:
    from insula.node.housekeeping.deserted import wait_deserted

    await wait_deserted(home)
    closing.set()


async def _compose(stack: AsyncExitStack, info: DaemonInfo, recover: bool, engine: Engine | None) -> Control:
    """Ledger, node and control, started; each is closed by the stack before what it stands on."""
    # Imported here, so that the socket is bound before the time that this takes.
    from insula.control.control import Control
    from insula.control.recovery import KINDS, recover_ledger
    from insula.node.captures import Captures
    from insula.node.node import Node
    from insula.node.rooms import Rooms
    from insula.node.snapshots import Snapshots
    from insula.node.templates import Templates, template_budget
    from insula.storage.images import ImageStore
    from insula.storage.recipe import recipe_names
    from insula.store.sqlite import open_ledger

    home = info.home
    if recover:
        info.recovered += await recover_ledger(home, info.started)
    store = open_ledger(home.ledger, KINDS)
    stack.push_async_callback(store.close)
    if engine is None:
        from insula.engine.qemu import QemuEngine

        qemu = engine = QemuEngine(home.host_facts)
        stack.push_async_callback(qemu.close)
    images = ImageStore(home.images, recipe_names([home.root / "recipes"]))
    templates = Templates(home.templates, engine, images, template_budget())
    captures = Captures(home, engine, store)
    node = Node(Rooms(home, store, engine, images, templates, captures, Snapshots(home, store)))
    stack.push_async_callback(node.close)
    control = Control(store, node)
    stack.push_async_callback(control.close)
    info.recovered += await node.start()
    info.recovered += await control.start()
    return control


async def _serve_requests(control: Control, info: DaemonInfo, listener: Listener, ready: Ready) -> None:
    from insula.server.front import Front, load_app
    from insula.server.peer import UnixServer

    accepting = asyncio.Event()

    def on_ready() -> None:
        accepting.set()
        ready.succeed()
        log.info("ready; %s", "; ".join(info.recovered) or "nothing to recover")

    front = Front(control, info, load_app(control, info, accepting))
    front.app.add_done_callback(lambda _: _settle_memory())
    try:
        await UnixServer(front, info.closing, on_ready=on_ready).serve(sockets=[listener.socket])
    finally:
        await front.close()


def _settle_memory() -> None:
    """What the start made is kept for good; only what comes from now on is looked through for garbage."""
    gc.collect()
    gc.freeze()
    gc.enable()


class DaemonLock:
    """HOME/daemon/insulad.lock, held by the kernel for as long as this process lives."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._descriptor = -1

    def __enter__(self) -> None:
        path = self._home.daemon / DAEMON_LOCK
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for attempt in range(LOCK_TRIES):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if attempt < LOCK_TRIES - 1:
                    time.sleep(LOCK_PAUSE)
        os.close(self._descriptor)
        raise DaemonRunning(
            f"Another daemon already serves '{self._home.root}'.",
            hint="Nothing need be done: every command finds it. To end it: insula daemon stop",
            evidence=_read_status(self._home),
        )

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def prepare_home(home: Home) -> None:
    """The home and its daemon directory, which nobody else may enter. Raises HomeRefused."""
    try:
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.daemon.mkdir(mode=0o700, exist_ok=True)
        home.daemon.chmod(0o700)
    except OSError as error:
        raise HomeRefused(
            f"The home '{home.root}' cannot be used.",
            hint="Name a directory that you may write: INSULA_HOME=DIR.",
            evidence={"path": error.filename, "reason": error.strerror},
        ) from error


def start_log(path: Path) -> None:
    """Log to a file that is rotated, and to the terminal where there is one.

    error: a user's action failed; warning: an operator should look; info: a transition.
    """
    kept = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
    handlers: list[logging.Handler] = [kept]
    if sys.stderr.isatty() or "JOURNAL_STREAM" in os.environ:
        handlers.append(logging.StreamHandler())
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        handlers=handlers,
    )
    path.chmod(0o600)
    # uvicorn tells of each websocket at 'info', which is not a transition of anything.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def _write_status(info: DaemonInfo) -> None:
    status = {
        "pid": info.pid,
        "version": info.version,
        "started": info.started.isoformat(),
        "socket": str(info.socket),
    }
    write_atomically(info.home.daemon / DAEMON_STATUS, json.dumps(status) + "\n")


def _read_status(home: Home) -> dict[str, object]:
    try:
        status = json.loads((home.daemon / DAEMON_STATUS).read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def _report_failure(error: InsulaError, ready: Ready) -> int:
    """Tell it to the log, to our starter and to whoever reads stderr; the exit status."""
    log.error("%s %s", error.message, error.hint, exc_info=error.__cause__ or error)
    ready.fail(error)
    print(f"insulad: {error.message}\n{error.hint}".strip(), file=sys.stderr)
    return error.exit_status


if __name__ == "__main__":
    sys.exit(main())

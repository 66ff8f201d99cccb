"""A real insulad on the fake engine, as a process of its own: python -m tests.support.fake_daemon HOME."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from insula.daemon import DaemonLock, prepare_home, serve, start_log
from insula.engine.fake import FakeEngine, World
from insula.kit.paths import DAEMON_LOG, Home
from insula.server.ready import Ready


async def _serve(home: Home, world: World) -> None:
    closing = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, closing.set)
    # How a test reaches the guests of a process it does not live in.
    loop.add_signal_handler(signal.SIGUSR1, lambda: [m.crash() for m in list(world.machines.values())])
    loop.add_signal_handler(signal.SIGUSR2, lambda: setattr(world.script, "obeys_power_off", False))
    await serve(home, closing=closing, ready=Ready.from_environment(), engine=FakeEngine(world))


def main() -> None:
    home = Home(Path(sys.argv[1]))
    prepare_home(home)
    start_log(home.daemon / DAEMON_LOG)
    with DaemonLock(home):
        asyncio.run(_serve(home, World()))


if __name__ == "__main__":
    main()

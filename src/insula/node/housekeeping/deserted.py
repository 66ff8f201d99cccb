"""A home that is removed by hand while its daemon runs.

    HOME is emptied ────> whoever keeps a template's memory is ended: no fork can be made of it any more
                     └──> nothing of ours runs? then the daemon ends too
                          machines run? they go on, and so does the daemon, by which they can be spoken to

Nothing else would ever end them: the next daemon of another home does not know of this one's.
"""

from __future__ import annotations

import asyncio
import logging

from insula.engine.inotify import REMOVED, watching
from insula.engine.strays import end_keeper, find_strays
from insula.kit.paths import Home

_log = logging.getLogger(__name__)


async def wait_deserted(home: Home) -> None:
    """Until the home is gone and nothing of it runs, whoever kept memory for it having been ended."""
    rooms = [home.machines, home.templates, home.captures]
    with watching(home.root, REMOVED) as removed:
        while any(path.exists() for path in (home.daemon, *rooms)):
            await removed.wait()
    left = await asyncio.to_thread(find_strays, rooms)
    for stray in left:
        if stray.keeper:
            end_keeper(stray)
    living = [str(stray.pid) for stray in left if not stray.keeper]
    if living:
        _log.warning("The home '%s' was removed; its processes go on: %s", home.root, ", ".join(living))
        await asyncio.Event().wait()
    _log.warning("The home '%s' was removed", home.root)

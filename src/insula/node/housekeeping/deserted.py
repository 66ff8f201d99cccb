"""A home that is removed by hand while its daemon runs.

    HOME is emptied ────> whoever keeps a template's memory is ended: no fork can be made of it any more
                     └──> nothing of ours runs? then the daemon ends too
                          machines run? they go on, and so does the daemon until the last has ended

Nothing else would ever end them: the next daemon of another home does not know of this one's.
"""

from __future__ import annotations

import asyncio
import logging

from insula.engine.inotify import REMOVED, watching
from insula.engine.strays import end_keeper, find_strays
from insula.kit.paths import Home

_log = logging.getLogger(__name__)
_LOOK = 10.0  # seconds between looks whether its last machine has ended: some may not be this daemon's
_MOMENT = 0.1  # seconds that whoever was killed may take to be gone


async def wait_deserted(home: Home) -> None:
    """Until the home is gone and nothing of it runs, whoever kept memory for it having been ended."""
    rooms = [home.machines, home.templates, home.captures]
    with watching(home.root, REMOVED) as removed:
        while any(path.exists() for path in (home.daemon, *rooms)):
            await removed.wait()
    _log.warning("The home '%s' was removed", home.root)
    told: list[str] = []
    while left := await asyncio.to_thread(find_strays, rooms):
        living = [str(stray.pid) for stray in left if not stray.keeper]
        for stray in left:
            if stray.keeper:
                end_keeper(stray)
        if living != told:
            _log.warning("Of it go on the processes: %s", ", ".join(living) or "none")
            told = living
        await asyncio.sleep(_LOOK if living else _MOMENT)

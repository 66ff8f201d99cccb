"""Where a tool works that reads what a stranger made: without privileges, without a network, under limits.

| | as root | as a plain user |
|---|---|---|
| user | one that owns nothing, different each time; no groups, no capabilities | the same |
| no_new_privs | yes | yes |
| network, IPC | namespaces of their own | the same, in a user namespace, where a user may have one |
| limits | address space, processor time, size of files, open files, no core dumps | the same |

It reaches what it works on through descriptors it inherits (/proc/self/fd/N), not by path. The kernel ends it
when the daemon dies: the last `setpriv` says so once more, because a change of user clears what `kit.run`
said.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from insula.kit.run import CommandMissing, find_program, run

_ADDRESS_SPACE = 2 * 2**30  # qemu-img needs some 300 MB with its buffers and tables
_OPEN_FILES = 1024  # the parts of a split disk, and its own
_CPU_PER_GIB = 120  # seconds for a GiB of disk: forty times what decompression takes
_CPU_LEAST = 600
_FIRST_USER, _USERS = 0x7E000000, 2**16  # ids that no distribution gives to anybody
_NOBODY = 65534

_namespaces: dict[bool, tuple[str, ...]] = {}


@dataclass(frozen=True)
class Confinement:
    """user: the id that the tool runs as, None where it is our own."""

    user: int | None

    async def wrap(self, argv: Sequence[str], *, most_file: int, disk: int) -> list[str]:
        """The command behind what confines it. most_file: bytes that a file may grow to. disk: bytes it
        works on."""
        seconds = max(_CPU_LEAST, _CPU_PER_GIB * (disk >> 30))
        limits = [
            "prlimit",
            f"--as={_ADDRESS_SPACE}",
            f"--fsize={most_file}",
            f"--cpu={seconds}",
            f"--nofile={_OPEN_FILES}",
            "--core=0",
            "--",
        ]
        drop = ["setpriv", "--no-new-privs", "--pdeathsig=KILL"]
        if self.user is not None:
            drop += [f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]
            drop += ["--inh-caps=-all", "--bounding-set=-all"]
        return [*await _own_namespaces(), *limits, *drop, "--", find_program(argv[0]), *argv[1:]]

    def lend(self, descriptor: int) -> None:
        """Let the tool open this file of ours anew, through /proc/self/fd."""
        if self.user is not None:
            os.fchown(descriptor, self.user, self.user)

    def take_back(self, descriptor: int) -> None:
        if self.user is not None:
            os.fchown(descriptor, os.geteuid(), os.getegid())

    def may_read(self, descriptor: int) -> bool:
        """Whether the tool's user may open this file of somebody else's anew."""
        return self.user is None or bool(os.fstat(descriptor).st_mode & 0o004)


def choose_confinement(probe: int) -> Confinement:
    """A user for one conversion. probe: a file of ours, on which it is tried whether the id exists here.

    In a container without a full range of ids only 'nobody' may be left, or nothing but ourselves.
    """
    if os.geteuid() != 0:
        return Confinement(None)
    for user in (_FIRST_USER + secrets.randbelow(_USERS), _NOBODY):
        confinement = Confinement(user)
        with suppress(OSError):
            confinement.lend(probe)
            return confinement
    return Confinement(None)


async def _own_namespaces() -> tuple[str, ...]:
    """The words that give a command network and IPC of its own; none where the host does not allow that."""
    as_root = os.geteuid() == 0
    if as_root not in _namespaces:
        words = ["unshare", "--net", "--ipc", *([] if as_root else ["--user", "--map-current-user"]), "--"]
        try:
            possible = (await run([*words, "true"], check=False)).exit_status == 0
        except CommandMissing:
            possible = False
        _namespaces[as_root] = tuple(words) if possible else ()
    return _namespaces[as_root]

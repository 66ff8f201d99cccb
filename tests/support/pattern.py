"""A guest that writes two disks all the time, and can tell whether they hold what it wrote.

    disk one, disk two:   0 ........ 1 MiB   2 MiB ... 2.25 MiB      4 MiB .. 4.25 MiB
                          kept: random       mark: random, written   log: block i is at slot i % SLOTS
                          for good           anew when told

The writer writes block i of the log on disk one, then on disk two, each with a flush, then says in memory
that it did. So at any moment whatever the two disks hold is of one moment if their newest blocks are the same
or one apart, and nothing that was flushed is ever lost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.support.boots import RealShell

SLOTS = 32

# Finds the disk of a serial number: virtio-blk shows it in sysfs, scsi disks in their page 0x80.
_LIBRARY = """
find_disk() { for d in /sys/block/[vs]d*; do
    s=$(cat "$d/serial" 2>/dev/null || tr -d '\\000-\\037' <"$d/device/vpd_pg80" 2>/dev/null)
    case "$s" in *"$1") echo "/dev/${d##*/}"; return 0 ;; esac
done; return 1; }
until one=$(find_disk ONE) && two=$(find_disk TWO); do usleep 50000; done
forget() { sync; echo 3 >/proc/sys/vm/drop_caches; for d in $one $two; do blockdev --flushbufs $d; done; }
newest() { dd if=$1 bs=4096 skip=1024 count=SLOTS 2>/dev/null | tr -d '\\000'; }
put() { dd of=$1 bs=4096 seek=$((1024 + $2 % SLOTS)) conv=fsync,notrunc,sync 2>/dev/null; }
write_log() {
    i=$1
    while [ -e /tmp/go ]; do
        i=$((i + 1))
        echo $i | put $one $i && echo $i | put $two $i && echo $i >/tmp/new && mv /tmp/new /tmp/acked
    done
    rm -f /tmp/goes
}
mark() { for d in $one $two; do dd if=/tmp/mark of=$d bs=64k seek=32 conv=fsync,notrunc 2>/dev/null; done; }
sums() { for d in $one $two; do
    dd if=$d bs=64k count=16 2>/dev/null | md5sum | cut -c1-32
    dd if=$d bs=64k skip=32 count=4 2>/dev/null | md5sum | cut -c1-32
done; }
"""
_STOP = "rm -f /tmp/go; while [ -e /tmp/goes ]; do usleep 10000; done\n"
_GO = "touch /tmp/go /tmp/goes; (write_log %s) </dev/null >/dev/null 2>&1 &\n"


@dataclass(frozen=True)
class Seen:
    """What the guest found on its disks, past every cache. told: the newest block it remembers to have
    written, None after a boot. newest: on each disk. whole: the log of each has no gap."""

    kept: tuple[str, str]
    mark: tuple[str, str]
    told: int | None
    newest: tuple[int, int]
    whole: bool

    @property
    def is_one_moment(self) -> bool:
        one, two = self.newest
        return (
            self.whole
            and self.kept[0] == self.kept[1]
            and self.mark[0] == self.mark[1]
            and one - two in (0, 1)
        )


@dataclass(frozen=True)
class Pattern:
    """The guest of one machine. one, two: serial numbers of its volumes, of 8 MiB at least."""

    insula: RealShell
    machine: str
    one: str
    two: str

    def _run(self, script: str) -> str:
        script = _LIBRARY + script
        for word, value in (("ONE", self.one), ("TWO", self.two), ("SLOTS", SLOTS)):
            script = script.replace(word, str(value))
        argv = ("exec", "--agent-timeout", "90s", self.machine, "--", "sh", "-c", script)
        return self.insula.text(*argv, timeout=150)

    def begin(self) -> None:
        """Fill both disks, and let the writer write."""
        self._run(
            "head -c 1M /dev/urandom >/tmp/kept; head -c 256k /dev/urandom >/tmp/mark\n"
            "for d in $one $two; do dd if=/tmp/kept of=$d bs=64k conv=fsync,notrunc 2>/dev/null; done; mark\n"
            "n=0; while [ $n -lt SLOTS ]; do n=$((n + 1)); for d in $one $two; do echo $n | put $d $n; done\n"
            "done\n" + _GO % SLOTS
        )

    def write_mark(self) -> str:
        """Write other random bytes on both disks while the log goes on; their checksum."""
        script = "head -c 256k /dev/urandom >/tmp/mark; mark; md5sum </tmp/mark | cut -c1-32"
        return self._run(script).strip()

    def told(self) -> int:
        """The newest block that the writer said to be on both disks."""
        return int(self._run("until cat /tmp/acked 2>/dev/null; do usleep 10000; done"))

    def look(self) -> Seen:
        """Have the writer stop, read all past the caches, and let it write on."""
        said = self._run(
            _STOP
            + "forget; echo told $(cat /tmp/acked 2>/dev/null); sums; newest $one; echo two; newest $two\n"
            + "i=$(newest $two | sort -n | tail -1); "
            + _GO % "$i"
        )
        head, *sums = said.split("\n")[:5]
        one, two = (sorted(int(n) for n in part.split()) for part in said.split("\n", 5)[5].split("two"))
        told = re.fullmatch(r"told ?(\d*)", head)
        assert told is not None, said
        return Seen(
            kept=(sums[0], sums[2]),
            mark=(sums[1], sums[3]),
            told=int(told[1]) if told[1] else None,
            newest=(one[-1], two[-1]),
            whole=all(log == list(range(log[-1] - SLOTS + 1, log[-1] + 1)) for log in (one, two)),
        )

"""./scripts/bench [NAME...] [--runs N] [--json]"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from bench.bed import IMAGE, Bed
from bench.cases import CASES
from bench.figure import Figure, Skipped, render

REPOSITORY = Path(__file__).parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Insula's speed and size, as ratios.")
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"only these: {' '.join(CASES)}")
    parser.add_argument(
        "--runs", type=int, default=5, metavar="N", help="samples of each figure (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print every sample as JSON")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in CASES]
    if unknown or options.runs < 1:
        parser.error(f"there is no '{unknown[0]}': {' '.join(CASES)}" if unknown else "--runs begins at 1")
    signal.signal(signal.SIGTERM, _leave)
    images = Path(os.environ.get("INSULA_IMAGES") or REPOSITORY / ".cache" / "images")
    images.mkdir(parents=True, exist_ok=True)
    figures: list[Figure] = []
    bed = Bed(images)
    try:
        _tell(f"host: {_describe_host(bed)}")
        bed.build(IMAGE)
        bed.record_plan()
        for name, measure in CASES.items():
            if not options.names or name in options.names:
                _tell(f"measuring {name}: {(measure.__doc__ or '').strip()}")
                try:
                    figures += measure(bed, options.runs)
                except Skipped as reason:
                    _tell(f"skipped {name}: {reason}")
    finally:
        bed.close()
    if options.json:
        print(json.dumps([figure.as_json() for figure in figures], indent=1))
    else:
        print(render(figures))
    return 0


def _leave(*_: object) -> NoReturn:
    """The bed is cleared away, and whoever says it twice (timeout(1) does) does not stop that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def _describe_host(bed: Bed) -> str:
    host = bed.client.host()
    return f"{host['cpus']} CPUs, QEMU {host['engine_version']}, {host['accelerator']['name']}"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

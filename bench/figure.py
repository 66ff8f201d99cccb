"""A figure: what was measured of us and of our peer, what was promised, and whether it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal


class Skipped(Exception):
    """A case cannot be measured here; says why."""


BoundKind = Literal["times", "more", "most", "least"]


@dataclass(frozen=True)
class Bound:
    """A promise: at most limit times the peer, limit more than the peer, or limit; least: limit times it.

    Judged by the median over pairs of samples taken one right after the other: the host's speed drifts more
    within a run than what is measured, and a pair drifts together.
    """

    kind: BoundKind
    limit: float


@dataclass(frozen=True)
class Figure:
    """ours, peer: samples in the unit (peer: empty where there is none). what: in words, with the peer."""

    name: str
    what: str
    unit: Literal["s", "MB", "MB/s"]
    ours: tuple[float, ...]
    peer: tuple[float, ...] = ()
    bounds: tuple[Bound, ...] = field(default=())

    @property
    def ratio(self) -> float | None:
        return median(a / b for a, b in zip(self.ours, self.peer, strict=True)) if self.peer else None

    def value(self, bound: Bound) -> float:
        """What the bound limits."""
        if bound.kind == "most":
            return median(self.ours)
        pairs = list(zip(self.ours, self.peer, strict=True))
        if bound.kind in ("times", "least"):
            return median(ours / peer for ours, peer in pairs)
        return median(ours - peer for ours, peer in pairs)

    def is_reached(self, bound: Bound) -> bool:
        value = self.value(bound)
        return value >= bound.limit if bound.kind == "least" else value <= bound.limit

    def as_json(self) -> dict[str, Any]:
        bounds = [
            asdict(bound) | {"value": round(self.value(bound), 4), "reached": self.is_reached(bound)}
            for bound in self.bounds
        ]
        return {
            **{"name": self.name, "what": self.what, "unit": self.unit},
            **{
                "ours": [round(sample, 4) for sample in self.ours],
                "ours_median": round(median(self.ours), 4),
            },
            **{"peer": [round(sample, 4) for sample in self.peer]},
            "peer_median": round(median(self.peer), 4) if self.peer else None,
            "ratio": round(self.ratio, 3) if self.ratio is not None else None,
            "bounds": bounds,
        }


def in_turn(
    runs: int, ours: Callable[[], float], peer: Callable[[], float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Samples of both in pairs, A B B A A B ..., after one of each that does not count (caches).

    The order turns with each pair, so that what the first leaves behind burdens both alike.
    """
    ours()
    peer()
    pairs: list[tuple[float, float]] = []
    for number in range(runs):
        if number % 2 == 0:
            a, b = ours(), peer()
        else:
            b, a = peer(), ours()
        pairs.append((a, b))
    return tuple(a for a, _ in pairs), tuple(b for _, b in pairs)


def render(figures: Sequence[Figure]) -> str:
    """A table for people."""
    rows = [["", "ours med", "[min]", "peer med", "[min]", "ratio", "promised", "reached"]]
    for figure in figures:
        bounds = [_render_bound(figure, bound) for bound in figure.bounds] or [("", "")]
        for index, bound in enumerate(bounds):
            rows.append([*(_render_samples(figure) if index == 0 else [""] * 6), *bound])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if 1 <= column <= 5 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, "", *(f"{figure.name}: {figure.what}" for figure in figures)])


def _render_samples(figure: Figure) -> tuple[str, ...]:
    ours = (_number(median(figure.ours), figure.unit), f"[{_number(min(figure.ours), figure.unit)}]")
    if not figure.peer:
        return (figure.name, *ours, "", "", "")
    peer = (_number(median(figure.peer), figure.unit), f"[{_number(min(figure.peer), figure.unit)}]")
    return (figure.name, *ours, *peer, f"{figure.ratio:.2f}")


def _render_bound(figure: Figure, bound: Bound) -> tuple[str, str]:
    value = figure.value(bound)
    reached = "yes" if figure.is_reached(bound) else "NO"
    if bound.kind in ("times", "least"):
        sign = "<=" if bound.kind == "times" else ">="
        return f"{sign} {bound.limit:.3g} x", f"{reached} ({value:.3g} x)"
    plus = bound.kind == "more"
    limit, shown = _number(bound.limit, figure.unit, plus), _number(value, figure.unit, plus)
    return f"<= {limit}", f"{reached} ({shown})"


def _number(value: float, unit: str, plus: bool = False) -> str:
    sign = "+" if plus else "-"
    if unit != "s":
        return f"{value:{sign}.1f} {unit}"
    return f"{value * 1000:{sign}.0f} ms" if abs(value) < 1 else f"{value:{sign}.2f} s"

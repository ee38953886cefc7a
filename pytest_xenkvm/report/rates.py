"""How often things happened over a time whose end isn't known beforehand, in bounded memory; its picture."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final

from attrs import define, field

BINS: Final = 256
"""Intervals that are counted apart, at most; there are at least half as many when time has gone on."""

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_PLAIN_BLOCKS: Final = " .:-=+*#@"


@define
class Rates:
    """Counts by interval, of which there are never more than `BINS`: they get longer as time goes on."""

    width: int = 1_000
    """Nanoseconds of an interval."""
    counts: dict[Hashable, list[int]] = field(factory=dict)
    """What happened how often in which interval."""
    last: int = 0
    """The latest time that was counted (ns)."""

    def count(self, what: Hashable, ns: int) -> None:
        """`what` happened at `ns`."""
        while ns >= self.width * BINS:
            self.width *= 2
            for name, counted in self.counts.items():
                halved = [sum(counted[at : at + 2]) for at in range(0, BINS, 2)]
                self.counts[name] = halved + [0] * (BINS // 2)
        self.last = max(self.last, ns)
        bins = self.counts.get(what)
        if bins is None:
            bins = self.counts[what] = [0] * BINS
        bins[ns // self.width] += 1

    def bins(self, what: Hashable) -> list[int]:
        """The counts of all intervals up to the last in which anything happened."""
        return self.counts.get(what, [0] * BINS)[: self.last // self.width + 1]


def sparkline(counts: Sequence[int], columns: int, *, plain: bool = False) -> str:
    """A picture of counts in one line of at most so many columns; `plain`: of ASCII characters.

    Whatever happened at all is seen.
    """
    if not counts or columns < 1:
        return ""
    step = -(-len(counts) // columns)
    shown = [sum(counts[at : at + step]) for at in range(0, len(counts), step)]
    blocks, highest = _PLAIN_BLOCKS if plain else _BLOCKS, max(shown)
    top = len(blocks) - 1
    return "".join(blocks[-(-count * top // highest)] if highest else blocks[0] for count in shown)

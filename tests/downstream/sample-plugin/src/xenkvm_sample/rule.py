"""A rule of the house."""

from __future__ import annotations

from typing import Final

from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.model import Checker, Judged, Level, Rule
from pytest_xenkvm.trace.events import Hypercall

ENOSYS: Final = 2**64 - 38


class _Implements(Checker):
    """Exercised by each forwarded hypercall whose answer is known."""

    def observe(self, observation: Observation) -> None:
        """Look at one hypercall."""
        if observation.answer == ENOSYS:
            self.violate(observation, f"hypercall {getattr(observation.event, 'nr', None)} got -ENOSYS")
        elif observation.answer is not None:
            self.hold()


RULES: Final = (
    Rule(
        id="sample.implements",
        title="The VMM implements every hypercall that its guest makes.",
        level=Level.SHOULD,
        judges=Judged.VMM,
        citation="house rules, section 1",
        explanation="Our guests do without no hypercall.",
        advice="Implement it.",
        checker=_Implements,
        sees=(Hypercall,),
        exercised_by="a forwarded hypercall",
    ),
)

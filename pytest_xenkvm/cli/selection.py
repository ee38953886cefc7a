"""Which events of a trace a command looks at, as its options say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from itertools import islice
from typing import Any, Final

import click
from attrs import frozen

from pytest_xenkvm.abi import names
from pytest_xenkvm.abi.numbers import U32_MAX
from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.trace.decode import event_words, has_failed
from pytest_xenkvm.trace.events import EVENTS, Event, Hypercall

Wanted = tuple[int, int | None]
"""A hypercall's number and that of its sub-operation; None stands for any."""

HYPERCALL_NAMES: Final[dict[str, Wanted]] = {
    **{nr.name.lower(): (nr.value, None) for nr in Nr},
    **{
        name.lower(): (nr, op)
        for nr, sub_ops in names.SUB_OPS.items()
        for name, op in sub_ops.numbers().items()
    },
}
"""What `--hypercall` understands besides numbers, in lower case."""


@frozen(kw_only=True)
class Selection:
    """An event is selected if all that is set here holds for it."""

    first: int = 0
    last: int | None = None
    vcpu: int | None = None
    kinds: frozenset[str] = frozenset()
    hypercalls: frozenset[Wanted] = frozenset()
    handled: str | None = None
    failed: bool = False
    inferred: bool = False
    grep: str = ""

    def of(self, events: Iterable[Event]) -> Iterator[tuple[int, Event]]:
        """The selected events with their index (from 0); reads no further than the last that can match."""
        stop = None if self.last is None else self.last + 1
        for index, event in enumerate(islice(events, stop)):
            if index >= self.first and self.admits(event):
                yield index, event

    def admits(self, event: Event) -> bool:
        """Whether `event` is selected, apart from its position."""
        return (
            (self.vcpu is None or getattr(event, "vcpu", None) == self.vcpu)
            and (not self.kinds or event.kind in self.kinds)
            and (not self.hypercalls or self._is_wanted(event))
            and (self.handled is None or getattr(event, "handled", None) == self.handled)
            and (not self.failed or has_failed(event))
            and (not self.inferred or event.inferred)
            and (not self.grep or self.grep.casefold() in event_words(event).casefold())
        )

    def _is_wanted(self, event: Event) -> bool:
        if not isinstance(event, Hypercall):
            return False
        op = event.args[0] if event.args else None
        sub_ops = names.SUB_OPS.get(event.nr)
        if sub_ops and sub_ops.truncated and isinstance(op, int):
            op &= U32_MAX
        return not self.hypercalls.isdisjoint({(event.nr, None), (event.nr, op)})


Callback = Callable[[click.Context, click.Parameter, "str | None"], "frozenset[Any]"]


def _wanted_hypercall(part: str) -> Wanted:
    """`vcpu_op`, `VCPUOP_up`, `24` or `0x18`."""
    return HYPERCALL_NAMES[part.lower()] if part.lower() in HYPERCALL_NAMES else (int(part, 0), None)


def _separated(what: str, one: Callable[[str], Any], known: Iterable[str]) -> Callback:
    """A click callback for values separated by commas; an unknown one is a usage error with a suggestion."""
    spellings = {name.lower(): name for name in known}

    def parse(part: str) -> Any:
        try:
            return one(part)
        except (KeyError, ValueError):
            near = get_close_matches(part.lower(), spellings, n=1)
            hint = (
                f"did you mean {spellings[near[0]]}" if near else f"one is {next(iter(spellings.values()))}"
            )
            message = f"there is no {what} {part!r}; {hint}"
            raise click.BadParameter(message) from None

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> frozenset[Any]:
        del ctx, param
        return (
            frozenset(parse(part.strip()) for part in value.split(",")) if value is not None else frozenset()
        )

    return callback


parse_hypercalls: Final = _separated(
    "hypercall",
    _wanted_hypercall,
    [*(nr.name for nr in Nr), *(name for sub_ops in names.SUB_OPS.values() for name in sub_ops.numbers())],
)
parse_kinds: Final = _separated("kind of event", lambda part: EVENTS[part].kind, EVENTS)

"""The VMM's answers, which the host's trace doesn't hold, from QEMU's log of the same run."""

from __future__ import annotations

from collections import defaultdict, deque

from attrs import evolve

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Event, Hypercall
from pytest_xenkvm.trace.importers.model import Imported

_ARGS_IN_LOG = 3


def with_answers(trace: Imported, log: Imported, *, path: str) -> Imported:
    """Return `trace` with the `rax` of its forwarded hypercalls taken from `log`, QEMU's log at `path`.

    Both must be of one run: each vCPU's forwarded hypercalls agree in number and first three arguments,
    in order. Raises `Malformed` where they don't. Calls after the end of the log keep no answer.
    """
    answers: defaultdict[int, deque[Hypercall]] = defaultdict(deque)
    for event in log.events:
        if isinstance(event, Hypercall):
            answers[event.vcpu].append(event)
    events = [_answered(event, answers, path) for event in trace.events]
    left = sum(len(queue) for queue in answers.values())
    if left:
        what = f"{left} more hypercalls than the recording forwarded; expected QEMU's log of the same run"
        raise Malformed(what, path)
    return evolve(trace, events=events)


def _answered(event: Event, answers: defaultdict[int, deque[Hypercall]], path: str) -> Event:
    if not isinstance(event, Hypercall) or event.handled != "userspace" or not answers[event.vcpu]:
        return event
    answer = answers[event.vcpu].popleft()
    if _key(answer) != _key(event):
        what = (
            f"vCPU {event.vcpu} makes hypercall {answer.nr} where the recording forwarded {event.nr} "
            "or other arguments; expected QEMU's log of the same run"
        )
        raise Malformed(what, path)
    return evolve(event, rax=answer.rax)


def _key(event: Hypercall) -> tuple[object, ...]:
    return (event.nr, *event.args[:_ARGS_IN_LOG])

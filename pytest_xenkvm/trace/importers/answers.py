"""The VMM's answers, which the host's trace doesn't hold, from QEMU's log of the same run."""

from __future__ import annotations

from collections import Counter, defaultdict, deque

from attrs import evolve

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Event, Hypercall
from pytest_xenkvm.trace.importers.model import NAMELESS, Imported

_ARGS_IN_LOG = 3


def with_answers(trace: Imported, log: Imported, *, path: str) -> Imported:
    """Return `trace` with the `rax` of its forwarded hypercalls taken from `log`, QEMU's log at `path`.

    Forwarded hypercalls that the trace's recorder could not name become events that are the log's.
    Both must be of one run: each vCPU's forwarded hypercalls agree in number and first three arguments,
    in order. Raises `Malformed` where they don't. Calls after the end of the log keep no answer.
    """
    answers: defaultdict[int, deque[Hypercall]] = defaultdict(deque)
    for event in log.events:
        if isinstance(event, Hypercall):
            answers[event.vcpu].append(event)
    events = [_answered(event, answers, path) for event in trace.events]
    if trace.forwarded:
        events += _named(trace, answers)
        trace.report.unknown.update(log.report.unknown)
    left = sum(len(queue) for queue in answers.values())
    if left:
        what = f"{left} more hypercalls than the recording forwarded; expected QEMU's log of the same run"
        raise Malformed(what, path)
    return evolve(trace, events=events)


def _named(trace: Imported, answers: defaultdict[int, deque[Hypercall]]) -> list[Event]:
    """Return the forwarded hypercalls as the log names them, at the times of the trace."""
    calls: list[Event] = [
        evolve(answers[forwarded.vcpu].popleft(), ts=forwarded.ts)
        for forwarded in trace.forwarded
        if answers[forwarded.vcpu]
    ]
    nameless = len(trace.forwarded) - len(calls)
    trace.report.unknown[NAMELESS] = nameless
    trace.report.unknown += Counter()  # which drops a count of 0
    trace.report.count(calls)
    return calls


def _answered(event: Event, answers: defaultdict[int, deque[Hypercall]], path: str) -> Event:
    if not isinstance(event, Hypercall) or event.handled != "userspace" or not answers[event.vcpu]:
        return event
    answer = answers[event.vcpu].popleft()
    if _key(answer) != _key(event):
        forwarded = "it with other arguments" if answer.nr == event.nr else f"hypercall {event.nr}"
        what = (
            f"vCPU {event.vcpu} makes hypercall {answer.nr} where the recording forwarded {forwarded}; "
            "expected QEMU's log of the same run"
        )
        raise Malformed(what, path)
    return evolve(event, rax=answer.rax)


def _key(event: Hypercall) -> tuple[object, ...]:
    return (event.nr, *event.args[:_ARGS_IN_LOG])

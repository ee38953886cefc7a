"""Scenarios: recordings of real kernels that a host of the same kernel must reproduce outcome for outcome."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from attrs import frozen

from pytest_xenkvm.replay.kernel import kernel_replay
from pytest_xenkvm.replay.observation import Divergence
from pytest_xenkvm.trace.decode import event_words
from pytest_xenkvm.trace.events import Hypercall, timed
from pytest_xenkvm.trace.files import golden_folder, open_trace

from .demands import Unmet
from .hosts import Builder

_SUFFIX: Final = ".jsonl.gz"
_KINDS: Final = ("directed", "lab")
_SHOWN: Final = 5
"""Divergences that a failing scenario tells; the rest is counted."""


def scenario_names() -> list[str]:
    """For example "directed/singleshot-id"; not every kernel has each of them."""
    return sorted(
        {
            f"{kind}/{path.name.removesuffix(_SUFFIX)}"
            for kernel in _folders()
            for kind in _KINDS
            for path in (kernel / kind).glob(f"*{_SUFFIX}")
        }
    )


def _folders() -> Iterator[Path]:
    folder = golden_folder()
    return folder.iterdir() if folder.is_dir() else iter(())


@frozen(kw_only=True)
class Replayed:
    """What came of a scenario."""

    events: int
    hypercalls: int
    divergences: tuple[Divergence, ...]


def replay_scenario(builder: Builder, name: str) -> None:
    """Do a scenario again on the host, and fail for outcomes that differ.

    It is the one of the kernel that the host is expected to answer like, built with the same KVM_MAX_VCPUS;
    skips where there is none.
    """
    __tracebackhide__ = True
    limit, profile = builder.xen_host.host.limits.max_vcpus, builder.profile.name
    candidates = (
        golden_folder() / folder / f"{name}{_SUFFIX}" for folder in (profile, f"{profile}-max{limit}")
    )
    traces = [open_trace(path) for path in candidates if path.is_file()]
    trace = next((trace for trace in traces if trace.header.max_vcpus == limit), None)
    if trace is None:
        pytest.skip(f"not recorded on {profile} with KVM_MAX_VCPUS = {limit}")
    if trace.header.cpu_vendor != builder.cpu_vendor:
        pytest.skip(f"recorded on a CPU of another vendor ({trace.header.cpu_vendor})")
    events = list(trace.events())
    observations = kernel_replay(builder.xen_host.host, trace.header, timed(events))
    found = tuple(divergence for observation in observations for divergence in observation.divergences)
    hypercalls = sum(isinstance(event, Hypercall) for event in events)
    builder.replayed.append(Replayed(events=len(events), hypercalls=hypercalls, divergences=found))
    if found:
        builder.probe.unmet += [_unmet(divergence) for divergence in found]
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        lines = [_words(divergence) for divergence in found[:_SHOWN]]
        head = f"{name}: this host answers differently from the kernel {trace.header.kernel}:"
        pytest.fail("\n".join([head, *lines, *more]), pytrace=False)


def _words(divergence: Divergence) -> str:
    return (
        f"  line {divergence.place.line}: {event_words(divergence.recorded)}\n"
        f"    {divergence.kind}: expected {divergence.expected}, observed {divergence.observed}"
    )


def _unmet(divergence: Divergence) -> Unmet:
    return Unmet(
        demanded=f"{divergence.kind} {divergence.expected}: {event_words(divergence.recorded)}",
        observed=f"{divergence.kind} {divergence.observed}: {event_words(divergence.happened)}",
        vcpu=getattr(divergence.recorded, "vcpu", None),
        event=divergence.place.index,
    )

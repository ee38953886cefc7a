"""The emulated core answers like the real kernels that the golden traces were recorded on."""

from __future__ import annotations

from collections import Counter

import pytest
from attrs import evolve
from golden_traces import NAMES, divergences, in_words, load, replay

SHOWN = 5


@pytest.mark.parametrize("name", NAMES)
def test_the_core_answers_like_the_recorded_kernel(name: str) -> None:
    """Replayed on its kernel's profile, a golden shows every outcome that was recorded."""
    header, events = load(name)
    found = divergences(replay(header, events))
    if found:
        first = "\n".join(map(in_words, found[:SHOWN]))
        pytest.fail(f"{name} diverges {len(found)} times; first:\n{first}", pytrace=False)


def test_every_golden_is_there() -> None:
    """No golden has got lost: 36 directed traces a kernel, the random ones, and those of the lab."""
    assert Counter(name.rpartition("/")[0] for name in NAMES) == {
        "linux-6.12/directed": 36,
        "linux-6.12/random": 40,
        "linux-7.2/directed": 36,
        "linux-7.2/random": 40,
        "linux-7.3/directed": 36,
        "linux-7.3/random": 40,
        "linux-6.12/lab": 16,
        "linux-7.2/lab": 9,
        "linux-7.3/lab": 16,
        "linux-7.3-max1024/directed": 36,
        "linux-7.3-max1024/random": 30,
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("linux-7.3/directed/")])
def test_times_may_be_absent(name: str) -> None:
    """Without the optional times the core answers alike: some time passes at each event."""
    header, events = load(name)
    found = divergences(replay(header, [evolve(event, ts=None) for event in events]))
    assert [in_words(item) for item in found] == []


@pytest.mark.parametrize("name", ["linux-7.3/directed/sched-op", "linux-6.12/random/seed-7"])
def test_a_replay_is_deterministic(name: str) -> None:
    """The same golden replayed twice gives equal observations, also where they diverge."""
    header, events = load(name)
    assert replay(header, events) == replay(header, events)
    spoiled = [event for number, event in enumerate(events) if number % 7]
    assert divergences(replay(header, spoiled)) == divergences(replay(header, spoiled)) != []

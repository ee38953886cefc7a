"""Waiting for a CPU that another process has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_xenkvm.hosts.devkvm import competition
from pytest_xenkvm.hosts.protocol import HostError

MS = 1_000_000


@pytest.mark.skipif(not Path("/proc/thread-self/schedstat").exists(), reason="a kernel without schedstat")
def test_a_thread_waits_for_the_cpu() -> None:
    """The thread waits as long as asked, and is told how long; its affinity is its own again."""
    allowed, before = os.sched_getaffinity(0), competition.run_delay()
    waited = competition.wait_for_cpu(5 * MS)
    assert 5 * MS <= waited <= competition.run_delay() - before
    assert os.sched_getaffinity(0) == allowed


def test_what_the_kernel_doesnt_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the scheduler's figures, or with other ones, it is a HostError that names the file."""
    for content in (None, "", "1 two 3"):
        path = tmp_path / "schedstat"
        if content is not None:
            path.write_text(content)
        monkeypatch.setattr(competition, "_SCHEDSTAT", path)
        with pytest.raises(HostError, match="schedstat doesn't tell how long a thread waited"):
            competition.wait_for_cpu(1)


def test_nobody_takes_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the other process can't be started, or takes no time, it is a HostError."""
    monkeypatch.setattr(competition, "run_delay", lambda: 0)
    monkeypatch.setattr(competition, "_PATIENCE_S", 0.0)
    with pytest.raises(HostError, match="took no 7 ns from the VMM"):
        competition.wait_for_cpu(7)
    monkeypatch.setattr(competition, "_BUSY", ("/no/such/program",))
    with pytest.raises(HostError, match="/no/such/program can't be started"):
        competition.wait_for_cpu(7)

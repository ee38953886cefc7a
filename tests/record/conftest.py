"""A recording of what a fake kernel tells."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_tracefs import FACTS, GUEST_PID, FakeKernel, Recording, pretend

from pytest_xenkvm.record.session import Recorder, Setup, recording


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    """A kernel whose probes can be trusted."""
    return pretend(tmp_path / "tracing", monkeypatch)


@pytest.fixture
def recorded(kernel: FakeKernel, tmp_path: Path) -> Recording:
    """Record, to trace.xkt, trace-2.xkt, ..., what the second member says that the kernel tells."""

    def output(number: int) -> Path:
        return tmp_path / ("trace.xkt" if number == 1 else f"trace-{number}.xkt")

    @contextmanager
    def record(
        *, limit: int | None = None, members: Iterable[int] = (GUEST_PID,), everybody: bool = False
    ) -> Iterator[tuple[Recorder, Callable[[Iterable[str]], None]]]:
        setup = Setup(tracefs=kernel.tracefs, buffer_kb=1024, name="xenkvm_1_2", follow=True)
        with recording(setup, FACTS, outputs=output, force=False, limit=limit) as recorder:
            recorder.family.everybody = everybody
            recorder.family.threads |= set(members)
            pipe = os.open(recorder.instance.folder / "trace_pipe", os.O_WRONLY)

            def tell(lines: Iterable[str]) -> None:
                for line in lines:
                    os.write(pipe, f"{line}\n".encode())
                    recorder.pump()

            try:
                yield recorder, tell
            finally:
                os.close(pipe)

    return record

"""What `xenkvm record` says of few VMs, and of many."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from attrs import frozen

from pytest_xenkvm.cli.recorded import recorded_lines
from pytest_xenkvm.record.vm import VmRecording

LOST = "5 events were lost"


@frozen
class Recorded:
    """What a recording shows of a VM."""

    path: Path
    why_not_full: str = ""
    written: int = 1000
    hypercalls: int = 1

    @property
    def full(self) -> bool:
        """Whether nothing is missing."""
        return not self.why_not_full


def said(vms: list[Recorded], *, quiet: bool = False) -> list[str]:
    """The lines."""
    return list(recorded_lines(cast("list[VmRecording]", vms), quiet=quiet))


def recorded(count: int) -> list[Recorded]:
    """That many VMs, every fourth of which lost something."""
    return [Recorded(Path(f"{number}.xkt"), LOST * (number % 4 == 0)) for number in range(1, count + 1)]


def test_few_vms_have_a_line_each() -> None:
    """Up to ten VMs are told of one by one."""
    lines = said(recorded(10))
    assert len(lines) == 10
    assert lines[0] == "1.xkt: 1,000 events, 1 hypercall, scope full"
    assert lines[3] == f"4.xkt: 1,000 events, 1 hypercall, scope hypercalls ({LOST})"


def test_many_vms_are_told_of_together() -> None:
    """More have a line for each scope and reason, with sums."""
    assert said(recorded(11)) == [
        "1.xkt ... 11.xkt: 9 VMs, 9,000 events, 9 hypercalls, scope full",
        f"4.xkt ... 8.xkt: 2 VMs, 2,000 events, 2 hypercalls, scope hypercalls ({LOST})",
    ]


def test_quiet_tells_of_what_is_missing_alone() -> None:
    """With --quiet, complete recordings are not told of."""
    assert [line.partition(":")[0] for line in said(recorded(5), quiet=True)] == ["4.xkt"]
    assert [line.partition(":")[0] for line in said(recorded(11), quiet=True)] == ["4.xkt ... 8.xkt"]

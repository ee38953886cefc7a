"""Replaying bundled traces and goldens with bundled behaviours."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pytest_xenkvm.core.profile import PROFILES
from pytest_xenkvm.rules.bundled import BUNDLED as RULES
from pytest_xenkvm.rules.model import Verdict
from pytest_xenkvm.rules.run import ReplayOptions, run_trace
from pytest_xenkvm.trace import open_trace
from pytest_xenkvm.vmm import VmmBehaviour

DUTIES: Final = "@vmm-duties"
BOOTS: Final = (
    "@linux-boot",
    "@linux-boot-1vcpu",
    "@linux-boot-1vcpu-again",
    "@linux-boot-7.2",
    "@linux-boot-7.3",
)
KERNELS: Final = tuple(PROFILES)
GOLDENS: Final = Path(__file__).parents[2] / "traces" / "golden"


def violations(
    trace: str | Path, behaviour: VmmBehaviour, profile: str = "auto", until: int | None = None
) -> dict[str, str]:
    """The rules of any kind that are violated, each with its first finding."""
    return {
        verdict.rule.id: verdict.findings[0].message
        for verdict in judged(trace, behaviour, profile, until)
        if verdict.violations
    }


def judged(
    trace: str | Path, behaviour: VmmBehaviour, profile: str = "auto", until: int | None = None
) -> tuple[Verdict, ...]:
    """How all rules judge a replay."""
    options = ReplayOptions(profile=profile, behaviour=behaviour, until=until)
    return run_trace(open_trace(trace), RULES, options).verdicts


def goldens(folder: str) -> list[Path]:
    """The golden traces in a folder."""
    found = sorted((GOLDENS / folder).rglob("*.jsonl.gz"))
    assert found, f"there is no golden in {folder}"
    return found

"""The items of a trace: its replay and the judgement of each rule, or one for all of them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NoReturn, cast

import pytest
from attrs import frozen

from pytest_xenkvm.plugin.overridden import in_place_of_option
from pytest_xenkvm.plugin.replays import Replays, Told, check_behaviour
from pytest_xenkvm.plugin.session import (
    given_options,
    is_bundled,
    replay_options,
    settings,
    spelling,
)
from pytest_xenkvm.plugin.ways import way_to_rootdir
from pytest_xenkvm.report.text import divergences_lines, finding_lines, verdict_lines
from pytest_xenkvm.rules.model import Level, Rule, State, Verdict
from pytest_xenkvm.rules.run import ReplayResult
from pytest_xenkvm.vmm.behaviour import VmmBehaviour


def takes(xenkvm_vmm: VmmBehaviour | None) -> None:
    """Nothing but the fixtures that an item takes."""


ALL: Final = "all"
"""The name of the item that stands for all others."""
REPLAY: Final = "replay"
"""The name of the item that compares."""


@frozen
class Expansion:
    """What an item needs to be set up as a function that pytest expanded."""

    suffix: str
    """Parameters in brackets, or nothing."""
    callspec: Any
    fixtureinfo: Any


class TraceItem(pytest.Function):
    """Judges the replay of a trace; takes fixtures as a test function does."""

    replays: Replays
    result: ReplayResult | None = None
    """What the replay came to, once it did."""
    compares = False
    """Whether divergences are its business."""
    rules: tuple[Rule, ...] = ()
    """Those that it judges."""

    @classmethod
    def like(
        cls, expansion: Expansion, parent: pytest.Module, name: str, replays: Replays, **more: Any
    ) -> Any:
        """An item of that name in place of a function that pytest expanded."""
        callspec = expansion.callspec
        item = cls.from_parent(
            parent,
            name=name + expansion.suffix,
            callobj=takes,
            callspec=callspec,
            fixtureinfo=expansion.fixtureinfo,
            keywords=None if callspec is None else {callspec.id: True},
            originalname=name,
        )
        item.replays = replays
        item.describe(**more)
        return item

    def describe(self) -> None:
        """Add markers and properties."""
        self.trace_id = f"{self.replays.nodeid}{self.parameters}"
        self.user_properties += [("xenkvm_trace", self.trace_id), ("xenkvm_engine", self.replays.played_by)]
        place = in_place_of_option(self)
        if place is not None:
            self.user_properties.append(("xenkvm_vmm_fixture", place))

    @property
    def parameters(self) -> str:
        """The parameters in the name, in brackets, or nothing."""
        return self.name.removeprefix(self.originalname)

    @property
    def xenkvm_cached(self) -> bool:
        """Whether the result that it judged came from the cache."""
        return self.replays.is_cached(self.parameters)

    def runtest(self) -> None:
        """Replay the trace unless that is done, and judge."""
        __tracebackhide__ = True
        behaviour = cast("VmmBehaviour | None", self.funcargs["xenkvm_vmm"])
        check_behaviour(behaviour)
        outcome = self.replays.outcome(self.parameters, behaviour)
        if isinstance(outcome, Told):
            self.skip(f"not judged: {outcome.sentence}")
        if isinstance(outcome, str):
            _fail(outcome)
        self.result = outcome
        self.user_properties.extend(_counts(outcome))
        self.judge(outcome)

    def judge(self, result: ReplayResult) -> None:
        """Fail, skip or return."""
        raise NotImplementedError

    def judged(self, result: ReplayResult) -> list[Verdict]:
        """How its rules came out."""
        ids = {rule.id for rule in self.rules}
        return [verdict for verdict in result.verdicts if verdict.rule.id in ids]

    def skip(self, reason: str) -> NoReturn:
        """Skip, for a reason that is told of the trace, not of a line in this file."""
        __tracebackhide__ = True
        raise pytest.skip.Exception(reason, _use_item_location=True)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """The trace instead of a source file."""
        return self.config.rootpath / self.replays.nodeid, 0, f"{self.name} of {self.replays.nodeid}"

    def again(self) -> str:
        """The command that runs this item alone."""
        trace = self.replays.nodeid
        options = given_options(self.config)
        if not self.replays.is_elsewhere:
            trace = os.path.normpath(os.path.join(way_to_rootdir(self.config), trace))  # noqa: PTH118
        elif not is_bundled(self.replays.trace.path):
            options.append(f"--xenkvm-trace={self.replays.trace.path}")
        return f"pytest {shlex.join([*options, f'{trace}::{self.name}'])}"


class ReplayItem(TraceItem):
    """Holds if the host does all that was recorded."""

    compares = True

    def describe(self) -> None:
        """Mark it as an item of a trace."""
        super().describe()
        self.add_marker(_unnamed_marker())

    def judge(self, result: ReplayResult) -> None:
        """Fail with the divergences."""
        __tracebackhide__ = True
        if result.divergence_count:
            _fail(*self._divergences(result), f"run this again: {self.again()}")

    def _divergences(self, result: ReplayResult) -> list[str]:
        until = result.divergences[0].place.index + 1
        trace = spelling(self.replays.trace.path, self.config.invocation_params.dir)
        command = ["xenkvm", "replay", trace, *replay_options(self.config), "--until", str(until)]
        return [*divergences_lines(result), "", f"see how it came to the first: {shlex.join(command)}"]


class WholeItem(ReplayItem):
    """Holds if the host does all that was recorded and no rule is violated."""

    def describe(self) -> None:
        """Judge by all rules."""
        super().describe()
        self.rules = self.replays.rules

    def judge(self, result: ReplayResult) -> None:
        """Fail with divergences and violations; xfail if all that is violated is a SHOULD."""
        __tracebackhide__ = True
        self.user_properties += [(f"xenkvm_verdict:{v.rule.id}", v.state.value) for v in result.verdicts]
        violated = [verdict for verdict in result.verdicts if verdict.state is State.VIOLATED]
        failing = [verdict for verdict in violated if not _is_expected(verdict, self.config)]
        if result.divergence_count or failing:
            heads = [_summary(verdict) for verdict in failing]
            if result.divergence_count:
                many = "" if result.divergence_count == 1 else "s"
                heads.insert(0, f"{result.divergence_count:,} divergence{many}")
            compared = ["", *self._divergences(result)] if result.divergence_count else []
            judged = [line for verdict in failing for line in ("", *verdict_lines(verdict))]
            _fail("; ".join(heads), *compared, *judged, "", f"run this again: {self.again()}")
        if violated:
            pytest.xfail("; ".join(_summary(verdict) for verdict in violated))
        if result.vmm is not None and all(v.state is State.NOT_EXERCISED for v in result.verdicts):
            self.skip("not exercised: nothing was compared, and no rule had anything to judge")


class RuleItem(TraceItem):
    """Passes if a rule was exercised and held."""

    def describe(self, *, rule: Rule) -> None:  # type: ignore[override]
        """Mark it with the rule's family and level."""
        super().describe()
        self.rules = (rule,)
        level, family = rule.level.value, rule.id.partition(".")[0]
        self.add_marker(_marker(rule.id, family, level))
        self.user_properties += [
            ("xenkvm_rule", rule.id),
            ("xenkvm_level", level),
            ("xenkvm_citation", rule.citation),
        ]

    def judge(self, result: ReplayResult) -> None:
        """Fail for a violation (xfail if the rule is a SHOULD), skip if nothing was judged."""
        __tracebackhide__ = True
        verdict = self.judged(result)[0]
        self.user_properties.append(("xenkvm_verdict", verdict.state.value))
        if verdict.state is State.NOT_EXERCISED:
            self.skip(f"not exercised: {verdict.reason} ({verdict.rule.id})")
        if verdict.state is State.VIOLATED:
            self._complain(verdict)

    def _complain(self, verdict: Verdict) -> NoReturn:
        __tracebackhide__ = True
        if _is_expected(verdict, self.config):
            pytest.xfail(_summary(verdict))
        _fail(_summary(verdict), "", *verdict_lines(verdict), "", f"run this again: {self.again()}")


def _is_expected(verdict: Verdict, config: pytest.Config) -> bool:
    """Whether a violation is no failure: SHOULD, unless the user is strict."""
    return verdict.rule.level is Level.SHOULD and not settings(config).strict


def _summary(verdict: Verdict) -> str:
    return f"{verdict.rule.id} ({verdict.rule.level.value}): {finding_lines(verdict.findings[0])[0]}"


@lru_cache(maxsize=1)
def _unnamed_marker() -> pytest.MarkDecorator:
    return pytest.mark.xenkvm


@lru_cache(maxsize=1024)
def _marker(rule: str, family: str, level: str) -> pytest.MarkDecorator:
    return pytest.mark.xenkvm(rule=rule, family=family, level=level)


def _fail(*lines: str) -> NoReturn:
    pytest.fail("\n".join(lines), pytrace=False)


def _counts(result: ReplayResult) -> Iterator[tuple[str, object]]:
    yield "xenkvm_profile", result.profile
    yield "xenkvm_events", result.events
    yield "xenkvm_hypercalls", result.hypercalls
    yield "xenkvm_unjudged", result.unjudged
    if result.vmm is not None:
        yield "xenkvm_vmm", result.vmm

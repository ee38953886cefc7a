"""The summary in Markdown, and GitHub's workflow commands."""

from __future__ import annotations

import re

import pytest
from report_kit import RULES, diverged, failed, replay, report, verdict

from pytest_xenkvm.report.annotations import workflow_commands
from pytest_xenkvm.report.summary import MAX_ROWS, summary_markdown

UNIQUE, FORWARDS, ADVISED = RULES


def test_a_summary_says_what_went_wrong() -> None:
    """The page has the headline, and a table for each kind of thing that went wrong, MUST rules first."""
    page = summary_markdown(
        report(
            replay(verdicts={ADVISED: "violated", UNIQUE: "held"}, **diverged(), unjudged=2),
            replay("b.xkt", {UNIQUE: "violated"}),
            replay("c.xkt", **failed()),
        )
    )
    lines = [line for line in page.splitlines() if line]
    assert lines[:2] == [
        "## xen-kvm: 1 error · 1 trace diverged · 0/2 rules · linux-7.3",
        "Replayed 2 traces: 10 events, 4 hypercalls, 2 outcomes not judged (not seen by the recording).",
    ]
    rows = [line for line in lines if line.startswith("|") and "---" not in line]
    assert rows == [
        "| trace | reason |",
        "| c.xkt | the VMM raised |",
        "| trace | kernel | how many | the first |",
        "| a.xkt | linux-7.3 | 1 | event 2 (line 4): ret differs: set = 0 |",
        "| trace | rule | level | how often | the first |",
        f"| b.xkt | {UNIQUE} | MUST | violated 1 of 4 times | event 3 (line 5), vCPU 1: was refused |",
        f"| a.xkt | {ADVISED} | SHOULD | violated 1 of 4 times | event 3 (line 5), vCPU 1: was refused |",
        "|  | rule | level | demands | held in | violated in | not exercised in |",
        f"| ❌ | {UNIQUE} | MUST | {UNIQUE} \\| demands. | 1 | 1 | 0 |",
        f"| ❌ | {ADVISED} | SHOULD | {ADVISED} \\| demands. | 0 | 1 | 0 |",
    ]


def test_a_summary_stays_small_and_whole() -> None:
    """A table ends after some rows and counts the rest; no cell breaks the table or becomes markup."""
    wild = "a|b\n<script> `x` *y* [z](u) @me #1 \x1b[31m"
    page = summary_markdown(
        report(*(replay(f"{n:04}.xkt", **failed(wild * 99)) for n in range(MAX_ROWS + 5)))
    )
    rows = [line for line in page.splitlines() if line.startswith("| 0")]
    assert len(rows) == MAX_ROWS
    assert "... and 5 more." in page
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert not re.search(r"(?<!\\)[<`*\[@#]", rows[0])
    assert "\x1b" not in page
    assert len(page) < 200_000


def test_an_empty_report_says_so() -> None:
    """Where nothing was replayed, the page says that and has no table."""
    assert "no rule exercised" in summary_markdown(report())
    assert "|" not in summary_markdown(report())


def test_commands_name_file_and_line() -> None:
    """An error for what fails, a warning for a SHOULD; the file is named if it is in the checkout."""
    made = report(
        replay(verdicts={UNIQUE: "violated", ADVISED: "violated"}, **diverged()),
        replay("b,:%.xkt", path="@b", **failed("one\ntwo: 100%")),
    )
    lines = list(workflow_commands(made, lambda of: None if of["path"] == "@b" else of["path"]))
    shown = "event 3 (line 5), vCPU 1: stop(vcpu=1) -> -ENOSYS%0Awas refused%0Asource: Paper, section 1"
    diverges = "event 2 (line 4): ret differs%0Arecorded: set = -EINVAL%0Aobserved: set = 0"
    file = "file=traces/a.xkt,line"
    assert lines == [
        "::error title=b%2C%3A%25.xkt%3A not judged::one%0Atwo: 100%25",
        f"::error {file}=4,title=a.xkt%3A 1 divergence from the recording::{diverges}",
        f"::error {file}=5,title={UNIQUE} (MUST) in a.xkt::{UNIQUE} | demands.%0A{shown}",
        f"::warning {file}=5,title={ADVISED} (SHOULD) in a.xkt::{ADVISED} | demands.%0A{shown}",
    ]


@pytest.mark.parametrize(("count", "notices"), [(10, 0), (13, 1)])
def test_no_more_commands_than_are_shown(count: int, notices: int) -> None:
    """Ten of a kind are written, as many as GitHub shows; a notice counts the others."""
    many = report(
        *(replay(f"{n:02}.xkt") | {"verdicts": [verdict(UNIQUE, "violated")]} for n in range(count))
    )
    lines = list(workflow_commands(many, lambda of: of["path"]))
    assert sum(line.startswith("::error ") for line in lines) == 10
    assert [line.partition("::GitHub")[0] for line in lines[10:]] == (
        ["::notice title=xenkvm%3A 3 more errors"] * notices
    )

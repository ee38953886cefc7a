"""`xenkvm shrink`: a failing trace becomes a small one that fails in the same way."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from attrs import evolve

from pytest_xenkvm.cli.errors import UserError
from pytest_xenkvm.cli.output import check_output, force_option, output_option, sign_of_life
from pytest_xenkvm.cli.show import event_line
from pytest_xenkvm.hosts.protocol import HostError
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.rules.hosts import ENGINES, MODEL
from pytest_xenkvm.rules.model import Rule
from pytest_xenkvm.rules.profiles import AUTO
from pytest_xenkvm.rules.registry import RuleError, all_rules, select_rules
from pytest_xenkvm.rules.run import ReplayOptions
from pytest_xenkvm.trace.decode_values import text
from pytest_xenkvm.trace.errors import TraceError
from pytest_xenkvm.trace.files import BUNDLED_PREFIX, open_trace, write_trace
from pytest_xenkvm.traceops.failure import DIVERGENCE, ERROR, Failure, NotFailing, Setting, find_failure
from pytest_xenkvm.traceops.shrink import Shrunk, shrink
from pytest_xenkvm.vmm.load import BehaviourError, Maker, find_behaviour

_SHOWN: Final = 20
"""Events of the result that are printed."""
_BUDGET: Final = 300

_EPILOG: Final = """\b
Examples:
  xenkvm shrink boot.xkt --failing divergence                     the first divergence of a replay
  xenkvm shrink boot.xkt --failing divergence --profile linux-7.3 on another kernel than recorded
  xenkvm shrink boot.xkt --failing vcpu-id.unique --vmm my_vmm:MyVmm -o small.xkt
  xenkvm shrink boot.xkt --failing error --vmm my_vmm:MyVmm       your VMM raises an exception

The result fails in the same way: the same event violates the same rule for the same reason, or diverges in
the same outcome; no other event diverges that didn't in the whole. Events stay as they are, times included.

Ctrl-C stops early; the smallest trace so far is written.

Exit codes: 0 written, 2 the trace doesn't fail like that or can't be replayed (the reason is on stderr).
"""


@click.command("shrink", epilog=_EPILOG)
@click.argument("trace")
@click.option(
    "--failing",
    required=True,
    metavar="RULE|divergence|error",
    help="What fails: a rule, by its id; divergence: an outcome is not as recorded; error: the VMM raises.",
)
@click.option("--profile", metavar="NAME", default=AUTO, show_default=True, help="The kernel to answer like.")
@click.option(
    "--engine", type=click.Choice(ENGINES), default=MODEL, show_default=True, help="What plays the guest."
)
@click.option("--vmm", metavar="VMM", help="The VMM behaviour under test, as for xenkvm replay.")
@click.option(
    "--budget",
    type=click.FloatRange(0),
    default=_BUDGET,
    show_default=True,
    metavar="SECONDS",
    help="When to stop and be content with the smallest so far.",
)
@output_option("TRACE's name with .shrunk.xkt, in this folder")
@force_option
def shrink_command(  # noqa: PLR0913 - an argument an option
    trace: str,
    *,
    failing: str,
    profile: str,
    engine: str,
    vmm: str | None,
    budget: float,
    output: Path | None,
    force: bool,
) -> None:
    """Shrink TRACE (a file, or @NAME) to the few events that it takes to fail."""
    target = output or _default_output(trace)
    check_output(target, [trace], force=force)
    opened = open_trace(trace)
    try:
        rules = () if failing in {DIVERGENCE, ERROR} else (_rule(failing),)
        options = ReplayOptions(profile=profile, engine=engine)
        setting = Setting(options=options, rules=rules, vmm=None if vmm is None else _maker(vmm))
        named = rules[0].id if rules else failing
        failure = find_failure(opened, setting, named)
        shrunk = shrink(opened, setting, failure, budget, _show_progress)
        header = evolve(shrunk.header, notes=_notes(opened.name, failure, shrunk))
        write_trace(target, header, shrunk.events)
        find_failure(open_trace(target), setting, named)
    except NotFailing as error:
        raise UserError(f"{trace}: does not fail as --failing {failing} says: {error}") from error
    except (ReplayError, HostError, RuleError, BehaviourError) as error:
        raise UserError(f"{trace}: {error}") from error
    except Exception as error:
        if vmm is None or isinstance(error, (TraceError, OSError, UserError)):
            raise
        hint = "--failing error shrinks to what makes it raise"
        raise UserError(f"{trace}: the VMM {vmm} raised {type(error).__name__}: {error}; {hint}") from error
    finally:
        sign_of_life("")
    for line in _lines(opened.name, failure, shrunk):
        click.echo(line)
    click.echo(f"wrote {text(str(target), 1000)}; rerun: {_rerun(target, options, named, vmm)}")


def _lines(name: str, failure: Failure, shrunk: Shrunk) -> Iterator[str]:
    count = len(shrunk.events)
    yield f"{text(name)}: {failure.words}" + ("" if failure.index is None else f" at event {failure.index}")
    state = "none can be left out" if shrunk.minimal else "stopped before all was tried"
    before = "" if failure.events is None else f"{failure.events:,} -> "
    yield f"{before}{count:,} events, in {shrunk.replays:,} replays and {shrunk.seconds:.1f} s; {state}"
    pairs = list(zip(shrunk.indices, shrunk.events, strict=True))
    for index, event in pairs[-_SHOWN:]:
        yield event_line(index, event)


def _notes(name: str, failure: Failure, shrunk: Shrunk) -> str:
    of = "" if failure.events is None else f" of {failure.events}"
    shrunk_from = f"{len(shrunk.events)}{of} events of {name}, which {failure.words} with no more"
    return "; ".join(filter(None, (shrunk_from, shrunk.header.notes)))


def _rerun(target: Path, options: ReplayOptions, failing: str, vmm: str | None) -> str:
    profile = [] if options.profile == AUTO else ["--profile", options.profile]
    engine = [] if options.engine == MODEL else ["--engine", options.engine]
    rules = [] if failing in {DIVERGENCE, ERROR} else ["--rules", failing]
    behaviour = [] if vmm is None else ["--vmm", vmm]
    return shlex.join(["xenkvm", "replay", str(target), *profile, *engine, *rules, *behaviour])


def _default_output(trace: str) -> Path:
    name = Path(trace.removeprefix(BUNDLED_PREFIX)).name.removesuffix(".gz")
    return Path(name.removesuffix(".xkt").removesuffix(".jsonl") + ".shrunk.xkt")


def _rule(name: str) -> Rule:
    rules = select_rules(all_rules(), name)
    if len(rules) > 1:
        raise RuleError(f"--failing {name} names {len(rules)} rules, expected one, such as {rules[0].id}")
    return rules[0]


def _maker(vmm: str) -> Maker:
    """What makes the VMM behaviour, which may lie in the folder that the command runs in."""
    sys.path.insert(0, str(Path.cwd()))
    return find_behaviour(vmm)


def _show_progress(events: int, replays: int) -> None:
    sign_of_life(f"{events:,} events left after {replays:,} replays")

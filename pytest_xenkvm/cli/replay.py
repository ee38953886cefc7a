"""`xenkvm replay`: do a trace again on a kernel, compare what was recorded, judge the rules."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import click

from pytest_xenkvm.cli.errors import UserError
from pytest_xenkvm.core.profile import PROFILES
from pytest_xenkvm.hosts.protocol import HostError
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.report.json_result import result_json
from pytest_xenkvm.report.progress import Progress
from pytest_xenkvm.report.text import Role, divergences_lines, verdict_line, verdict_lines
from pytest_xenkvm.rules.hosts import EMULATED, ENGINES, HOSTS, KVM, MODEL
from pytest_xenkvm.rules.model import State
from pytest_xenkvm.rules.profiles import AUTO
from pytest_xenkvm.rules.registry import RuleError, all_rules, select_rules
from pytest_xenkvm.rules.run import ReplayOptions, ReplayResult, run_trace
from pytest_xenkvm.trace.errors import TraceError
from pytest_xenkvm.trace.files import Trace, open_trace
from pytest_xenkvm.vmm.behaviour import VmmBehaviour
from pytest_xenkvm.vmm.errors import VmmError
from pytest_xenkvm.vmm.load import BehaviourError, load_behaviour

FAILED_EXIT: Final = 1
"""The replay diverged, or a rule was violated."""

_SHOWN: Final = 3
"""Divergences, and findings of a rule, that are printed without -v."""
_COLOURS: Final[dict[Role, str]] = {"good": "green", "bad": "red", "note": "yellow"}

_EPILOG: Final = """\b
Examples:
  xenkvm replay @linux-boot                        a bundled recording of a real guest
  xenkvm replay boot.xkt --profile linux-7.3       what the new ABI makes of an old recording
  xenkvm replay boot.xkt --engine unicorn          guest code makes the hypercalls
  xenkvm replay boot.xkt --host kvm                on the running kernel's own /dev/kvm
  xenkvm replay boot.xkt --rules 'vcpu-id.*'       judge these rules only
  xenkvm replay boot.xkt --until 120               stop before event 120
  xenkvm replay boot.xkt --vmm my_vmm:MyVmm        the guest's side only; your VMM does the rest
  xenkvm replay boot.xkt --vmm "cmd:./my-vmm -x"   the same, your VMM in a process of its own
  xenkvm replay boot.xkt --json | jq .verdicts     for programs

Exit codes: 0 all well, 1 a divergence or a violated rule, 2 unusable input (the reason is on stderr).
"""


@click.command(epilog=_EPILOG)
@click.argument("trace")
@click.option(
    "--profile",
    metavar="NAME",
    default=AUTO,
    show_default=True,
    help=f"The kernel to answer like: {', '.join(PROFILES)}, one of an installed package, or auto: "
    "the one that the trace was recorded on.",
)
@click.option(
    "--host",
    type=click.Choice(HOSTS),
    default=EMULATED,
    show_default=True,
    help="What plays the kernel: the emulated core, or the running kernel's /dev/kvm.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default=MODEL,
    show_default=True,
    help="What plays the guest: registers alone, or code on an emulated CPU.",
)
@click.option(
    "--rules", "selection", metavar="SELECTION", help='Rule ids or patterns, comma-separated; "!" excludes.'
)
@click.option(
    "--vmm",
    metavar="VMM",
    help="A VMM behaviour, which then configures and answers: module:Class, cmd:COMMAND LINE, or a name.",
)
@click.option("--until", type=click.IntRange(0), metavar="N", help="Stop before event N.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-v", "--verbose", is_flag=True, help="Print all divergences and findings, and all rules.")
@click.pass_context
def replay(  # noqa: PLR0913 - an argument an option
    ctx: click.Context,
    *,
    trace: str,
    profile: str,
    host: str,
    engine: str,
    selection: str | None,
    vmm: str | None,
    until: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Replay TRACE (.xkt, .jsonl, or @NAME for one that comes with xenkvm) and judge what happened."""
    try:
        opened = open_trace(trace)
        rules = select_rules(all_rules(), selection)
        behaviour = None if vmm is None else _load(vmm)
        options = ReplayOptions(profile=profile, host=host, engine=engine, behaviour=behaviour, until=until)
        with _progress(opened, until) as progress:
            result = run_trace(opened, rules, options, progress=progress)
    except (ReplayError, HostError, RuleError, BehaviourError) as error:
        raise UserError(f"{trace}: {error}") from error
    except VmmError as error:
        sentence, _, more = str(error).partition("\n")
        if more:
            click.echo(more, err=True)
        raise UserError(f"{trace}: {sentence}") from error
    except Exception as error:
        if vmm is None or isinstance(error, (TraceError, OSError)):
            raise
        traceback.print_exc()  # of the user's own code, which only they can mend
        raise UserError(f"{trace}: the VMM behaviour {vmm} raised {type(error).__name__}: {error}") from error
    if as_json:
        click.echo(json.dumps(result_json(result)))
    else:
        for line in _lines(result, _rerun(trace, options, result), options, verbose=verbose):
            click.echo(line)
    if not result.ok:
        ctx.exit(FAILED_EXIT)


def _lines(
    result: ReplayResult, rerun: str | None, options: ReplayOptions, *, verbose: bool
) -> Iterator[str]:
    limit = sys.maxsize if verbose else _SHOWN
    how = f"VMM {result.vmm}" if result.vmm else "recorded VMM"
    if options.host == KVM:
        how = f"{how}, host {result.profile}"
    if options.engine != MODEL:
        how = f"{how}, engine {options.engine}"
    yield f"{result.trace}: {result.events:,} events, {result.hypercalls:,} hypercalls, {how}"
    yield from divergences_lines(result, _style, limit)
    if rerun:
        yield f"rerun up to the first: {rerun}"
    if result.unjudged or result.inferred:
        yield (
            f"not judged: {result.unjudged:,} outcomes that the recording could not see; "
            f"{result.inferred:,} events inferred from outcomes"
        )
    for verdict in result.verdicts:
        if verdict.state is State.VIOLATED:
            yield from verdict_lines(verdict, _style, limit)
        elif verbose or verdict.state is State.HELD:
            yield verdict_line(verdict, _style)
    states = Counter(verdict.state for verdict in result.verdicts)
    yield "rules: " + ", ".join(f"{states[state]} {state.value.replace('-', ' ')}" for state in State)


def _rerun(trace: str, options: ReplayOptions, result: ReplayResult) -> str | None:
    """The command that stops right behind the first divergence."""
    if not result.divergences:
        return None
    profile = [] if options.profile == AUTO else ["--profile", options.profile]
    host = [] if options.host == EMULATED else ["--host", options.host]
    engine = [] if options.engine == MODEL else ["--engine", options.engine]
    until = ["--until", str(result.divergences[0].place.index + 1)]
    return shlex.join(["xenkvm", "replay", trace, *profile, *host, *engine, *until])


def _style(piece: str, role: Role) -> str:
    return click.style(piece, fg=_COLOURS.get(role), dim=role == "dim")


def _load(vmm: str) -> VmmBehaviour:
    """The VMM behaviour, which may lie in the folder that the command runs in."""
    sys.path.insert(0, str(Path.cwd()))
    return load_behaviour(vmm)


@contextmanager
def _progress(trace: Trace, until: int | None) -> Iterator[Progress | None]:
    """On a terminal: how far it has come."""
    if not sys.stderr.isatty():
        yield None
        return
    events = sum((trace.counts() or {}).values())
    progress = Progress(
        write=partial(click.echo, nl=False, err=True),
        total=events if until is None else min(until, events),
        columns=shutil.get_terminal_size().columns,
    )
    try:
        yield progress
    finally:
        progress.close()

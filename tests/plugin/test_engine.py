"""`--xenkvm-engine`: what plays the guest in the replays of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_traces import ANSWERED, DIVERGING, write

from pytest_xenkvm.cpu.engine import Engine, EngineError
from pytest_xenkvm.hosts.protocol import CallOutcome, GuestCall
from pytest_xenkvm.hosts.unicorn_host import UnicornVm

Run = Callable[..., pytest.RunResult]

UNICORN = "--xenkvm-engine=unicorn"


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the hypercalls that guest code made."""
    made: list[int] = []
    original = UnicornVm.hypercall

    def hypercall(vm: UnicornVm, vcpu: int, call: GuestCall) -> CallOutcome:
        made.append(call.nr)
        return original(vm, vcpu, call)

    monkeypatch.setattr(UnicornVm, "hypercall", hypercall)
    return made


@pytest.mark.parametrize(
    ("args", "expected"),
    [((), []), ((UNICORN,), [24, 24]), (("-o", "xenkvm_engine=unicorn"), [24, 24])],
)
def test_items_replay_on_the_engine(
    traces: Path, run: Run, executed: list[int], args: tuple[str, ...], expected: list[int]
) -> None:
    """With `unicorn`, by option or ini file, guest code makes the hypercalls of a trace's items."""
    run(*args, traces).assert_outcomes(passed=3, skipped=1)
    assert executed == expected


def test_the_option_outweighs_the_ini_file(traces: Path, run: Run, executed: list[int]) -> None:
    """`--xenkvm-engine=model` holds whatever the ini file says."""
    run("-o", "xenkvm_engine=unicorn", "--xenkvm-engine=model", traces)
    assert executed == []


def test_the_header_names_the_engine(traces: Path, run_anyhow: Run) -> None:
    """The report's header says which engine plays the guest."""
    run_anyhow(UNICORN, traces).stdout.fnmatch_lines(["xenkvm: profile auto, engine unicorn, rules demo*"])


def test_a_test_chooses_the_engine_of_a_replay(
    project: pytest.Pytester, traces: Path, run: Run, executed: list[int]
) -> None:
    """`xenkvm_replay` replays on the engine that it is told, else on that of the options."""
    write(traces / "good.xkt", *ANSWERED)
    project.makepyfile(
        """
        import pytest
        from pytest_xenkvm.replay.errors import ReplayError

        def test_told(xenkvm_replay):
            told = xenkvm_replay("traces/good.xkt", engine="unicorn")
            assert told.observations == xenkvm_replay("traces/good.xkt", engine="model").observations

        def test_options(xenkvm_replay):
            xenkvm_replay("traces/good.xkt")

        def test_wrong(xenkvm_replay):
            with pytest.raises(ReplayError, match="there is no engine 'qemu'"):
                xenkvm_replay("traces/good.xkt", engine="qemu")
        """
    )
    run("-k", "told or wrong").assert_outcomes(passed=2)
    run("-k", "options").assert_outcomes(passed=1)
    run("-k", "options", UNICORN).assert_outcomes(passed=1)
    assert executed == [24] * 4


def test_the_commands_of_a_failure_name_the_engine(traces: Path, run_anyhow: Run) -> None:
    """What reruns a failed item, and what shows how it came to it, goes by the same kernel and engine."""
    write(traces / "good.xkt", *DIVERGING)
    result = run_anyhow(UNICORN, "--xenkvm-profile=linux-7.2", "-k", "replay")
    show = "xenkvm replay traces/good.xkt --profile=linux-7.2 --engine=unicorn --until 3"
    again = f"pytest --xenkvm-profile=linux-7.2 {UNICORN} traces/good.xkt::replay"
    result.stdout.fnmatch_lines([f"see how it came to the first: {show}", f"run this again: {again}"])


def test_the_commands_repeat_what_was_given(traces: Path, run: Run) -> None:
    """Rules, VMM and strictness of the command line are part of the command that runs an item again."""
    write(traces / "good.xkt", *DIVERGING)
    given = ["--xenkvm-rules=demo.msr", "--xenkvm-strict"]
    result = run(*given, "-k", "replay")
    result.stdout.fnmatch_lines([f"run this again: pytest {' '.join(given)} traces/good.xkt::replay"])


def test_an_engine_that_fails_is_one_sentence(
    traces: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Unicorn can't go on, the first item fails with the reason, the others are skipped."""

    def fail(*_arguments: object, **_more: object) -> int:
        raise EngineError("the guest can't go on at 0x1234: no memory")

    monkeypatch.setattr(Engine, "enter", fail)
    result = run(UNICORN, traces)
    result.assert_outcomes(failed=1, skipped=3)
    result.stdout.fnmatch_lines(["the Unicorn engine failed: the guest can't go on at 0x1234: no memory"])
    result.stdout.no_fnmatch_line("*Traceback*")

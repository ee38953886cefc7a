"""The user's VMM behaviour takes part in the replay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_traces import ANSWERED, RULES, write

Run = Callable[..., pytest.RunResult]

VMM = """
import pytest
from pytest_xenkvm.vmm import Vmm


class Mine(Vmm):
    answers = {0: 0, 1: 0}

    def __init__(self, answers=None):
        self.answers = answers or self.answers

    def configure(self, vm):
        vm.xen_hvm_config()

    def on_hypercall(self, vcpu, xen_exit):
        return self.answers[vcpu.index]

"""
FIXTURE = "@pytest.fixture\ndef xenkvm_vmm():\n    return Mine()\n"


@pytest.fixture
def vmm(project: pytest.Pytester, traces: Path) -> Callable[[str], None]:
    """Adds a VMM and this text to the conftest.py of the project with the trace."""
    del traces

    def add(text: str) -> None:
        project.makeconftest(RULES + VMM + text)

    return add


def test_the_fixture_puts_a_vmm_to_the_test(vmm: Callable[[str], None], run_anyhow: Run) -> None:
    """The behaviour that `xenkvm_vmm` returns answers instead of the recorded VMM."""
    vmm(FIXTURE + "Mine.answers = {0: 0, 1: -38}\n")
    result = run_anyhow()
    result.assert_outcomes(passed=1, failed=1, xfailed=1, skipped=1)
    result.stdout.fnmatch_lines(["*event 4 (line 6), vCPU 1: VCPUOP_stop_singleshot_timer(vcpu=1)*-ENOSYS*"])


def test_a_folder_has_a_vmm_of_its_own(project: pytest.Pytester, traces: Path, run_anyhow: Run) -> None:
    """A trace is replayed with the VMM of the conftest.py in its own folder."""
    (traces / "conftest.py").write_text(VMM + FIXTURE + "Mine.answers = {0: 0, 1: -38}\n")
    write(project.path / "recorded.xkt", *ANSWERED)
    result = run_anyhow("-k", "answered", "-v")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines_random(["*recorded.xkt::demo.answered*", "*traces/good.xkt::demo.answered*"])
    result.stdout.fnmatch_lines(["FAILED traces/good.xkt::demo.answered*"])


@pytest.mark.skipif(pytest.version_tuple < (8, 1), reason="pytest 8.0 finds fixtures by node id alone")
@pytest.mark.parametrize("args", [(), ("--collect-only", "-q"), ("boot.xkt::demo.answered",), ("../other",)])
def test_a_trace_elsewhere_takes_the_vmm_of_the_working_directory(
    project: pytest.Pytester,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    args: tuple[str, ...],
) -> None:
    """A trace from outside of rootdir honours the conftest.py where pytest is started, and those above it."""
    path = write(tmp_path_factory.mktemp("elsewhere") / "boot.xkt", *ANSWERED)
    project.mkdir("other").joinpath("test_own.py").write_text("def test_own(): pass")
    project.mkdir("here").joinpath("conftest.py").write_text(
        VMM
        + FIXTURE
        + "Mine.answers = {0: 0, 1: -38}\ndef pytest_runtest_setup(item): print('set up', item.name)"
    )
    monkeypatch.chdir(project.path / "here")
    result = run(f"--xenkvm-trace={path}", "-k", "answered or own", *args)
    if "--collect-only" in args:
        result.stdout.fnmatch_lines(["boot.xkt::demo.answered"])
    else:
        result.assert_outcomes(failed=1, passed=len([name for name in args if name == "../other"]))
        result.stdout.fnmatch_lines(["*vCPU 1 got no answer*", "set up demo.answered"])


def test_the_fixture_may_be_parametrised(vmm: Callable[[str], None], run_anyhow: Run) -> None:
    """Each parameter of the fixture is an item, and a replay, of its own."""
    vmm(
        "@pytest.fixture(params=[0, -38], ids=['good', 'bad'], scope='module')\n"
        "def xenkvm_vmm(request, tmp_path_factory):\n    return Mine({0: 0, 1: request.param})\n"
    )
    result = run_anyhow("-k", "answered or replay", "-v")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines_random(["*::replay[[]good]*", "*::demo.answered[[]good]*"])
    result.stdout.fnmatch_lines(["replayed 2 traces: *", "FAILED traces/good.xkt::demo.answered[[]bad]*"])


def test_one_replay_serves_all_items(vmm: Callable[[str], None], run: Run) -> None:
    """The guest's calls are made once, however many items judge them."""
    vmm(FIXTURE + "Mine.configure = lambda self, vm: (print('configured'), vm.xen_hvm_config())\n")
    assert run("-s").stdout.str().count("configured") == 1


def test_the_fixture_may_ask_for_the_trace(vmm: Callable[[str], None], run: Run) -> None:
    """`xenkvm_trace` is the item's trace there."""
    vmm(
        "@pytest.fixture\ndef xenkvm_vmm(xenkvm_trace):\n"
        "    assert xenkvm_trace.name == 'good.xkt'\n    return Mine()\n"
    )
    run().assert_outcomes(passed=3, skipped=1)


def test_what_the_vmm_raises_is_shown_where_it_was_raised(
    vmm: Callable[[str], None], run_anyhow: Run
) -> None:
    """An exception in the behaviour fails one item with the user's traceback; the others can't be judged."""
    vmm(FIXTURE + "Mine.answers = {0: 0}\n")
    result = run_anyhow("-k", "replay", "-rs")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([">       return self.answers[[]vcpu.index]", "E       KeyError: 1"])
    for ours in ("*replays.py*", "*stepper.py*", "*run.py*"):
        result.stdout.no_fnmatch_line(ours)


def test_what_a_coroutine_raises_is_shown_where_it_was_raised(vmm: Callable[[str], None], run: Run) -> None:
    """The traceback of an asynchronous behaviour shows the user's lines, not those of the event loop."""
    vmm(
        FIXTURE
        + "async def fail(self, vcpu, xen_exit):\n    return {}[vcpu.index]\nMine.on_hypercall = fail\n"
    )
    result = run("-k", "replay")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([">       return {}[[]vcpu.index]", "E       KeyError: 0"])
    result.stdout.no_fnmatch_line("*asyncio*")


def test_a_failed_replay_is_told_once(vmm: Callable[[str], None], run: Run) -> None:
    """After the first item the others are skipped, so that the cause stands out."""
    vmm(FIXTURE + "Mine.answers = {0: 0}\n")
    result = run("-rs")
    result.assert_outcomes(failed=1, skipped=3)
    result.stdout.fnmatch_lines(["SKIPPED [[]3] traces/good.xkt:1: not judged: *raised KeyError: 1"])


def test_a_refused_ioctl_is_shown_in_the_users_code(vmm: Callable[[str], None], run: Run) -> None:
    """What KVM refuses is raised in the behaviour's line, without the frames behind it."""
    vmm(FIXTURE + "Mine.configure = lambda self, vm: vm.vcpus[0].set_vcpu_id(99999)\n")
    result = run("-k", "replay")
    result.stdout.fnmatch_lines(["E *KvmError: -EINVAL (-22)", "conftest.py:*: KvmError"])
    result.stdout.no_fnmatch_line("*handles.py*")


def test_an_option_names_a_vmm(project: pytest.Pytester, traces: Path, run: Run) -> None:
    """`--xenkvm-vmm module:Class` makes a VMM for all traces."""
    del traces
    project.makepyfile(my_vmm=VMM + "class Bad(Mine):\n    answers = {0: 0, 1: -38}\n")
    run("--xenkvm-vmm=my_vmm:Mine", "-k", "answered").assert_outcomes(passed=1)
    result = run("--xenkvm-vmm=my_vmm:Bad", "-k", "answered")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["xenkvm: *VMM my_vmm:Bad*"])


@pytest.mark.parametrize(
    ("returned", "hint"), [("Mine", ": return Mine()"), ("object()", ""), ("'mine'", "")]
)
def test_something_else_than_a_behaviour_is_refused(
    vmm: Callable[[str], None], run: Run, returned: str, hint: str
) -> None:
    """A fixture that returns anything that is no behaviour fails in one sentence, a class with a hint."""
    vmm(f"@pytest.fixture\ndef xenkvm_vmm():\n    return {returned}\n")
    result = run("-k", "replay")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"the fixture xenkvm_vmm returned *, expected a VMM behaviour{hint}"])

"""Which VMM takes part: option, ini file, marker, hook, and a fixture that is overridden anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from small_traces import RULES

Run = Callable[..., pytest.RunResult]
Collect = Callable[..., list[str]]

MODULE: Final = """
from pytest_xenkvm.vmm import Vmm

class Good(Vmm):
    answer = 0
    def configure(self, vm):
        vm.xen_hvm_config()
    def on_hypercall(self, vcpu, xen_exit):
        return self.answer

class Bad(Good):
    name = "bad one"
    answer = -38

the_bad = Bad()
"""
HOOK: Final = (
    "import my_vmm\ndef pytest_xenkvm_vmms(config):\n    return {'good': my_vmm.Good, 'bad': my_vmm.Bad}\n"
)
TESTS: Final = """
import pytest
from my_vmm import Bad, Good

def answer(replayed):
    return replayed.observations[-1].event.rax if replayed.result.vmm is None else [
        seen.answer for seen in replayed.observations if seen.answer is not None][-1]
"""


@pytest.fixture
def mine(project: pytest.Pytester, traces: Path) -> pytest.Pytester:
    """A project with a trace, a module `my_vmm`, and a hook that offers its behaviours as good and bad."""
    del traces
    project.makepyfile(my_vmm=MODULE)
    project.makeconftest(RULES + HOOK)
    return project


@pytest.mark.parametrize("spec", ["my_vmm:Bad", "my_vmm:the_bad", "bad"])
def test_an_option_names_it(mine: pytest.Pytester, run_anyhow: Run, spec: str) -> None:
    """A class, an object or a name that a hook adds; the header and the end say which took part."""
    del mine
    result = run_anyhow(f"--xenkvm-vmm={spec}", "-k", "answered", "--junitxml=out.xml")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*xenkvm: *, VMM *", "replayed 1 trace: *", "VMM under test: bad one"])
    assert 'xenkvm_vmm:traces/good.xkt::demo.answered" value="bad one"' in Path("out.xml").read_text()


def test_the_ini_file_names_it(mine: pytest.Pytester, run: Run) -> None:
    """The ini option counts unless the command line says otherwise."""
    mine.makeini("[pytest]\nxenkvm_rules = demo\nxenkvm_vmm = bad\n")
    run("-k", "answered").assert_outcomes(failed=1)
    run("-k", "answered", "--xenkvm-vmm=good").assert_outcomes(passed=1)


def test_a_constructor_that_makes_something_else(mine: pytest.Pytester, run: Run) -> None:
    """What turns out to be no behaviour fails the items in one sentence."""
    mine.makepyfile(my_vmm="def make(): return 5\ndef raises(): return 1 / 0\n")
    mine.makeconftest(RULES)
    result = run("--xenkvm-vmm=my_vmm:make", "-k", "answered")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["the VMM behaviour 'my_vmm:make' has no method configure: it is 5"])
    result = run("--xenkvm-vmm=my_vmm:raises", "-k", "answered")
    result.stdout.fnmatch_lines(["*def raises(): return 1 / 0", "E *ZeroDivisionError: division by zero"])


def test_two_vmms_are_both_named(mine: pytest.Pytester, run: Run) -> None:
    """The end names each VMM of a parametrised fixture once."""
    (mine.path / "traces" / "conftest.py").write_text(
        "import my_vmm, pytest\n@pytest.fixture(params=[my_vmm.Good, my_vmm.Bad])\n"
        "def xenkvm_vmm(request):\n    return request.param()\n"
    )
    run("traces").stdout.fnmatch_lines(["replayed 2 traces: *", "VMMs under test: Good, bad one"])


def test_a_marker_gives_a_test_its_vmms(mine: pytest.Pytester, run_anyhow: Run, collect: Collect) -> None:
    """A class, an object, `module:Class` and a name run a test once each, whatever fixtures it takes."""
    mine.makepyfile(
        test_own=TESTS
        + """
@pytest.mark.xenkvm_vmm(Bad, Bad(), "my_vmm:Bad", "bad", "my_vmm:the_bad")
def test_replay(xenkvm_replay):
    assert answer(xenkvm_replay("traces/good.xkt")) == 2**64 - 38
    assert answer(xenkvm_replay("traces/good.xkt", vmm=Good())) == 0

@pytest.mark.xenkvm_vmm(Good, "bad")
def test_fixtures(xenkvm_vmm, xenkvm_guest, xenkvm_replay):
    assert isinstance(xenkvm_vmm, Good)
    assert xenkvm_guest().vmm is xenkvm_vmm
    assert xenkvm_replay("traces/good.xkt").result.vmm in ("Good", "bad one")

def test_unmarked(xenkvm_vmm, xenkvm_replay):
    assert xenkvm_vmm is None
    assert xenkvm_replay("traces/good.xkt").result.vmm is None

@pytest.mark.xenkvm_vmm(vmm=Bad)
def test_without_fixtures(): pass
"""
    )
    ids = [name.removeprefix("test_own.py::") for name in collect("test_own.py")]
    assert ids[5:] == [
        "test_fixtures[Good]",
        "test_fixtures[bad one]",
        "test_unmarked",
        "test_without_fixtures",
    ]
    run_anyhow("test_own.py").assert_outcomes(passed=9)


def test_the_nearest_marker_counts(mine: pytest.Pytester, run: Run) -> None:
    """A module, a class and a test may be marked; the mark of the test counts before the others'."""
    mine.makepyfile(
        test_own=TESTS
        + """
pytestmark = pytest.mark.xenkvm_vmm(vmm=Good)

def test_module(xenkvm_vmm):
    assert type(xenkvm_vmm) is Good

@pytest.mark.xenkvm_vmm(vmm=Bad)
class TestOwn:
    def test_class(self, xenkvm_vmm):
        assert type(xenkvm_vmm) is Bad

    @pytest.mark.xenkvm_vmm(Good())
    def test_own(self, xenkvm_vmm):
        assert type(xenkvm_vmm) is Good
"""
    )
    run("test_own.py").assert_outcomes(passed=3)


def test_a_marker_wins_over_a_fixture(mine: pytest.Pytester, run: Run) -> None:
    """Also where the overridden fixture is parametrised, or is shared by a whole session."""
    mine.makepyfile(
        test_own=TESTS
        + """
@pytest.fixture(params=[1, 2], scope="session")
def xenkvm_vmm(request):
    return Good()

@pytest.mark.xenkvm_vmm(vmm=Bad)
def test_marked(xenkvm_vmm, xenkvm_guest):
    assert type(xenkvm_vmm) is Bad
    assert xenkvm_guest().vmm is xenkvm_vmm

def test_unmarked(xenkvm_vmm):
    assert type(xenkvm_vmm) is Good
"""
    )
    run("test_own.py").assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("marker", "sentence"),
    [
        ("", "*::test_own: the marker xenkvm_vmm has nothing, expected VMM behaviours or vmm=..."),
        ("vm=5", "*::test_own: the marker xenkvm_vmm has {'vm': 5}, expected VMM behaviours or vmm=..."),
        ("'none'", "*::test_own: there is no VMM behaviour 'none': there are *bad, good*"),
        ("5", "*::test_own: the VMM behaviour '5' is 5, expected a class or a behaviour"),
    ],
)
def test_a_marker_that_names_none(mine: pytest.Pytester, run: Run, marker: str, sentence: str) -> None:
    """It is a collection error of one sentence."""
    mine.makepyfile(f"import pytest\n@pytest.mark.xenkvm_vmm({marker})\ndef test_own(xenkvm_vmm): pass\n")
    result = run("-k", "test_own")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([sentence])


def test_the_fixture_is_overridden_where_one_likes(mine: pytest.Pytester, run: Run) -> None:
    """In a folder, a module or a class, for whatever uses it there."""
    fixture = "@pytest.fixture\ndef xenkvm_vmm({self}):\n    return {made}\n"
    folder = mine.mkdir("folder")
    (folder / "conftest.py").write_text(
        "import pytest\nfrom my_vmm import Good\n" + fixture.format(self="", made="Good()")
    )
    check = "    assert type(xenkvm_vmm) is {made} and xenkvm_guest().vmm is xenkvm_vmm\n"
    (folder / "test_folder.py").write_text(
        TESTS + "def test_folder(xenkvm_vmm, xenkvm_guest):\n" + check.format(made="Good")
    )
    (folder / "test_module.py").write_text(
        TESTS
        + fixture.format(self="", made="Bad()")
        + "def test_module(xenkvm_vmm, xenkvm_guest):\n"
        + check.format(made="Bad")
        + "class TestIt:\n"
        + "".join(f"    {line}\n" for line in fixture.format(self="self", made="Good()").splitlines())
        + "    def test_class(self, xenkvm_vmm, xenkvm_guest):\n    "
        + check.format(made="Good")
    )
    run("folder").assert_outcomes(passed=3)


def test_the_nearest_hook_names_the_behaviour(mine: pytest.Pytester, run: Run) -> None:
    """Of two hooks that add the same name, that of the test's own folder counts for its markers."""
    folder = mine.mkdir("folder")
    (folder / "conftest.py").write_text(HOOK.replace("'bad': my_vmm.Bad", "'bad': my_vmm.Good"))
    test = TESTS + "@pytest.mark.xenkvm_vmm('bad')\ndef test_own(xenkvm_vmm): assert type(xenkvm_vmm) is {}\n"
    (folder / "test_near.py").write_text(test.format("Good"))
    (mine.path / "test_far.py").write_text(test.format("Bad"))
    run("-k", "test_own").assert_outcomes(passed=2)


FIXTURE: Final = """
import pytest
from my_vmm import Good

@pytest.fixture
def xenkvm_vmm({}):
    return {}
"""


def test_an_option_without_effect_is_told(mine: pytest.Pytester, run_anyhow: Run) -> None:
    """A fixture wins over the option, and the summary says so, naming both."""
    mine.makeconftest(RULES + FIXTURE.format("", "Good()"))
    result = run_anyhow("--xenkvm-vmm=my_vmm:Bad", "-k", "answered")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "VMM under test: Good",
            "--xenkvm-vmm=my_vmm:Bad had no effect where the fixture xenkvm_vmm in conftest.py:* counts, *",
        ]
    )


@pytest.mark.parametrize(
    ("arguments", "options", "outcome"),
    [
        ("xenkvm_vmm", ("--xenkvm-vmm=my_vmm:Bad",), "failed"),
        ("xenkvm_vmm", (), "passed"),
        ("", (), "passed"),
        ("", ("-o", "xenkvm_vmm=my_vmm:Bad"), "passed"),
    ],
)
def test_a_fixture_that_asks_the_option(
    mine: pytest.Pytester, run: Run, arguments: str, options: tuple[str, ...], outcome: str
) -> None:
    """A fixture may let the option win; then, and without an option, there is nothing to tell."""
    returned = f"{arguments or None} or Good()"
    mine.makeconftest(RULES + FIXTURE.format(arguments, returned))
    result = run("-k", "answered", *options)
    result.assert_outcomes(**{outcome: 1})
    result.stdout.no_fnmatch_line("*had no effect*")

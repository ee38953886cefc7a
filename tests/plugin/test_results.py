"""Reports and badges hold the same whoever runs which items."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from small_traces import ANSWERED, DIVERGING, REFUSED, UNSEEN, write

from pytest_xenkvm.cli.main import run as xenkvm
from pytest_xenkvm.report.reading import SCHEMA

Run = Callable[..., pytest.RunResult]

XDIST: Final = ("-p", "xdist.plugin", "-p", "xdist.looponfail")
PLUGIN: Final = ("-p", "pytest_xenkvm.plugin.entry")
FILES: Final = {"badge": "b.svg", "badge-json": "b.json", "report": "r.json", "summary": "s.md"}
VMMS: Final = """
from pytest_xenkvm.vmm import Vmm


class Good(Vmm):
    def configure(self, vm):
        vm.xen_hvm_config()
    def on_hypercall(self, vcpu, xen_exit):
        return 0


class Raising(Good):
    def on_hypercall(self, vcpu, xen_exit):
        raise RuntimeError("lost")


@pytest.fixture(params=[None, Good, Raising])
def xenkvm_vmm(request):
    return request.param and request.param()
"""


@pytest.fixture
def corpus(project: pytest.Pytester, traces: Path) -> Path:
    """Traces of all kinds; in one folder with VMMs, of which one raises."""
    write(traces / "diverging.xkt", *DIVERGING)
    write(traces / "refused.xkt", *REFUSED)
    write(traces / "unseen.xkt", *UNSEEN)
    write(traces / "vmms" / "answered.xkt", *ANSWERED)
    late = write(traces / "late.jsonl", *ANSWERED)
    late.write_text(late.read_text() + '{"ev":"nonsense"}\n')
    (traces / "vmms" / "conftest.py").write_text(f"import pytest\n{VMMS}")
    del project
    return traces


def outputs(folder: str) -> list[str]:
    """The options that write all files into a folder."""
    return [f"--xenkvm-{option}={folder}/{name}" for option, name in FILES.items()]


def read(folder: str) -> dict[str, bytes]:
    """What was written there."""
    return {name: Path(folder, name).read_bytes() for name in FILES.values()}


def parsed(path: str | Path) -> Any:
    """A report, which fits its schema."""
    report = json.loads(Path(path).read_bytes())
    Draft202012Validator(json.loads(SCHEMA.read_bytes())).validate(report)
    return report


def test_workers_make_no_difference(project: pytest.Pytester, corpus: Path, run: Run) -> None:
    """Badge, reports and summary are the same bytes in one process, over any workers, an item a trace."""
    arguments = [*sorted(corpus.glob("*.xkt")), corpus / "vmms", corpus / "late.jsonl"]
    run(*arguments, *outputs("one"))
    expected = read("one")
    report = parsed("one/r.json")
    assert report["summary"]["rules"] == {"held": 0, "violated": 2, "not-exercised": 1}
    assert (report["summary"]["errors"], report["summary"]["divergences"]) == (2, 1)
    for distribution in ("load", "loadfile", "loadgroup"):
        folder = f"of-{distribution}"
        done = project.runpytest_subprocess(
            *PLUGIN, *XDIST, "-n2", f"--dist={distribution}", *arguments, *outputs(folder)
        )
        done.stdout.fnmatch_lines([f"wrote {folder}/r.json"])
        assert read(folder) == expected, distribution
    project.runpytest_subprocess(*PLUGIN, *XDIST, "-n0", *arguments, *outputs("zero"))
    assert read("zero") == expected
    run(*arguments, *outputs("whole"), "--xenkvm-items=trace")
    assert read("whole") == expected


@pytest.mark.parametrize(
    "halves",
    [
        (["-k", "answered or replay"], ["-k", "not answered and not replay"]),
        (["-k", "good or refused"], ["-k", "not good and not refused"]),
        (["--xenkvm-rules=demo.answered"], ["--xenkvm-rules=demo.advised,demo.msr"]),
    ],
    ids=["items", "traces", "rules"],
)
def test_halves_are_the_whole(corpus: Path, run: Run, halves: tuple[list[str], list[str]]) -> None:
    """Two halves of a run merge to the report of the whole run, to the byte, and so does the badge."""
    run(corpus, *outputs("whole"))
    for number, half in enumerate(halves):
        run(corpus, *outputs(f"half{number}"), *half)
    assert xenkvm(["report", "half1/r.json", "half0/r.json", "-o", "merged.json"]) == 0
    assert xenkvm(["badge", "half0/r.json", "half1/r.json", "-o", "merged.svg"]) == 0
    assert Path("merged.json").read_bytes() == Path("whole/r.json").read_bytes()
    assert Path("merged.svg").read_bytes() == Path("whole/b.svg").read_bytes()


def test_a_replay_tells_all(corpus: Path, run: Run) -> None:
    """A replay has its trace, kernel, counts, verdicts with findings in words, and divergences."""
    run(corpus / "refused.xkt", corpus / "diverging.xkt", "--xenkvm-report=r.json")
    report = parsed("r.json")
    diverging, refused = report["replays"]
    assert {name: refused[name] for name in ("trace", "path", "profile", "engine", "vmm", "events")} == {
        "trace": "traces/refused.xkt",
        "path": "traces/refused.xkt",
        "profile": "linux-7.3",
        "engine": "model",
        "vmm": None,
        "events": 4,
    }
    assert refused["header"]["kernel"] == "7.3.0"
    assert refused["header"]["vcpus"] == 2
    (divergence,) = diverging["divergences"]
    assert (divergence["event"], divergence["vcpu"], divergence["kind"]) == (2, 1, "ret")
    assert divergence["recorded"] == "KVM_XEN_VCPU_SET_ATTR(VCPU_ID, vcpu_id=1) = -EINVAL (-22)"
    found = {verdict["rule"]: verdict for verdict in refused["verdicts"]}
    assert {rule: verdict["state"] for rule, verdict in found.items()} == {
        "demo.advised": "violated",
        "demo.answered": "violated",
        "demo.msr": "not-exercised",
    }
    (finding,) = found["demo.answered"]["findings"]
    assert (finding["event"], finding["line"], finding["vcpu"]) == (3, 5, 1)
    assert finding["message"] == "vCPU 1 got no answer"
    assert "VCPUOP_stop_singleshot_timer(vcpu=1)" in finding["words"]
    assert found["demo.msr"]["reason"].startswith("nothing in the trace")
    assert [rule["citation"] for rule in report["rules"]] == ["Paper, section 1"] * 3


def test_what_could_not_be_judged_is_told(corpus: Path, run: Run) -> None:
    """A trace that breaks off and a VMM that raises are errors, each told once, with their sentence."""
    run(corpus / "late.jsonl", corpus / "vmms", "--xenkvm-report=r.json")
    report = parsed("r.json")
    errors = {
        f"{replay['trace']}{replay['parameters']}": replay["errors"]
        for replay in report["replays"]
        if replay["errors"]
    }
    (late,) = errors.pop("traces/late.jsonl")
    assert late.startswith(f"{corpus}/late.jsonl, line 7, event 5: ")
    assert errors == {"traces/vmms/answered.xkt[Raising]": ["RuntimeError: lost"]}
    assert report["summary"]["verdict"] == "error"
    assert {replay["vmm"] for replay in report["replays"]} == {None, "Good"}


def test_a_vmm_replay_compares_nothing(corpus: Path, run: Run) -> None:
    """With a VMM under test there is no recording to diverge from; that is null, not 0."""
    run(corpus / "vmms", "-k", "Good or None", "--xenkvm-report=r.json")
    replays = parsed("r.json")["replays"]
    assert {replay["vmm"]: replay["divergences_total"] for replay in replays} == {None: 0, "Good": None}


@pytest.mark.parametrize(
    ("fixture", "error"),
    [
        ("raise OSError('no socket')", "setup: OSError: no socket"),
        ("yield None\n    raise OSError('stuck')", "teardown: OSError: stuck"),
        ("return 1", "the fixture xenkvm_vmm returned 1*"),
    ],
)
def test_a_fixture_that_fails_is_an_error(
    project: pytest.Pytester, traces: Path, run: Run, fixture: str, error: str
) -> None:
    """A fixture that raises, or gives no behaviour, makes the badge red."""
    conftest = project.path / "conftest.py"
    conftest.write_text(f"{conftest.read_text()}\n@pytest.fixture\ndef xenkvm_vmm():\n    {fixture}\n")
    run(traces, "--xenkvm-report=r.json", "--xenkvm-badge-json=b.json")
    (replay,) = parsed("r.json")["replays"]
    (told,) = replay["errors"]
    assert told == error or told.startswith(error.removesuffix("*"))
    assert json.loads(Path("b.json").read_bytes())["color"] == "red"


def test_a_trace_that_cannot_be_opened_is_an_error(traces: Path, run_anyhow: Run) -> None:
    """A file that is no trace is in the report though pytest may not get to run anything."""
    (traces / "bad.xkt").write_bytes(b"\x7fELF" * 9)
    run_anyhow("--xenkvm-report=r.json")
    (bad, *_) = parsed("r.json")["replays"]
    assert (bad["trace"], bad["path"], bad["header"]) == ("traces/bad.xkt", "traces/bad.xkt", None)
    assert "is neither JSON Lines nor xkt" in bad["errors"][0]


def test_a_crash_is_an_error(project: pytest.Pytester, traces: Path) -> None:
    """If a worker dies in a VMM, the report says which item it was running."""
    conftest = project.path / "conftest.py"
    crash = "import os\n@pytest.fixture\ndef xenkvm_vmm():\n    os._exit(3)\n"
    conftest.write_text(f"{conftest.read_text()}\n{crash}")
    del traces
    project.runpytest_subprocess(*PLUGIN, *XDIST, "-n2", "-k", "replay", "--xenkvm-report=r.json")
    (replay,) = parsed("r.json")["replays"]
    assert replay["errors"] == ["the process that ran replay crashed"]


def test_a_known_violation_is_still_one(project: pytest.Pytester, corpus: Path, run: Run) -> None:
    """Marking an item as expected to fail changes pytest's outcome, and not the verdict."""
    conftest = project.path / "conftest.py"
    mark = (
        "def pytest_collection_modifyitems(items):\n"
        "    for item in items:\n"
        "        item.add_marker(pytest.mark.xfail(reason='known'))\n"
    )
    conftest.write_text(f"{conftest.read_text()}\n{mark}")
    result = run(corpus / "refused.xkt", "-k", "answered", "--xenkvm-badge-json=b.json")
    result.assert_outcomes(xfailed=1)
    assert json.loads(Path("b.json").read_bytes())["message"] == "0/1 rules · linux-7.3"

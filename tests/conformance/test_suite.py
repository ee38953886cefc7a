"""The conformance suite on the emulated kernels: who fails what, in which words, what reports tell."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from pytest_xenkvm.core.profile import PROFILES
from pytest_xenkvm.rules.bundled import BUNDLED
from pytest_xenkvm.rules.model import Judged, Rule

ROOT: Final = Path(__file__).parents[2]
SUITE: Final = ROOT / "conformance"

ID_SOURCE: Final = (
    "kvm_xen_init_vcpu, kvm_xen_vcpu_set_attr, kvm_xen_hcall_vcpu_op (commit c10bd49bdcc9, Linux 7.3)"
)

VIOLATED: Final = {
    "linux-7.3": set[str](),
    "linux-7.2": {
        "vcpu-id.new-is-unset",
        "vcpu-id.refused-set-leaves-unset",
        "vcpu-id.unset-forwards",
        "migration.unset-id-refused",
    },
}
"""The rules that probes find violated, by kernel."""
VIOLATED["linux-6.12"] = VIOLATED["linux-7.2"]


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the suite in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("profile", PROFILES)
def test_exactly_the_probes_of_the_new_ids_fail(profile: str, tmp_path: Path) -> None:
    """Probes fail for nothing but the Xen IDs of kernels up to 7.2, whose rules are the violated ones."""
    report = tmp_path / "report.json"
    done = run(str(SUITE), f"--xenkvm-profile={profile}", f"--xenkvm-report={report}", "--tb=no", "-rfE")
    failed = set(re.findall(r"^(?:FAILED|ERROR) conformance/(\w+)\.py::(\w+)", done.stdout, re.MULTILINE))
    assert bool(failed) == bool(VIOLATED[profile]), done.stdout
    assert {module for module, _test in failed} <= {"test_vcpu_id", "test_migration"}
    results = json.loads(report.read_text())
    states = {
        (verdict["rule"], verdict["state"]) for replay in results["replays"] for verdict in replay["verdicts"]
    }
    assert {rule for rule, state in states if state == "violated"} == VIOLATED[profile]
    held = {rule for rule, state in states if state == "held"}
    host_rules = {rule.id for rule in BUNDLED if rule.judges is Judged.HOST}
    assert held | VIOLATED[profile] == host_rules
    assert results["summary"]["errors"] == 0
    for replay in results["replays"]:
        if replay["divergences_total"]:
            assert replay["trace"].startswith(
                ("conformance/test_vcpu_id.py", "conformance/test_migration.py")
            )


@pytest.mark.parametrize(
    "rule", [rule for rule in BUNDLED if rule.judges is Judged.HOST], ids=lambda rule: rule.id
)
def test_every_rule_about_hosts_has_a_probe(rule: Rule, collected: dict[str, set[str]]) -> None:
    """Each rule about hosts is named by a probe."""
    assert collected[rule.id]


@pytest.fixture(scope="module")
def collected() -> dict[str, set[str]]:
    """The probes that name each rule."""
    found: dict[str, set[str]] = {rule.id: set() for rule in BUNDLED}
    for path in SUITE.glob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        for rule, files in found.items():
            if f'"{rule}"' in text:
                files.add(path.name)
    return found


@pytest.mark.skipif(pytest.version_tuple < (8, 3), reason="pytest before 8.3 selects no markers by argument")
def test_probes_are_found_by_their_rule() -> None:
    """`-k RULE` and `-m xenkvm(rule=...)` select the same probes."""
    rule = "vcpu-id-bounds.sentinel-is-no-id"
    by_keyword = run(str(SUITE), "--collect-only", "-k", rule).stdout.splitlines()[0]
    by_mark = run(str(SUITE), "--collect-only", "-m", f'xenkvm(rule="{rule}")').stdout.splitlines()[0]
    assert (
        by_keyword
        == by_mark
        == ("conformance/test_vcpu_id_bounds.py::test_bound_keeps_ids_and_sentinel_apart")
    )


def test_a_failing_probe_says_all_in_words(tmp_path: Path) -> None:
    """It tells the demand, what was expected, what the host did, the source, the rule and what was before."""
    name = "pytest_xenkvm.conformance.test_vcpu_id"
    done = run("--pyargs", name, "-k", "another_vcpus_id", "--xenkvm-profile=linux-6.12", cwd=tmp_path)
    assert done.returncode == 1
    shown = [line.removeprefix("E").strip() for line in done.stdout.splitlines() if line.startswith("E ")]
    assert shown == [
        "Failed: demanded: Setting one vCPU's Xen ID leaves the others unset.",
        "expected: 0, vcpu_id=0xffffffff",
        "the host: KVM_XEN_VCPU_GET_ATTR(VCPU_ID) = 0, vcpu_id=0",
        f"source:   {ID_SOURCE}",
        "rule:     vcpu-id.new-is-unset",
        "before:",
        "VM      KVM_CHECK_EXTENSION(KVM_CAP_MAX_VCPUS) = 4096",
        "vCPU 1  KVM_XEN_VCPU_SET_ATTR(VCPU_ID, vcpu_id=1) = 0",
    ]


def test_the_badge_is_not_green_if_a_probe_without_rule_fails(tmp_path: Path) -> None:
    """A failing probe of no rule, too, keeps the badge from being green."""
    broken = tmp_path / "conformance"
    broken.mkdir()
    for path in (*SUITE.rglob("*.py"),):
        copy = broken / path.relative_to(SUITE)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8").replace("yield_(mode=mode)", "yield_(answers=7)"))
    badge = tmp_path / "badge.json"
    done = run(str(broken), "-k", "test_yield", f"--xenkvm-badge-json={badge}", cwd=tmp_path)
    assert done.returncode == 1
    drawn = json.loads(badge.read_text())
    assert drawn["color"] == "red"


def test_no_badge_is_green_if_nothing_was_judged(tmp_path: Path) -> None:
    """Probes that name no rule give no rules held."""
    badge = tmp_path / "badge.json"
    done = run(str(SUITE), "-k", "test_yield", f"--xenkvm-badge-json={badge}")
    assert done.returncode == 0
    drawn = json.loads(badge.read_text())
    assert "0/0" not in drawn["message"]
    assert "green" not in drawn["color"]


def test_a_rule_that_a_probe_doesnt_exercise_fails_it(tmp_path: Path) -> None:
    """A probe that names a rule must give it something to judge."""
    copy = tmp_path / "conformance"
    copy.mkdir()
    for path in SUITE.rglob("*.py"):
        target = copy / path.relative_to(SUITE)
        target.parent.mkdir(exist_ok=True)
        target.write_text(path.read_text(encoding="utf-8"))
    probe = copy / "test_nothing.py"
    probe.write_text(
        "import pytest\n"
        '@pytest.mark.xenkvm(rule="vcpu-id.new-is-unset")\n'
        "def test_nothing(new_vm):\n"
        '    """It does nothing."""\n'
        "    new_vm()\n"
    )
    done = run(str(probe), cwd=tmp_path)
    assert done.returncode == 1
    assert "rule vcpu-id.new-is-unset was not exercised by its probe: " in done.stdout


def test_scenarios_tell_where_a_host_differs() -> None:
    """A scenario of another kernel than the host's diverges with both sides in words."""
    code = (
        "from conformance.kit import scenarios; from pytest_xenkvm.trace.files import golden_folder\n"
        "print(len(scenarios.scenario_names()), golden_folder().name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "52 golden\n"


def test_no_such_host_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Xen support in the running kernel's KVM there is one sentence, not an error for each probe."""
    (tmp_path / "no_kvm.py").write_text(
        "from pytest_xenkvm.hosts.devkvm.host import DevKvmHost\n"
        "from pytest_xenkvm.hosts.protocol import HostError\n\n"
        "def _open():\n    raise HostError('no KVM here')\n\n"
        "DevKvmHost.open = _open\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    common = ("-p", "no_kvm", str(SUITE), "--xenkvm-host=kvm")
    done = run(*common)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.splitlines() == ["ERROR: no KVM here", ""], done.stdout
    workers = run(*common, "-n", "2")
    assert workers.returncode == pytest.ExitCode.USAGE_ERROR
    assert workers.stderr.splitlines() == ["ERROR: no KVM here", ""], workers.stdout
    assert "no KVM here" not in workers.stdout
    assert run(*common, "-n", "2", "--collect-only").returncode == 0

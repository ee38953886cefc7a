"""The conformance suite, and the tests of what drives and records /dev/kvm, on real kernels.

They take minutes: they run with XENKVM_REAL_KERNELS=1 in the environment, where test_real_kernel.py's do.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import pytest
from guests import needed, run

from pytest_xenkvm.core.profile import PROFILES

ROOT: Final = Path(__file__).parents[2]
SUITE: Final = ["--pyargs", "pytest_xenkvm.conformance", "-p", "no:cacheprovider", "--tb=short", "-q"]
REAL: Final = ["--xenkvm-host=kvm", "--junitxml=real.xml", "--assert=plain"]
"""Probes have no `assert` that pytest would have to rewrite, which takes an emulated CPU half a minute."""
PATIENCE: Final = 1200.0
"""Seconds: a minute or two, but on a machine that has other things to do."""

GUESTS: Final = 3
"""That may be started for one verdict."""

NEEDS_KVM: Final = ["tests/hosts/test_devkvm_real.py", "tests/record/test_record_lab.py"]
ENDS: Final = {
    "linux-6.12": {"passed", "failure"},
    "linux-7.2": {"passed", "failure", "skipped"},  # some scenarios were not recorded on it
    "linux-7.3": {"passed"},
}
"""How probes come out on each kernel."""

pytestmark = pytest.mark.skipif(
    os.environ.get("XENKVM_REAL_KERNELS") != "1",
    reason="takes minutes: XENKVM_REAL_KERNELS=1 judges real kernels",
)


def outcomes(junit: Path) -> dict[str, str]:
    """How each probe came out, by its name."""
    found = {}
    for case in ET.parse(junit).iter("testcase"):  # noqa: S314 - written by pytest just now
        ends = [child.tag for child in case if child.tag in {"failure", "error", "skipped"}]
        found[f"{case.get('classname')}::{case.get('name')}"] = ends[0] if ends else "passed"
    return found


def judged_for_real(kernel: str, folder: Path) -> tuple[dict[str, str], str]:
    """How the probes came out on a real kernel, and what was printed; no outcomes if the guest died."""
    done = run(
        folder,
        *("--kernel", kernel, "--out", "out", "--", "pytest", *SUITE),
        *REAL,
        timeout=PATIENCE,
    )
    ended = done.returncode in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}
    found = outcomes(folder / "out/real.xml") if ended else {}
    return found, f"{done.stdout}{done.stderr}exit status {done.returncode}"


@pytest.mark.parametrize("kernel", PROFILES)
def test_verdicts_are_those_of_the_emulated_core(kernel: str, tmp_path: Path) -> None:
    """Every probe comes out on a real kernel as on the emulated one of its profile; all were run.

    What differs is looked at again in another guest: on a busy machine an emulated one loses time, and
    QEMU's emulation of nested virtualisation has been seen to die.
    """
    needed(kernel)
    command = [
        sys.executable,
        "-m",
        "pytest",
        *SUITE,
        f"--xenkvm-profile={kernel}",
        "--junitxml=emulated.xml",
    ]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    expected = outcomes(tmp_path / "emulated.xml")
    assert set(expected.values()) == ENDS[kernel]
    found: dict[str, str] = {}
    differing, printed = expected, ""
    for _guest in range(GUESTS):
        seen, printed = judged_for_real(kernel, tmp_path)
        found |= {name: end for name, end in seen.items() if name in differing or name not in found}
        differing = {name: end for name, end in expected.items() if found.get(name) != end}
        if not differing:
            break
        print(printed[-4000:])  # noqa: T201 - shown if it goes on like this
    assert differing == {}, printed[-20_000:]
    assert found == expected


@pytest.mark.parametrize("kernel", PROFILES)
def test_the_host_kvm_and_the_recorder_on_a_real_kernel(kernel: str) -> None:
    """Their tests, which skip elsewhere, run and pass: goldens done and recorded again, live recordings.

    As above, what fails may be tried again.
    """
    needed(kernel)
    brought = [option for name in ("pyproject.toml", "tests", "traces") for option in ("--copy", name)]
    pytest_options = ["-q", "-rs", "-p", "no:cacheprovider", "--tb=short"]
    for _guest in range(GUESTS):
        done = run(
            ROOT,
            *("--kernel", kernel, *brought, "--", "pytest", *pytest_options, *NEEDS_KVM),
            timeout=PATIENCE,
        )
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    assert re.search(r"^\d+ passed in ", done.stdout, re.MULTILINE), done.stdout[-4000:]

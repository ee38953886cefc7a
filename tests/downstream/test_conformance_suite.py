"""The conformance suite as a user has it: from the wheel, in a folder with nothing in it."""

from __future__ import annotations

import re

from installing import ROOT, Shell


def test_the_wheel_brings_probes_and_scenarios(shell: Shell) -> None:
    """`--pyargs` finds both, and they judge the emulated kernels."""
    shell.install("pytest-xenkvm")
    suite = "pytest --pyargs pytest_xenkvm.conformance -q"
    output = shell.run(f"{suite} -k 'new_vcpu_has_no_id or compat-mode or runnable-flip'")
    assert re.search(r"^5 passed, \d+ deselected", output, re.MULTILINE), output
    output = shell.run(
        f"{suite} -k 'new_vcpu_has_no_id or compat-mode' --xenkvm-profile=linux-6.12", status=1
    )
    assert re.search(r"^3 failed, 1 passed, \d+ deselected", output, re.MULTILINE), output


def test_the_wheel_judges_in_a_checkout_too(shell: Shell) -> None:
    """Started in this project's own folder, the suite needs nothing that only the project's tests need."""
    shell.install("pytest-xenkvm")
    suite = "pytest --pyargs pytest_xenkvm.conformance -q -p no:cacheprovider"
    output = shell.run(f"cd '{ROOT}' && PYTHONDONTWRITEBYTECODE=1 {suite} -k new_vcpu_has_no_id")
    assert re.search(r"^3 passed, \d+ deselected", output, re.MULTILINE), output

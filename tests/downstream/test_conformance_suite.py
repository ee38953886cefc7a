"""The conformance suite as a user has it: from the wheel, in a folder with nothing in it."""

from __future__ import annotations

import re

from installing import Shell


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

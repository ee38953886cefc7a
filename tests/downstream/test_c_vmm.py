"""A VMM in C, by way of the adapter protocol: `make check` runs against the built wheel."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

import pytest
from installing import Shell

PROJECT: Final = Path(__file__).parent / "c-vmm"
SETS_ID: Final = "    if (vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &id))\n"


@pytest.mark.skipif(not (shutil.which("cc") and shutil.which("make")), reason="no C compiler, or no make")
def test_it_is_green_and_a_forgotten_id_is_found(shell: Shell) -> None:
    """`make check` passes; without an ID on vCPU 1 the rule that says so fails; what KVM refuses is shown."""
    shutil.copytree(PROJECT, shell.folder, dirs_exist_ok=True)
    shell.install("pytest-xenkvm")
    output = shell.run("make check")
    assert "replayed 2 traces: " in output
    assert "VMM under test: small VMM in C" in output
    assert " 0 violated, " in output

    source = shell.folder / "xen.c"
    text = source.read_text()
    assert SETS_ID in text
    source.write_text(text.replace(SETS_ID, SETS_ID.replace("if (", "if (vcpu == 0 && ")))
    output = shell.run("make check", status=2)
    assert "linux-boot.xkt::vcpu-id.set-before-timers" in re.findall(r"^FAILED (\S+)", output, re.MULTILINE)

    source.write_text(text.replace(".u.vcpu_id = vcpu", ".u.vcpu_id = -1"))
    output = shell.run("make check", status=2)
    assert "the VMM adapter ./vmm: exited with status 1 before it answered configure" in output
    assert "xen_set_up: Invalid argument" in output

"""The whole story: a VMM that forgets the Xen ID of vCPU 1, judged by the bundled rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., pytest.RunResult]

CONFTEST = """
import pytest
from pytest_xenkvm.vmm import Vmm
class Mine(Vmm):
    def configure(self, vm):
        vm.xen_hvm_config()
        for vcpu in vm.vcpus[:{served}]:
            vcpu.set_vcpu_id(vcpu.index)
@pytest.fixture
def xenkvm_vmm(): return Mine()
"""


def test_a_forgotten_id_is_red_and_setting_it_is_green(project: pytest.Pytester, run: Run) -> None:
    """The red test names the rule, the vCPU and the call; with the ID set, the same tests are green."""
    assert len(CONFTEST.strip().splitlines()) <= 10
    project.makeini("[pytest]\n")
    project.makeconftest(CONFTEST.format(served=1))
    result = run("--xenkvm-trace=@linux-boot", "-k", "vcpu-id")
    result.assert_outcomes(
        failed=1, passed=result.parseoutcomes()["passed"], skipped=result.parseoutcomes()["skipped"]
    )
    result.stdout.fnmatch_lines(
        [
            "*vcpu-id.set-before-timers of linux-boot.xkt*",
            "vcpu-id.set-before-timers (MUST): event * vCPU 1: VCPUOP_stop_singleshot_timer(vcpu=1) -> *",
            "  advice: *KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID*",
        ]
    )
    project.makeconftest(CONFTEST.format(served=""))
    assert run("linux-boot.xkt::vcpu-id.set-before-timers").parseoutcomes() == {"passed": 1}

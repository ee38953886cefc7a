"""Floor 3: VMM behaviours and what they hold in their hands. May import hosts and below."""

from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.hypercalls import UnseenMemory
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.vmm.behaviour import Vmm, VmmBehaviour
from pytest_xenkvm.vmm.functions import FunctionVmm
from pytest_xenkvm.vmm.handles import Route, RunstateInfo, TimerSetting, Vcpu, Vm
from pytest_xenkvm.vmm.snapshot import Refused, XenSnapshot, restore_snapshot, take_snapshot

__all__ = [
    "FunctionVmm",
    "KvmError",
    "Refused",
    "Route",
    "RunstateInfo",
    "TimerSetting",
    "UnseenMemory",
    "Vcpu",
    "Vm",
    "Vmm",
    "VmmBehaviour",
    "XenExit",
    "XenSnapshot",
    "restore_snapshot",
    "take_snapshot",
]

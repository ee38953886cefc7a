"""Names of the ABI's numbers as Xen's and Linux's public headers spell them, for people to read.

Only what `numbers` does not already name by its enums: prefixes, constants that guests pass inside
structures, and Linux's errno values (which Xen shares, and which must not depend on the machine at hand).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from attrs import frozen

from pytest_xenkvm.abi import numbers
from pytest_xenkvm.abi.numbers import Hypercall


class VmAssistCmd(IntEnum):
    """VMASST_CMD_*: the first argument of vm_assist."""

    enable = 0
    disable = 1


class ConsoleIo(IntEnum):
    """CONSOLEIO_*: the first argument of console_io."""

    write = 0
    read = 1


@frozen(kw_only=True)
class SubOps:
    """The sub-operations of a hypercall, which its first argument chooses.

    `truncated`: KVM compares only 32 bits of that argument.
    """

    prefix: str
    ops: type[IntEnum]
    truncated: bool = False

    def name(self, op: int) -> str | None:
        """Full name ("VCPUOP_up") of sub-operation `op`, None if there is none of that number."""
        known = op in self.ops.__members__.values()
        return self.prefix + self.ops(op).name.rstrip("_") if known else None

    def numbers(self) -> Mapping[str, int]:
        """Every full name with its number."""
        return {self.prefix + member.name.rstrip("_"): member.value for member in self.ops}


SUB_OPS: Final[Mapping[int, SubOps]] = {
    Hypercall.memory_op: SubOps(prefix="XENMEM_", ops=numbers.MemoryOp),
    Hypercall.xen_version: SubOps(prefix="XENVER_", ops=numbers.XenVer),
    Hypercall.console_io: SubOps(prefix="CONSOLEIO_", ops=ConsoleIo),
    Hypercall.grant_table_op: SubOps(prefix="GNTTABOP_", ops=numbers.GrantTableOp),
    Hypercall.vm_assist: SubOps(prefix="VMASST_CMD_", ops=VmAssistCmd),
    Hypercall.vcpu_op: SubOps(prefix="VCPUOP_", ops=numbers.VcpuOp, truncated=True),
    Hypercall.sched_op: SubOps(prefix="SCHEDOP_", ops=numbers.SchedOp, truncated=True),
    Hypercall.event_channel_op: SubOps(prefix="EVTCHNOP_", ops=numbers.EvtchnOp),
    Hypercall.physdev_op: SubOps(prefix="PHYSDEVOP_", ops=numbers.PhysdevOp),
    Hypercall.hvm_op: SubOps(prefix="HVMOP_", ops=numbers.HvmOp),
}

CAPS: Final[Mapping[int, str]] = {
    numbers.KVM_CAP_XEN_HVM: "KVM_CAP_XEN_HVM",
    numbers.KVM_CAP_MAX_VCPUS: "KVM_CAP_MAX_VCPUS",
}

DOMIDS: Final[Mapping[int, str]] = {0x7FF0: "DOMID_SELF"}

HVM_PARAMS: Final[Mapping[int, str]] = {
    0: "HVM_PARAM_CALLBACK_IRQ",
    1: "HVM_PARAM_STORE_PFN",
    2: "HVM_PARAM_STORE_EVTCHN",
    4: "HVM_PARAM_PAE_ENABLED",
    5: "HVM_PARAM_IOREQ_PFN",
    6: "HVM_PARAM_BUFIOREQ_PFN",
    10: "HVM_PARAM_TIMER_MODE",
    11: "HVM_PARAM_HPET_ENABLED",
    12: "HVM_PARAM_IDENT_PT",
    14: "HVM_PARAM_ACPI_S_STATE",
    15: "HVM_PARAM_VM86_TSS",
    16: "HVM_PARAM_VPT_ALIGN",
    17: "HVM_PARAM_CONSOLE_PFN",
    18: "HVM_PARAM_CONSOLE_EVTCHN",
    19: "HVM_PARAM_ACPI_IOPORTS_LOCATION",
}

VIRQS: Final[Mapping[int, str]] = {
    0: "VIRQ_TIMER",
    1: "VIRQ_DEBUG",
    2: "VIRQ_CONSOLE",
    3: "VIRQ_DOM_EXC",
    4: "VIRQ_TBUF",
    6: "VIRQ_DEBUGGER",
    7: "VIRQ_XENOPROF",
    8: "VIRQ_CON_RING",
    9: "VIRQ_PCPU_STATE",
    10: "VIRQ_MEM_EVENT",
    11: "VIRQ_ARGO",
    12: "VIRQ_ENOMEM",
}

MAP_SPACES: Final[Mapping[int, str]] = {
    0: "XENMAPSPACE_shared_info",
    1: "XENMAPSPACE_grant_table",
    2: "XENMAPSPACE_gmfn",
    3: "XENMAPSPACE_gmfn_range",
    4: "XENMAPSPACE_gmfn_foreign",
    5: "XENMAPSPACE_dev_mmio",
}

SHUTDOWN_REASONS: Final[Mapping[int, str]] = {
    0: "SHUTDOWN_poweroff",
    1: "SHUTDOWN_reboot",
    2: "SHUTDOWN_suspend",
    3: "SHUTDOWN_crash",
    4: "SHUTDOWN_watchdog",
    5: "SHUTDOWN_soft_reset",
}

VM_ASSIST_TYPES: Final[Mapping[int, str]] = {
    0: "VMASST_TYPE_4gb_segments",
    1: "VMASST_TYPE_4gb_segments_notify",
    2: "VMASST_TYPE_writable_pagetables",
    3: "VMASST_TYPE_pae_extended_cr3",
    4: "VMASST_TYPE_architectural_iopl",
    5: "VMASST_TYPE_runstate_update_flag",
}

SINGLESHOT_FLAGS: Final[Mapping[int, str]] = {1: "VCPU_SSHOTTMR_future"}

ERRNO: Final[Mapping[int, str]] = {
    1: "EPERM",
    2: "ENOENT",
    3: "ESRCH",
    4: "EINTR",
    5: "EIO",
    6: "ENXIO",
    7: "E2BIG",
    8: "ENOEXEC",
    9: "EBADF",
    10: "ECHILD",
    11: "EAGAIN",
    12: "ENOMEM",
    13: "EACCES",
    14: "EFAULT",
    15: "ENOTBLK",
    16: "EBUSY",
    17: "EEXIST",
    18: "EXDEV",
    19: "ENODEV",
    20: "ENOTDIR",
    21: "EISDIR",
    22: "EINVAL",
    23: "ENFILE",
    24: "EMFILE",
    25: "ENOTTY",
    26: "ETXTBSY",
    27: "EFBIG",
    28: "ENOSPC",
    29: "ESPIPE",
    30: "EROFS",
    31: "EMLINK",
    32: "EPIPE",
    33: "EDOM",
    34: "ERANGE",
    35: "EDEADLK",
    36: "ENAMETOOLONG",
    37: "ENOLCK",
    38: "ENOSYS",
    39: "ENOTEMPTY",
    40: "ELOOP",
    61: "ENODATA",
    62: "ETIME",
    71: "EPROTO",
    75: "EOVERFLOW",
    85: "ERESTART",
    90: "EMSGSIZE",
    95: "EOPNOTSUPP",
    105: "ENOBUFS",
    106: "EISCONN",
    107: "ENOTCONN",
    110: "ETIMEDOUT",
    numbers.KVM_ENOSYS: "KVM_ENOSYS",
}
"""Linux's errno values, and the one of KVM's own hypercall ABI."""

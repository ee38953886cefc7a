"""The numbers of KVM's Xen HVM interface and of the Xen hypercalls it looks at.

Source: the Linux UAPI headers `linux/kvm.h` and Xen's public headers, as listed in the ABI facts
(docs/reference/abi.md). Values never change once released, so they need no version.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

U32_MAX: Final = 0xFFFF_FFFF
U64_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF

PAGE_SIZE: Final = 4096
"""Bytes of a guest page."""

INVALID_GFN: Final = U64_MAX
INVALID_GPA: Final = U64_MAX
"""The frame number and guest physical address that switch a memory area off."""

XEN_VCPU_ID_INVALID: Final = U32_MAX
"""The Xen vCPU ID of a vCPU whose VMM has not set one (Linux 7.3, commit c10bd49bdcc9)."""

KVM_MAX_VCPUS_ALLOWED: Final = range(1024, 4097)
"""What CONFIG_KVM_MAX_NR_VCPUS can be set to: 1024 ... 4096."""

KVM_CAP_MAX_VCPUS: Final = 66
KVM_CAP_XEN_HVM: Final = 38

KVM_EXIT_XEN: Final = 34
KVM_EXIT_XEN_HCALL: Final = 1

KVM_IRQ_ROUTING_IRQCHIP: Final = 1
KVM_IRQ_ROUTING_MSI: Final = 2
KVM_IRQ_ROUTING_HV_SINT: Final = 4
KVM_IRQ_ROUTING_XEN_EVTCHN: Final = 5
KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL: Final = U32_MAX
"""The only event channel priority that KVM accepts."""

KVM_MAX_IRQ_ROUTES: Final = 4096

KVM_IRQFD_FLAG_DEASSIGN: Final = 1
KVM_IRQFD_FLAG_RESAMPLE: Final = 2

KVM_CLOCK_VALID_FLAGS: Final = 0b1110
"""KVM_CLOCK_TSC_STABLE, _REALTIME and _HOST_TSC: what KVM_GET_CLOCK returns and KVM_SET_CLOCK takes."""

XEN_LEGACY_MAX_VCPUS: Final = 32
"""vcpu_info structures that fit in the first half of shared_info."""


class XenHvmFlag(IntFlag):
    """Bits of KVM_CAP_XEN_HVM, some of which KVM_XEN_HVM_CONFIG takes as flags."""

    HYPERCALL_MSR = 1 << 0
    INTERCEPT_HCALL = 1 << 1
    SHARED_INFO = 1 << 2
    RUNSTATE = 1 << 3
    EVTCHN_2LEVEL = 1 << 4
    EVTCHN_SEND = 1 << 5
    RUNSTATE_UPDATE_FLAG = 1 << 6
    PVCLOCK_TSC_UNSTABLE = 1 << 7
    SHARED_INFO_HVA = 1 << 8


SETTABLE_HVM_FLAGS: Final = int(
    XenHvmFlag.INTERCEPT_HCALL | XenHvmFlag.EVTCHN_SEND | XenHvmFlag.PVCLOCK_TSC_UNSTABLE
)
"""What KVM_XEN_HVM_CONFIG.flags may hold (0xa2)."""

RUN_DELAY_HVM_FLAGS: Final = int(XenHvmFlag.RUNSTATE | XenHvmFlag.RUNSTATE_UPDATE_FLAG)
"""Offered only by hosts that keep scheduler run-delay figures."""


class HvmAttr(IntEnum):
    """KVM_XEN_ATTR_TYPE_*: attributes of a VM."""

    LONG_MODE = 0
    SHARED_INFO = 1
    UPCALL_VECTOR = 2
    EVTCHN = 3
    XEN_VERSION = 4
    RUNSTATE_UPDATE_FLAG = 5
    SHARED_INFO_HVA = 6


class VcpuAttr(IntEnum):
    """KVM_XEN_VCPU_ATTR_TYPE_*: attributes of a vCPU."""

    VCPU_INFO = 0
    VCPU_TIME_INFO = 1
    RUNSTATE_ADDR = 2
    RUNSTATE_CURRENT = 3
    RUNSTATE_DATA = 4
    RUNSTATE_ADJUST = 5
    VCPU_ID = 6
    TIMER = 7
    UPCALL_VECTOR = 8
    VCPU_INFO_HVA = 9


class EvtchnFlag(IntEnum):
    """KVM_XEN_EVTCHN_*: what an EVTCHN attribute does with an outbound port. Exact values, not a mask."""

    ASSIGN = 0
    DEASSIGN = 1
    UPDATE = 2
    RESET = 4


class EvtchnStat(IntEnum):
    """EVTCHNSTAT_*: the two port types that an EVTCHN attribute may assign."""

    INTERDOMAIN = 2
    IPI = 5


class Runstate(IntEnum):
    """RUNSTATE_*: where a vCPU's time goes."""

    RUNNING = 0
    RUNNABLE = 1
    BLOCKED = 2
    OFFLINE = 3


RUNSTATE_ADJUST_KEEP_STATE: Final = U64_MAX
"""In RUNSTATE_ADJUST: add the times, leave the state as it is."""

XEN_RUNSTATE_UPDATE: Final = 1 << 63
"""Bit of state_entry_time that is set in guest memory while the structure is being updated."""


class Hypercall(IntEnum):
    """__HYPERVISOR_*: hypercall numbers."""

    set_trap_table = 0
    mmu_update = 1
    set_gdt = 2
    stack_switch = 3
    set_callbacks = 4
    fpu_taskswitch = 5
    sched_op_compat = 6
    platform_op = 7
    set_debugreg = 8
    get_debugreg = 9
    update_descriptor = 10
    memory_op = 12
    multicall = 13
    update_va_mapping = 14
    set_timer_op = 15
    event_channel_op_compat = 16
    xen_version = 17
    console_io = 18
    physdev_op_compat = 19
    grant_table_op = 20
    vm_assist = 21
    update_va_mapping_otherdomain = 22
    iret = 23
    vcpu_op = 24
    set_segment_base = 25
    mmuext_op = 26
    xsm_op = 27
    nmi_op = 28
    sched_op = 29
    callback_op = 30
    xenoprof_op = 31
    event_channel_op = 32
    physdev_op = 33
    hvm_op = 34
    sysctl = 35
    domctl = 36
    kexec_op = 37
    tmem_op = 38
    argo_op = 39
    xenpmu_op = 40
    dm_op = 41
    hypfs_op = 42


class VcpuOp(IntEnum):
    """VCPUOP_*: sub-operations of vcpu_op."""

    initialise = 0
    up = 1
    down = 2
    is_up = 3
    get_runstate_info = 4
    register_runstate_memory_area = 5
    set_periodic_timer = 6
    stop_periodic_timer = 7
    set_singleshot_timer = 8
    stop_singleshot_timer = 9
    register_vcpu_info = 10
    send_nmi = 11
    get_physid = 12
    register_vcpu_time_memory_area = 13


class SchedOp(IntEnum):
    """SCHEDOP_*: sub-operations of sched_op."""

    yield_ = 0
    block = 1
    shutdown = 2
    poll = 3
    remote_shutdown = 4
    shutdown_code = 5
    watchdog = 6
    pin_override = 7


class EvtchnOp(IntEnum):
    """EVTCHNOP_*: sub-operations of event_channel_op."""

    bind_interdomain = 0
    bind_virq = 1
    bind_pirq = 2
    close = 3
    send = 4
    status = 5
    alloc_unbound = 6
    bind_ipi = 7
    bind_vcpu = 8
    unmask = 9
    reset = 10
    init_control = 11
    expand_array = 12
    set_priority = 13


class XenVer(IntEnum):
    """XENVER_*: sub-operations of xen_version."""

    version = 0
    extraversion = 1
    compile_info = 2
    capabilities = 3
    changeset = 4
    platform_parameters = 5
    get_features = 6
    pagesize = 7
    guest_handle = 8
    commandline = 9
    build_id = 10


class HvmOp(IntEnum):
    """HVMOP_*: sub-operations of hvm_op."""

    set_param = 0
    get_param = 1
    set_pci_intx_level = 2
    set_isa_irq_level = 3
    set_pci_link_route = 4
    flush_tlbs = 5
    track_dirty_vram = 6
    modified_memory = 7
    set_mem_type = 8
    pagetable_dying = 9
    get_time = 10
    xentrace = 11
    set_mem_access = 12
    get_mem_access = 13
    inject_trap = 14
    get_mem_type = 15
    set_evtchn_upcall_vector = 23
    guest_request_vm_event = 24
    altp2m = 25


class PhysdevOp(IntEnum):
    """PHYSDEVOP_*: sub-operations of physdev_op."""

    irq_status_query = 5
    set_iopl = 6
    set_iobitmap = 7
    apic_read = 8
    apic_write = 9
    alloc_irq_vector = 10
    eoi = 12
    map_pirq = 13
    unmap_pirq = 14
    manage_pci_add = 15
    manage_pci_remove = 16
    pirq_eoi_gmfn_v1 = 17
    get_nr_pirqs = 22
    get_free_pirq = 23
    pirq_eoi_gmfn_v2 = 28


class MemoryOp(IntEnum):
    """XENMEM_*: sub-operations of memory_op."""

    increase_reservation = 0
    decrease_reservation = 1
    maximum_ram_page = 2
    current_reservation = 3
    maximum_reservation = 4
    machphys_mfn_list = 5
    populate_physmap = 6
    add_to_physmap = 7
    memory_map = 9
    machine_memory_map = 10
    exchange = 11
    machphys_mapping = 12
    remove_from_physmap = 15
    add_to_physmap_batch = 23


class GrantTableOp(IntEnum):
    """GNTTABOP_*: sub-operations of grant_table_op."""

    map_grant_ref = 0
    unmap_grant_ref = 1
    setup_table = 2
    dump_table = 3
    transfer = 4
    copy = 5
    query_size = 6
    unmap_and_replace = 7
    set_version = 8
    get_status_frames = 9
    get_version = 10
    swap_grant_ref = 11
    cache_flush = 12


SCHED_POLL_MAX_PORTS: Final = 128
"""More ports in one SCHEDOP_poll are refused."""

KVM_HC_VAPIC_POLL_IRQ: Final = 1
KVM_HC_KICK_CPU: Final = 5
KVM_HC_SCHED_YIELD: Final = 11
KVM_ENOSYS: Final = 1000
KVM_EPERM: Final = 1
"""KVM's own hypercall ABI, which answers while INTERCEPT_HCALL is off."""

HV_STATUS_INVALID_HYPERCALL_CODE: Final = 2
HV_STATUS_INVALID_HYPERCALL_INPUT: Final = 3
"""Hyper-V's hypercall ABI, which answers numbers with bit 31 where it is enabled."""

FIRST_VALID_VECTOR: Final = 16
"""Upcall vectors below it belong to exceptions and are refused (0 switches off)."""

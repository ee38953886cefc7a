"""VM and vCPU attributes, capabilities and KVM_XEN_HVM_CONFIG where the goldens don't reach."""

from __future__ import annotations

from errno import EFAULT, EINVAL, ENOENT, ENXIO, EOPNOTSUPP

import pytest
from xen_vms import MSR, PAGE, SHARED_INFO, answer, changed, make_vm, observable, ready_vm, refusal

from pytest_xenkvm.abi.numbers import (
    INVALID_GFN,
    INVALID_GPA,
    KVM_CAP_MAX_VCPUS,
    KVM_CAP_XEN_HVM,
    U32_MAX,
    XEN_VCPU_ID_INVALID,
    HvmAttr,
    VcpuAttr,
)
from pytest_xenkvm.core.memory import HVA_BASE
from pytest_xenkvm.core.profile import LINUX_6_12, LINUX_7_2, LINUX_7_3, PROFILES, HostLimits, Profile
from pytest_xenkvm.core.state import HvmConfig
from pytest_xenkvm.core.vcpu_attrs import TimerSetting

each_profile = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
RUNSTATE_VCPU_ATTRS = (
    VcpuAttr.RUNSTATE_ADDR,
    VcpuAttr.RUNSTATE_CURRENT,
    VcpuAttr.RUNSTATE_DATA,
    VcpuAttr.RUNSTATE_ADJUST,
)
WITHOUT_RUN_DELAY = HostLimits(run_delay_info=False)


def test_the_capabilities_say_what_the_host_can() -> None:
    """KVM_CAP_XEN_HVM offers bits 0-8, KVM_CAP_MAX_VCPUS the host's limit; other capabilities are 0."""
    for limit in (1, 1024, 4096):
        assert make_vm(limits=HostLimits(max_vcpus=limit)).check_extension(KVM_CAP_MAX_VCPUS) == limit
    vm = make_vm()
    assert vm.check_extension(KVM_CAP_XEN_HVM) == 0x1FF
    assert vm.check_extension(KVM_CAP_XEN_HVM + 1) == 0


def test_without_run_delay_figures_runstate_is_not_offered() -> None:
    """A host without scheduler run-delay figures leaves out bits 3 and 6."""
    assert make_vm(limits=WITHOUT_RUN_DELAY).check_extension(KVM_CAP_XEN_HVM) == 0x1FF - (1 << 3) - (1 << 6)


@pytest.mark.parametrize("attr", RUNSTATE_VCPU_ATTRS)
def test_without_run_delay_figures_there_is_no_runstate(attr: VcpuAttr) -> None:
    """Such a host refuses every runstate attribute with -EOPNOTSUPP, changing nothing."""
    vm = make_vm(limits=WITHOUT_RUN_DELAY)
    (vcpu,) = vm.state.vcpus
    before = observable(vm)
    value = 0 if attr == VcpuAttr.RUNSTATE_ADDR else (0, 0, 0, 0, 0, 0)
    assert refusal(vm.set_vcpu_attr, vcpu, attr, value) == EOPNOTSUPP
    assert refusal(vm.get_vcpu_attr, vcpu, attr) == EOPNOTSUPP
    assert changed(before, observable(vm)) == set()


def test_without_run_delay_figures_there_is_no_update_flag() -> None:
    """Such a host refuses RUNSTATE_UPDATE_FLAG with -EOPNOTSUPP, both ways, and no other attribute."""
    vm = make_vm(limits=WITHOUT_RUN_DELAY)
    assert refusal(vm.set_attr, HvmAttr.RUNSTATE_UPDATE_FLAG, 1) == EOPNOTSUPP
    assert refusal(vm.get_attr, HvmAttr.RUNSTATE_UPDATE_FLAG) == EOPNOTSUPP
    others = set(HvmAttr) - {HvmAttr.RUNSTATE_UPDATE_FLAG, HvmAttr.EVTCHN}
    assert all(refusal(vm.get_attr, attr) == 0 for attr in others)


@pytest.mark.parametrize("attr", [7, 8, 0xFFFF])
def test_a_vm_attribute_that_does_not_exist(attr: int) -> None:
    """Unknown types of VM attributes are -ENOENT, set or read; EVTCHN can't be read."""
    vm = make_vm()
    assert (refusal(vm.set_attr, attr, None), refusal(vm.get_attr, attr)) == (ENOENT, ENOENT)
    assert refusal(vm.get_attr, HvmAttr.EVTCHN) == ENOENT


@pytest.mark.parametrize("attr", [10, 0xFFFF])
def test_a_vcpu_attribute_that_does_not_exist(attr: int) -> None:
    """Unknown types of vCPU attributes are -ENOENT; RUNSTATE_ADJUST can't be read (-EINVAL)."""
    vm = make_vm()
    (vcpu,) = vm.state.vcpus
    assert (refusal(vm.set_vcpu_attr, vcpu, attr, None), refusal(vm.get_vcpu_attr, vcpu, attr)) == (
        ENOENT,
        ENOENT,
    )
    assert refusal(vm.get_vcpu_attr, vcpu, VcpuAttr.RUNSTATE_ADJUST) == EINVAL


@pytest.mark.parametrize(
    ("profile", "unset"), [(LINUX_6_12, 0), (LINUX_7_2, 0), (LINUX_7_3, XEN_VCPU_ID_INVALID)]
)
def test_every_new_vcpu_has_the_unset_id(profile: Profile, unset: int) -> None:
    """An ID that was never set is 0 before Linux 7.3, whatever the index, and the sentinel from then."""
    vm = make_vm(profile, vcpu_ids=(0, 5, 2))
    assert [vm.get_vcpu_attr(vcpu, VcpuAttr.VCPU_ID) for vcpu in vm.state.vcpus] == [unset] * 3


@each_profile
@pytest.mark.parametrize("limit", [1, 1024, 4096, U32_MAX])
def test_an_id_is_below_kvm_max_vcpus(profile: Profile, limit: int) -> None:
    """IDs 0 ... KVM_MAX_VCPUS-1 are accepted; others are -EINVAL and leave the old ID, even the sentinel."""
    vm = make_vm(profile, limits=HostLimits(max_vcpus=limit))
    (vcpu,) = vm.state.vcpus
    for accepted in (0, limit - 1):
        vm.set_vcpu_attr(vcpu, VcpuAttr.VCPU_ID, accepted)
        for refused in (limit, XEN_VCPU_ID_INVALID):
            assert refusal(vm.set_vcpu_attr, vcpu, VcpuAttr.VCPU_ID, refused) == EINVAL
        assert vm.get_vcpu_attr(vcpu, VcpuAttr.VCPU_ID) == accepted


def test_an_unset_id_cannot_be_written_back() -> None:
    """Writing back an unset ID, as a migration does, is -EINVAL from Linux 7.3; before, it was accepted."""
    answers = []
    for profile in PROFILES.values():
        vm = make_vm(profile)
        (vcpu,) = vm.state.vcpus
        unset = vm.get_vcpu_attr(vcpu, VcpuAttr.VCPU_ID)
        answers.append(refusal(vm.set_vcpu_attr, vcpu, VcpuAttr.VCPU_ID, unset))
    assert answers == [0, 0, EINVAL]


@pytest.mark.parametrize(
    ("profile", "address", "errno"),
    [
        (LINUX_6_12, PAGE, 0),
        (LINUX_6_12, PAGE + 4, 0),
        (LINUX_6_12, PAGE + 1, ENXIO),
        (LINUX_6_12, PAGE - 62, ENXIO),
        (LINUX_7_2, PAGE + 1, 0),
        (LINUX_7_3, PAGE + 1, 0),
        (LINUX_7_3, PAGE - 62, EINVAL),
    ],
)
def test_vcpu_info_alignment(profile: Profile, address: int, errno: int) -> None:
    """6.12 asks for 4-byte alignment before it looks for a page crossing; later kernels take any address."""
    vm = make_vm(profile)
    (vcpu,) = vm.state.vcpus
    assert refusal(vm.set_vcpu_attr, vcpu, VcpuAttr.VCPU_INFO, address) == errno
    assert refusal(vm.set_vcpu_attr, vcpu, VcpuAttr.VCPU_INFO_HVA, HVA_BASE + address) == errno


@pytest.mark.parametrize(
    ("profile", "msr", "errno"),
    [
        (LINUX_6_12, 1, 0),
        (LINUX_6_12, U32_MAX, 0),
        (LINUX_7_2, 0, 0),
        (LINUX_7_2, 0x3FFF_FFFF, EINVAL),
        (LINUX_7_2, 0x4000_0000, 0),
        (LINUX_7_2, 0x4FFF_FFFF, 0),
        (LINUX_7_3, 0x5000_0000, EINVAL),
        (LINUX_7_3, U32_MAX, EINVAL),
    ],
)
def test_the_range_of_the_hypercall_msr(profile: Profile, msr: int, errno: int) -> None:
    """From 7.2 a non-zero hypercall MSR must be in the hypervisor range; a refused one changes nothing."""
    vm = make_vm(profile)
    assert refusal(vm.configure, HvmConfig(msr=msr)) == errno
    assert vm.state.config.msr == (0 if errno else msr)


@pytest.mark.parametrize(
    "blob",
    [
        HvmConfig(flags=2, msr=MSR, blob_addr_32=1),
        HvmConfig(flags=2, msr=MSR, blob_addr_64=1),
        HvmConfig(flags=2, msr=MSR, blob_size_32=1),
        HvmConfig(flags=2, msr=MSR, blob_size_64=1),
    ],
)
def test_an_intercepting_vm_has_no_blob(blob: HvmConfig) -> None:
    """INTERCEPT_HCALL together with any blob field is -EINVAL, and the old configuration stays."""
    vm = make_vm()
    vm.configure(HvmConfig(msr=MSR))
    assert refusal(vm.configure, blob) == EINVAL
    assert vm.state.config == HvmConfig(msr=MSR)


@pytest.mark.parametrize("vector", [0, 1, 15, 16, 255])
def test_exception_vectors_are_refused(vector: int) -> None:
    """Upcall vectors 1 ... 15 are -EINVAL and leave the old one, for a VM and for a vCPU; 0 switches off."""
    vm = make_vm()
    (vcpu,) = vm.state.vcpus
    vm.set_attr(HvmAttr.UPCALL_VECTOR, 0x40)
    vm.set_vcpu_attr(vcpu, VcpuAttr.UPCALL_VECTOR, 0x41)
    errno = EINVAL if 0 < vector < 16 else 0
    assert refusal(vm.set_attr, HvmAttr.UPCALL_VECTOR, vector) == errno
    assert refusal(vm.set_vcpu_attr, vcpu, VcpuAttr.UPCALL_VECTOR, vector) == errno
    assert vm.get_attr(HvmAttr.UPCALL_VECTOR) == (0x40 if errno else vector)
    assert vm.get_vcpu_attr(vcpu, VcpuAttr.UPCALL_VECTOR) == (0x41 if errno else vector)


def test_shared_info_shows_how_it_was_given() -> None:
    """By frame number only SHARED_INFO shows it, by host address only SHARED_INFO_HVA; off, neither does."""
    vm = make_vm()

    def shown() -> tuple[int, int]:
        return vm.get_attr(HvmAttr.SHARED_INFO), vm.get_attr(HvmAttr.SHARED_INFO_HVA)

    assert shown() == (INVALID_GFN, 0)
    vm.set_attr(HvmAttr.SHARED_INFO, 1)
    assert shown() == (1, 0)
    vm.set_attr(HvmAttr.SHARED_INFO_HVA, HVA_BASE + PAGE)
    assert shown() == (INVALID_GFN, HVA_BASE + PAGE)
    vm.set_attr(HvmAttr.SHARED_INFO_HVA, 0)
    assert shown() == (INVALID_GFN, 0)
    vm.set_attr(HvmAttr.SHARED_INFO, 1)
    vm.set_attr(HvmAttr.SHARED_INFO, INVALID_GFN)
    assert shown() == (INVALID_GFN, 0)


def test_a_refused_shared_info_is_remembered() -> None:
    """Without memory there SHARED_INFO is -EFAULT but shown; LONG_MODE then is -EFAULT too, yet switches."""
    vm = make_vm()
    assert refusal(vm.set_attr, HvmAttr.SHARED_INFO, 999) == EFAULT
    assert vm.get_attr(HvmAttr.SHARED_INFO) == 999
    assert refusal(vm.set_attr, HvmAttr.LONG_MODE, 1) == EFAULT
    assert vm.get_attr(HvmAttr.LONG_MODE) == 1


@pytest.mark.parametrize(("long_mode", "wall_clock", "sec_hi"), [(0, 0x900, 0x924), (1, 0xC00, 0xC0C)])
def test_the_wall_clock_is_where_the_layout_has_it(long_mode: int, wall_clock: int, sec_hi: int) -> None:
    """The time at which the VM's clock was 0 is split into seconds, their upper half and ns."""
    vm = make_vm()
    vm.state.boot_time_ns = ((7 << 32) + 5) * 1_000_000_000 + 9
    vm.set_attr(HvmAttr.LONG_MODE, long_mode)
    vm.set_attr(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE)
    memory = vm.state.memory
    assert memory.read(SHARED_INFO + wall_clock, 12) == b"".join(n.to_bytes(4, "little") for n in (2, 5, 9))
    assert memory.read(SHARED_INFO + sec_hi, 4) == (7).to_bytes(4, "little")


def test_areas_in_different_slots() -> None:
    """Areas are found in whichever slot holds them, and not in the hole between two."""
    vm = make_vm(slots=((0, PAGE), (2 * PAGE, PAGE), (3 * PAGE, PAGE)))
    (vcpu,) = vm.state.vcpus
    vm.set_attr(HvmAttr.SHARED_INFO, 2)
    vm.set_vcpu_attr(vcpu, VcpuAttr.VCPU_INFO, 3 * PAGE)
    assert refusal(vm.set_vcpu_attr, vcpu, VcpuAttr.VCPU_TIME_INFO, PAGE) == EFAULT
    assert vm.get_vcpu_attr(vcpu, VcpuAttr.VCPU_TIME_INFO) == PAGE
    vm.set_vcpu_attr(vcpu, VcpuAttr.VCPU_TIME_INFO, 0)
    vm.advance(77)
    vm.enter(vcpu)
    assert vm.state.memory.read(16, 8) == (77).to_bytes(8, "little")
    assert vm.state.memory.read(3 * PAGE + 32 + 16, 8) == (77).to_bytes(8, "little")


def test_an_area_that_was_switched_off_shows_the_invalid_address() -> None:
    """INVALID_GPA, and 0 as a host address, switch vCPU areas off; RUNSTATE_ADDR then is -ENOENT."""
    vm = ready_vm()
    (vcpu,) = vm.state.vcpus
    for attr in (VcpuAttr.VCPU_INFO, VcpuAttr.VCPU_TIME_INFO, VcpuAttr.RUNSTATE_ADDR):
        vm.set_vcpu_attr(vcpu, attr, 5 * PAGE)
        assert vm.get_vcpu_attr(vcpu, attr) == 5 * PAGE
        vm.set_vcpu_attr(vcpu, attr, INVALID_GPA)
        gone = f"-{ENOENT}" if attr == VcpuAttr.RUNSTATE_ADDR else INVALID_GPA
        assert answer(vm.get_vcpu_attr, vcpu, attr) == gone
    vm.set_vcpu_attr(vcpu, VcpuAttr.VCPU_INFO_HVA, HVA_BASE)
    vm.set_vcpu_attr(vcpu, VcpuAttr.VCPU_INFO_HVA, 0)
    assert vm.get_vcpu_attr(vcpu, VcpuAttr.VCPU_INFO_HVA) == 0


def test_the_timer_attribute_comes_back() -> None:
    """A timer that runs is read as it was set, and a bad priority with a port changes nothing."""
    vm = ready_vm()
    (vcpu,) = vm.state.vcpus
    running = TimerSetting(port=5, expires_ns=1000)
    vm.set_vcpu_attr(vcpu, VcpuAttr.TIMER, running)
    assert vm.get_vcpu_attr(vcpu, VcpuAttr.TIMER) == running
    assert refusal(vm.set_vcpu_attr, vcpu, VcpuAttr.TIMER, TimerSetting(port=6, priority=0)) == EINVAL
    assert vm.get_vcpu_attr(vcpu, VcpuAttr.TIMER) == running
    vm.set_vcpu_attr(vcpu, VcpuAttr.TIMER, TimerSetting(port=0, priority=0, expires_ns=5))
    assert vm.get_vcpu_attr(vcpu, VcpuAttr.TIMER) == TimerSetting(port=0)

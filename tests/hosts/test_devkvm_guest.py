"""The guest that runs on a real KVM: its code, its CPU states, and what a recording shows behind pointers."""

from __future__ import annotations

import errno
import signal
import struct
import threading
from itertools import chain

import pytest
from fake_kvm import FakeKvm

from pytest_xenkvm.abi import kvm
from pytest_xenkvm.abi.numbers import KVM_EXIT_XEN
from pytest_xenkvm.core.memory import GuestMemory
from pytest_xenkvm.cpu import paging
from pytest_xenkvm.hosts.devkvm import guest_code
from pytest_xenkvm.hosts.devkvm.behind import shown
from pytest_xenkvm.hosts.devkvm.bounded import at_most
from pytest_xenkvm.hosts.devkvm.creation import VmCreator
from pytest_xenkvm.hosts.devkvm.vcpu import FLAGS, sregs_bytes
from pytest_xenkvm.hosts.devkvm.vm import DevKvmVm
from pytest_xenkvm.hosts.devkvm.xen_switch import SwitchUse, XenSwitch
from pytest_xenkvm.hosts.guest_image import HANDLERS_32, HANDLERS_64, GuestImage, Mode
from pytest_xenkvm.hosts.protocol import GuestCall, HostError
from pytest_xenkvm.trace.events import MemorySlot, VcpuShape, VmShape

MEMORY = 4 << 20
SHAPE = VmShape(irqchip="split", memory=(MemorySlot(gpa=0, size=MEMORY),), vcpus=(VcpuShape(index=0, id=0),))
ARGS = (0x11, 0x22, 0x33, 0x44, 0x55, 0x66)


@pytest.fixture
def kernel() -> FakeKvm:
    """KVM's stand-in."""
    return FakeKvm()


@pytest.fixture
def vm(kernel: FakeKvm) -> DevKvmVm:
    """A VM with one vCPU on it."""
    return VmCreator(kernel, 100, "amd").create(SHAPE)


def image(*slots: tuple[int, int]) -> GuestImage:
    """The guest's memory for a VM with these slots (guest address, size)."""
    memory = GuestMemory([(gpa, bytearray(size)) for gpa, size in slots])
    return GuestImage.build(
        memory.slots, guest_code.code(b"\x0f\x01\xd9", has_local_apic=True), highest=0x80_0000
    )


@pytest.mark.parametrize("handlers", [HANDLERS_64, HANDLERS_32])
def test_a_handlers_address_tells_its_vector(handlers: int) -> None:
    """Wherever in a handler the guest stops, its vector is known; elsewhere there is none."""
    places = chain.from_iterable(
        (handlers + vector * 16, handlers + vector * 16 + 15) for vector in range(256)
    )
    assert [guest_code.vector_at(place) for place in places] == [v for v in range(256) for _ in range(2)]
    assert guest_code.vector_at(guest_code.IDLE) is None


@pytest.mark.parametrize(("has_local_apic", "size_64", "size_32"), [(True, 11, 7), (False, 2, 2)])
def test_handlers_send_eoi_where_there_is_a_local_apic(
    *, has_local_apic: bool, size_64: int, size_32: int
) -> None:
    """An interrupt's handler stores to EOI before it stops, an exception's doesn't."""
    code = dict(guest_code.code(b"\x0f\x01\xd9", has_local_apic=has_local_apic))
    assert len(code[HANDLERS_64 + 0x55 * 16]) == size_64
    assert len(code[HANDLERS_32 + 0x55 * 16]) == size_32
    assert code[HANDLERS_64 + 13 * 16] == code[HANDLERS_32 + 13 * 16] == b"\xe6\xe8"
    if has_local_apic:
        assert code[HANDLERS_64 + 0x55 * 16][1:9] == (0xFEE000B0).to_bytes(8, "little")


def test_no_stub_begins_with_the_exit() -> None:
    """KVM would step over an `out` that a run begins at, so that the guest ran on."""
    stubs = dict(guest_code.code(b"\x0f\x01\xd9", has_local_apic=True))
    starts = (
        guest_code.SETTLE,
        guest_code.HYPERCALL,
        guest_code.CALL_PAGE,
        guest_code.WRMSR,
        guest_code.IDLE,
    )
    assert all(
        not stubs[start].startswith(b"\xe6") and stubs[start].endswith(b"\xe6\xe8") for start in starts
    )


@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize("mode", Mode)
def test_cpu_states_are_packed_as_kvm_has_them(mode: Mode, cpl: int) -> None:
    """Code segment, privilege level, control registers and EFER stand where KVM_SET_SREGS looks for them."""
    state = image((0, MEMORY)).state(mode, cpl)
    packed = sregs_bytes(state, 0xFEE0_0900, "amd")
    assert len(packed) == kvm.SREGS_SIZE
    base, limit, selector, _type, present, dpl, db, _s, long, _g, _avl, unusable = kvm.SEGMENT.unpack_from(
        packed
    )
    assert (base, limit, selector, present, dpl, unusable) == (0, 0xFFFFFFFF, state.cs.selector, 1, cpl, 0)
    assert (db, long) == ((0, 1) if mode is Mode.LONG else (1, 0))
    cr0, _cr2, cr3, cr4, _cr8, efer, apic_base = struct.unpack_from("<7Q", packed, kvm.SREGS_SIZE - 32 - 56)
    assert (cr0, cr3, cr4, efer, apic_base) == (state.cr0, state.cr3, state.cr4, state.efer, 0xFEE0_0900)


@pytest.mark.parametrize(("vendor", "type_"), [("amd", 0x9), ("intel", 0xB)])
def test_the_task_segment_suits_the_vendor(vendor: str, type_: int) -> None:
    """VMX wants it busy; QEMU's TCG, as AMD's CPU, must not see that."""
    packed = sregs_bytes(image((0, MEMORY)).state(Mode.LONG, 0), 0, vendor)
    assert kvm.SEGMENT.unpack_from(packed, 6 * kvm.SEGMENT.size)[3] == type_


@pytest.mark.parametrize("slots", [((0, MEMORY),), ((0, 0x80_0000), (0xA0_0000, MEMORY))])
def test_the_guests_own_memory_is_where_the_trace_has_none(slots: tuple[tuple[int, int], ...]) -> None:
    """The image lies at the same physical and linear address, outside all slots and below 4 GiB."""
    found = image(*slots)
    assert found.physical == found.window < 1 << 32
    assert all(found.window + (2 << 20) <= gpa or gpa + size <= found.window for gpa, size in slots)


@pytest.mark.parametrize("address", [0xFFFF_8880_1234_5FF8, 0x1234_5FF8, 0x7FFF_0000_0FFC, 0xFFF8])
@pytest.mark.parametrize("mode", Mode)
def test_what_a_recording_shows_is_mapped_for_a_while(mode: Mode, address: int) -> None:
    """The bytes behind an argument, over a page's end too, are found by the page tables, then no more."""
    guest, data = image((0, MEMORY)), bytes(range(1, 17))
    state = guest.state(mode, 0)
    call = GuestCall(
        nr=0, args=(address, 0, 0, 0, 0, 0), longmode=mode is Mode.LONG, cpl=0, compat=mode is Mode.COMPAT,
        behind=[(0, data)],
    )  # fmt: skip
    linear = address if mode is Mode.LONG else address & 0xFFFF_FFFF

    def read() -> list[int | None]:
        return [paging.translate(state, linear + index, guest.read_physical) for index in range(len(data))]

    before, tables = read(), bytes(guest.memory[:0xB000])
    with shown(guest, call):
        places = read()
        found = [None if at is None else guest.read_physical(at, 1) for at in places]
        assert b"".join(byte or b"?" for byte in found) == data
    assert read() == before
    assert bytes(guest.memory[:0xB000]) == tables


def test_pages_beside_what_is_shown_stay(vm: DevKvmVm) -> None:
    """Where the guest's memory is mapped already, all but the pages that hold the bytes stays mapped."""
    guest = vm.vcpus[0].image
    state = guest.state(Mode.LONG, 0)
    call = GuestCall(nr=0, args=(0x5000, *ARGS[1:]), longmode=True, cpl=0, behind=[(0, b"seen")])
    with shown(guest, call):
        assert paging.translate(state, 0x6123, guest.read_physical) == 0x6123
        assert paging.translate(state, 0x5000, guest.read_physical) != 0x5000


def test_more_memory_than_there_is_room_for_is_refused(vm: DevKvmVm) -> None:
    """A trace's bytes are bounded by the image, in words."""
    call = GuestCall(nr=0, args=ARGS, longmode=True, cpl=0, behind=[(0, bytes(1 << 20))])
    with pytest.raises(HostError, match="more memory behind its arguments"), shown(vm.vcpus[0].image, call):
        pass


def registers(run: object) -> tuple[int, ...]:
    """RAX ... R15, RIP, RFLAGS as the VMM handed them in."""
    return kvm.REGS.unpack_from(run, kvm.RUN_REGS_AT)  # type: ignore[arg-type]


@pytest.mark.parametrize("longmode", [True, False])
def test_arguments_are_in_the_registers_of_the_mode(kernel: FakeKvm, vm: DevKvmVm, *, longmode: bool) -> None:
    """64-bit calls use RDI, RSI, RDX, R10, R8, R9; 32-bit ones EBX, ECX, EDX, ESI, EDI, EBP."""
    vm.hypercall(0, GuestCall(nr=7, args=ARGS, longmode=longmode, cpl=0))
    rax, rbx, rcx, rdx, rsi, rdi, _rsp, rbp, r8, r9, r10, *_rest, rip, flags = registers(kernel.runs[103])
    made = (rdi, rsi, rdx, r10, r8, r9) if longmode else (rbx, rcx, rdx, rsi, rdi, rbp)
    assert (rax, made, flags) == (7, ARGS, FLAGS)
    assert rip == vm.vcpus[0].image.at(guest_code.HYPERCALL)


def test_a_forwarded_call_is_answered(kernel: FakeKvm, vm: DevKvmVm) -> None:
    """KVM_EXIT_XEN becomes the exit, and the VMM's answer stands where the kernel looks for it."""

    def forward(run: object) -> int:
        kvm.RUN_XEN.pack_into(run, 0, 1, 1, 3, 7, 0, *ARGS)  # type: ignore[arg-type]
        kvm.RUN_EXIT_REASON.pack_into(run, 0, KVM_EXIT_XEN)  # type: ignore[arg-type]
        return 0

    vm.run(0)
    cpu = vm.vcpus[0]
    kernel.on_run = forward
    cpu.hypercall(GuestCall(nr=7, args=ARGS, longmode=True, cpl=3), None, interruptible=False)
    exit_ = cpu.xen_exit()
    assert exit_ is not None
    assert (exit_.type, exit_.longmode, exit_.cpl, exit_.input, exit_.params) == (1, 1, 3, 7, ARGS)
    kernel.on_run = None
    cpu.answer(-38, moved=False)
    assert bytes(cpu.run[56:64]) == (2**64 - 38).to_bytes(8, "little")
    kvm.RUN_SYNC.pack_into(cpu.run, kvm.RUN_SYNC_AT, 0, 0)
    cpu.answer(5, moved=True)
    assert cpu.rip == cpu.image.at(guest_code.IDLE)
    assert kvm.RUN_SYNC.unpack_from(cpu.run, kvm.RUN_SYNC_AT) == (kvm.SYNC_REGS, kvm.SYNC_REGS)


def test_a_slot_more(kernel: FakeKvm, vm: DevKvmVm) -> None:
    """A new slot is given to KVM and is memory from then on; a refused one is a HostError and isn't."""
    vm.add_memory(1 << 30, 8192)
    assert kernel.slots[-1] == (1 << 30, 8192)
    assert vm.read_memory(1 << 30, 8192) == bytes(8192)
    kernel.refused[kvm.KVM_SET_USER_MEMORY_REGION] = errno.EEXIST
    with pytest.raises(HostError, match=r"slot of 4096 bytes at 0x50000000 with errno 17"):
        vm.add_memory(0x5000_0000, 4096)
    assert vm.read_memory(0x5000_0000, 1) is None


def test_a_slot_that_goes(kernel: FakeKvm, vm: DevKvmVm) -> None:
    """A slot that was added can be deleted, and its number isn't used again; another one is a HostError."""
    vm.add_memory(1 << 30, 4096)
    vm.remove_memory(1 << 30)
    assert kernel.slots[-1] == (1 << 30, 0)
    assert vm.read_memory(1 << 30, 1) is None
    vm.add_memory(1 << 30, 4096)
    (first, _), (deleted, _), (second, _) = kernel.slot_numbers[-3:]
    assert first == deleted != second
    for gpa in (0, 2 << 30):
        with pytest.raises(HostError, match=f"no memory slot was added at {gpa:#x}"):
            vm.remove_memory(gpa)
    kernel.refused[kvm.KVM_SET_USER_MEMORY_REGION] = errno.EINVAL
    with pytest.raises(HostError, match="doesn't delete the slot at 0x40000000: errno 22"):
        vm.remove_memory(1 << 30)


def test_a_slots_dirty_pages(kernel: FakeKvm, vm: DevKvmVm) -> None:
    """A bit of KVM_GET_DIRTY_LOG is a page of the slot; a slot without a log is a HostError."""
    vm.add_memory(1 << 30, 66 * 4096, log_dirty=True)
    assert kernel.slot_numbers[-1][1] == kvm.MEM_LOG_DIRTY_PAGES
    kernel.dirty_bitmap = b"\x05" + bytes(7) + b"\x02" + bytes(7)
    assert vm.dirty_log(1 << 30) == {1 << 30, (1 << 30) + 2 * 4096, (1 << 30) + 65 * 4096}
    kernel.refused[kvm.KVM_GET_DIRTY_LOG] = errno.ENOENT
    with pytest.raises(HostError, match="slot at 0x40000000 keeps no log of dirty pages: errno 2"):
        vm.dirty_log(1 << 30)


def test_hyper_v(kernel: FakeKvm, vm: DevKvmVm) -> None:
    """Hyper-V's leaves replace KVM's own beside the CPU's, and its guest is known; without it: HostError."""
    kernel.cpuid = [(0, 0, 0, 13, 1, 2, 3), (0x4000_0000, 0, 0, 9, 9, 9, 9), (0x4000_0001, 0, 0, 9, 0, 0, 0)]
    vm.enable_hyper_v()
    vendor = tuple(int.from_bytes(part, "little") for part in (b"Micr", b"osof", b"t Hv"))
    assert kernel.cpuid == [
        (0, 0, 0, 13, 1, 2, 3),
        (0x4000_0000, 0, 0, 0x4000_0001, *vendor),
        (0x4000_0001, 0, 0, 0x3123_7648, 0, 0, 0),
    ]
    assert kernel.msrs == {0x4000_0000: 1}
    kernel.msrs_written = 0
    with pytest.raises(HostError, match="doesn't know Hyper-V's MSRs"):
        vm.enable_hyper_v()
    kernel.refused[kvm.KVM_SET_CPUID2] = errno.EINVAL
    with pytest.raises(HostError, match="refused Hyper-V's CPUID leaves with errno 22"):
        vm.enable_hyper_v()


def test_a_signal_doesnt_end_an_event(kernel: FakeKvm, vm: DevKvmVm) -> None:
    """KVM_RUN that a signal ended goes on, without handing registers in again."""
    kernel.interruptions = 3
    vm.run(0)
    assert kernel.requests().count(kvm.KVM_RUN) == 4


def test_a_guest_that_does_something_else_is_lost(kernel: FakeKvm, vm: DevKvmVm) -> None:
    """An exit that the guest's code can't cause is told with the vCPU and the reason."""

    def shut_down(run: object) -> int:
        kvm.RUN_EXIT_REASON.pack_into(run, 0, 8)  # type: ignore[arg-type]
        return 0

    kernel.on_run = shut_down
    with pytest.raises(HostError, match=r"vCPU 0 is lost: KVM_RUN ended with shutdown \(triple fault\)"):
        vm.run(0)


def test_a_failing_run_is_an_outcome_of_wrmsr_only(kernel: FakeKvm, vm: DevKvmVm) -> None:
    """KVM_RUN's errno is what became of a WRMSR; anywhere else the host can't go on."""
    outcomes = iter([0, -errno.EFAULT])

    def fail(run: object) -> int:
        kvm.RUN_EXIT_REASON.pack_into(run, 0, kvm.EXIT_IO)  # type: ignore[arg-type]
        return next(outcomes, -errno.EFAULT)

    kernel.on_run = fail
    outcome = vm.wrmsr(0, 0x40000000, 0, longmode=True)
    assert (outcome.ok, outcome.run_ret) == (False, -errno.EFAULT)
    with pytest.raises(HostError, match="KVM_RUN of vCPU 0 failed with errno 14"):
        vm.run(0)


def test_a_call_that_never_returns_is_ended(kernel: FakeKvm, vm: DevKvmVm) -> None:
    """A signal that only KVM_RUN lets through ends it, in any thread, and leaves nothing behind."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    cpu = vm.vcpus[0]

    def block(_run: object) -> int:
        signal.sigwaitinfo({signal.SIGRTMAX - 3})
        signal.pthread_kill(threading.get_ident(), signal.SIGRTMAX - 3)  # KVM leaves it pending
        return -errno.EINTR

    kernel.on_run = block
    results: list[int] = []

    def run() -> None:
        with at_most(0.05, cpu):
            results.append(cpu.go_on())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    run()
    assert results == [-errno.EINTR, -errno.EINTR]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert not signal.sigpending()


def test_a_vm_without_msr_waits_for_the_switch_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a VM that could notice waits, until a second after the last one gave up its hypercall MSR."""
    slept: list[float] = []
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    monkeypatch.setattr("time.sleep", slept.append)
    switch = XenSwitch()
    first, second = SwitchUse(switch), SwitchUse(switch)
    first.configured(0x40000000)
    second.listens = True
    second.before_entry()  # the switch is another VM's, and stays on: nothing to wait for
    first.configured(0)
    first.before_entry()
    assert slept == []
    second.before_entry()
    assert 1.0 < slept[0] < 2.0

"""Guest programs: whole programs against the core, in the modes and at the levels that x86 has."""

from __future__ import annotations

import gc
import struct
import weakref
from pathlib import Path

import pytest
from program_vms import PORT, SHARED_INFO, START, VECTOR, answer, create

from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.hosts.assembler import assemble, is_installed
from pytest_xenkvm.hosts.guest_image import Mode
from pytest_xenkvm.hosts.guest_program import Ended
from pytest_xenkvm.hosts.unicorn_host import UnicornHost
from pytest_xenkvm.replay.vmm import vmm_replay
from pytest_xenkvm.trace import open_trace, write_trace
from pytest_xenkvm.trace.events import Hypercall
from pytest_xenkvm.vmm.behaviour import Vmm
from pytest_xenkvm.vmm.handles import Vm

needs_assembler = pytest.mark.skipif(not is_installed(), reason="no GNU binutils")

SINGLESHOT_64 = f"""
    lidt [idtr]
    lea rax, [handler]          # an interrupt gate for the upcall vector
    mov word ptr [idt + 16 * {VECTOR}], ax
    mov word ptr [idt + 16 * {VECTOR} + 2], cs
    mov word ptr [idt + 16 * {VECTOR} + 4], 0x8e00
    sti
    mov eax, 24                 # vcpu_op
    mov edi, 8                  # set_singleshot_timer
    xor esi, esi
    lea rdx, [argument]
    vmmcall
    mov r15, rax
wait:
    hlt
    cmp byte ptr [taken], 0
    je wait
    mov dx, 0xe9
    mov al, 'k'
    out dx, al
    cli
    hlt
handler:
    inc byte ptr [taken]
    mov r14, [rsp]              # RIP, CS and RFLAGS of what was interrupted
    mov r13, [rsp + 8]
    mov r12, [rsp + 16]
    iretq
.balign 8
argument: .quad 5000000, 0
taken: .byte 0
.balign 8
idtr: .word 16 * 256 - 1
      .quad idt
.balign 16
idt: .skip 16 * 256
"""


@needs_assembler
def test_a_64_bit_guest_takes_the_upcall_of_its_timer() -> None:
    """A program arms its singleshot timer, halts, and is woken by the upcall vector through its own IDT."""
    vm = create()
    vm.load(assemble(SINGLESHOT_64, at=START), START)
    assert vm.run_program(answer) is Ended.HALTED
    assert vm.interrupts == [VECTOR]
    assert vm.serial == b"k"
    assert vm.machine.state.now >= 5_000_000
    assert [(call.nr, call.args[0], call.rax, call.exit) for call in vm.calls] == [(24, 8, 0, None)]
    _r12, cs, rip, hypercall_result = vm.cpu.general[12:16]
    assert vm.cpu.general[12] & 0x200
    assert (cs, hypercall_result) == (8, 0)
    assert START < rip < START + 0x100
    assert vm.read_memory(SHARED_INFO + 0x800, 8) == (1 << PORT).to_bytes(8, "little")


PROTECTED_32 = """
    mov eax, 17                 # xen_version
    xor ebx, ebx
    vmmcall
    mov [0x2000], eax
    mov eax, 99                 # unknown: the VMM answers
    mov ebx, 0xfffffff0
    vmmcall
    mov [0x2004], eax
    mov ecx, 0x40000000         # a misaligned hypercall page: #GP
    mov eax, 0x300001
    xor edx, edx
    wrmsr
"""


@needs_assembler
def test_a_32_bit_guest_uses_the_32_bit_abi() -> None:
    """In 32-bit code the registers are EBX and so on, results are 32 bits wide, and #GP goes to the IDT."""
    vm = create()
    vm.load(assemble(PROTECTED_32, at=START, bits=32), START, mode=Mode.PROTECTED)
    assert vm.run_program(answer) is Ended.UNHANDLED
    assert vm.read_memory(0x2000, 8) == bytes.fromhex("11000400 53000000")
    assert [call.longmode for call in vm.calls] == [False, False]
    frame = vm.read_memory(vm.cpu.general[4], 12)
    assert frame is not None
    vector, error, rip = struct.unpack("<3I", frame)
    assert (vector, error) == (13, 0)
    assert vm.read_memory(rip, 2) == b"\x0f\x30"


@needs_assembler
def test_a_run_is_a_trace(tmp_path: Path) -> None:
    """What a program did is written as a trace; its replay with a VMM behaviour does the same again."""
    vm = create()
    vm.load(assemble(SINGLESHOT_64, at=START), START)
    vm.run_program(answer)
    path = tmp_path / "program.jsonl"
    write_trace(path, vm.trace_header(notes="a timer"), vm.events)
    trace = open_trace(path)
    assert trace.header.recorder == "replay"
    assert list(trace.events()) == vm.events
    observed = list(vmm_replay(UnicornHost(profile=LINUX_7_3), trace.header, trace.events, TimerVmm()))
    assert [item.event for item in observed if isinstance(item.event, Hypercall)] == vm.calls


class TimerVmm(Vmm):
    """Sets up the timer, as `create` does."""

    def configure(self, vm: Vm) -> None:
        """Set up."""
        vm.xen_hvm_config()
        vm.vcpus[0].set_vcpu_id(0)
        vm.vcpus[0].set_timer(PORT)


USER_MODE = """
    mov eax, 17                 # at CPL 3 nothing is handled in the kernel
    xor edi, edi
    vmmcall
    mov rbx, rax
    hlt                         # privileged: #GP
"""


@needs_assembler
def test_a_guest_at_cpl_3_is_forwarded_and_confined() -> None:
    """A hypercall at CPL 3 always reaches the VMM; HLT faults, with a switch to the kernel's stack."""
    vm = create()
    vm.load(assemble(USER_MODE, at=START), START, cpl=3)
    assert vm.run_program(answer) is Ended.UNHANDLED
    (call,) = vm.calls
    assert call.exit is not None
    assert (call.cpl, call.exit.cpl, call.rax) == (3, 3, 17)
    assert vm.cpu.general[3] == 17
    stack = vm.cpu.general[4]
    vector, error, _rip, cs = (vm.image.read_stack(stack + 8 * index, 8) for index in range(4))
    assert (vector, error, cs & 3, vm.cpu.state.cpl) == (13, 0, 3, 0)


REAL_MODE = bytes.fromhex("b86300 66bb07000000 0f01d9 a30020 cd21 f4")
"""mov ax, 99; mov ebx, 7; vmmcall; mov [0x2000], ax; int 0x21; hlt."""


def test_a_real_mode_guest() -> None:
    """16-bit code makes hypercalls by the 32-bit ABI and takes INT n through the table at address 0."""
    vm = create()
    vm.write_memory(4 * 0x21, bytes.fromhex("00300000"))
    vm.write_memory(0x3000, bytes.fromhex("b8aa00 cf"))  # mov ax, 0xaa; iret
    vm.load(REAL_MODE, START, mode=None)
    assert vm.run_program(answer) is Ended.HALTED
    assert vm.read_memory(0x2000, 2) == bytes([106, 0])
    assert vm.cpu.general[0] & 0xFFFF == 0xAA
    assert [(call.nr, call.longmode, call.args[0]) for call in vm.calls] == [(99, False, 7)]


@pytest.mark.parametrize(("vendor", "native", "other"), [("amd", "d9", "c1"), ("intel", "c1", "d9")])
def test_the_other_vendors_instruction_is_replaced(vendor: str, native: str, other: str) -> None:
    """The hypercall is made, and the right instruction stands in the program afterwards."""
    vm = create(vendor)
    vm.load(bytes.fromhex(f"b863000000 0f01{other} f4"), START)
    assert vm.run_program(answer) is Ended.HALTED
    assert vm.calls[0].rax == 99
    assert vm.read_memory(START + 5, 3) == bytes.fromhex(f"0f01{native}")


@pytest.mark.parametrize(
    ("vendor", "other", "mode", "cpl", "vector"),
    [("amd", "c1", Mode.LONG, 3, 13), ("intel", "d9", None, 0, 6)],
)
def test_where_the_other_vendors_instruction_faults(
    vendor: str, other: str, mode: Mode | None, cpl: int, vector: int
) -> None:
    """VMCALL on AMD is privileged, VMMCALL on Intel needs protected mode: KVM's emulator raises the fault."""
    vm = create(vendor)
    vm.load(bytes.fromhex(f"0f01{other} f4"), START, mode=mode, cpl=cpl)
    vm.write_memory(4 * 6, bytes.fromhex("00300000"))
    vm.write_memory(0x3000, b"\xfa\xf4")  # where real mode's #UD goes: cli; hlt
    assert vm.run_program(answer) is (Ended.HALTED if mode is None else Ended.UNHANDLED)
    assert not vm.calls
    taken = vm.cpu.rip == 0x3002 if mode is None else vm.image.read_stack(vm.cpu.general[4], 8) == vector
    assert taken


@needs_assembler
def test_an_interrupt_waits_for_the_instruction_behind_sti() -> None:
    """With an event pending, STI lets one more instruction run before the interrupt is taken."""
    text = "lidt [idtr]\nsti\ninc ebx\ninc ebx\nhlt\nidtr: .word 4095\n.quad 0x2000"
    vm = create()
    vm.load(assemble(text, at=START), START)
    vm.write_memory(0x2000 + 16 * VECTOR, bytes.fromhex("0030 0800 008e 0000 00000000 00000000"))
    vm.write_memory(0x3000, b"\xfa\xf4")  # cli; hlt
    vm.machine.state.vcpus[0].irr = 1 << VECTOR
    assert vm.run_program(answer) is Ended.HALTED
    assert vm.interrupts == [VECTOR]
    assert vm.cpu.general[3] == 1


@needs_assembler
def test_cpuid_shows_xen() -> None:
    """Leaf 0x40000000 has Xen's signature, and the leaf of the hypercall page names the MSR."""
    text = """
    mov eax, 0x40000000
    cpuid
    mov [0x2000], ebx
    mov [0x2004], ecx
    mov [0x2008], edx
    mov eax, 0x40000002
    cpuid
    mov [0x200c], ebx
    cli
    hlt
    """
    vm = create()
    vm.load(assemble(text, at=START), START)
    assert vm.run_program(answer) is Ended.HALTED
    assert vm.read_memory(0x2000, 16) == b"XenVMMXenVMM" + (0x4000_0000).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("ebfe", Ended.LIMIT),
        ("fa f4", Ended.HALTED),
        ("0f0b", Ended.UNHANDLED),
        ("31e4 6a00", Ended.SHUTDOWN),
        ("48b800000000ff000000 ffe0", Ended.UNHANDLED),
    ],
)
def test_how_a_program_ends(code: str, ended: Ended) -> None:
    """Loops end at the limit, faults at the loader's handlers, or without a stack."""
    vm = create()
    vm.load(bytes.fromhex(code.replace(" ", "")), START)
    assert vm.run_program(answer, limit=50_000) is ended


def test_a_fault_that_cannot_be_delivered_shuts_down() -> None:
    """Without a usable IDT an exception ends the run."""
    vm = create()
    vm.load(bytes.fromhex("0f011c2500200000 0f0b"), START)  # lidt [0x2000], which is all zero; ud2
    assert vm.run_program(answer) is Ended.SHUTDOWN


def test_program_vms_are_freed() -> None:
    """A VM that ran a program is freed when it is dropped, without a garbage collection."""
    gc.disable()
    try:
        vm = create()
        vm.load(b"\xf4", START)
        vm.run_program(answer)
        dropped = weakref.ref(vm)
        del vm
        assert dropped() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("between", "kept"), [("", True), ("0fa2", False), ("b9204e0000 ffc9 75fc", False)])
def test_sse_registers_do_not_outlast_a_stop(between: str, *, kept: bool) -> None:
    """XMM0 is as at reset behind a CPUID, and behind the end of a slice of instructions."""
    vm = create()
    vm.load(bytes.fromhex(f"b805000000 660f6ec0 {between} 660f7ec3 fa f4"), START)  # eax to xmm0 to ebx
    assert vm.run_program(answer) is Ended.HALTED
    assert vm.cpu.general[3] == (5 if kept else 0)

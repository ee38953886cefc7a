"""The hypercall page: the guest writes a page's address to the hypercall MSR."""

from __future__ import annotations

from errno import EFAULT

import pytest

from pytest_xenkvm.abi.numbers import PAGE_SIZE, U32_MAX, HvmAttr, Hypercall, XenHvmFlag, XenVer

from .kit.demands import FORWARDED
from .kit.hosts import Builder
from .kit.setting import BLOB, LAST_PAGE, MEMORY, MODES, MSR, NOWHERE, PAGE, Mode

pytestmark = pytest.mark.source("kvm_xen_write_hypercall_page, kvm_xen_msr_in_range")

CALLS = {"amd": b"\x0f\x01\xd9", "intel": b"\x0f\x01\xc1"}
"""VMMCALL and VMCALL."""
STUBS = 128
EVTCHN_SEND = int(XenHvmFlag.EVTCHN_SEND)


def stub(number: int, vendor: str) -> bytes:
    """`mov eax, number`; VMMCALL or VMCALL; `ret`; int3 up to 32 bytes."""
    return (b"\xb8" + number.to_bytes(4, "little") + CALLS[vendor] + b"\xc3").ljust(32, b"\xcc")


@pytest.mark.parametrize("mode", MODES)
def test_kernels_page(new_vm: Builder, mode: Mode) -> None:
    """With INTERCEPT_HCALL the page is filled with 128 stubs of 32 bytes, and nothing beside it changes."""
    vm = new_vm()
    vm.config()
    vm.store(PAGE - 16, b"\x99" * 16)
    vm.store(PAGE + PAGE_SIZE, b"\x99" * 16)
    vm.vcpus[0].wrmsr(PAGE, mode=mode)
    for number in range(STUBS):
        vm.holds(PAGE + 32 * number, stub(number, vm.cpu_vendor), f"stub {number}")
    vm.holds(PAGE - 16, b"\x99" * 16, "memory before the page")
    vm.holds(PAGE + PAGE_SIZE, b"\x99" * 16, "memory behind the page")


@pytest.mark.parametrize("mode", MODES)
def test_calls_through_the_page(new_vm: Builder, mode: Mode) -> None:
    """A call through the page is the hypercall of that number, served or forwarded like any other."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.XEN_VERSION, 0x4_0011)
    vcpu.wrmsr(PAGE, mode=mode)
    vcpu.call(Hypercall.xen_version, XenVer.version, answers=0x4_0011, mode=mode, via_page=True)
    for number in (0, Hypercall.hvm_op, STUBS - 1):
        vcpu.call(number, 1, 2, 3, 4, 5, 6, answers=FORWARDED, mode=mode, via_page=True)
    vcpu.call(Hypercall.xen_version, XenVer.version, answers=FORWARDED, mode=mode, via_page=True, cpl=3)


@pytest.mark.parametrize("offset", [1, 2, 0x800, 0xFFF])
def test_unaligned(new_vm: Builder, offset: int) -> None:
    """With INTERCEPT_HCALL the low 12 bits of the value must be 0, else #GP, and nothing is written."""
    vm = new_vm()
    vm.config()
    vm.vcpus[0].wrmsr(PAGE + offset, ok=False)
    vm.holds(PAGE, bytes(64), "the page")
    vm.holds(PAGE + PAGE_SIZE, bytes(64), "the next page")


@pytest.mark.parametrize("value", [NOWHERE, MEMORY, 1 << 52, 0xFEE0_0000, 0xFFFF_FFFF_FFFF_F000], ids=hex)
def test_without_memory(new_vm: Builder, value: int) -> None:
    """An address without memory is #GP."""
    vm = new_vm()
    vm.config()
    vm.vcpus[0].wrmsr(value, ok=False)


def test_last_page(new_vm: Builder) -> None:
    """The last page of memory is as good as any."""
    vm = new_vm()
    vm.config()
    vm.vcpus[0].wrmsr(LAST_PAGE)
    vm.holds(MEMORY - 32, stub(STUBS - 1, vm.cpu_vendor), "the last stub")


@pytest.mark.parametrize("msr", [0x4000_0000, 0x4000_0200, 0x4FFF_FFFF], ids=hex)
def test_other_msrs(new_vm: Builder, msr: int) -> None:
    """The page is written by the configured MSR only."""
    vm = new_vm()
    vm.config(msr=msr)
    vm.vcpus[0].wrmsr(PAGE, msr=msr)
    vm.holds(PAGE, stub(0, vm.cpu_vendor), "the page")
    vm.store(PAGE, bytes(32))
    vm.vcpus[0].wrmsr(PAGE, msr=0x4E00_0000, ok=False)
    vm.holds(PAGE, bytes(32), "the page")


def test_without_config(new_vm: Builder) -> None:
    """Without a configured MSR the write is #GP, and LONG_MODE isn't latched."""
    vm = new_vm()
    vm.vcpus[0].wrmsr(PAGE, ok=False)
    vm.get(HvmAttr.LONG_MODE, 0)
    vm.holds(PAGE, bytes(32), "the page")


# ---- the VMM's own pages


def pattern(number: int) -> bytes:
    """A page unlike the others."""
    return bytes((byte * 7 + number) & 0xFF for byte in range(PAGE_SIZE))


@pytest.mark.parametrize("mode", MODES)
def test_blob(new_vm: Builder, mode: Mode) -> None:
    """Without INTERCEPT_HCALL the low 12 bits number a page of the guest's mode's blob, which is copied."""
    vm = new_vm()
    for number in range(3):
        vm.store(BLOB + number * PAGE_SIZE, pattern(number))
    vm.config(
        flags=EVTCHN_SEND,
        blob_addr_64={"gpa": BLOB},
        blob_size_64=2,
        blob_addr_32={"gpa": BLOB + 2 * PAGE_SIZE},
        blob_size_32=1,
    )
    for number, content in enumerate([pattern(0), pattern(1)] if mode.lma else [pattern(2)]):
        vm.vcpus[0].wrmsr(PAGE + number, mode=mode)
        vm.holds(PAGE, content, f"blob page {number}")
    beyond = 2 if mode.lma else 1
    for number in (beyond, beyond + 1, 0xFFF):
        vm.vcpus[0].wrmsr(PAGE + number, mode=mode, ok=False)
    vm.vcpus[0].wrmsr(NOWHERE, mode=mode, ok=False)


@pytest.mark.parametrize("mode", MODES)
def test_empty_blob(new_vm: Builder, mode: Mode) -> None:
    """A blob without pages has none to copy: #GP."""
    vm = new_vm()
    vm.config(flags=EVTCHN_SEND, blob_addr_64={"gpa": BLOB}, blob_addr_32={"gpa": BLOB})
    vm.vcpus[0].wrmsr(PAGE, mode=mode, ok=False)
    vm.config(flags=EVTCHN_SEND)
    vm.vcpus[0].wrmsr(PAGE, mode=mode, ok=False)
    vm.holds(PAGE, bytes(64), "the page")


@pytest.mark.parametrize("address", [0, 0x1_0000], ids=hex)
@pytest.mark.parametrize("mode", MODES)
def test_unreadable_blob(new_vm: Builder, address: int, mode: Mode) -> None:
    """A blob that can't be read makes KVM_RUN fail with -EFAULT."""
    vm = new_vm()
    sizes = {"blob_size_64": 1, "blob_size_32": 1}
    vm.config(flags=EVTCHN_SEND, blob_addr_64=address, blob_addr_32=address, **sizes)
    vm.vcpus[0].wrmsr(PAGE, mode=mode, run_ret=-EFAULT, ok=False)
    vm.holds(PAGE, bytes(64), "the page")


def test_unaligned_blob(new_vm: Builder) -> None:
    """A blob need not be aligned."""
    vm = new_vm()
    vm.store(BLOB, pattern(0))
    vm.store(BLOB + PAGE_SIZE, pattern(1))
    vm.config(flags=0, blob_addr_64={"gpa": BLOB + 16}, blob_size_64=1)
    vm.vcpus[0].wrmsr(PAGE)
    vm.holds(PAGE, (pattern(0) + pattern(1))[16 : 16 + PAGE_SIZE], "the page")


def test_most_pages(new_vm: Builder) -> None:
    """A blob has up to 255 pages."""
    vm = new_vm()
    vm.config(flags=0, blob_addr_64={"gpa": MEMORY - 255 * PAGE_SIZE}, blob_size_64=0xFF)
    vm.store(MEMORY - PAGE_SIZE, pattern(9))
    vm.vcpus[0].wrmsr(PAGE + 254, msr=MSR)
    vm.holds(PAGE, pattern(9), "blob page 254")
    vm.vcpus[0].wrmsr(PAGE + 255, ok=False)


def test_value_of_a_32_bit_guest(new_vm: Builder) -> None:
    """A 32-bit guest writes 64 bits, too: the page's address has those of EDX."""
    vm = new_vm()
    vm.config()
    vm.vcpus[0].wrmsr(PAGE | 1 << 40, mode=Mode.PROTECTED, ok=False)
    vm.vcpus[0].wrmsr(U32_MAX << 32 | PAGE, mode=Mode.PROTECTED, ok=False)
    vm.holds(PAGE, bytes(32), "the page")

"""Hypercalls in words."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_xenkvm.trace.decode import hypercall_name, hypercall_outcome, hypercall_words
from pytest_xenkvm.trace.events import Behind, Hypercall, NowPlus

POINTER = 0x20_0000


def call(nr: int, *args: int | NowPlus, **fields: Any) -> Hypercall:
    """A 64-bit hypercall from CPL 0."""
    defaults: dict[str, Any] = {"vcpu": 0, "longmode": True, "cpl": 0}
    return Hypercall(nr=nr, args=args, **{**defaults, **fields})


def behind(arg: int, data: str, *now_plus_at: tuple[int, int]) -> tuple[Behind, ...]:
    """Recorded bytes behind one argument."""
    return (Behind(arg=arg, data=bytes.fromhex(data), now_plus_at=now_plus_at),)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (call(24, 8, 1, POINTER), "VCPUOP_set_singleshot_timer(vcpu=1, arg=0x200000)"),
        (call(24, 9, 1, 0), "VCPUOP_stop_singleshot_timer(vcpu=1)"),
        (call(24, 100, 2, 3), "vcpu_op(op=100, vcpu=2, arg=0x3)"),
        (call(24, 8, 0x1_0000_0000, 1), "VCPUOP_set_singleshot_timer(vcpu=0x100000000 (0), arg=0x1)"),
        (call(24, 9, 0xFFFF_FFFF), "VCPUOP_stop_singleshot_timer(vcpu=XEN_VCPU_ID_INVALID (0xffffffff))"),
        (
            call(24, 9, 2**64 - 1),
            "VCPUOP_stop_singleshot_timer(vcpu=0xffffffffffffffff (XEN_VCPU_ID_INVALID))",
        ),
        (call(24, 0x1_0000_0009, 7), "VCPUOP_stop_singleshot_timer(op=0x100000009 (9), vcpu=7)"),
        (call(29, 0, 5), "SCHEDOP_yield()"),
        (call(29, 0x1_0000_0000), "SCHEDOP_yield(op=0x100000000 (0))"),
        (call(29, 3, POINTER), "SCHEDOP_poll(arg=0x200000)"),
        (call(32, 4, POINTER), "EVTCHNOP_send(arg=0x200000)"),
        (call(32, 0x1_0000_0004, 1), "event_channel_op(op=0x100000004, arg=0x1)"),
        (call(17, 0, 0), "XENVER_version()"),
        (call(17, 0x1_0000_0000, 1), "xen_version(op=0x100000000, arg=0x1)"),
        (call(34, 0, POINTER), "HVMOP_set_param(arg=0x200000)"),
        (call(33, 12, POINTER), "PHYSDEVOP_eoi(arg=0x200000)"),
        (call(12, 7, POINTER), "XENMEM_add_to_physmap(arg=0x200000)"),
        (call(20, 2, POINTER, 1), "GNTTABOP_setup_table(arg=0x200000, count=1)"),
        (call(21, 0, 5), "VMASST_CMD_enable(type=VMASST_TYPE_runstate_update_flag)"),
        (call(18, 0, 5, POINTER), "CONSOLEIO_write(count=5, arg=0x200000)"),
        (call(15, 1234), "set_timer_op(timeout=@1234 ns)"),
        (call(15, 0), "set_timer_op(timeout=0 (stop))"),
        (call(15, 2**64 - 1), "set_timer_op(timeout=@-1 ns)"),
        (call(15, NowPlus(1_500_000)), "set_timer_op(timeout=+1.5 ms)"),
        (call(15, 1, 2, longmode=False), "set_timer_op(timeout=@8589934593 ns)"),
        (call(15, 1, longmode=False), "set_timer_op(timeout=?)"),
        (call(26, 1, 2), "mmuext_op(a0=0x1, a1=0x2)"),
        (call(1000, 1, 2**40), "hypercall 1000(a0=0x1, a1=0x10000000000)"),
        (call(26, 1, 0, 0, extra={"unseen_args": [1, 2]}), "mmuext_op(a0=0x1, a1=?, a2=?)"),
        (call(26, 1, extra={"unseen_args": 0}), "mmuext_op(a0=0x1)"),
        (call(24), "vcpu_op(op=?, vcpu=?, arg=?)"),
    ],
)
def test_a_hypercall_reads_as_xen_spells_it(event: Hypercall, words: str) -> None:
    """Sub-operations have Xen's full names, and numbers that KVM cuts to 32 bits show both values."""
    assert hypercall_words(event) == words


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (call(32, 4, POINTER, behind=behind(1, "05000000")), "EVTCHNOP_send(port=5)"),
        (
            call(24, 8, 1, POINTER, behind=behind(2, "00" * 16, (0, 1_000_000))),
            "VCPUOP_set_singleshot_timer(vcpu=1, timeout=+1 ms)",
        ),
        (
            call(24, 8, 1, POINTER, behind=behind(2, "e803000000000000" + "01000000" + "00000000")),
            "VCPUOP_set_singleshot_timer(vcpu=1, timeout=@1000 ns, flags=VCPU_SSHOTTMR_future)",
        ),
        (
            call(24, 8, 1, POINTER, longmode=False, behind=behind(2, "e803000000000000" + "00000000")),
            "VCPUOP_set_singleshot_timer(vcpu=1, timeout=@1000 ns)",
        ),
        (
            call(34, 1, POINTER, behind=behind(1, "f07f000001000000")),
            "HVMOP_get_param(domid=DOMID_SELF, index=HVM_PARAM_STORE_PFN)",
        ),
        (
            call(12, 7, POINTER, longmode=False, behind=behind(1, "f07f0000" + "00000000" * 2 + "ff000000")),
            "XENMEM_add_to_physmap(domid=DOMID_SELF, space=XENMAPSPACE_shared_info, idx=0, gpfn=0xff)",
        ),
        (
            call(
                29, 3, POINTER, behind=behind(1, "0001200000000000" + "0200000000000000" + "404b4c0000000000")
            ),
            "SCHEDOP_poll(ports=2 at 0x200100, timeout=5 ms)",
        ),
        (
            call(24, 8, 1, POINTER, behind=behind(2, "00" * 8, (0, -5000))),
            "VCPUOP_set_singleshot_timer(vcpu=1, timeout=-5 us)",
        ),
        (
            call(34, 0, POINTER, behind=behind(1, "f07f000001000000" + "00" * 7)),
            "HVMOP_set_param(domid=DOMID_SELF, index=HVM_PARAM_STORE_PFN)",
        ),
        (call(29, 3, POINTER, behind=behind(1, "00" * 16)), "SCHEDOP_poll(arg=0x200000)"),
        (call(32, 4, POINTER, behind=behind(1, "0500")), "EVTCHNOP_send(arg=0x200000)"),
        (call(32, 4, POINTER, behind=behind(0, "05000000")), "EVTCHNOP_send(arg=0x200000)"),
    ],
)
def test_what_lay_behind_a_pointer_is_read_from_the_trace(event: Hypercall, words: str) -> None:
    """Recorded bytes of that argument replace the pointer; fields that nobody saw are left out."""
    assert hypercall_words(event) == words


def test_memory_and_clock_can_be_lent_to_the_decoder() -> None:
    """With a reader of guest memory and the guest's clock, timeouts and polled ports are shown."""
    memory = {
        (POINTER, 16): (1_000_000).to_bytes(8, "little") + bytes(8),
        (POINTER + 64, 24): (POINTER + 128).to_bytes(8, "little") + (2).to_bytes(8, "little") + bytes(8),
        (POINTER + 128, 8): b"\3\0\0\0\4\0\0\0",
    }

    def read(gva: int, size: int) -> bytes | None:
        return memory.get((gva, size))

    timer = call(24, 8, 0, POINTER)
    assert hypercall_words(timer, read, now=1_005_000) == "VCPUOP_set_singleshot_timer(vcpu=0, timeout=-5 us)"
    assert hypercall_words(timer, read, now=1_000_000) == "VCPUOP_set_singleshot_timer(vcpu=0, timeout=now)"
    assert hypercall_words(timer, read) == "VCPUOP_set_singleshot_timer(vcpu=0, timeout=@1000000 ns)"
    assert hypercall_words(call(29, 3, POINTER + 64), read) == "SCHEDOP_poll(ports=[3, 4], timeout=none)"
    assert hypercall_words(call(29, 3, 0), read) == "SCHEDOP_poll(arg=0x0)"


def test_recorded_bytes_win_over_memory() -> None:
    """A reader is asked only for what the trace does not hold."""
    event = call(32, 4, POINTER, behind=behind(1, "05000000"))
    assert hypercall_words(event, lambda _gva, size: b"\xff" * size) == "EVTCHNOP_send(port=5)"


def test_memory_completes_what_was_recorded_in_part() -> None:
    """If the trace holds only the start of a structure, a reader is asked for all of it."""
    event = call(24, 8, 1, POINTER, behind=behind(2, "e803000000000000"))
    memory = (1000).to_bytes(8, "little") + b"\1" + bytes(7)
    words = "VCPUOP_set_singleshot_timer(vcpu=1, timeout=@1000 ns, flags=VCPU_SSHOTTMR_future)"
    assert hypercall_words(event, lambda *_: memory) == words
    assert hypercall_words(event, lambda *_: None) == words.replace(", flags=VCPU_SSHOTTMR_future", "")


def test_a_short_read_counts_as_none() -> None:
    """A reader that returns fewer bytes than asked for leaves the pointer standing."""
    assert hypercall_words(call(32, 4, POINTER), lambda *_: b"\1") == "EVTCHNOP_send(arg=0x200000)"


@pytest.mark.parametrize(
    ("nr", "op", "name"),
    [
        (24, 8, "VCPUOP_set_singleshot_timer"),
        (24, None, "vcpu_op"),
        (32, 99, "event_channel_op"),
        (15, 0, "set_timer_op"),
    ],
)
def test_a_hypercall_has_one_name(nr: int, op: int | None, name: str) -> None:
    """The name is the sub-operation's where there is one, else the hypercall's."""
    assert hypercall_name(nr, op) == name


@pytest.mark.parametrize(
    ("handled", "rax", "longmode", "words"),
    [
        ("kernel", 0, True, "handled in the kernel: 0"),
        ("kernel", 2**64 - 22, True, "handled in the kernel: -EINVAL (-22)"),
        ("kernel", 2**32 - 22, False, "handled in the kernel: -EINVAL (-22)"),
        ("kernel", 2**32 - 22, True, "handled in the kernel: 0xffffffea"),
        ("kernel", 2**64 - 1000, True, "handled in the kernel: -KVM_ENOSYS (-1000)"),
        ("kernel", 2**64 - 4095, True, "handled in the kernel: -4095"),
        ("kernel", 2**64 - 4096, True, "handled in the kernel: 0xfffffffffffff000"),
        ("userspace", 2**64 - 38, True, "forwarded to the VMM, which answered -ENOSYS (-38)"),
        ("userspace", None, True, "forwarded to the VMM"),
        ("kernel", None, True, "handled in the kernel: unknown"),
        (None, 0x40011, True, "0x40011"),
        (None, None, True, "unknown"),
    ],
)
def test_an_outcome_says_who_answered_and_what(
    handled: str | None, rax: int | None, *, longmode: bool, words: str
) -> None:
    """A result is a negative errno by the width of the caller's mode; what was not recorded is unknown."""
    assert hypercall_outcome(handled, rax, longmode=longmode) == words

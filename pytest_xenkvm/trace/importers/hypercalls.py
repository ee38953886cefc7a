"""The tracepoint kvm:kvm_xen_hypercall, and what it leaves out."""

from __future__ import annotations

import re
from typing import Final

from attrs import Factory, define, frozen

from pytest_xenkvm.abi.numbers import KVM_EXIT_XEN, KVM_EXIT_XEN_HCALL, U32_MAX
from pytest_xenkvm.trace.events import Hypercall, HypercallExit
from pytest_xenkvm.trace.importers.lines import TraceLine
from pytest_xenkvm.trace.importers.model import ImportReport

_HEX: Final = r"(?:0x)?([0-9a-f]{1,16})"
_CALL: Final = re.compile(rf":\s+(?:cpl ([0-3]) )?nr {_HEX} " + " ".join(rf"a{n} {_HEX}" for n in range(6)))
_EXPECTED: Final = "'cpl N nr 0x.. a0 0x.. a1 0x.. a2 0x.. a3 0x.. a4 0x.. a5 ..'"

_EXIT: Final = re.compile(r":\s+reason (\w+) \((\d{1,10})\)")
_ERRNO: Final = frozenset({"restart", "error"})
"""Instead of a reason: KVM_RUN failed, and the number is its errno."""

_A4_A5_FIXED: Final[dict[tuple[int, int], int]] = {(6, 12): 117, (7, 2): 0, (7, 3): 0}
"""Kernel series and first release whose a4 and a5 were found to be what KVM_EXIT_XEN carried. Kernels
before commit 2b72f1674e42 stored a5 in a4 and left a5 unset; of others nothing is known."""
_A4_A5_FIXED_FROM: Final = max(_A4_A5_FIXED)


def args_trusted(kernel: str | None) -> bool:
    """Whether the tracepoint of this kernel release records a4 and a5 as they were."""
    match = re.match(r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,5}))?", kernel or "")
    if match is None:
        return False
    series = (int(match[1]), int(match[2]))
    first = _A4_A5_FIXED.get(series)
    return series > _A4_A5_FIXED_FROM or (first is not None and int(match[3] or 0) >= first)


@frozen(kw_only=True)
class Called:
    """The registers of a hypercall; `cpl` None if the kernel (up to 6.1) doesn't record it."""

    cpl: int | None
    nr: int
    args: tuple[int, ...]

    @property
    def proves_64_bit(self) -> bool:
        """Whether a register is one that the 32-bit ABI would have truncated."""
        return max(self.nr, *self.args) > U32_MAX


def parse_call(line: TraceLine) -> Called:
    """Return the registers; raises `Malformed` if the fields are not the tracepoint's."""
    match = _CALL.fullmatch(line.fields.rstrip())
    if match is None:
        raise line.malformed(_EXPECTED)
    cpl, nr, *args = match.groups()
    return Called(
        cpl=None if cpl is None else int(cpl), nr=int(nr, 16), args=tuple(int(arg, 16) for arg in args)
    )


@define
class Modes:
    """The mode of each caller, which no recording holds.

    A register above 32 bits proves the 64-bit ABI. A vCPU that was proven stays in it; before that the
    VM's LONG_MODE decides if it is known, and 64-bit is assumed if nothing is.
    """

    report: ImportReport
    long_mode: bool | None = None
    _proven: set[int] = Factory(set)
    _told: dict[int, bool] = Factory(dict)

    def told(self, vcpu: int, *, longmode: bool) -> None:
        """The recorder has seen the mode that the vCPU is in."""
        self._told[vcpu] = longmode

    def prove(self, vcpu: int) -> None:
        """The vCPU was seen in long mode."""
        self._proven.add(vcpu)

    def of(self, vcpu: int, called: Called) -> bool:
        """Return the mode of a call, True for 64-bit."""
        if called.proves_64_bit:
            self._proven.add(vcpu)
            return True
        return self.current(vcpu)

    def current(self, vcpu: int) -> bool:
        """Return the mode that the vCPU is in or is taken to be in, and count the assumption."""
        if vcpu in self._told:
            return self._told[vcpu]
        if vcpu in self._proven:
            self.report.unknown["longmode (64-bit: the vCPU had proven it before)"] += 1
            return True
        if self.long_mode is not None:
            self.report.unknown["longmode (as the VM's LONG_MODE)"] += 1
            return self.long_mode
        self.report.unknown["longmode (64-bit assumed)"] += 1
        return True


@define
class HypercallMaker:
    """Turns registers into hypercall events and says what in them can't be relied on."""

    modes: Modes
    report: ImportReport
    trusted: bool

    def make(self, vcpu: int, called: Called, ts: int | None = None) -> Hypercall:
        """Return the event with its result still unknown."""
        doubtful = [] if self.trusted else ["a4", "a5"]
        if called.cpl is None:
            doubtful.append("cpl")
        if doubtful:
            self.report.unknown[f"{', '.join(doubtful)} of a hypercall (marked untrusted)"] += 1
        return Hypercall(
            ts=ts,
            vcpu=vcpu,
            longmode=self.modes.of(vcpu, called),
            cpl=called.cpl or 0,
            nr=called.nr,
            args=called.args,
            extra={"untrusted": doubtful} if doubtful else {},
        )


def is_xen_exit(line: TraceLine) -> bool:
    """Whether kvm:kvm_userspace_exit shows a KVM_EXIT_XEN; raises `Malformed` if it is something else."""
    match = _EXIT.fullmatch(line.fields.rstrip())
    if match is None:
        raise line.malformed("'reason NAME (NUMBER)'")
    return match[1] not in _ERRNO and int(match[2]) == KVM_EXIT_XEN


def exit_of(call: Hypercall) -> HypercallExit:
    """Return what KVM_EXIT_XEN delivers for a forwarded call: its registers again."""
    return HypercallExit(
        type=KVM_EXIT_XEN_HCALL, longmode=int(call.longmode), cpl=call.cpl, input=call.nr, params=call.args
    )

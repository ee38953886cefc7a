"""QEMU's trace log (`-trace 'kvm_xen*'`): the hypercalls that reached QEMU, with its answers.

A line: `[PID@SECONDS:]kvm_xen_hypercall xen_hypercall: cpu 0 cpl 0 input 17 a0 0x6 a1 0x0 a2 0x0 ret 0x0`;
the number is decimal, only three arguments are shown. Source: QEMU's target/i386/kvm/trace-events.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from attrs import evolve

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Event, Header, Hypercall
from pytest_xenkvm.trace.importers.given import check_header, given_shape
from pytest_xenkvm.trace.importers.hypercalls import Called, Modes
from pytest_xenkvm.trace.importers.model import Given, Imported, ImportReport, check_size

MARK: Final = "xen_hypercall: cpu "
"""What a line about a hypercall holds."""

_PREFIX: Final = re.compile(r"(?:\d{1,10}@(\d{1,10})\.(\d{1,9}):)?(.*)")
_HEX: Final = r"0x([0-9a-f]{1,16})"
_CALL: Final = re.compile(
    r"(?:kvm_xen_hypercall )?xen_hypercall: cpu (\d{1,4}) cpl ([0-3]) input (\d{1,20}) "
    rf"a0 {_HEX} a1 {_HEX} a2 {_HEX} ret {_HEX}"
)
_UNSEEN: Final = (3, 4, 5)


def _call(text: str, ts: int | None, modes: Modes) -> Hypercall | None:
    match = _CALL.fullmatch(text.strip())
    if match is None or int(match[3]) >> 64:
        return None
    seen = tuple(int(group, 16) for group in match.group(4, 5, 6))
    called = Called(cpl=int(match[2]), nr=int(match[3]), args=(*seen, *(0 for _ in _UNSEEN)))
    vcpu = int(match[1])
    return Hypercall(
        ts=ts,
        vcpu=vcpu,
        longmode=modes.of(vcpu, called),
        cpl=int(match[2]),
        nr=called.nr,
        args=called.args,
        handled="userspace",
        rax=int(match[7], 16),
        extra={"unseen_args": list(_UNSEEN)},
    )


def import_qemu_log(lines: Iterable[str], *, path: str, given: Given | None = None) -> Imported:
    """Import QEMU's trace log: scope "hypercalls", each handled by userspace with its answer.

    Arguments 3 to 5 are not in the log: they are 0 here and named in `unseen_args`. Raises `Malformed`
    for a hypercall's line of another form, and if there is none.
    """
    given = given or Given()
    report = ImportReport()
    modes = Modes(report)
    events: list[Event] = []
    start: int | None = None
    now = 0
    for number, line in enumerate(lines, 1):
        report.lines += 1
        if MARK not in line:
            report.skip("other events")
            continue
        seconds, fraction, text = _split(line)
        ns = None if seconds is None else int(seconds) * 10**9 + int(fraction.ljust(9, "0"))
        if ns is not None:
            start = ns if start is None else start
            now = max(now, ns - start)
        call = _call(text, None if ns is None else now, modes)
        if call is None:
            what = f"a hypercall's line of another form: {text[:120]!r}"
            raise Malformed(what, path, line=number)
        events.append(call)
        report.used += 1
        check_size(len(events), path, number)
    if not events:
        raise Malformed("no hypercall found, expected lines 'xen_hypercall: cpu N cpl N input N ...'", path)
    report.unknown["arguments 3 to 5 of a hypercall (named in unseen_args)"] = len(events)
    report.count(events)
    header = evolve(_header(given), vm=given_shape(path, given, events))
    check_header(path, header, events)
    return Imported(header=header, events=events, report=report)


def _split(line: str) -> tuple[str | None, str, str]:
    match = _PREFIX.fullmatch(line.strip())
    return (match[1], match[2] or "", match[3]) if match else (None, "", line)


def _header(given: Given) -> Header:
    return Header(
        kernel=given.kernel,
        max_vcpus=given.max_vcpus,
        cpu_vendor=given.cpu_vendor or "amd",
        recorder="qemu-log",
        scope="hypercalls",
        unseen=("irq", "mem"),
        notes="Imported from QEMU's trace log: forwarded hypercalls only, three arguments each.",
    )

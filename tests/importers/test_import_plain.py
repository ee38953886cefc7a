"""The recordings that hold hypercalls only: plain ftrace, QEMU's log; how each is recognised."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest
from ftrace_text import CONFIG, KERNEL, KPROBES, QEMU_LOG, call, excerpt, imported, kept, line

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Header, Hypercall
from pytest_xenkvm.trace.files import open_trace, write_trace
from pytest_xenkvm.trace.importers import DETECT_LINES, IMPORTERS, Imported, detect, open_text, with_answers
from pytest_xenkvm.trace.importers import model as importer_model
from pytest_xenkvm.trace.importers.text import MAX_LINE

FORWARDED = "kvm_userspace_exit: reason KVM_EXIT_XEN (34)"


def plain(*, exits: bool) -> Iterator[str]:
    """The excerpt as a recorder of tracepoints alone would have written it."""
    for text in open_text(KPROBES):
        if "kvm_xen_hypercall: " in text or (exits and "kvm_userspace_exit: " in text):
            yield text


def calls(trace: Imported) -> list[Hypercall]:
    """The trace's hypercalls."""
    return [event for event in trace.events if isinstance(event, Hypercall)]


def test_plain_ftrace_sees_the_same_calls() -> None:
    """Without the probes the calls, vCPUs and exits are the same, and results unknown."""
    rich, poor = calls(excerpt()), calls(imported(plain(exits=True), "ftrace"))
    assert [(made.vcpu, made.nr, made.args, made.cpl, made.longmode) for made in poor] == [
        (made.vcpu, made.nr, made.args, made.cpl, made.longmode) for made in rich
    ]
    assert [made.exit for made in poor] == [made.exit for made in rich]
    assert {made.handled for made in poor} == {"userspace", None}
    assert {made.rax for made in poor} == {None}


def test_plain_ftrace_without_exits() -> None:
    """Without exits to userspace nobody knows who handled a call."""
    trace = imported(plain(exits=False), "ftrace")
    assert {made.handled for made in calls(trace)} == {None}
    assert trace.header == Header(
        kernel=KERNEL,
        recorder="ftrace",
        scope="hypercalls",
        unseen=("irq", "mem"),
        notes=trace.header.notes,
    )


def test_an_exit_belongs_to_its_own_thread() -> None:
    """A KVM_EXIT_XEN marks the last call of its own thread, and only one call."""
    other = "CPU 1/KVM-161"
    made = [line(call(29, 0)), line(call(29, 1), task=other), line(FORWARDED), line(FORWARDED)]
    trace = imported(made, "ftrace")
    assert [(one.vcpu, one.handled) for one in calls(trace)] == [(0, "userspace"), (1, None)]
    assert trace.report.skipped["KVM_EXIT_XEN without its hypercall"] == 1


@pytest.mark.parametrize("reason", ["error (34)", "restart (34)", "KVM_EXIT_IO (2)"])
def test_other_exits_forward_nothing(reason: str) -> None:
    """Another exit, or an errno that happens to be 34, is no KVM_EXIT_XEN."""
    trace = imported([line(call(29, 0)), line(f"kvm_userspace_exit: reason {reason}")], "ftrace")
    assert calls(trace)[0].handled is None


def test_without_cpl() -> None:
    """Kernels up to 6.1 print no CPL: it is taken as 0 and marked, like a4 and a5."""
    old = line(call(29, 0)).replace("cpl 0 ", "")
    (made,) = calls(imported([old], "ftrace", kernel="6.1.90"))
    assert (made.cpl, made.extra) == (0, {"untrusted": ["a4", "a5", "cpl"]})


WIDE_CALL = call(29, 0).replace(": ", ":    ", 1)
"""A call as trace-cmd prints it: the event's name is padded."""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"  CPU 3/KVM-160   [000]  1795343266.375944: {WIDE_CALL}", "trace-cmd"),
        (f"xen:   CPU 3/KVM-160   [000]  1795343266.375944: {WIDE_CALL}", "trace-cmd"),
        (f"  CPU 3/KVM-160   [000] d..1. 1795343266.375: {WIDE_CALL}", "trace-cmd"),
        (f"CPU 3/KVM   160 [000] 1795343266.375944: kvm:{call(29, 0)}", "perf"),
        (f"CPU 3/KVM   156/160 [000] 1795343266.375944000:          1   kvm:{call(29, 0)}", "perf"),
        (f"  CPU 3/KVM-160   (  156) [000] d..1. 1795343266.375944: {call(29, 0)}", "ftrace"),
        (f"  CPU 3/KVM-160     [000]  1795343266.375944: {call(29, 0)}", "ftrace"),
    ],
    ids=[
        "trace-cmd",
        "with an instance",
        "with flags",
        "perf",
        "PID/TID and period",
        "with thread groups",
        "without flags",
    ],
)
def test_columns(text: str, name: str) -> None:
    """The columns of each recorder tell it, with what its options add to them."""
    assert detect([text], path="recording") == name
    (made,) = calls(imported([text], name))
    assert (made.vcpu, made.nr) == (3, 29)


def test_threads_without_a_vcpus_name() -> None:
    """Threads of other VMMs are vCPUs in the order in which they appear, which is counted."""
    made = [line(call(29, 0), task=task) for task in ("fc_vcpu 7-9", "<...>-8", "fc_vcpu 7-9")]
    trace = imported(made, "ftrace")
    assert [one.vcpu for one in calls(trace)] == [0, 1, 0]
    assert sum(count for what, count in trace.report.unknown.items() if "thread" in what) == 2


def test_qemu_log() -> None:
    """QEMU's log gives forwarded calls with QEMU's answer; what it doesn't show is named."""
    trace = imported(open_text(QEMU_LOG), "qemu-log")
    first, third = calls(trace)[0], calls(trace)[2]
    assert (first.nr, first.args, first.handled, first.rax) == (
        17,
        (6, 0xFFFFFFFF9EA03E08, 0xFFFFFFFF9E2668A3, 0, 0, 0),
        "userspace",
        0,
    )
    assert first.extra == {"unseen_args": [3, 4, 5]}
    assert (first.ts, third.ts, third.rax) == (0, 9_071_000, (1 << 64) - 38)
    assert (trace.report.used, trace.report.skipped["other events"]) == (7, 8)


def test_qemu_log_without_times() -> None:
    """Without `-msg timestamp=on` there is no prefix, and the events have no time."""
    bare = [text.partition(":")[2] for text in open_text(QEMU_LOG)]
    timed = imported(open_text(QEMU_LOG), "qemu-log")
    assert [(made.args, made.rax, made.ts) for made in calls(imported(bare, "qemu-log"))] == [
        (made.args, made.rax, None) for made in calls(timed)
    ]


def test_answers_complete_a_trace(tmp_path: Path) -> None:
    """QEMU's log of the same run fills in the answers, and the trace can be written and read back."""
    trace = with_answers(excerpt(), imported(open_text(QEMU_LOG), "qemu-log"), path="qemu.log")
    answers = [made.rax for made in calls(trace) if made.handled == "userspace"]
    assert answers == [0, 0, -38 & (1 << 64) - 1, 0, -38 & (1 << 64) - 1, 0, 0]
    written = tmp_path / "trace.jsonl"
    write_trace(written, trace.header, trace.events)
    back = open_trace(written)
    assert (back.header, list(back.events())) == (trace.header, trace.events)


def test_answers_of_another_run_are_refused() -> None:
    """A log whose calls differ, or that holds more of them, is not of the same run."""
    log = list(open_text(QEMU_LOG))
    other = imported([text.replace("a0 0x9", "a0 0xa") for text in log], "qemu-log")
    with pytest.raises(Malformed, match="log of the same run"):
        with_answers(excerpt(), other, path="qemu.log")
    longer = imported([*log, log[-1]], "qemu-log")
    with pytest.raises(Malformed, match="1 more hypercalls"):
        with_answers(excerpt(), longer, path="qemu.log")


@pytest.mark.parametrize(
    "text",
    ["cpu 0 cpl 0 input 17", f"cpu 0 cpl 0 input {1 << 64} a0 0x0 a1 0x0 a2 0x0 ret 0x0"],
)
def test_malformed_qemu_lines_are_named(text: str) -> None:
    """A hypercall's line of another form is an error with its line number."""
    with pytest.raises(Malformed) as caught:
        imported(["1@2.000000:xen_bus_realize ", f"kvm_xen_hypercall xen_hypercall: {text}"], "qemu-log")
    assert (caught.value.path, caught.value.line) == ("recording", 2)


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (open_text(KPROBES), "ftrace-kprobes"),
        (plain(exits=True), "ftrace"),
        (open_text(QEMU_LOG), "qemu-log"),
        ([line("sched_switch: x"), line(kept())], "ftrace-kprobes"),
        ([line("sched_switch: x")], "ftrace"),
    ],
    ids=["kprobes", "ftrace", "qemu", "late kprobes", "other events"],
)
def test_detect(lines: Iterator[str], name: str) -> None:
    """A recording is recognised by what its first lines hold."""
    assert detect(lines, path="recording") == name
    assert name in IMPORTERS


def test_detect_refuses_what_it_does_not_know() -> None:
    """Anything else is refused with the names of what is known."""
    with pytest.raises(Malformed, match="expected one of qemu-log, trace-cmd, perf, "):
        detect(["hello", ""], path="recording")


@pytest.mark.parametrize("name", IMPORTERS)
def test_empty_recordings_are_refused(name: str) -> None:
    """A file without a single usable line is no recording."""
    with pytest.raises(Malformed, match=r"^recording: no "):
        imported(["# comment", "", "what?"], name)


def test_text_and_gzip_read_alike(tmp_path: Path) -> None:
    """A gzip file reads like the text in it, whatever its name, and bytes that are no UTF-8 don't matter."""
    content = b"one\r\ntw\xff\n\nlast"
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(gzip.compress(content))
    assert list(open_text(tmp_path / "a")) == ["one", "tw\ufffd", "", "last"]
    assert list(open_text(tmp_path / "b")) == list(open_text(str(tmp_path / "a")))


@pytest.mark.parametrize("packed", [False, True])
def test_endless_lines_are_refused(tmp_path: Path, *, packed: bool) -> None:
    """A line beyond the limit is refused before it is held as a whole."""
    content = b"x\n" + bytes(MAX_LINE + 1)
    path = tmp_path / "endless"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(Malformed, match=f"endless, line 2: a line of more than {MAX_LINE} bytes"):
        list(open_text(path))


def test_broken_gzip_is_refused(tmp_path: Path) -> None:
    """A gzip file that was cut off is an error that names the last whole line."""
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(b"".join(b"line %d\n" % n for n in range(9999)))[:-20])
    with pytest.raises(Malformed, match="broken gzip data"):
        list(open_text(path))


def test_recordings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording that gives more events than the limit is refused with the line that went too far."""
    monkeypatch.setattr(importer_model, "MAX_EVENTS", 3)
    for name in ("ftrace", "ftrace-kprobes"):
        with pytest.raises(Malformed, match="line 4: the recording gives more than 3 events"):
            imported((line(call(29, 0)) for _ in range(9)), name)


def test_a_clock_that_goes_backwards_stands_still() -> None:
    """Times never decrease, whatever the recording's clock did."""
    lines = [line(call(29, 0), us) for us in (10, 30, 5, 40)]
    log = [text for text in open_text(QEMU_LOG) if "xen_hypercall: " in text]
    for trace in (
        imported(lines, "ftrace"),
        imported(lines),
        imported([log[3], log[0], log[4]], "qemu-log"),
    ):
        times = [event.ts or 0 for event in trace.events]
        assert times == sorted(times)
        assert times[-1] > 0


def test_report_is_a_short_table() -> None:
    """The report says in a line each what was read, used, skipped and not recorded."""
    table = str(imported([line(CONFIG), "", line(call(29, 0)), line("sched_switch: x"), line(kept())]).report)
    assert "        5  lines read" in table
    assert "        1  skipped: other events" in table
    assert "        1  events: hypercall" in table
    assert "        1  not recorded: cpu_vendor (amd assumed)" in table


def test_detect_needs_few_lines() -> None:
    """The probes show themselves early enough in a real recording."""
    first = next(number for number, text in enumerate(open_text(KPROBES)) if "hvm_set_attr: " in text)
    assert first < DETECT_LINES


def test_more_threads_than_vcpus_are_refused_soon() -> None:
    """A hypercall of a 4097th thread is no guest's: the import stops there."""
    lines = [
        f"  vcpu{pid}-{pid} [000] ..... 1.{pid:06d}: kvm_xen_hypercall: cpl 0 nr 0x11 "
        "a0 0x0 a1 0x0 a2 0x0 a3 0x0 a4 0x0 a5 0\n"
        for pid in range(1, 6000)
    ]
    with pytest.raises(Malformed, match="at most 4096 vCPUs"):
        IMPORTERS["ftrace"].run(lines, path="many.txt")

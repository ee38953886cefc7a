"""Opening recordings: what each file is, the bounds, and trace-cmd's help."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest
from ftrace_text import CONFIG, DATA, call, hypercalls, imported, line

from pytest_xenkvm.trace.errors import Malformed, TraceError
from pytest_xenkvm.trace.events import Header
from pytest_xenkvm.trace.files import write_trace
from pytest_xenkvm.trace.importers import BPFTRACE_SCRIPT, detect, lines, open_recording, text
from pytest_xenkvm.trace.importers.tool_lines import BPFTRACE, PERF, TRACE_CMD

SHOWN = {
    "trace-cmd": line(call(29, 0).replace(": ", ":    ", 1)),
    "perf": f"CPU 0/KVM   160 [000] 100.000000: kvm:{call(29, 0)}",
    "bpftrace": f"CPU 0/KVM-160 [000] 100.000000000: {call(29, 0)}",
    "ftrace": line(call(29, 0)),
}
"""One hypercall as each recorder prints it."""
TRACE_DAT = DATA / "one_run" / "trace.dat"


def test_other_files_are_named(tmp_path: Path) -> None:
    """Perf's own data and a trace are refused with what to do, a folder with what it is."""
    (tmp_path / "perf.data").write_bytes(b"PERFILE2" + bytes(100))
    with pytest.raises(Malformed, match="is perf's own data; import what `perf script"):
        open_recording(tmp_path / "perf.data")
    write_trace(tmp_path / "a.xkt", Header(scope="hypercalls"), [])
    with pytest.raises(Malformed, match="is a trace already, expected a recording"):
        open_recording(tmp_path / "a.xkt")
    with pytest.raises(TraceError, match="is a directory, expected a recording"):
        open_recording(tmp_path)


def test_lines_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that unpacks to more lines than a recorder writes is not read to its end."""
    monkeypatch.setattr(text, "MAX_LINES", 1000)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b"\n" * 10_000_000))
    with pytest.raises(Malformed, match="line 1001: more than 1,000 lines; cut the recording"):
        list(open_recording(tmp_path / "bomb.gz"))


def test_trace_dat_without_trace_cmd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where trace-cmd isn't installed, the error says so, and what else can be done."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        TraceError, match=r"needs the program trace-cmd .* install it, or import what `trace-cmd"
    ):
        list(open_recording(TRACE_DAT))


@pytest.mark.skipif(shutil.which("trace-cmd") is None, reason="trace-cmd is not installed")
@pytest.mark.parametrize("size", [100, 60_000])
def test_cut_trace_dat(tmp_path: Path, size: int) -> None:
    """A trace.dat that was cut off holds no event for trace-cmd: that is an error, no empty trace."""
    (tmp_path / "trace.dat").write_bytes(TRACE_DAT.read_bytes()[:size])
    with pytest.raises(Malformed, match="damaged"):
        list(open_recording(tmp_path / "trace.dat"))


def fake_trace_cmd(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a trace-cmd of ours first."""
    program = folder / "trace-cmd"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_trace_cmd_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace-cmd that ends with an error, after whatever it printed, is an error of the import."""
    fake_trace_cmd(tmp_path, monkeypatch, "echo cpus=1; exit 3")
    with pytest.raises(
        Malformed, match=r"trace\.dat: cannot be read by trace-cmd, which ended with status 3"
    ):
        list(open_recording(TRACE_DAT))


def test_trace_cmd_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has read enough doesn't wait for trace-cmd's end; a line without end is not read whole."""
    fake_trace_cmd(tmp_path, monkeypatch, "echo cpus=1; exec sleep 1000")
    recording = open_recording(TRACE_DAT)
    assert next(recording) == "cpus=1"
    recording.close()  # type: ignore[attr-defined]  # a generator
    fake_trace_cmd(tmp_path, monkeypatch, "cat /dev/zero")
    with pytest.raises(Malformed, match="a line of more than"):
        list(open_recording(TRACE_DAT))


@pytest.mark.parametrize(
    ("name", "note", "count"),
    [
        ("trace-cmd", "CPU:0 [EVENTS DROPPED]", 1),
        ("trace-cmd", "CPU:12 [1234 EVENTS DROPPED]", 1234),
        ("perf", "            perf   146 [000]    14.029355: PERF_RECORD_LOST lost 1103", 1103),
        ("bpftrace", "Lost 329 events", 329),
        ("ftrace", "CPU:3 [LOST 12 EVENTS]", 12),
    ],
)
def test_losses(name: str, note: str, count: int) -> None:
    """Each recorder's note of lost events is counted, and said in the trace itself."""
    shown = SHOWN[name]
    trace = imported([shown, note, shown], name)
    assert trace.report.lost == count
    assert len(hypercalls(trace)) == 2
    assert f"The recorder lost {count:,} events or more." in trace.header.notes
    assert "lost" not in imported([shown], name).header.notes


@pytest.mark.parametrize("name", SHOWN)
def test_old_kernels_registers_are_marked(name: str) -> None:
    """Whoever printed them, a4 and a5 of a kernel that mixed them up, or of an unknown one, are untrusted."""
    (good,) = hypercalls(imported([SHOWN[name]], name))
    assert good.extra == {}
    for kernel in ("6.12.116", "6.1.90", None):
        (made,) = hypercalls(imported([SHOWN[name]], name, kernel=kernel))
        assert made.extra == {"untrusted": ["a4", "a5"]}


def test_bpftraces_order() -> None:
    """What bpftrace prints of each CPU on its own is put in the order of time."""
    shown = [
        f"CPU {cpu}/KVM-16{cpu} [00{cpu}] 100.00000{us}000: {call(us, 0)}"
        for cpu, us in ((0, 1), (0, 4), (1, 2))
    ]
    assert [(made.nr, made.ts) for made in hypercalls(imported(shown, "bpftrace"))] == [
        (1, 0),
        (2, 1000),
        (4, 3000),
    ]
    assert [made.vcpu for made in hypercalls(imported(shown, "bpftrace"))] == [0, 1, 0]


def test_reordering_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more lines than the bound are held back, however many there are."""
    monkeypatch.setattr(lines, "_REORDERED", 10)
    shown = (f"CPU 0/KVM-160 [000] 100.{us:06}: {call(us, 0)}" for us in range(1000))
    taken = 0

    def counted() -> object:
        nonlocal taken
        for one in shown:
            taken += 1
            yield one

    from pytest_xenkvm.trace.importers.model import ImportReport  # noqa: PLC0415

    events = lines.read_lines(counted(), "recording", ImportReport(), BPFTRACE)  # type: ignore[arg-type]
    assert next(events).ns == 100 * 10**9
    assert taken == 11


def test_the_script_prints_what_is_read() -> None:
    """The script for bpftrace comes with the package, and marks its output by the line that is looked for."""
    script = BPFTRACE_SCRIPT.read_text()
    assert 'printf("# xenkvm.bt' in script
    for event in ("kvm_xen_hypercall", "kvm_userspace_exit"):
        assert f"tracepoint:kvm:{event}" in script
    assert BPFTRACE.recognises("# xenkvm.bt 1")


@pytest.mark.parametrize(
    "fields",
    [
        "flags=0x22 msr=garbage blob32=0x0 blob64=0x0 sizes=0x0",
        "flags=(fault) msr=garbage blob32=0x0 blob64=0x0 sizes=0x0",
        "flags=0x22 flags=0x22 msr=0x40000000 blob32=0x0 blob64=0x0 sizes=0x0",
        "flags=(fault) msr=0x40000000 blob32=0x0 blob64=0x0",
        "flags=0x22 msr=0x4000000000000000000 blob32=0x0 blob64=0x0 sizes=0x0",
        "flags=0x22 msr=0x100000000 blob32=0x0 blob64=0x0 sizes=0x0",
    ],
)
def test_malformed_kprobe_fields_are_refused(fields: str) -> None:
    """A field that is neither a number nor a fault is damage, even beside one that couldn't be read."""
    with pytest.raises(Malformed, match="line 1: hvm_config holds"):
        imported([line(f"hvm_config: (f) {fields}")])
    assert imported([line(CONFIG.replace("flags=0x22", "flags=(fault)")), line(call(29, 0))]).report.skipped


def test_malformed_attribute_bytes_are_refused() -> None:
    """An attribute whose bytes are damaged is no attribute of which the probe saw too little."""
    attribute = "hvm_set_attr: (f) type=3 d0=0x0 d1=0x1z d2=0x0 d3=0x0"
    with pytest.raises(Malformed, match=r"line 2: hvm_set_attr holds .* expected d1=NUMBER, once"):
        imported([line(CONFIG), line(attribute)])


def test_syntaxes_are_told_apart() -> None:
    """A line of one recorder is none of another's."""
    perf = f"CPU 0/KVM   160 [000] 100.000000: kvm:{call(29, 0)}"
    trace_cmd = line(call(29, 0).replace(": ", ":    ", 1))
    assert [syntax.recognises(perf) for syntax in (PERF, TRACE_CMD)] == [True, False]
    assert [syntax.recognises(trace_cmd) for syntax in (PERF, TRACE_CMD)] == [False, True]
    assert not TRACE_CMD.recognises(line(call(29, 0)))


@pytest.mark.parametrize(
    "event",
    [
        "kvm_write_tsc_offset: vcpu=0 prev=0 next=18446743879395187032",
        "kvm_update_master_clock: masterclock 0 hostclock tsc offsetmatched 0",
        "hvm_evtchn_send_ret: (kvm_arch_vm_ioctl+0x4ce/0xe30 [kvm] <- kvm_xen_hvm_evtchn_send) ret=0",
    ],
)
def test_long_names_are_not_padded(event: str) -> None:
    """An event whose name fills trace-cmd's column looks the same in ftrace, so it doesn't show trace-cmd."""
    assert detect([line(event), line(CONFIG)], path="recording") == "ftrace-kprobes"
    trace = imported([line(event), line(call(29, 0).replace(": ", ":    ", 1))], "trace-cmd")
    assert trace.report.skipped["other events"] == 1


def test_recordings_without_any_event_are_refused() -> None:
    """Lines that are events, but none of Xen's, make no trace."""
    with pytest.raises(Malformed, match="no hypercall found, expected events kvm_xen_hypercall"):
        imported([line("sched_switch: x")], "ftrace")
    with pytest.raises(Malformed, match="neither hypercall nor Xen ioctl found"):
        imported([line("sched_switch: x")], "ftrace-kprobes")

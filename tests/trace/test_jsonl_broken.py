"""The interchange format: what is refused, where, and in which words."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from samples import EVENT_LINES, HEADER_LINE, SAMPLE, compact, complaint

from pytest_xenkvm.trace.errors import Malformed, TraceError
from pytest_xenkvm.trace.jsonl import JsonlTrace

HYPERCALL = EVENT_LINES[12]


def about_event(line: str, folder: Path) -> str:
    """Return the clause about a broken event on line 2."""
    return about(f"{HEADER_LINE}\n{line}\n", folder, ", line 2, event 0: ")


def about_header(folder: Path, **changes: object) -> str:
    """Return the clause about a header with these keys changed."""
    return about(compact({**json.loads(HEADER_LINE), **changes}), folder, ", line 1: ")


def about(text: str, folder: Path, place: str) -> str:
    """Return the clause about a broken file, after checking that it is said of `place`."""
    path = folder / "t.jsonl"
    path.write_text(text)
    sentence = complaint(path)
    assert sentence.startswith(place)
    return sentence.removeprefix(place)


BROKEN_VALUES = [
    ("nr", "24", "nr is '24', expected an integer 0 ... 2^64-1"),
    ("nr", True, "nr is true, expected an integer 0 ... 2^64-1"),
    ("nr", -1, "nr is -1, expected an integer 0 ... 2^64-1"),
    ("nr", 1 << 64, "nr is 18446744073709551616, expected an integer 0 ... 2^64-1"),
    ("nr", None, "nr is null, expected an integer 0 ... 2^64-1"),
    ("cpl", 4, "cpl is 4, expected an integer 0 ... 3"),
    ("longmode", 1, "longmode is 1, expected true or false"),
    ("vcpu", 4096, "vcpu is 4096, expected an integer 0 ... 4095"),
    ("vcpu", 2, "vcpu is 2, but the header names 2 vCPUs"),
    ("args", [0] * 5, "args is a list of 5, expected a list of 6"),
    ("args", {"a": 1}, "args is an object, expected a list of 6"),
    ("args", [0, 0, 0, {"now_plus": 1 << 63}, 0, 0], ("args[3].now_plus is 9223372036854775808, expected an"
     " integer -2^63 ... 2^63-1")),
    ("args", [0, {"now": 1}, 0, 0, 0, 0],
     'args[1] is an object, expected an object with the one member "now_plus"'),
    ("args", [0, -1, 0, 0, 0, 0], 'args[1] is -1, expected an integer 0 ... 2^64-1 or {"now_plus": D}'),
    ("handled", "guest", "handled is 'guest', expected \"kernel\" or \"userspace\""),
    ("handled", None, 'handled is null, which only scope "hypercalls" allows'),
    ("rax", None, "rax is null, which in scope \"full\" only a forwarded one's may be"),
    ("via", "hole", "via is 'hole', expected \"page\""),
    ("exit", {}, 'exit has no "type"'),
    ("behind", [{"arg": 6, "data": ""}], "behind[0].arg is 6, expected an integer 0 ... 5"),
    ("behind", [{"arg": 1, "data": "0"}],
     "behind[0].data is '0', expected a string of hex digits, two a byte"),
    ("raw", {"nr": 1, "args": [1]}, "raw.args is a list of 1, expected a list of 6"),
    ("run_ret", 1 << 63, "run_ret is 9223372036854775808, expected an integer -2^63 ... 2^63-1"),
    ("ts", -1, "ts is -1, expected an integer 0 ... 2^64-1"),
    ("x", -(1 << 63) - 1, "x is -9223372036854775809, expected an integer -2^63 ... 2^64-1"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "clause"), BROKEN_VALUES)
def test_wrong_values_of_a_hypercall_are_named(tmp_path: Path, key: str, value: object, clause: str) -> None:
    """A value of the wrong type or range is refused, saying where it is, what it is and what was expected."""
    assert about_event(compact({**json.loads(HYPERCALL), key: value}), tmp_path) == f"hypercall: {clause}"


BROKEN_EVENTS = [
    ('{"ev":"nap"}', "ev is 'nap', expected one of ioctl, eventfd, eventfd_read, eventfd_write, "),
    ('{"ev":["wait"]}', "ev is a list of 1, expected one of ioctl"),
    ('{"ns":1}', 'has no "ev", which says what kind of event it is'),
    ("[]", "is a list of 0, expected an event object"),
    ('{"ev":"wait"}', 'wait: has no "ns"'),
    ('{"ev":"irq","vcpu":0,"vector":256}', "irq: vector is 256, expected an integer 0 ... 255"),
    ('{"ev":"mem","op":"swap","gpa":0,"data":""}', "mem: op is 'swap', expected \"read\" or \"write\""),
    ('{"ev":"mem","op":"read","gpa":0,"data":"0g"}', "mem: data is '0g', expected a string of hex digits"),
    ('{"ev":"mem","op":"read","gpa":0,"data":"0 1 "}',
     "mem: data is '0 1 ', expected a string of hex digits"),
    ('{"ev":"mem","op":"read","gpa":0,"data":"00","mask":"0000"}', "mem: mask has 2 bytes, expected 1"),
    ('{"ev":"mem","op":"write","gpa":0,"data":"00","mask":"00"}',
     'mem: mask is there, but only a "read" has'),
    ('{"ev":"mem","op":"read","gpa":0,"data":"0000000000000000","now_plus_at":[[1,0]]}',
     "mem: now_plus_at names 8 bytes at 1, but the data has 8"),
    ('{"ev":"mem","op":"read","gpa":0,"data":"00","now_plus_at":[3]}',
     "mem: now_plus_at[0] is 3, expected a"),
    ('{"ev":"ioctl","name":"KVM_RUN","arg":{},"ret":0}',
     "ioctl: name is 'KVM_RUN', expected one of KVM_CHECK"),
    ('{"ev":"ioctl","name":"KVM_XEN_VCPU_SET_ATTR","arg":{"type":6,"vcpu_id":1},"ret":0}',
     'ioctl: has no "vcpu", which KVM_XEN_VCPU_SET_ATTR needs'),
    ('{"ev":"ioctl","name":"KVM_IRQ_LINE","vcpu":0,"arg":{"irq":6,"level":1},"ret":0}',
     'ioctl: has a "vcpu", but KVM_IRQ_LINE is not made on a vCPU'),
    ('{"ev":"ioctl","name":"KVM_IRQ_LINE","arg":{"irq":6},"ret":0}', 'ioctl: arg has no "level"'),
    ('{"ev":"ioctl","name":"KVM_IRQ_LINE","arg":7,"ret":0}', "ioctl: arg is 7, expected an object"),
    ('{"ev":"ioctl","name":"KVM_IRQ_LINE","arg":{"irq":6,"level":1},"ret":0,"out":{}}',
     "ioctl: out is there, but KVM_IRQ_LINE writes nothing back"),
    ('{"ev":"ioctl","name":"KVM_XEN_HVM_SET_ATTR","arg":{"type":4},"ret":0}',
     'ioctl: arg has no "xen_version"'),
    ('{"ev":"ioctl","name":"KVM_XEN_HVM_SET_ATTR","arg":{"type":7,"gpa":1},"ret":0}',
     "ioctl: arg has more than its type, but attribute type 7 is unknown"),
    (('{"ev":"ioctl","name":"KVM_XEN_HVM_SET_ATTR","arg":{"type":3,"evtchn":{"send_port":1,"type":2,'
      '"flags":0,"deliver":{}}},"ret":0}'),
     'ioctl: arg.evtchn.deliver is an object, expected an object with either "port" or "eventfd"'),
    (('{"ev":"ioctl","name":"KVM_XEN_VCPU_SET_ATTR","vcpu":0,"arg":{"type":7,"timer":{"port":1,"priority":0,'
     '"expires_ns":"soon"}},"ret":0}'), "ioctl: arg.timer.expires_ns is 'soon', expected an integer"),
    ('{"ev":"ioctl","name":"KVM_XEN_VCPU_GET_ATTR","vcpu":0,"arg":{"type":6},"ret":0,"out":{"vcpu_id":"1"}}',
     "ioctl: out.vcpu_id is '1', expected an integer 0 ... 2^32-1"),
    ('{"ev":"ioctl","name":"KVM_SET_GSI_ROUTING","arg":{"entries":[{"gsi":1,"type":5}]},"ret":0}',
     'ioctl: arg.entries[0] has no "xen_evtchn"'),
    ("{", "is not JSON: expecting property name enclosed in double quotes at column "),
    ('{"ev":"wait","ns":1.5}', "holds the number '1.5', expected integers only"),
    ('{"ev":"wait","ns":1e3}', "holds the number '1e3', expected integers only"),
    ('{"ev":"wait","ns":NaN}', "holds the number 'NaN', expected integers only"),
    ('{"ev":"wait","ns":-Infinity}', "holds the number '-Infinity', expected integers only"),
    ('{"ev":"wait","ns":' + "9" * 5000 + "}", "holds an integer of 5000 digits, expected at most 2^64-1"),
    ('{"ev":"wait","ns":1,"ns":2}', "holds the key 'ns' twice"),
    ('{"ev":"wait","ns":1,"x":' + "[" * 50_000 + "]" * 50_000 + "}", "is nested too deeply"),
    ('{"ev":"wait","ns":1,"x":' + "[" * 18 + "]" * 18 + "}", "wait: x is nested more than 16 deep"),
    ('{"ev":"wait","ns":1,"x":[' + "0," * 100_000 + "0]}", "holds more than 100000 values"),
    ('{"ev":"wait","ns":1,"x":"\\ud800"}', "wait: x is '\\ud800', expected a string without lone surrogates"),
    ("", "is blank, expected one JSON object a line"),
    (" ", "is blank, expected one JSON object a line"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "clause"), BROKEN_EVENTS, ids=range(len(BROKEN_EVENTS)))
def test_broken_events_are_named_with_their_place(tmp_path: Path, line: str, clause: str) -> None:
    """A line that is no event in order is refused in one clause, after file, line and event."""
    assert about_event(line, tmp_path).startswith(clause)


def test_exit_goes_with_userspace_only(tmp_path: Path) -> None:
    """A hypercall that the kernel handled can't have delivered an exit."""
    line = EVENT_LINES[13].replace('"userspace"', '"kernel"')
    assert about_event(line, tmp_path) == (
        'hypercall: exit is there, but only a hypercall handled in "userspace" has one'
    )


def vm(**changes: object) -> dict[str, object]:
    """Return the header key `vm` with these keys of its own changed."""
    return {"vm": {**json.loads(HEADER_LINE)["vm"], **changes}}


BROKEN_HEADERS: list[tuple[dict[str, object], str]] = [
    ({"format": "other"}, 'is no trace header, expected an object with "format": "xenkvm-trace"'),
    ({"version": 2}, "version 2 is not supported; this release reads version 1"),
    ({"version": "1"}, "version '1' is not supported; this release reads version 1"),
    ({"version": True}, "version true is not supported; this release reads version 1"),
    ({"cpu_vendor": "via"}, "header: cpu_vendor is 'via', expected \"amd\" or \"intel\""),
    ({"scope": None}, 'header: scope is null, expected "full" or "hypercalls"'),
    ({"max_vcpus": 0}, "header: max_vcpus is 0, expected an integer 1 ... 4294967295"),
    ({"kernel": 7}, "header: kernel is 7, expected a string"),
    ({"vm": None}, 'header: vm is null, which only scope "hypercalls" allows'),
    ({"unseen": "irq"}, "header: unseen is 'irq', expected a list"),
    (vm(irqchip="half"), 'header: vm.irqchip is \'half\', expected "none" or "split" or "full"'),
    (vm(more=1), "header: vm has the keys 'irqchip, memory, vcpus, more', expected irqchip, memory, vcpus"),
    (vm(memory=[{"gpa": 1, "size": 4096}]),
     "header: vm.memory[0] is 4096 bytes at 0x1, expected whole pages"),
    (vm(memory=[{"gpa": 0, "size": 0}]), "header: vm.memory[0] is 0 bytes at 0x0, expected whole pages"),
    (vm(memory=[{"gpa": 0, "size": 8192}, {"gpa": 4096, "size": 4096}]),
     "header: vm.memory has overlapping slots at 0x0 and 0x1000"),
    (vm(memory=[{"gpa": 0, "size": (1 << 40) + 4096}]),
     "header: vm.memory is 1099511631872 bytes in all, expected at most 1099511627776 (1 TiB)"),
    (vm(memory=[{"gpa": (1 << 52) - 4096, "size": 8192}]),
     "header: vm.memory[0] ends at 0x10000000001000, beyond the 52 bits of a guest address"),
    (vm(vcpus=[{"index": 1, "id": 0}]), "header: vm.vcpus[0].index is 1, expected 0 (the order of creation)"),
    (vm(vcpus=[{"index": 0, "id": 4}, {"index": 1, "id": 4}]),
     "header: vm.vcpus has two vCPUs of the same id"),
    (vm(vcpus=[{"index": 0, "id": 0}] * 4097),
     "header: vm.vcpus is a list of 4097, expected a list of at most"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "clause"), BROKEN_HEADERS, ids=range(len(BROKEN_HEADERS)))
def test_broken_headers_are_named(tmp_path: Path, changes: dict[str, object], clause: str) -> None:
    """A header that is not in order is refused in one clause, after file and line."""
    assert about_header(tmp_path, **changes).startswith(clause)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "t.jsonl: is empty, expected a trace header on line 1"),
        (b"\x7fELF\x02\x01\x01\0\xff", "t.jsonl, line 1: is not UTF-8 text (byte 0xff at column 9)"),
        (b"\0\0\0\0", "t.jsonl, line 1: is not JSON: expecting value at column 1"),
        (HYPERCALL.encode(), "t.jsonl, line 1: is no trace header, expected an object with"),
        (
            HEADER_LINE.encode() + b"\n\xe9\n",
            "t.jsonl, line 2, event 0: is not UTF-8 text (byte 0xe9 at column 1)",
        ),
        (
            b'"' + b"x" * (16 << 20) + b'"\n',
            "t.jsonl, line 1: is a line of more than 16777216 bytes (16 MiB)",
        ),
        (gzip.compress(SAMPLE.encode())[:-20], "t.jsonl: is damaged or cut off after line "),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"\xff" * 20, "t.jsonl: is damaged or cut off after line 0: "),
    ],
    ids=["empty", "binary", "zeros", "no-header", "not-utf-8", "long-line", "gzip-cut", "gzip-damaged"],
)
def test_files_that_are_no_trace_get_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    """What is not a trace at all is refused in one sentence too."""
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(Malformed) as caught:
        list(JsonlTrace(path).events())
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(sentence)


def test_errors_name_the_line_far_into_a_file(tmp_path: Path) -> None:
    """Event N stands on line N + 2, and the events before a broken one are read."""
    path = tmp_path / "t.jsonl"
    path.write_text(f"{SAMPLE}{{}}\n")
    events = JsonlTrace(path).events()
    assert len([next(events) for _line in EVENT_LINES]) == len(EVENT_LINES)
    with pytest.raises(Malformed) as caught:
        next(events)
    assert (caught.value.line, caught.value.event) == (len(EVENT_LINES) + 2, len(EVENT_LINES))


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    """A file that isn't there is a `TraceError`, not a traceback."""
    with pytest.raises(TraceError, match=r"none\.jsonl: cannot be read: No such file or directory"):
        JsonlTrace(tmp_path / "none.jsonl")


def test_a_large_compressed_file_is_read_line_by_line(tmp_path: Path) -> None:
    """A line that decompresses beyond the limit is refused without reading on."""
    path = tmp_path / "t.jsonl.gz"
    with gzip.open(path, "wb") as out:
        out.write(HEADER_LINE.encode() + b"\n")
        for _ in range(64):
            out.write(b" " * (1 << 20))
    with pytest.raises(Malformed, match="line 2, event 0: is a line of more than"):
        list(JsonlTrace(path).events())

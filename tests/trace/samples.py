"""Lines as recorders write them, small traces made of them, and helpers for the tests of the formats."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

from pytest_xenkvm.trace import blocks
from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Event, Header, Hypercall, MemorySlot, VcpuShape, VmShape
from pytest_xenkvm.trace.files import open_trace
from pytest_xenkvm.trace.jsonl import event_from_json
from pytest_xenkvm.trace.xkt import XktWriter

HEADER_LINE: Final = (
    '{"format":"xenkvm-trace","version":1,"kernel":"7.3-cloud-amd64","max_vcpus":4096,"cpu_vendor":"amd",'
    '"recorder":"kvm-oracle","scope":"full","vm":{"irqchip":"split","memory":[{"gpa":0,"size":4194304}],'
    '"vcpus":[{"index":0,"id":0},{"index":1,"id":2}]},"notes":"sample"}'
)
EVENT_LINES: Final = (
    '{"ev":"ioctl","name":"KVM_CHECK_EXTENSION","arg":{"cap":38},"ret":511,"ts":0}',
    (
        '{"ev":"ioctl","name":"KVM_XEN_HVM_CONFIG","arg":{"flags":34,"msr":1073741824,"blob_addr_32":0,'
        '"blob_addr_64":{"gpa":3211264},"blob_size_32":0,"blob_size_64":0},"ret":-22,"ts":7262313}'
    ),
    (
        '{"ev":"ioctl","name":"KVM_XEN_HVM_SET_ATTR","arg":{"type":3,"evtchn":{"send_port":1,"type":2,"flags":0,'
        '"deliver":{"eventfd":{"port":0,"fd":1}}}},"ret":0,"ts":7262400}'
    ),
    (
        '{"ev":"ioctl","name":"KVM_XEN_VCPU_SET_ATTR","vcpu":1,"arg":{"type":7,"timer":{"port":9,'
        '"priority":4294967295,"expires_ns":{"now_plus":-1000}}},"ret":0,"ts":7468871}'
    ),
    '{"ev":"ioctl","name":"KVM_XEN_VCPU_SET_ATTR","vcpu":1,"arg":{"type":10},"ret":-2,"ts":7468900}',
    (
        '{"ev":"ioctl","name":"KVM_XEN_VCPU_GET_ATTR","vcpu":0,"arg":{"type":4},"ret":0,"out":{"type":4,'
        '"runstate":{"state":0}},"undetermined":{"runstate":{"state_entry_time":14094861,"time_running":0}},'
        '"sum_ok":true,"ts":8075816}'
    ),
    (
        '{"ev":"ioctl","name":"KVM_SET_GSI_ROUTING","arg":{"entries":[{"gsi":5,"type":5,"xen_evtchn":{"port":3,'
        '"vcpu":2,"priority":4294967295}}]},"ret":0,"ts":8075900}'
    ),
    '{"ev":"eventfd","fd":1,"ts":9732795}',
    '{"ev":"eventfd_write","fd":1,"value":18446744073709551614,"ts":9732796}',
    '{"ev":"eventfd_read","fd":1,"value":1,"ts":9732800}',
    (
        '{"ev":"mem","op":"write","gpa":2097152,"data":"000120000000000001000000000000000000000000000000",'
        '"now_plus_at":[[16,30000000]],"ts":11692941}'
    ),
    (
        '{"ev":"mem","op":"read","gpa":1051648,"data":"02000000e0c9026b","mask":"ffffffff00000000",'
        '"sum_ok":true,"ts":15785469}'
    ),
    (
        '{"ev":"hypercall","vcpu":0,"longmode":true,"cpl":0,"nr":24,"args":[8,7,4194292,17476,21845,26214],'
        '"handled":"kernel","rax":18446744073709551602,"ts":16689771}'
    ),
    (
        '{"ev":"hypercall","vcpu":1,"longmode":true,"cpl":1,"nr":17,"args":[0,0,0,17476,21845,26214],"handled":'
        '"userspace","exit":{"type":1,"longmode":1,"cpl":1,"input":17,"params":[0,0,0,17476,21845,26214]},'
        '"rax":11935946389007958025,"via":"page","ts":30559457}'
    ),
    (
        '{"ev":"hypercall","vcpu":0,"longmode":false,"cpl":0,"nr":17,"args":[0,0,{"now_plus":5},0,0,0],"handled":'
        '"kernel","rax":262161,"behind":[{"arg":2,"data":"00ff","z":null}],"compat":true,"raw":{"nr":4294967313,'
        '"args":[4294967296,0,0,0,0,0]},"run_ret":-14,"inferred":true,"during":{"vcpu":0,"b":[],"a":[{}]},'
        '"ts":30559400}'
    ),
    '{"ev":"wrmsr","vcpu":0,"longmode":true,"msr":1073741824,"value":3145728,"ok":false,"run_ret":-14}',
    '{"ev":"wait","ns":5000000,"ts":37537227}',
    '{"ev":"vcpu_run","vcpu":1,"ts":37537300}',
    '{"ev":"irq","vcpu":1,"vector":97,"ts":37537301}',
)
SAMPLE: Final = "".join(f"{line}\n" for line in (HEADER_LINE, *EVENT_LINES))

HEADER: Final = Header(
    kernel="7.3-cloud-amd64",
    max_vcpus=4096,
    recorder="kvm-oracle",
    vm=VmShape(
        irqchip="split",
        memory=(MemorySlot(gpa=0, size=4 << 20),),
        vcpus=(VcpuShape(index=0, id=0), VcpuShape(index=1, id=2)),
    ),
    notes="sample",
)
EVENTS: Final = [event_from_json(json.loads(line), path=None, line=None, event=None) for line in EVENT_LINES]


def calls(count: int) -> list[Event]:
    """Hypercalls of the plainest kind."""
    return [
        Hypercall(
            ts=number * 1_000_003,
            vcpu=number % 2,
            longmode=True,
            cpl=0,
            nr=24,
            args=(8, number % 2, number * 7919, 0, 0, 0),
            handled="kernel",
            rax=0,
        )
        for number in range(count)
    ]


def compact(obj: object) -> str:
    """JSON as the format writes it."""
    return json.dumps(obj, separators=(",", ":"))


def write_xkt(path: Path, events: Iterable[Event], header: Header = HEADER) -> Path:
    """Write an xkt file."""
    with XktWriter(path, header) as writer:
        for event in events:
            writer.write(event)
    return path


def blocks_of(path: Path) -> list[blocks.Block]:
    """Read the blocks of an xkt file, the closing block being the last."""
    with path.open("rb") as file:
        blocks.read_prefix(file)
        found: list[blocks.Block] = []
        while not found or found[-1].tag != blocks.CLOSING:
            block = blocks.read_block(file)
            assert block is not None
            found.append(block)
    return found


def complaint(path: Path) -> str:
    """Return the sentence about a broken file, which reading it raises at the latest at its end."""
    with pytest.raises(Malformed) as caught:
        list(open_trace(path).events())
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.startswith(str(path))
    return sentence.removeprefix(str(path))

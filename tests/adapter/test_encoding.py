"""How messages travel: JSON lines or msgpack, in pieces of any size, from someone who may write anything."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]
import pytest
from adapter_kit import PATIENCE_S, PRELUDE, make_vm, xen_exit
from hypothesis import given
from hypothesis import strategies as st
from messages_kit import FROM_ADAPTER, TO_ADAPTER, Message

from pytest_xenkvm.trace.values import Unfit
from pytest_xenkvm.vmm.adapter import AdapterVmm, messages
from pytest_xenkvm.vmm.adapter.encoding import MAX_MESSAGE, Decoder, Garbage, encode
from pytest_xenkvm.vmm.adapter.messages import JSON, MSGPACK, build_message, check_message

ENCODINGS: Final = (JSON, MSGPACK)


def decoded(encoding: str, pieces: Iterable[bytes]) -> list[Any]:
    """All messages in what was read piece by piece."""
    decoder = Decoder(encoding)
    found = []
    for piece in pieces:
        decoder.feed(piece)
        while (message := decoder.next()) is not None:
            found.append(message)
    return found


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(sent=st.lists(st.sampled_from(FROM_ADAPTER), max_size=5), size=st.integers(1, 60))
def test_messages_in_pieces(encoding: str, sent: list[Message], size: int) -> None:
    """However a pipe cuts them, messages arrive as they were sent."""
    data = b"".join(encode(message, encoding) for message in sent)
    pieces = (data[start : start + size] for start in range(0, len(data), size))
    assert decoded(encoding, pieces) == sent


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=60).map(lambda content: len(content).to_bytes(4, "big") + content),
        st.text(max_size=50).map(lambda text: text.encode() + b"\n"),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
        ).flatmap(lambda value: st.sampled_from([_as_line(value), _as_frame(value)])),
    )
)
def test_anything_may_come(encoding: str, data: bytes) -> None:
    """Whatever bytes an adapter writes are a message, a part of one, or complained about."""
    with suppress(Garbage, Unfit):
        for message in decoded(encoding, [data]):
            check_message(messages.FROM_ADAPTER, message)


def _as_line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _as_frame(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, unicode_errors="surrogatepass")
    return len(packed).to_bytes(4, "big") + packed


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            (MAX_MESSAGE + 1).to_bytes(4, "big"),
            f"announced a message of {MAX_MESSAGE + 1} bytes, expected at ",
        ),
        (_as_frame([1]), "wrote a message that is no msgpack map: "),
        (b"\0\0\0\1\xc1", "wrote a message that is not msgpack "),
        (b"\0\0\0\2\x80\x80", "wrote a message that is not msgpack "),
        (b"\0\0\0\1\x81", "wrote a message that is not msgpack "),
        (b"\0\0\0\3\xd4\1\0", "wrote a message that is not msgpack (an extension type)"),
        (b"\0\0\0\7\x82\xa1x\0\xa1x\0", "wrote a message that is not msgpack (a key twice)"),
        (b"\0\0\0\3\x81\0\0", "wrote a message that is not msgpack "),
    ],
)
def test_what_is_no_msgpack(data: bytes, problem: str) -> None:
    """A message that is too long, or none, is told of."""
    with pytest.raises(Garbage) as caught:
        decoded(MSGPACK, [data])
    assert str(caught.value).startswith(problem)


def test_lines_of_the_greatest_length() -> None:
    """A line may have a mebibyte, and not a byte more, be its end there or not."""
    spaces = b'{"type":"done"}'.ljust(MAX_MESSAGE)
    assert decoded(JSON, [spaces, b"\n"]) == [{"type": "done"}]
    for data in (spaces + b" ", spaces + b" \n"):
        with pytest.raises(Garbage, match=f"wrote {MAX_MESSAGE + 1}|wrote {MAX_MESSAGE + 2} bytes without"):
            decoded(JSON, [data])


@pytest.mark.parametrize("message", TO_ADAPTER, ids=lambda message: message["type"])
def test_json_is_simple(message: Message) -> None:
    """What the harness sends is ASCII without spaces, its type first, on one line."""
    _, members = check_message(messages.TO_ADAPTER, message)
    line = encode(build_message(message["type"], members, text=True), JSON).decode("ascii")
    assert line.startswith(f'{{"type":"{message["type"]}"')
    assert line.endswith("}\n")
    assert line.count("\n") == 1
    if message["type"] != "start":
        assert " " not in line


SPEAKS_MSGPACK: Final = """
import msgpack

def read_message():
    length = int.from_bytes(sys.stdin.buffer.read(4), "big")
    return msgpack.unpackb(sys.stdin.buffer.read(length))

def send(type_, **members):
    packed = msgpack.packb({"type": type_, **members})
    sys.stdout.buffer.write(len(packed).to_bytes(4, "big") + packed)
    sys.stdout.buffer.flush()

get()
put("hello", protocol=1, encoding="msgpack")
assert read_message() == {"type": "configure", "vcpus": 2, "ids": [0, 4]}
send("write_memory", gpa=0, data=b"\\x01\\x02")
assert read_message() == {"type": "result", "ret": 0}
send("read_memory", gpa=0, size=2)
assert read_message() == {"type": "result", "ret": 0, "data": b"\\x01\\x02"}
send("done")
assert read_message()["params"][0] == 2**64 - 1
send("answer", rax=2**64 - 38)
assert read_message() == {"type": "shutdown"}
"""


def test_an_adapter_may_speak_msgpack(tmp_path: Path) -> None:
    """After its hello, everything travels as msgpack, bytes as they are."""
    program = tmp_path / "adapter.py"
    program.write_text(PRELUDE + SPEAKS_MSGPACK)
    vmm = AdapterVmm([sys.executable, str(program)], timeout_s=PATIENCE_S)
    vm = make_vm()
    vmm.configure(vm)
    assert vm.read_memory(0, 2) == b"\1\2"
    assert vmm.on_hypercall(vm.vcpus[0], xen_exit(24, 2**64 - 1)) == 2**64 - 38
    vmm.close()

"""An adapter that doesn't do its part is told of in a sentence, within its time-out, and is gone then."""

from __future__ import annotations

import os
import re
import select
import signal
from itertools import count
from pathlib import Path
from typing import Final

import pytest
from adapter_kit import make_vm, pid_of, scripted, told, xen_exit

from pytest_xenkvm.vmm.adapter import AdapterError, AdapterVmm, conversation
from pytest_xenkvm.vmm.errors import VmmError

SHORT_S: Final = 0.4
CALL: Final = "hypercall 24 (vcpu_op)"
LATE: Final = f"no answer to {CALL} within 0.4 s; killed"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("time.sleep(999)", "no answer to start within 2 s; killed"),
        ("hello(); time.sleep(999)", "no answer to configure within 2 s; killed"),
        ("hello()\nwhile True: sys.stderr.write('x' * 99)", "no answer to configure within 2 s; killed"),
    ],
)
def test_an_adapter_that_stalls_at_once(tmp_path: Path, body: str, sentence: str) -> None:
    """The first messages have a time-out, too, and much ado on stderr is no answer."""
    assert told(scripted(tmp_path, body, 2.0)).splitlines()[0] == sentence


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("called(); time.sleep(999)", LATE),
        ("called(); os.kill(os.getpid(), signal.SIGSTOP)", LATE),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN); called(); time.sleep(999)", LATE),
        (
            'called(); write(\'{"type":"ans\'); time.sleep(999)',
            LATE.replace("; killed", ', in the middle of a message: \'{"type":"ans\'; killed'),
        ),
        ("called()\nwhile True: ask('get_clock')", LATE),
        ("called()\nwhile True: put('read_memory', gpa=0, size=65536)", LATE),
    ],
)
def test_an_adapter_that_stalls(tmp_path: Path, body: str, sentence: str) -> None:
    """Who doesn't answer within the time-out, all requests included, is killed; so is who doesn't read."""
    found = told(scripted(tmp_path, body), SHORT_S)
    assert re.sub(r", in the middle of a message: '\{\"type\": .*;", ";", found) == sentence


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("sys.exit(1)", "exited with status 1 before it answered start"),
        ("hello(); sys.exit(0)", "exited with status 0 before it answered configure"),
        ("called(); os._exit(3)", f"exited with status 3 before it answered {CALL}"),
        (
            "called(); os.kill(os.getpid(), signal.SIGSEGV)",
            f"was killed by SIGSEGV before it answered {CALL}",
        ),
        ("called(); os.kill(os.getpid(), 40)", f"was killed by signal 40 before it answered {CALL}"),
        (
            "called(); write('{\"type\":'); sys.exit(0)",
            f"exited with status 0 before it answered {CALL}, in the middle of a message: '{{\"type\":'",
        ),
        ("called(); os.close(1); time.sleep(999)", f"closed its stdin or stdout before it answered {CALL}"),
        (
            "hello(); get(); os.close(0); put('done'); time.sleep(999)",
            f"closed its stdin or stdout before it answered {CALL}",
        ),
        (
            "called(); subprocess.Popen(['sleep', '999']); os._exit(4)",
            f"exited with status 4 before it answered {CALL}",
        ),
    ],
)
def test_an_adapter_that_ends(tmp_path: Path, body: str, sentence: str) -> None:
    """How it ended is told, also while a child of it holds its stdout open."""
    assert told(scripted(tmp_path, body)) == sentence


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("rubbish", "is not JSON: expecting value at column 1: 'rubbish'"),
        ("", "is blank, expected one JSON object a line: ''"),
        ("17", "is no JSON object: '17'"),
        ('["done"]', "is no JSON object: '[\"done\"]'"),
        ('{"type": NaN}', "holds the number 'NaN', expected integers only: '{\"type\": NaN}'"),
        ("[" * 9999, f"is nested too deeply: '{'[' * 40}'..."),
        ("9" * 9999, f"holds an integer of 9999 digits, expected at most 2^64-1: '{'9' * 40}'..."),
        ('{"type":"done","type":"done"}', 'holds the key \'type\' twice: \'{"type":"done","type":"done"}\''),
        (r"\x00\x1b[31m", r"is not JSON: expecting value at column 1: '\x00\x1b[31m'"),
        (r"\xff\xfe", r"is not UTF-8 text (byte 0xff at column 1): '\xff\xfe'"),
    ],
)
def test_an_adapter_that_writes_rubbish(tmp_path: Path, line: str, problem: str) -> None:
    """A line that is no JSON object is quoted, fit for a terminal."""
    vmm = scripted(tmp_path, f"called(); os.write(1, b'{line}\\n'); get()")
    assert told(vmm) == f"wrote a line that {problem}; an answer to {CALL} was due"


def test_rubbish_and_an_end_at_once() -> None:
    """What a program wrote says more than that it has ended, whichever is noticed first."""
    for _ in range(5):
        sentence = told(AdapterVmm(["sh", "-c", "echo Welcome"]))
        assert sentence.startswith("wrote a line that is not JSON"), sentence
        assert sentence.endswith("'Welcome'; an answer to start was due")


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("{}", 'an object without "type"'),
        ('{"type":7}', "a message of type 7, expected one of hello, done, answer, ioctl, "),
        ('{"type":"result","ret":0}', "a message of type 'result', expected one of hello, "),
        ('{"type":"answer"}', 'a malformed answer: it has no "rax"; '),
        ('{"type":"answer","rax":"0"}', "a malformed answer: rax is '0', expected an integer -2^63 ... "),
        ('{"type":"answer","rax":0,"rip":1}', "a malformed answer: it has an unknown member 'rip'; "),
        (
            '{"type":"ioctl","name":"KVM_RUN","arg":{}}',
            "a malformed ioctl: name is 'KVM_RUN', expected \"KVM_CHECK_EXTENSION\" or ",
        ),
        (
            '{"type":"ioctl","name":"KVM_XEN_HVM_SET_ATTR","arg":{"type":4}}',
            'a malformed ioctl: arg has no "xen_version"; ',
        ),
        (
            '{"type":"get_clock","vm":"target"}',
            'a request for the VM "target", which is there only while migrate is answered; ',
        ),
        (
            '{"type":"start_vmm_timer","vcpu":0,"expires_ns":0}',
            'start_vmm_timer, but its hello doesn\'t name the capability "timer"; ',
        ),
        ('{"type":"read_virtual","vcpu":2,"gva":0,"size":1}', "a request for vCPU 2 of a VM with 2; "),
    ],
)
def test_a_message_that_does_not_fit(tmp_path: Path, message: str, problem: str) -> None:
    """What doesn't fit its message, or the VM, is named."""
    sentence = told(scripted(tmp_path, f"called(); write({message!r} + '\\n'); get()"))
    assert sentence.startswith(f"sent {problem}")
    assert sentence.endswith(f"; an answer to {CALL} was due")


def test_a_line_without_end(tmp_path: Path) -> None:
    """No more than a mebibyte is taken in of what is no line."""
    found = told(scripted(tmp_path, "called()\nwhile True: write('y' * 1000)"))
    match = re.match(r"wrote (\d+) bytes without a line end, expected one JSON object a line; ", found)
    assert match is not None
    assert 1 << 20 < int(match[1]) <= 2 << 20


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("get(); put('done')", "sent done when hello was expected for start"),
        ("get(); put('get_clock')", "sent get_clock when hello was expected for start"),
        ("called(); put('done')", f"sent done when answer was expected for {CALL}"),
        ("called(); put('hello', protocol=1)", f"sent hello when answer was expected for {CALL}"),
        ("hello(); get(); put('answer', rax=0)", "sent answer when done was expected for configure"),
        ("hello(protocol=2)", "speaks version 2 of the protocol, expected 1"),
    ],
)
def test_an_answer_to_something_else(tmp_path: Path, body: str, sentence: str) -> None:
    """Each message has its answer."""
    assert told(scripted(tmp_path, body)) == sentence


def test_an_answer_too_many(tmp_path: Path) -> None:
    """A second answer is noticed, rather than taken for the next one."""
    vmm = scripted(tmp_path, 'hello(); get(); write(\'{"type":"done"}\\n\' * 2); get()')
    assert told(vmm) == 'wrote out of turn, when no answer was due: \'{"type":"done"}\\n\''


def test_a_greeting_is_no_hello(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program writes before it is spoken to is told of as the line that it is."""
    began = conversation.Conversation.begin.__func__  # type: ignore[attr-defined]

    def begin_late(cls: type, command: list[str] | str, timeout_s: float) -> conversation.Conversation:
        started: conversation.Conversation = began(cls, command, timeout_s)
        select.select([started.process._stdout], [], [], timeout_s)
        return started

    monkeypatch.setattr(conversation.Conversation, "begin", classmethod(begin_late))
    found = told(scripted(tmp_path, "write('welcome\\n'); get()"))
    assert found.startswith("wrote a line that is not JSON: expecting value at column 1: 'welcome'")


def test_a_late_answer_too_many(tmp_path: Path) -> None:
    """It is noticed at the end, at the latest."""
    vmm = scripted(tmp_path, "configured(); get(); time.sleep(0.2); put('done')")
    vmm.configure(make_vm())
    with pytest.raises(AdapterError, match=r"wrote out of turn, when no answer was due: '\{"):
        vmm.close()


def test_requests_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter that only asks is stopped, be its time-out however long."""
    monkeypatch.setattr(conversation, "MAX_REQUESTS", 3)
    few = "hello(); get()\nfor _ in range(3): ask('get_clock')\nput('done'); get()\n"
    vmm = scripted(tmp_path, few + "while True: ask('get_clock')")
    assert told(vmm) == "made more than 3 requests without an answer to hypercall 24 (vcpu_op)"


def test_requests_past_the_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that come without a pause don't put off the time-out."""
    clock = count()
    monkeypatch.setattr(conversation, "monotonic", lambda: float(next(clock)))
    talking = Talkative()
    asked = conversation.Conversation("chatterbox", 100.0, talking)  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match="chatterbox: no answer to migrate within 100 s; killed"):
        asked.ask("migrate", {}, "done", serve=lambda *_: {"ret": 0})
    assert talking.requests == 100


class Talkative:
    """Stands for a process that makes one request after the other, at once."""

    requests = 0

    def send(self, _data: bytes, _deadline: float) -> None:
        """Take a message in."""

    def receive(self, _deadline: float) -> bytes:
        """Make a request."""
        self.requests += 1
        return b'{"type":"get_clock"}\n'

    def pending(self) -> bytes:
        """Be silent before."""
        return b""

    def finish(self) -> None:
        """Be killed."""

    def complaints(self) -> str:
        """Have none."""
        return ""


def test_a_killed_adapter(tmp_path: Path) -> None:
    """One that somebody else kills between two messages is told of at the next."""
    vmm = scripted(tmp_path, "called(); put('answer', rax=0); get()")
    vmm.configure(make_vm())
    assert vmm.on_hypercall(make_vm().vcpus[0], xen_exit()) == 0
    os.kill(pid_of(vmm), signal.SIGKILL)
    with pytest.raises(AdapterError, match="was killed by SIGKILL before it answered hypercall 12"):
        vmm.on_hypercall(make_vm().vcpus[0], xen_exit(12))


def test_who_failed_stays_away(tmp_path: Path) -> None:
    """After its failure an adapter is asked nothing, until it is started again."""
    vmm = scripted(tmp_path, "called(); put('done')")
    told(vmm)
    with pytest.raises(AdapterError, match="does not run any more"):
        vmm.on_hypercall(make_vm().vcpus[0], xen_exit())
    vmm.close()
    with pytest.raises(AdapterError, match="does not run; configure starts it"):
        vmm.on_hypercall(make_vm().vcpus[0], xen_exit())
    vmm.configure(make_vm())


def test_stderr_is_shown(tmp_path: Path) -> None:
    """The last lines of stderr follow the sentence, without what could upset a terminal."""
    body = "sys.stderr.write('old news\\n' * 9999 + 'cannot \\x1b[31mopen\\t/dev/kvm\\n\\n'); sys.exit(1)"
    lines = told(scripted(tmp_path, body)).splitlines()
    assert lines[:2] == ["exited with status 1 before it answered start", "The adapter's stderr ended with:"]
    assert lines[2:] == ["old news"] * 9 + ["cannot  [31mopen        /dev/kvm"]


def test_a_long_line_of_stderr_is_cut(tmp_path: Path) -> None:
    """However much is on a line, only its beginning is shown."""
    lines = told(scripted(tmp_path, "sys.stderr.write('z' * 5000); sys.exit(1)")).splitlines()
    assert lines[2] == "z" * 200


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["./nowhere"], "can't be started: No such file or directory"),
        (["/"], "can't be started: Permission denied"),
        (["a\0b"], "can't be started: embedded null byte"),
    ],
)
def test_a_program_that_is_not_there(command: list[str], reason: str) -> None:
    """A command that can't be started is told of with the reason."""
    with pytest.raises(VmmError, match=f": {reason}$"):
        AdapterVmm(command).configure(make_vm())


def test_the_command_is_shown_in_short() -> None:
    """A command is named as it would be typed, a long one in part."""
    with pytest.raises(AdapterError) as caught:
        AdapterVmm(["./no where", "x" * 500]).configure(make_vm())
    assert str(caught.value).startswith(f"the VMM adapter './no where' {'x' * 180}")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("command", "timeout_s"), [([], 1.0), (["./x"], 0.0), ("./x", 1.0)])
def test_a_command_and_time_are_needed(command: list[str] | str, timeout_s: float) -> None:
    """An empty command, one that is no list, and no time at all, are errors of the caller."""
    with pytest.raises(ValueError, match="expected a list of words, and some time"):
        AdapterVmm(command, timeout_s=timeout_s)

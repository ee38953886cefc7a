"""The fixture `xenkvm_guest`: guest code in users' own tests."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from guest_tests import ANSWERING

import pytest_xenkvm.plugin.guest  # noqa: F401 - stays loaded, or each run in this process would load it anew
from pytest_xenkvm.hosts.assembler import is_installed

Run = Callable[..., pytest.RunResult]


def test_the_vmm_is_the_one_of_the_test_or_of_the_fixture(passes: Callable[..., None]) -> None:
    """`vmm=` takes part, else the fixture `xenkvm_vmm`, with each of its parameters."""
    passes(
        """
@pytest.fixture(params=[7, 8])
def xenkvm_vmm(request):
    return Answering(request.param)

@pytest.mark.parametrize("own", [None, Answering(9)])
def test_own(xenkvm_guest, xenkvm_vmm, own):
    guest = xenkvm_guest(vmm=own)
    guest.load(CALL)
    assert guest.run() is guest.ended is Ended.HALTED
    assert guest.registers.rax == (own or xenkvm_vmm).answer
    assert [(call.nr, call.args[0], call.handled) for call in guest.calls] == [(99, 42, "userspace")]
""",
        passed=4,
    )


def test_without_a_vmm_nothing_is_configured(passes: Callable[..., None]) -> None:
    """Without a VMM, KVM doesn't know the guest as Xen's; the test may set up the VM by its handles."""
    passes(
        """
def test_own(xenkvm_guest):
    guest = xenkvm_guest()
    guest.load(CALL)
    guest.run()
    guest.vm.xen_hvm_config()
    guest.load(CALL)
    guest.run()
    assert [call.handled for call in guest.calls] == ["kernel", "userspace"]
    assert guest.registers.rax == 2**64 - 38
"""
    )


def test_the_profile_is_the_one_of_the_test_or_of_the_options(passes: Callable[..., None]) -> None:
    """A guest runs on the kernel that `profile=` names, else on that of the options."""
    passes(
        """
def test_own(xenkvm_guest):
    assert xenkvm_guest().vm.vcpus[0].get_vcpu_id() == 0
    assert xenkvm_guest(profile="linux-7.3").vm.vcpus[0].get_vcpu_id() == 0xFFFFFFFF
    assert xenkvm_guest(profile="auto").vm.vcpus[0].get_vcpu_id() == 0xFFFFFFFF
""",
        "--xenkvm-profile=linux-7.2",
    )


def test_what_a_guest_did_can_be_looked_at(passes: Callable[..., None]) -> None:
    """Registers, memory, serial output of both ports, privilege level and faults are there to be read."""
    passes(
        """
def test_own(xenkvm_guest):
    guest = xenkvm_guest(memory=1 << 20)
    # mov al, 'h'; out 0xe9, al; mov al, 'i'; mov dx, 0x3f8; out dx, al; mov [0x3000], dx; ud2
    guest.load(bytes.fromhex("b068 e6e9 b069 66baf803 ee 6689142500300000 0f0b"), at=0x2000, cpl=3)
    assert guest.cpl == 3
    assert guest.unhandled is None
    assert guest.run() is Ended.UNHANDLED
    assert guest.unhandled == 6
    assert guest.cpl == 0
    assert guest.serial == b"hi"
    assert guest.registers.rdx == 0x3F8
    assert guest.read_memory(0x3000, 2) == bytes.fromhex("f803")
    assert guest.interrupts == guest.calls == guest.events == []
    with pytest.raises(ValueError, match="no memory at 0xffff0 ... 0x10000f"):
        guest.read_memory(0xFFFF0, 32)
    with pytest.raises(ValueError, match="no memory at 0x100000 ... 0x100003"):
        guest.write_memory(1 << 20, bytes(4))
"""
    )


def test_a_run_goes_on_where_the_last_one_ended(passes: Callable[..., None]) -> None:
    """A guest that reached its limit runs on; code that a test rewrites is what runs then."""
    passes(
        """
def test_own(xenkvm_guest):
    guest = xenkvm_guest()
    guest.load(bytes.fromhex("ffc0 ebfc"))  # again: inc eax; jmp again
    assert guest.run(limit=1000) is Ended.LIMIT
    count = guest.registers.rax
    assert 0 < count < 1000
    assert guest.run(limit=1000) is Ended.LIMIT
    assert guest.registers.rax > count
    guest.write_memory(0x1000, bytes.fromhex("faf4faf4"))  # cli; hlt
    assert guest.run() is Ended.HALTED
"""
    )


def test_a_guest_that_is_stuck_says_why(passes: Callable[..., None]) -> None:
    """A guest that touches memory that isn't there ends as STUCK, with the reason."""
    passes(
        """
def test_own(xenkvm_guest):
    guest = xenkvm_guest()
    guest.load(bytes.fromhex("48b80000e0fe00000000 8b00"))
    assert guest.stuck_because == ""
    assert guest.run() is Ended.STUCK
    assert guest.stuck_because.startswith("the guest can't go on at 0x100a")
"""
    )


@pytest.mark.parametrize(("bits", "mode"), [(64, "longmode=True"), (32, "longmode=False")])
def test_an_elf_file_beside_the_test(
    project: pytest.Pytester, passes: Callable[..., None], bits: int, mode: str
) -> None:
    """`load_elf` takes a file from the test's folder; a wrong one is refused by its name."""
    code = bytes.fromhex("b863000000 0f01d9 f4")
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]).ljust(12, b"\0")
    if bits == 64:
        header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x5000, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        segment = struct.pack("<IIQQQQQQ", 1, 7, 120, 0, 0x5000, len(code), len(code), 4096)
    else:
        header = struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0x5000, 52, 0, 0, 52, 32, 1, 0, 0, 0)
        segment = struct.pack("<8I", 1, 84, 0, 0x5000, len(code), len(code), 7, 4096)
    (project.path / "program.elf").write_bytes(ident + header + segment + code)
    (project.path / "program.txt").write_text("no program")
    passes(
        f"""
from pytest_xenkvm.hosts.elf import ElfError

def test_own(xenkvm_guest):
    guest = xenkvm_guest(vmm=Answering())
    guest.load_elf("program.elf")
    assert guest.run() is Ended.HALTED
    assert "{mode}" in repr(guest.calls)
    with pytest.raises(ElfError, match="program.txt: is no little-endian ELF file"):
        guest.load_elf("program.txt")
"""
    )


@pytest.mark.parametrize("code", ["bits=64", "bits=32", "bits=32, compat=True", "bits=64, cpl=2", "bits=16"])
def test_assembly_text(passes: Callable[..., None], code: str) -> None:
    """Text is assembled for the bits that it is to run with."""
    if not is_installed():
        pytest.skip("no GNU binutils")
    passes(
        f"""
def test_own(xenkvm_guest):
    guest = xenkvm_guest(vmm=Answering())
    guest.load_assembly("mov eax, 99\\nvmmcall\\ncli\\nhlt", {code})
    guest.run()
    assert guest.registers.rax == 7
    (call,) = guest.calls
    assert (call.longmode, call.compat) == ({"64" in code}, {"compat" in code})
"""
    )


def test_wrong_assembly_names_the_line(project: pytest.Pytester, run: Run) -> None:
    """What the assembler complains about is shown with the line of the text, without our own frames."""
    if not is_installed():
        pytest.skip("no GNU binutils")
    project.makepyfile(
        "def test_own(xenkvm_guest):\n    xenkvm_guest().load_assembly('nop\\nfrobnicate eax\\n')\n"
    )
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *AssemblyError: *", "E *program.s:2: *frobnicate*", "*test_own*"])
    result.stdout.no_fnmatch_line("*assembler.py*")
    result.stdout.no_fnmatch_line("*guest.py:*")


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ("guest.load(CALL, bits=8)", "there is no bits=8, expected 64, 32 (also with compat) or 16"),
        ("guest.load(CALL, bits=64, compat=True)", "there is no bits=64 with compat, expected *"),
        ("guest.load(CALL, cpl=4)", "cpl is 4, expected 0 to 3"),
        ("guest.load(CALL, bits=16, cpl=3)", "cpl is 3, expected 0 in real mode"),
        ("guest.load(CALL, at=8 << 20)", "the guest has no memory at 0x800000 ... 0x80000d"),
        ("guest.load_elf('none.elf', cpl=-1)", "cpl is -1, expected 0 to 3"),
        ("xenkvm_guest(memory=5000)", "memory is 5000, expected bytes in whole pages of 4096, *"),
        ("xenkvm_guest(memory=1 << 62)", "memory is 4611686018427387904, expected bytes *"),
        ("xenkvm_guest(profile='linux-5.0')", "there is no profile 'linux-5.0'; *"),
    ],
)
def test_a_wrong_argument_is_one_sentence(
    project: pytest.Pytester, run: Run, call: str, complaint: str
) -> None:
    """What can't be done is said in a sentence."""
    (project.path / "test_own.py").write_text(
        f"{ANSWERING}\ndef test_own(xenkvm_guest):\n    guest = xenkvm_guest()\n    {call}\n"
    )
    result = run("test_own.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"E *: {complaint.replace('[', '[[]')}"])


def test_a_vmm_that_is_none_is_refused(project: pytest.Pytester, run: Run) -> None:
    """A fixture `xenkvm_vmm` that returns something else is named."""
    project.makepyfile(
        "import pytest\n@pytest.fixture\ndef xenkvm_vmm(): return 5\n"
        "def test_own(xenkvm_guest): xenkvm_guest()"
    )
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["the fixture xenkvm_vmm returned 5, expected a VMM behaviour"])


def test_what_a_vmm_raises_fails_the_test(project: pytest.Pytester, run: Run) -> None:
    """An exception in a behaviour is the test's, with the behaviour's own line."""
    (project.path / "test_own.py").write_text(
        ANSWERING
        + """
class Broken(Answering):
    def on_hypercall(self, vcpu, xen_exit):
        raise RuntimeError("nobody home")

def test_own(xenkvm_guest):
    guest = xenkvm_guest(vmm=Broken())
    guest.load(CALL)
    guest.run()
"""
    )
    result = run("test_own.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *RuntimeError: nobody home", "test_own.py:*: RuntimeError"])


def test_a_run_is_saved_as_a_trace(passes: Callable[..., None]) -> None:
    """The saved trace has what the guest did, and replays alike on both engines."""
    passes(
        """
from pytest_xenkvm.trace import open_trace

@pytest.mark.parametrize("suffix", [".xkt", ".jsonl", ".jsonl.gz"])
def test_own(xenkvm_guest, xenkvm_replay, tmp_path, suffix):
    guest = xenkvm_guest(vmm=Answering())
    guest.load(CALL)
    guest.run()
    trace = open_trace(guest.save(tmp_path / f"own{suffix}", notes="a call"))
    assert list(trace.events()) == guest.events
    assert (trace.header.recorder, trace.header.notes) == ("replay", "a call")
    for engine in ("model", "unicorn"):
        replayed = xenkvm_replay(trace, vmm=Answering(), engine=engine, rules=[])
        happened = [observation.event for observation in replayed.observations]
        assert [(event.nr, event.rax) for event in happened if event.kind == "hypercall"] == [(99, 7)]
""",
        passed=3,
    )

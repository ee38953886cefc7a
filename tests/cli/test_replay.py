"""`xenkvm replay`."""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from pytest_xenkvm.cli.main import run

GOLDEN: Final = Path(__file__).parents[2] / "traces" / "golden"
TOPICS: Final = ("vcpu-id-default", "vcpu-id-bounds", "singleshot-id", "set-timer-op")
MAIN: Final = "from pytest_xenkvm.cli.main import main; main()"
ID_FAMILIES: Final = ("vcpu-id.", "vcpu-id-bounds.", "forwarded-timers.")


def golden(folder: str, topic: str) -> str:
    """The path of a directed golden trace."""
    (found,) = (GOLDEN / folder / "directed").glob(f"{topic}.*")
    return str(found)


def replay_json(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the object that `xenkvm replay --json` prints."""
    code = run(["replay", "--json", *args])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, answer


def states(answer: dict[str, Any], state: str) -> set[str]:
    """Ids of the rules that came out like this."""
    return {verdict["rule"] for verdict in answer["verdicts"] if verdict["state"] == state}


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize("folder", ["linux-7.3", "linux-7.3-max1024"])
def test_new_abi_holds_the_id_rules(capsys: pytest.CaptureFixture[str], folder: str, topic: str) -> None:
    """A 7.3 kernel's traces replay without divergence, with rules of the ID families held, none violated."""
    code, answer = replay_json(capsys, golden(folder, topic))
    assert (code, answer["divergences"], answer["profile"]) == (0, [], "linux-7.3")
    assert not states(answer, "violated")
    assert any(rule.startswith(ID_FAMILIES) for rule in states(answer, "held"))


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize("profile", ["linux-6.12", "linux-7.2"])
def test_old_abi_violates_the_id_rules(capsys: pytest.CaptureFixture[str], profile: str, topic: str) -> None:
    """An older kernel's traces replay without divergence and violate an ID rule, naming the events."""
    code, answer = replay_json(capsys, golden(profile, topic))
    assert (code, answer["divergences"], answer["profile"]) == (1, [], profile)
    violated = [verdict for verdict in answer["verdicts"] if verdict["state"] == "violated"]
    assert any(verdict["rule"].startswith("vcpu-id.") for verdict in violated)
    assert all(verdict["events"] for verdict in violated)


def test_other_profile_diverges(capsys: pytest.CaptureFixture[str]) -> None:
    """A 7.2 trace on the 7.3 profile diverges where the default ID is read: event, line and both sides."""
    code, answer = replay_json(capsys, golden("linux-7.2", "vcpu-id-default"), "--profile", "linux-7.3")
    first = answer["divergences"][0]
    assert code == 1
    assert (first["event"], first["line"], first["kind"]) == (1, 3, "out")
    assert (first["expected"]["vcpu_id"], first["observed"]["vcpu_id"]) == (0, 0xFFFFFFFF)


def test_text_shows_both_sides_and_how_to_rerun(capsys: pytest.CaptureFixture[str]) -> None:
    """The text names the place, both sides in words, what came before, and the command to rerun it."""
    path = golden("linux-7.2", "vcpu-id-default")
    assert run(["replay", path, "--profile", "linux-7.3", "--rules", "vcpu-id-bounds.*"]) == 1
    text = capsys.readouterr().out
    assert "event 1 (line 3), vCPU 0: out differs" in text
    assert "recorded: KVM_XEN_VCPU_GET_ATTR(VCPU_ID) = 0, vcpu_id=0" in text
    assert "observed: KVM_XEN_VCPU_GET_ATTR(VCPU_ID) = 0, vcpu_id=XEN_VCPU_ID_INVALID (0xffffffff)" in text
    assert f"xenkvm replay {path} --profile linux-7.3 --until 2" in text


def test_bundled_boot_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    """The bundled recording of a real guest replays without divergence and its VMM rules are judged."""
    code, answer = replay_json(capsys, "@linux-boot")
    assert (code, answer["divergences"]) == (0, [])
    assert answer["hypercalls"] == 9041
    assert {"vcpu-id.set-before-timers", "vcpu-id.unique"} <= states(answer, "held")
    assert 0 < answer["unjudged"] < 300


def test_until_stops_early(capsys: pytest.CaptureFixture[str]) -> None:
    """`--until N` replays the events before N only."""
    _code, answer = replay_json(capsys, "@linux-boot-1vcpu", "--until", "100")
    assert answer["events"] == 100


def test_vmm_behaviour_takes_part(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --vmm the guest's side is replayed against the behaviour, which the rules judge."""
    (tmp_path / "forgetful_vmm.py").write_text(
        "from pytest_xenkvm.vmm import Vmm\n"
        "class Forgetful(Vmm):\n"
        "    def configure(self, vm):\n"
        "        vm.xen_hvm_config()\n"
        "        vm.vcpus[0].set_vcpu_id(0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    code, answer = replay_json(capsys, "@linux-boot", "--vmm", "forgetful_vmm:Forgetful")
    assert (code, answer["vmm"]) == (1, "Forgetful")
    assert "vcpu-id.set-before-timers" in states(answer, "violated")


def test_a_vmm_that_raises_is_no_violation(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a behaviour raises is shown with its traceback; exit code 2. Its folder may be this one."""
    (tmp_path / "raising_vmm.py").write_text(
        "from pytest_xenkvm.vmm import Vmm\n"
        "class Raising(Vmm):\n"
        "    def configure(self, vm):\n"
        "        vm.vcpus[0].set_vcpu_id('one')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert run(["replay", "@linux-boot-1vcpu", "--vmm", "raising_vmm:Raising"]) == 2
    err = capsys.readouterr().err
    assert "raising_vmm.py" in err
    assert "ValueError: 'one' is no value of attribute VCPU_ID" in err.splitlines()[-1]


@pytest.mark.parametrize("answer", [2**64, -(2**63) - 1, "'0'"])
def test_an_answer_must_fit_the_register(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int | str
) -> None:
    """An answer that RAX can't hold, or that is no number, is one sentence and exit code 2."""
    (tmp_path / "wide_vmm.py").write_text(
        "from pytest_xenkvm.vmm import Vmm\n"
        "class Wide(Vmm):\n"
        "    def configure(self, vm):\n"
        "        vm.xen_hvm_config()\n"
        "    def on_hypercall(self, vcpu, xen_exit):\n"
        f"        return {answer}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "wide_vmm", raising=False)
    assert run(["replay", "@linux-boot-1vcpu", "--vmm", "wide_vmm:Wide"]) == 2
    assert "expected an int that fits RAX" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--profile", "linux-9.9"], "linux-9.9"),
        (["--rules", "no.such"], "no rule matches 'no.such'"),
        (["--vmm", "no_such_module:X"], "can't be imported"),
        (["--vmm", "nonsense"], "there is no VMM behaviour 'nonsense'"),
    ],
)
def test_unusable_options_are_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    """What can't be done is said on stderr, with exit code 2."""
    assert run(["replay", "@linux-boot-1vcpu", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_scope_hypercalls_needs_a_vmm(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A trace of scope "hypercalls" can't be kernel-replayed, and the sentence says what it takes."""
    path = tmp_path / "calls.jsonl"
    path.write_text('{"format":"xenkvm-trace","version":1,"cpu_vendor":"amd","scope":"hypercalls"}\n')
    assert run(["replay", str(path)]) == 2
    assert "VMM behaviour" in capsys.readouterr().err


def _other_version(whole: bytes) -> bytes:
    if not whole.startswith(b"\x1f\x8b"):
        return whole[:4] + b"\x7f" + whole[5:]
    return gzip.compress(gzip.decompress(whole).replace(b'"version":1', b'"version":2', 1))


def damaged(kind: str, whole: bytes) -> bytes:
    """The bytes of a trace file, spoilt."""
    middle = len(whole) // 2
    return {
        "truncated": whole[:middle],
        "bit-flipped": whole[:middle] + bytes((whole[middle] ^ 1,)) + whole[middle + 1 :],
        "empty": b"",
        "huge length": whole[:8] + b"\xff" * 8 + whole[16:],
        "wrong version": _other_version(whole),
        "not a trace": b"\x7fELF" + bytes(4096),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["truncated", "bit-flipped", "empty", "huge length", "wrong version", "not a trace"]
)
@pytest.mark.parametrize("suffix", [".xkt", ".jsonl.gz"])
def test_damaged_files_are_one_sentence_in_bounded_memory(tmp_path: Path, kind: str, suffix: str) -> None:
    """A damaged trace gives one clear sentence and exit code 2, within 512 MiB of address space."""
    bundled = Path(__file__).parents[2] / "traces" / "linux-boot-1vcpu.xkt"
    source = bundled if suffix == ".xkt" else Path(golden("linux-7.3", "singleshot-id"))
    whole = source.read_bytes()
    path = tmp_path / f"spoilt{suffix}"
    path.write_bytes(damaged(kind, whole))
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "replay", str(path)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20)),
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert str(path) in done.stderr
    assert not done.stdout

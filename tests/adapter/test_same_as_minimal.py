"""The adapters in C, Rust and Go are the bundled behaviour `minimal` in other languages."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from adapter_kit import PATIENCE_S, ROOT, make_vm, xen_exit
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.registry import all_rules
from pytest_xenkvm.rules.run import ReplayOptions, run_trace
from pytest_xenkvm.trace.files import open_trace
from pytest_xenkvm.vmm import VmmBehaviour
from pytest_xenkvm.vmm.adapter import AdapterError, AdapterVmm
from pytest_xenkvm.vmm.bundled.minimal import Minimal

ADAPTERS: Final = ROOT / "docs" / "adapters"
BUILDS: Final = {
    "minimal.c": ("cc", ("cc", "-Wall", "-Wextra", "-Werror", "-O1", "-o")),
    "minimal.rs": ("rustc", ("rustc", "-D", "warnings", "-O", "-o")),
    "minimal.go": ("go", ("go", "build", "-o")),
}
"""By source: its compiler, and how that is called; the name of the result and the source come next."""
GOLDEN: Final = ROOT / "traces" / "golden" / "linux-7.3" / "directed"
TRACES: Final = ("@linux-boot", "@vmm-duties", str(GOLDEN / "singleshot-id.jsonl.gz"))
MAX_LINES: Final = 150

U64: Final = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 1, 2, 7, 8, 9, 24, 32, 2**32, 2**32 + 1, 2**32 + 7, 2**63, 2**64 - 1]),
)


@pytest.fixture(scope="module", params=sorted(BUILDS))
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterVmm]:
    """Each of the adapters, compiled without a warning."""
    source: str = request.param
    compiler, command = BUILDS[source]
    if shutil.which(compiler) is None:
        pytest.skip(f"{source} needs the compiler {compiler}, which isn't there")
    folder = tmp_path_factory.mktemp("adapter")
    program = folder / "minimal"
    environment = {"GOCACHE": str(folder / "cache"), "GO111MODULE": "off", **os.environ}
    done = subprocess.run(
        [*command, program, ADAPTERS / source], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    vmm = AdapterVmm([str(program)], timeout_s=PATIENCE_S)
    yield vmm
    vmm.close()


def replayed(trace: str, behaviour: VmmBehaviour) -> tuple[list[Observation], object]:
    """What was observed, and the result without the VMM's name."""
    seen: list[Observation] = []
    result = run_trace(open_trace(trace), all_rules(), ReplayOptions(behaviour=behaviour), seen.append)
    return seen, evolve(result, vmm=None)


@cache
def replayed_by_minimal(trace: str) -> tuple[list[Observation], object]:
    """The same with the behaviour in Python."""
    return replayed(trace, Minimal())


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: Path(trace).name)
def test_a_replay_is_the_same(adapter: AdapterVmm, trace: str) -> None:
    """The same ioctls, the same answers and the same verdicts as with the behaviour in Python."""
    seen, result = replayed(trace, adapter)
    expected, expected_result = replayed_by_minimal(trace)
    assert any(observation.answer is not None for observation in expected)
    assert seen == expected
    assert result == expected_result


@settings(max_examples=200)
@given(
    number=U64,
    params=st.lists(U64, min_size=6, max_size=6),
    cpl=st.integers(0, 3),
    longmode=st.integers(0, 1),
)
def test_answers_are_the_same(
    running: tuple[AdapterVmm, Minimal], number: int, params: list[int], cpl: int, longmode: int
) -> None:
    """Whatever the guest's registers hold, it gets the answer that the behaviour in Python gives."""
    vcpu = make_vm().vcpus[1]
    call = xen_exit(number, *params, cpl=cpl, longmode=longmode)
    vmm, minimal = running
    assert vmm.on_hypercall(vcpu, call) == minimal.on_hypercall(vcpu, call)


@pytest.fixture(scope="module")
def running(adapter: AdapterVmm) -> tuple[AdapterVmm, Minimal]:
    """The adapter and the behaviour in Python, configured."""
    minimal = Minimal()
    adapter.configure(make_vm())
    minimal.configure(make_vm())
    return adapter, minimal


def test_a_refused_ioctl_ends_an_adapter(adapter: AdapterVmm) -> None:
    """What the kernel refuses is told on stderr, which the error shows."""
    with pytest.raises(AdapterError, match=r"exited with status 1 before it answered configure\n") as caught:
        adapter.configure(make_vm(refusing=True))
    assert "KVM_XEN_HVM_CONFIG" in str(caught.value).partition("The adapter's stderr ended with:")[2]


@pytest.mark.parametrize("source", sorted(BUILDS))
def test_an_adapter_is_short(source: str) -> None:
    """None has 150 lines."""
    assert len((ADAPTERS / source).read_text().splitlines()) < MAX_LINES

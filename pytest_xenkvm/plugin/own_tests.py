"""What users' own tests hold in their hands: replays as they like, and VMs on the host of the options."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from attrs import frozen

from pytest_xenkvm.core.profile import Profile
from pytest_xenkvm.hosts.protocol import HostVm, LimitedHost
from pytest_xenkvm.plugin.items import TraceItem
from pytest_xenkvm.plugin.observing import Watched, run_observed
from pytest_xenkvm.plugin.session import hooked_profiles, hooked_rules, host_choice, settings, traces_of
from pytest_xenkvm.plugin.shapes import check_shape, check_vendor, plain_shape
from pytest_xenkvm.replay.observation import Divergence, Observation
from pytest_xenkvm.rules.hosts import KVM
from pytest_xenkvm.rules.model import Rule, Verdict
from pytest_xenkvm.rules.registry import all_rules, select_rules
from pytest_xenkvm.rules.run import ReplayOptions, ReplayResult, TraceSource
from pytest_xenkvm.trace.errors import TraceError
from pytest_xenkvm.trace.events import Header, VmShape
from pytest_xenkvm.trace.files import Trace, open_trace
from pytest_xenkvm.vmm.behaviour import VmmBehaviour
from pytest_xenkvm.vmm.handles import Vm


@frozen(kw_only=True)
class Replayed:
    """A replay with all its observations."""

    observations: list[Observation]
    """What happened, event by event."""
    result: ReplayResult
    """What it came to."""

    @property
    def divergences(self) -> tuple[Divergence, ...]:
        """The first differences from the recording; `result.divergence_count` counts all."""
        return self.result.divergences

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """How the rules came out, in their order."""
        return self.result.verdicts


@frozen
class Replayer:
    """Replays traces for a test. Relative paths are looked up in the folder of its file."""

    request: pytest.FixtureRequest
    vmm: VmmBehaviour | None
    """What takes part unless the test says otherwise."""

    def __call__(
        self,
        trace: str | Path | TraceSource,
        *,
        profile: str | None = None,
        engine: str | None = None,
        vmm: VmmBehaviour | None = None,
        rules: str | Iterable[Rule] | None = None,
    ) -> Replayed:
        """Replay `trace` (a path, `@NAME` or a trace object) on the host of `--xenkvm-host`.

        `profile`, `engine` ("model" or "unicorn") and `rules` (a selection or rules themselves) are by
        default what the options say; with `vmm` it is a VMM replay, by default that of the marker
        `xenkvm_vmm`. All observations are kept in memory.
        Raises TraceError, ReplayError, HostError, RuleError and what the behaviour raises.
        """
        config, hook = self.request.config, self.request.node.ihook
        said = settings(config)
        source = self._open(trace) if isinstance(trace, (str, Path)) else trace
        if rules is None or isinstance(rules, str):
            known = all_rules(hooked_rules(config, hook))
            rules = select_rules(known, said.rules if rules is None else rules)
        options = ReplayOptions(
            profile=profile or said.profile,
            profiles=hooked_profiles(config, hook),
            engine=engine or said.engine,
            host=said.host,
            behaviour=vmm or self.vmm,
        )
        observations: list[Observation] = []
        result = run_observed(Watched(config, hook, source), rules, options, observations.append)
        return Replayed(observations=observations, result=result)

    def _open(self, spec: str | Path) -> Trace:
        paths = traces_of(str(spec), self.request.path.parent)
        if len(paths) != 1:
            raise TraceError(f"{spec}: names {len(paths)} traces, expected one")
        return open_trace(paths[0])


@frozen(kw_only=True)
class XenHost:
    """The host that the options ask for, emulated or the running kernel, for tests that need no trace."""

    host: LimitedHost
    """What creates VMs (the protocol); its `limits` has KVM_MAX_VCPUS."""
    profile: Profile
    """The kernel whose answers are expected of it."""
    cpu_vendor: str
    """Of its CPU, "amd" or "intel": whether VMMCALL or VMCALL is in a hypercall page."""
    is_real: bool
    """Whether a kernel answers, in real time, rather than the emulated core."""

    @classmethod
    def of(cls, request: pytest.FixtureRequest) -> XenHost:
        """The host that the options ask for; on the emulated one `auto` is the newest kernel.

        Raises ReplayError, and HostError if there is no such host here.
        """
        choice = host_choice(request.config, request.node.ihook)
        host = choice.host_for(Header())
        return cls(
            host=host,
            profile=choice.expected_profile(Header()),
            cpu_vendor=host.cpu_vendor,
            is_real=choice.host == KVM,
        )

    def create(self, shape: VmShape) -> HostVm:
        """A VM of that shape behind the host protocol; raises HostError."""
        return self.host.create_vm(shape, cpu_vendor=self.cpu_vendor)

    def create_vm(
        self,
        *,
        vcpus: int = 1,
        memory: int = 4 << 20,
        irqchip: str = "split",
        cpu_vendor: str | None = None,
        shape: VmShape | None = None,
    ) -> Vm:
        """A VM of `shape`, or one with `memory` bytes at guest address 0 and KVM vCPU ids from 0.

        `vcpus`: 1 to KVM_MAX_VCPUS; `memory`: whole pages, up to 1 TiB; `irqchip`: "none", "split" or "full";
        `cpu_vendor`: "amd" or "intel", by default the host's. Raises ValueError for anything else, HostError
        if the host can't do it.
        """
        __tracebackhide__ = True
        vendor = self.cpu_vendor if cpu_vendor is None else cpu_vendor
        check_vendor(vendor)
        if shape is None:
            limit = self.host.limits.max_vcpus
            shape = plain_shape(vcpus=vcpus, memory=memory, irqchip=irqchip, max_vcpus=limit)
        check_shape(shape)
        return Vm.on(self.host.create_vm(shape, cpu_vendor=vendor), shape)


def trace_for(request: pytest.FixtureRequest) -> Trace:
    """The trace that a test or item asks for."""
    if isinstance(request.node, TraceItem):
        return request.node.replays.trace
    if not hasattr(request, "param"):
        pytest.fail("xenkvm_trace needs a test marked with @pytest.mark.xenkvm_traces(...)", pytrace=False)
    return open_trace(request.param)

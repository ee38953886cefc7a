"""Which host a replay runs on, and which kernel's answers are expected there: the one place that chooses."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from attrs import frozen

from pytest_xenkvm.core.profile import HostLimits, Profile, profile_for_release
from pytest_xenkvm.cpu.errors import NoUnicorn
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.hosts.protocol import HostError, LimitedHost
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.rules.profiles import AUTO, choose_profile
from pytest_xenkvm.trace.events import Header

if TYPE_CHECKING:
    from pytest_xenkvm.hosts.unicorn_host import UnicornHost

MODEL: Final = "model"
UNICORN: Final = "unicorn"
ENGINES: Final = (MODEL, UNICORN)
"""What makes the guest's side happen: registers handed to the core, or guest code on Unicorn."""

EMULATED: Final = "emulated"
KVM: Final = "kvm"
HOSTS: Final = (EMULATED, KVM)
"""What plays the kernel: the emulated core, or the running kernel through its /dev/kvm."""


@frozen(kw_only=True)
class HostChoice:
    """What options say about the host."""

    host: str = EMULATED
    engine: str = MODEL
    profile: str = AUTO
    """On `kvm`: the kernel that the running one is expected to answer like; `auto` goes by its release."""
    profiles: tuple[Profile, ...] = ()
    """Those that `profile` may name besides the bundled ones and those of installed packages."""

    def check(self) -> None:
        """Raise ReplayError for names that there aren't, and for a pair that makes no sense."""
        if self.engine not in ENGINES:
            raise ReplayError(f"there is no engine {self.engine!r}; there are {', '.join(ENGINES)}")
        if self.host not in HOSTS:
            raise ReplayError(f"there is no host {self.host!r}; there are {', '.join(HOSTS)}")
        if self.host == KVM and self.engine == UNICORN:
            raise ReplayError(
                "the engine unicorn emulates a CPU, and on the host kvm the guest runs on the real one: "
                "choose either"
            )

    def expected_profile(self, header: Header) -> Profile:
        """The kernel whose answers are expected; raises ReplayError."""
        if self.host == KVM and self.profile == AUTO:
            return profile_for_release(os.uname().release)
        return choose_profile(self.profile, header, self.profiles)

    def host_for(self, header: Header) -> LimitedHost:
        """The host for a trace; raises ReplayError, or HostError if it can't be had or doesn't suit."""
        self.check()
        if self.host == KVM:
            return _real_host(header)
        return emulated_host(header, self.expected_profile(header), self.engine)


def emulated_host(header: Header, profile: Profile, engine: str = MODEL) -> EmulatedHost | UnicornHost:
    """The emulated host for a trace: KVM_MAX_VCPUS as the header has it.

    `engine`: "model" hands the core registers; "unicorn" lets guest code make the hypercalls, and raises
    HostError if the package can't be imported.
    """
    limits = HostLimits() if header.max_vcpus is None else HostLimits(max_vcpus=header.max_vcpus)
    if engine == MODEL:
        return EmulatedHost(profile=profile, limits=limits)
    try:
        from pytest_xenkvm.hosts.unicorn_host import UnicornHost  # noqa: PLC0415 - loads Unicorn when used
    except NoUnicorn as error:
        raise HostError(f"{error}, or use the engine {MODEL}") from error
    return UnicornHost(profile=profile, limits=limits)


def _real_host(header: Header) -> LimitedHost:
    from pytest_xenkvm.hosts.devkvm.host import DevKvmHost  # noqa: PLC0415 - few replays need it

    host = DevKvmHost.open()
    if header.max_vcpus not in (None, host.limits.max_vcpus):
        raise ReplayError(
            f"the trace was recorded with KVM_MAX_VCPUS = {header.max_vcpus} and this kernel has "
            f"{host.limits.max_vcpus}, so that vCPU IDs have other bounds: replay it on the emulated host"
        )
    return host

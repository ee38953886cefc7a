"""KVM's host-wide switch for Xen, the static key `kvm_xen_enabled` (arch/x86/kvm/xen.c, all kernels).

It is on while any VM of the host has a hypercall MSR configured, and goes off about a second after the last
one gave it up. While it is on, VMs without an MSR behave otherwise: their hypercalls may be intercepted and
their VM-wide vector injected.
"""

from __future__ import annotations

import time
from typing import Final

from attrs import define

_OFF_AFTER_S: Final = 1.3
"""The kernel's delay is a second; its work queue may be late."""


@define(eq=False)
class XenSwitch:
    """What this process knows of the switch; other processes' VMs are out of sight."""

    users: int = 0
    _off_at: float = 0.0

    def use(self) -> None:
        """A VM configured a hypercall MSR."""
        self.users += 1

    def release(self) -> None:
        """A VM gave it up, or is gone."""
        self.users -= 1
        self._off_at = time.monotonic() + _OFF_AFTER_S

    def wait_until_off(self) -> None:
        """Let time pass until the switch is off, if no VM of this process holds it."""
        if not self.users:
            time.sleep(max(0.0, self._off_at - time.monotonic()))


SWITCH: Final = XenSwitch()
"""The host has one."""


@define(eq=False)
class SwitchUse:
    """A VM's part in it."""

    switch: XenSwitch = SWITCH
    holds: bool = False
    held_ever: bool = False
    listens: bool = False
    """It has configured something that does nothing while the switch is off."""

    def configured(self, msr: int) -> None:
        """The VM has this hypercall MSR now, 0 for none."""
        if bool(msr) != self.holds:
            self.holds = bool(msr)
            if self.holds:
                self.held_ever = True
                self.switch.use()
            else:
                self.switch.release()

    def before_entry(self) -> None:
        """A VM that never had an MSR must not see what others left behind."""
        if self.listens and not self.held_ever:
            self.switch.wait_until_off()

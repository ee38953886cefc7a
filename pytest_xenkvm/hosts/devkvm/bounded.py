"""A KVM_RUN that comes back, whatever the guest does: a signal ends it, which only KVM_RUN lets through."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pytest_xenkvm.abi import kvm
from pytest_xenkvm.hosts.devkvm.vcpu import Vcpu

_SIGNAL: Final = signal.SIGRTMAX - 3
"""Blocked everywhere but in a bounded KVM_RUN, so that nobody's handler is run."""
_SIGSET_BYTES: Final = 8


@contextmanager
def at_most(seconds: float, vcpu: Vcpu) -> Iterator[None]:
    """Let runs of the vCPU end with -EINTR once that time is over."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {_SIGNAL})
    through = sum(1 << number - 1 for number in before if number != _SIGNAL)
    vcpu.kernel.ioctl(vcpu.fd, kvm.KVM_SET_SIGNAL_MASK, kvm.SIGNAL_MASK.pack(_SIGSET_BYTES, through))
    alarm = threading.Timer(seconds, signal.pthread_kill, (threading.get_ident(), _SIGNAL))
    alarm.daemon = True
    vcpu.is_over = lambda: _SIGNAL in signal.sigpending()
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()
        alarm.join()
        while signal.sigtimedwait({_SIGNAL}, 0):
            pass
        vcpu.is_over = lambda: False
        vcpu.kernel.ioctl(vcpu.fd, kvm.KVM_SET_SIGNAL_MASK, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

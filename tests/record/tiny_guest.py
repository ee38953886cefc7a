"""A program for recordings: a VM that makes COUNT Xen hypercalls, PAUSE seconds apart, and ends."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pytest_xenkvm.record.tiny_vm import TinyVm

XEN_VERSION, EVENT_CHANNEL_OP = 17, 32
VERSION = 0x40011


def main(count: int, pause: float) -> None:
    """Make every third call one that the kernel forwards."""
    vendor = "intel" if "GenuineIntel" in Path("/proc/cpuinfo").read_text() else "amd"
    with TinyVm(vendor, vcpu_id=3) as vm:
        vm.configure(xen_version=VERSION)
        for number in range(count):
            forwarded = number % 3 == 2
            nr = EVENT_CHANNEL_OP if forwarded else XEN_VERSION
            rax = vm.hypercall(nr, answer=number)
            assert rax == (number if forwarded else VERSION), rax
            if not number:
                print("running", flush=True)  # noqa: T201 - who started it waits for that
            time.sleep(pause)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))

"""VMM behaviours that come with the package, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pytest_xenkvm.vmm.behaviour import VmmBehaviour
from pytest_xenkvm.vmm.bundled.minimal import Minimal
from pytest_xenkvm.vmm.bundled.qemu import Qemu
from pytest_xenkvm.vmm.bundled.userspace_timers import UserspaceTimers

BUNDLED: Final[dict[str, Callable[[], VmmBehaviour]]] = {
    "qemu": Qemu,
    "minimal": Minimal,
    "userspace-timers": UserspaceTimers,
}
"""What makes a behaviour, by its name."""

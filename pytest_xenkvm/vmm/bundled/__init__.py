"""VMM behaviours that come with the package, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pytest_xenkvm.vmm.behaviour import VmmBehaviour
from pytest_xenkvm.vmm.bundled.minimal import Minimal

BUNDLED: Final[dict[str, Callable[[], VmmBehaviour]]] = {
    "minimal": Minimal,
}
"""What makes a behaviour, by its name."""

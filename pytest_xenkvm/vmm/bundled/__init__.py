"""The VMM behaviours that come with the package, by the name that `--xenkvm-vmm` and `--vmm` take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pytest_xenkvm.vmm.behaviour import VmmBehaviour

BUNDLED: Final[dict[str, Callable[[], VmmBehaviour]]] = {}
"""What makes each of them."""

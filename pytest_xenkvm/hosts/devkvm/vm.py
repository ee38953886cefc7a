"""stub."""

from __future__ import annotations


class DevKvmVm:
    """stub."""

"""What makes a replay impossible."""

from __future__ import annotations


class ReplayError(Exception):
    """A trace that can't be replayed as asked; `str()` is one sentence for the user."""

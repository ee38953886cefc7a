"""What goes wrong with a VMM itself, apart from the rules that it violates."""

from __future__ import annotations


class VmmError(Exception):
    """The VMM can't take part in a replay; `str()` is for the user: one sentence, then what the VMM wrote."""

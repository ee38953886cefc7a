"""What keeps a recording from being made."""

from __future__ import annotations


class RecordError(Exception):
    """`str()` is one sentence: what was found missing, and what it takes."""

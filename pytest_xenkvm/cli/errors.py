"""What a user of the command line can get wrong."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user's; `str()` is one sentence that says what was found and what was expected."""

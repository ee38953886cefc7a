"""What keeps guest code from running here at all."""

from __future__ import annotations


class NoUnicorn(ImportError):
    """The package unicorn can't be imported; `str()` is one sentence for the user."""

    def __init__(self, reason: Exception) -> None:
        """`reason`: what importing it raised."""
        super().__init__(
            f"the package unicorn, which runs guest code, can't be imported ({reason}): run "
            "`pip install --force-reinstall 'unicorn>=2.1.4,<2.2'`"
        )

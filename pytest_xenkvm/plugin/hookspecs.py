"""Hooks that conftest.py files and other plugins may implement."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # importing the plugin must stay cheap
    from pytest_xenkvm.rules.model import Rule


@pytest.hookspec
def pytest_xenkvm_rules(config: pytest.Config) -> Iterable[Rule] | None:
    """Return rules that traces shall be judged by, besides the bundled ones; their ids must be new.

    A conftest.py adds its rules to the traces in its directory; the one in rootdir to all.
    """

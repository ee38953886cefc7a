"""Hooks that conftest.py files and other plugins may implement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # importing the plugin must stay cheap
    from pytest_xenkvm.rules.model import Rule


@pytest.hookspec
def pytest_xenkvm_rules(config: pytest.Config) -> Iterable[Rule] | None:
    """Return rules that traces shall be judged by, besides the bundled ones; their ids must be new.

    A conftest.py adds its rules to the traces in its directory; the one in rootdir to all.
    """


@pytest.hookspec
def pytest_xenkvm_vmms(config: pytest.Config) -> Mapping[str, object] | None:
    """Return VMM behaviours by the name that `--xenkvm-vmm` and the marker `xenkvm_vmm` take.

    A value is a class, a function without arguments that makes a behaviour, or a behaviour itself. The
    option knows the names of plugins and of those conftest.py files that pytest loads at its start.
    """

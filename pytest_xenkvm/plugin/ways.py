"""Where rootdir is from where the user has started pytest: commands that are printed must work there."""

from __future__ import annotations

import os
from typing import Any, Final

import pytest

_INPUT: Final = "xenkvm_way_to_rootdir"


def tell_way(config: pytest.Config, workerinput: dict[str, Any]) -> None:
    """Tell one of pytest-xdist's workers, which may be in another folder or on another machine."""
    workerinput[_INPUT] = way_to_rootdir(config)


def way_to_rootdir(config: pytest.Config) -> str:
    """The relative path of rootdir."""
    told: str | None = getattr(config, "workerinput", {}).get(_INPUT)
    return told or os.path.relpath(config.rootpath, config.invocation_params.dir)

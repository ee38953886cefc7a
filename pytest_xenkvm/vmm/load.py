"""Finding a VMM behaviour by name: "module:Class", or a callable that makes one."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

from pytest_xenkvm.vmm.behaviour import VmmBehaviour


class BehaviourError(ValueError):
    """A VMM behaviour that can't be had; `str()` is one sentence for the user."""


def load_behaviour(spec: str) -> VmmBehaviour:
    """Import `module`, call its `Class` without arguments; raises BehaviourError.

    The result must have the methods `configure` and `on_hypercall`.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise BehaviourError(f"{spec!r} doesn't name a VMM behaviour, expected module:Class")
    try:
        found: Any = import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        hint = "; is its folder on PYTHONPATH?" if isinstance(error, ModuleNotFoundError) else ""
        raise BehaviourError(f"the VMM behaviour {spec!r} can't be imported: {error}{hint}") from error
    behaviour = found() if callable(found) else found
    for method in ("configure", "on_hypercall"):
        if not callable(getattr(behaviour, method, None)):
            raise BehaviourError(f"the VMM behaviour {spec!r} has no method {method}")
    return cast("VmmBehaviour", behaviour)

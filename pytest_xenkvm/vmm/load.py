"""Finding a VMM behaviour by name: "module:Class", a callable that makes one, or "cmd:COMMAND"."""

from __future__ import annotations

import shlex
from importlib import import_module
from typing import Any, Final, cast

from pytest_xenkvm.vmm.behaviour import VmmBehaviour

COMMAND: Final = "cmd:"
"""Begins the command line of an adapter: a VMM in a process of its own."""


class BehaviourError(ValueError):
    """A VMM behaviour that can't be had; `str()` is one sentence for the user."""


def load_behaviour(spec: str) -> VmmBehaviour:
    """Import `module`, call its `Class` without arguments; raises BehaviourError.

    The result must have the methods `configure` and `on_hypercall`. "cmd:COMMAND" is a VMM adapter, which
    starts when it configures a VM.
    """
    if spec.startswith(COMMAND):
        return _load_adapter(spec)
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


def _load_adapter(spec: str) -> VmmBehaviour:
    from pytest_xenkvm.vmm.adapter import AdapterVmm  # noqa: PLC0415 - processes are for those who use them

    try:
        command = shlex.split(spec.removeprefix(COMMAND))
    except ValueError as error:
        raise BehaviourError(f"{spec!r} names no command: {str(error).lower()}") from None
    if not command:
        raise BehaviourError(f"{spec!r} names no command, expected {COMMAND}PROGRAM ARGUMENT...")
    return AdapterVmm(command)

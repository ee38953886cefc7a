"""Which VMM behaviour a name means, for the pytest plugin and the command line alike.

module:Class         a class, or a function without arguments, or a behaviour itself
cmd:COMMAND LINE     a VMM in a process of its own
NAME                 a bundled behaviour, one that the caller knows, or an installed package's
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, Final, cast

from pytest_xenkvm.trace.installed import NotLoadable, load_entry
from pytest_xenkvm.vmm.behaviour import VmmBehaviour

ENTRY_POINTS: Final = "xenkvm.vmm"
"""Entry-point group whose members are named behaviours: what `module:Class` may name."""

Maker = Callable[[], VmmBehaviour]
"""Makes a behaviour; each replay may have one of its own."""

_COMMAND: Final = "cmd:"
_BROKEN: Final = "broken-"
"""Bundled behaviours of this kind are many, and nobody's VMM: they aren't listed."""
_NO_OTHERS: Final[Mapping[str, object]] = MappingProxyType({})
_REQUIRED: Final = ("configure", "on_hypercall")


class BehaviourError(ValueError):
    """A VMM behaviour that can't be had; `str()` is one sentence for the user."""


def load_behaviour(spec: str, others: Mapping[str, object] = _NO_OTHERS) -> VmmBehaviour:
    """A behaviour that `spec` names, new if a class or function makes it; raises as `find_behaviour`."""
    return find_behaviour(spec, others)()


def find_behaviour(spec: str, others: Mapping[str, object] = _NO_OTHERS) -> Maker:
    """What makes the behaviour that `spec` names; `others`: what `behaviour_maker` takes, by name.

    A bundled name counts first, then one of `others`, then an installed package's. Raises BehaviourError,
    also when the behaviour is made and is none.
    """
    if spec.startswith(_COMMAND):
        return _adapter(spec)
    if ":" in spec:
        return behaviour_maker(_imported(spec), spec)
    return _named(spec, others)


def behaviour_maker(found: object, called: str) -> Maker:
    """What makes behaviours of a class or function, or hands out the one that `found` is.

    Raises BehaviourError, which calls it `called`: at once if `found` is nothing of that kind.
    """
    is_behaviour = not isinstance(found, type) and all(hasattr(found, name) for name in _REQUIRED)
    if is_behaviour:
        return lambda: cast("VmmBehaviour", found)
    if not callable(found):
        raise BehaviourError(f"the VMM behaviour {called!r} is {found!r}, expected a class or a behaviour")

    def make() -> VmmBehaviour:
        made: Any = found()
        for name in _REQUIRED:
            if isinstance(made, type) or not callable(getattr(made, name, None)):
                raise BehaviourError(f"the VMM behaviour {called!r} has no method {name}: it is {made!r}")
        return cast("VmmBehaviour", made)

    return make


def _imported(spec: str) -> object:
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise BehaviourError(f"{spec!r} doesn't name a VMM behaviour, expected module:Class")
    try:
        found: object = import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing a module runs whatever it holds
        hint = "; is its folder on PYTHONPATH?" if isinstance(error, ModuleNotFoundError) else ""
        raise BehaviourError(
            f"the VMM behaviour {spec!r} can't be imported: {type(error).__name__}: {error}{hint}"
        ) from error
    return found


def _adapter(spec: str) -> Maker:
    try:
        command = shlex.split(spec.removeprefix(_COMMAND))
    except ValueError as error:
        raise BehaviourError(f"{spec!r} is no command line: {error}") from error
    if not command:
        raise BehaviourError(f"{spec!r} names no command, expected cmd:COMMAND LINE")
    from pytest_xenkvm.vmm.adapter import AdapterVmm  # noqa: PLC0415 - most VMMs have no process

    return lambda: cast("VmmBehaviour", AdapterVmm(command))


def _named(name: str, others: Mapping[str, object]) -> Maker:
    from pytest_xenkvm.vmm.bundled import BUNDLED  # noqa: PLC0415 - read when a name is to be found

    installed = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name in BUNDLED:
        return BUNDLED[name]
    if name in others:
        return behaviour_maker(others[name], name)
    if name in installed:
        return behaviour_maker(_loaded(installed[name]), name)
    bundled = {name for name in BUNDLED if not name.startswith(_BROKEN)}
    known = ", ".join(sorted({*bundled, *others, *installed}))
    there_are = f"there are {known}; besides, " if known else "expected "
    raise BehaviourError(f"there is no VMM behaviour {name!r}: {there_are}module:Class or cmd:COMMAND LINE")


def _loaded(entry: EntryPoint) -> object:
    try:
        found: object = load_entry(entry)
    except NotLoadable as error:
        raise BehaviourError(str(error)) from error
    return found

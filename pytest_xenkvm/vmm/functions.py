"""A VMM behaviour made of functions, for those who need no class."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from errno import ENOSYS
from typing import Any, TypeVar, overload

from attrs import define, field

from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.vmm.behaviour import Vmm
from pytest_xenkvm.vmm.handles import Vcpu

Answerer = Callable[[Vcpu, XenExit], "int | Awaitable[int]"]
"""Answers a forwarded hypercall; may be a coroutine function."""

_Answers = TypeVar("_Answers", bound=Answerer)
_Function = TypeVar("_Function", bound=Callable[..., Any])


@define(eq=False, slots=False)
class FunctionVmm(Vmm):
    """A behaviour whose parts are functions, registered by decorators; each may be `async def`.

    What has no function is done as `Vmm` does it: hypercalls are answered with -ENOSYS. Registering a
    second function for the same thing raises ValueError.
    """

    name: str = "FunctionVmm"
    """What reports call it."""
    _answers: dict[int | None, Answerer] = field(factory=dict, init=False, repr=False)
    """By hypercall number; None: all others."""

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> Any:
        """What the function for this hypercall answers."""
        answer = self._answers.get(xen_exit.input) or self._answers.get(None)
        return -ENOSYS if answer is None else answer(vcpu, xen_exit)

    @overload
    def answers(self, function: _Answers, /) -> _Answers: ...
    @overload
    def answers(self, *numbers: int) -> Callable[[_Answers], _Answers]: ...
    def answers(self, *given: Any) -> Any:
        """`@vmm.answers(NUMBER, ...)`: answers these hypercalls; `@vmm.answers`: all others.

        Numbers are `pytest_xenkvm.abi.numbers.Hypercall`, compared in 64 bits.
        """
        if len(given) == 1 and callable(given[0]):
            return self._register((None,), given[0])
        if not given or not all(isinstance(number, int) for number in given):
            named = ", ".join(map(repr, given)) or "no hypercall"
            raise ValueError(f"answers() names {named}, expected numbers, or @vmm.answers for all others")
        return lambda function: self._register(given, function)

    def configures(self, function: _Function) -> _Function:
        """`@vmm.configures`: the function is `configure(vm)`."""
        return self._become("configure", function)

    def serves_timers(self, function: _Function) -> _Function:
        """`@vmm.serves_timers`: the function is `on_timer(vcpu, expires_ns)`."""
        return self._become("on_timer", function)

    def serves_event_channels(self, function: _Function) -> _Function:
        """`@vmm.serves_event_channels`: the function is `on_event_channel(vm, fd, count)`."""
        return self._become("on_event_channel", function)

    def migrates(self, function: _Function) -> _Function:
        """`@vmm.migrates`: the function is `on_migrate(source, target)`."""
        return self._become("on_migrate", function)

    def closes(self, function: _Function) -> _Function:
        """`@vmm.closes`: the function is `close()`."""
        return self._become("close", function)

    def _register(self, numbers: tuple[int | None, ...], function: _Answers) -> _Answers:
        for number in numbers:
            if number in self._answers:
                what = "all other hypercalls" if number is None else f"hypercall {number}"
                raise ValueError(f"{self.name} has two functions that answer {what}")
            self._answers[number] = function
        return function

    def _become(self, method: str, function: _Function) -> _Function:
        """Let `function` stand in for the method, on this object."""
        if method in vars(self):
            raise ValueError(f"{self.name} has two functions for {method}")
        vars(self)[method] = function
        return function

"""The VMM behaviour behind which an adapter's process stands."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final, cast

from pytest_xenkvm.abi.numbers import Hypercall
from pytest_xenkvm.core.hypercalls import UnseenMemory
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.vmm.adapter.conversation import AdapterError, Conversation, shown_command
from pytest_xenkvm.vmm.adapter.messages import JSON, PROTOCOL, SOURCE, TARGET
from pytest_xenkvm.vmm.adapter.requests import Desk, Machine
from pytest_xenkvm.vmm.behaviour import Vmm
from pytest_xenkvm.vmm.handles import Vcpu, Vm

DEFAULT_TIMEOUT_S: Final = 10.0
"""How long an adapter may take over a message, its requests included."""


class AdapterVmm:
    """A VMM in a process of its own, which speaks the adapter protocol over its stdin and stdout.

    `configure` starts the process, one for each replay; `close` ends it, and so does whatever else makes this
    object go away. Every method raises AdapterError if the adapter doesn't do its part, within `timeout_s`
    (seconds, more than 0) for each message.
    """

    def __init__(self, command: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        if not command or isinstance(command, str) or timeout_s <= 0:
            raise ValueError(
                f"command {command!r}, time-out {timeout_s} s: expected a list of words, and some time"
            )
        self._command = tuple(command)
        self._timeout_s = timeout_s
        self._conversation: Conversation | None = None
        self._end: weakref.finalize[..., AdapterVmm] | None = None
        self._hello: Mapping[str, Any] = {}
        self._desk = Desk({})

    @property
    def name(self) -> str:
        """What the adapter calls itself; until it said hello, its command."""
        name: str = self._hello.get("name", shown_command(self._command))
        return name

    def configure(self, vm: Vm) -> None:
        """Start the adapter and have it set up the VM."""
        self.close()
        self._start()
        self._desk = Desk({SOURCE: Machine(vm)}, self._can("timer"))
        self._tell("configure", {"vcpus": len(vm.vcpus), "ids": [vcpu.id for vcpu in vm.vcpus]})

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:
        """The adapter's answer; None if it leaves the guest without one.

        Raises UnseenMemory if it asked for guest memory that the recording doesn't show: nobody can judge
        its answer then.
        """
        members = {
            "vcpu": vcpu.index,
            "longmode": xen_exit.longmode,
            "cpl": xen_exit.cpl,
            "input": xen_exit.input,
            "params": xen_exit.params,
        }
        self._desk.saw_unseen = False
        answer = self._ask("hypercall", members, "answer", what=f"hypercall {_call_words(xen_exit.input)}")
        if self._desk.saw_unseen:
            raise UnseenMemory
        return cast("int", answer["rax"])  # None says what it says of any behaviour

    def on_timer(self, vcpu: Vcpu, expires_ns: int) -> None:
        """Tell it of its own timer."""
        self._tell("timer", {"vcpu": vcpu.index, "expires_ns": expires_ns})

    @property
    def on_event_channel(self) -> Callable[[Vm, int, int], None]:
        """Tell it of a signalled eventfd; raises AttributeError if it wants to read eventfds itself."""
        if not self._can("event_channel"):
            raise AttributeError("on_event_channel")
        return lambda _vm, fd, count: self._tell("event_channel", {"fd": fd, "count": count})

    def on_migrate(self, source: Vm, target: Vm) -> None:
        """Have it move the VM; one that can't is moved like any VMM that says nothing about it."""
        if not self._can("migrate"):
            Vmm().on_migrate(source, target)
            return
        self._desk.machines[TARGET] = Machine(target)
        self._tell("migrate", {})
        del self._desk.machines[TARGET]

    def close(self) -> None:
        """End the process, if there is one. Raises AdapterError if it doesn't go in peace."""
        conversation, self._conversation, self._desk = self._conversation, None, Desk({})
        if conversation is not None:
            conversation.close()

    def _start(self) -> None:
        if self._end is not None:
            self._end()
        conversation = Conversation.begin(self._command, self._timeout_s)
        self._end = weakref.finalize(self, conversation.process.abandon)
        self._conversation = conversation
        harness = f"pytest-xenkvm {version('pytest-xenkvm')}"
        self._hello = conversation.ask("start", {"protocol": PROTOCOL, "harness": harness}, "hello")
        if self._hello["protocol"] != PROTOCOL:
            spoken = self._hello["protocol"]
            conversation.fail(f"speaks version {spoken} of the protocol, expected {PROTOCOL}")
        conversation.speak(self._hello.get("encoding", JSON))

    def _can(self, capability: str) -> bool:
        return capability in self._hello.get("capabilities", ())

    def _tell(self, type_: str, members: Mapping[str, Any]) -> None:
        self._ask(type_, members, "done")

    def _ask(self, type_: str, members: Mapping[str, Any], answer: str, what: str = "") -> Mapping[str, Any]:
        if self._conversation is None:
            name = shown_command(self._command)
            raise AdapterError(f"the VMM adapter {name}: does not run; configure starts it")
        return self._conversation.ask(type_, members, answer, serve=self._desk.serve, what=what)


def _call_words(number: int) -> str:
    known = number in Hypercall.__members__.values()
    return f"{number} ({Hypercall(number).name})" if known else str(number)

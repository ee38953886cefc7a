"""A conversation with an adapter: messages go out, answers come back, and whatever goes wrong has a sentence.

Strictly in turns: the harness sends a message; the adapter makes requests, each of which gets its result, and
ends with its answer. An adapter never writes out of turn.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Final, NoReturn

from attrs import define, field

from pytest_xenkvm.trace.values import Unfit
from pytest_xenkvm.vmm.adapter.encoding import Decoder, Garbage, encode, shown_bytes
from pytest_xenkvm.vmm.adapter.messages import FROM_ADAPTER, JSON, REQUESTS, build_message, check_message
from pytest_xenkvm.vmm.adapter.process import FINE, Gone, Late, Process
from pytest_xenkvm.vmm.errors import VmmError

MAX_REQUESTS: Final = 100_000
"""Requests of an adapter before it answers a message."""

_LAST_WORDS_S: Final = 1.0
"""How long a process that closed a pipe may take to end, so that its status can be told."""
_SHOWN_COMMAND: Final = 200

Serve = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""Does what a request asks for; the members of its result."""


class AdapterError(VmmError):
    """An adapter that didn't do its part; `str()` says what it did instead, and what it wrote to stderr."""


def shown_command(command: Sequence[str]) -> str:
    """A command as the user typed it, more or less."""
    text = shlex.join(command)
    return text if len(text) <= _SHOWN_COMMAND else f"{text[:_SHOWN_COMMAND]}..."


@define(eq=False)
class Conversation:
    """With one process, which is gone after the first AdapterError."""

    _name: str
    _timeout_s: float
    process: Process
    _decoder: Decoder = field(factory=Decoder, init=False, repr=False)
    _awaited: str = field(default="", init=False)
    """What the adapter has yet to answer; empty if nothing."""
    _over: bool = field(default=False, init=False)

    @classmethod
    def begin(cls, command: Sequence[str], timeout_s: float) -> Conversation:
        """Start the adapter. Raises AdapterError."""
        name = shown_command(command)
        try:
            process = Process.start(command)
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise AdapterError(f"the VMM adapter {name}: can't be started: {reason}") from None
        return cls(name, timeout_s, process)

    def speak(self, encoding: str) -> None:
        """Use another encoding from now on."""
        self._decoder.encoding = encoding

    def ask(
        self,
        type_: str,
        members: Mapping[str, Any],
        answer: str,
        *,
        serve: Serve | None = None,
        what: str = "",
    ) -> Mapping[str, Any]:
        """Send a message, serve the adapter's requests, return the members of its answer.

        `what` names the message to people. Raises AdapterError, and what `serve` raises.
        """
        if self._over:
            self.fail("does not run any more")
        deadline = monotonic() + self._timeout_s
        if type_ != "start":  # whatever a program writes first is taken for its hello
            self._check_silence()
        self._awaited = what or type_
        try:
            self._send(type_, members, deadline)
            for _ in range(MAX_REQUESTS + 1):
                got, content = self._receive(deadline)
                if got == answer:
                    self._awaited = ""
                    return content
                if serve is None or got not in REQUESTS:
                    self.fail(f"sent {got} when {answer} was expected for {self._awaited}")
                self._send("result", self._serve(serve, got, content), deadline)
            self.fail(f"made more than {MAX_REQUESTS} requests without an answer to {self._awaited}")
        except Late:
            self.fail(f"no answer to {self._awaited} within {self._timeout_s:g} s{self._part()}; killed")
        except Gone:
            self._fail_gone()
        except Garbage as garbage:
            self.fail(f"{garbage}; an answer to {self._awaited} was due")

    def close(self) -> None:
        """Say shutdown and see the adapter off. Raises AdapterError if it doesn't go in peace."""
        if self._over:
            return
        if self._awaited:  # whoever asked gave up in the middle
            self._over = True
            self.process.finish()
            return
        self._check_silence()
        deadline = monotonic() + self._timeout_s
        surplus = b""
        try:
            self._send("shutdown", {}, deadline)
            self.process.close_stdin()
            surplus = self.process.receive(deadline)
        except (Gone, Late):
            pass
        if surplus:
            self._fail_surplus(surplus)
        ended = self.process.finish(max(0.0, deadline - monotonic()))
        if ended is None:
            self.fail(f"did not exit within {self._timeout_s:g} s after shutdown; killed")
        if ended != FINE:
            self.fail(f"{ended} after its last answer")
        self._over = True

    def fail(self, did: str) -> NoReturn:
        """End the process; raise AdapterError that it `did` something."""
        self._over = True
        self.process.finish()
        complaints = self.process.complaints()
        told = f"\nThe adapter's stderr ended with:\n{complaints}" if complaints else ""
        raise AdapterError(f"the VMM adapter {self._name}: {did}{told}") from None

    def _send(self, type_: str, members: Mapping[str, Any], deadline: float) -> None:
        encoding = self._decoder.encoding
        message = build_message(type_, members, text=encoding == JSON)
        self.process.send(encode(message, encoding), deadline)

    def _receive(self, deadline: float) -> tuple[str, dict[str, Any]]:
        while (message := self._decoder.next()) is None:
            self._decoder.feed(self.process.receive(deadline))
        if monotonic() >= deadline:
            raise Late
        try:
            return check_message(FROM_ADAPTER, message)
        except Unfit as unfit:
            raise Garbage(f"sent {unfit}") from None

    def _serve(self, serve: Serve, type_: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return serve(type_, request)
        except Unfit as unfit:
            raise Garbage(f"sent {unfit}") from None

    def _check_silence(self) -> None:
        """An answer too many would be taken for the next one."""
        surplus = self._decoder.rest or self.process.pending()
        if surplus:
            self._fail_surplus(surplus)

    def _fail_surplus(self, surplus: bytes) -> NoReturn:
        self.fail(f"wrote out of turn, when no answer was due: {shown_bytes(surplus)}")

    def _fail_gone(self) -> NoReturn:
        try:  # what it wrote before it went says more than that it went
            self._decoder.feed(self.process.pending())
            self._decoder.next()
        except Garbage as garbage:
            self.fail(f"{garbage}; an answer to {self._awaited} was due")
        ended = self.process.finish(_LAST_WORDS_S)
        did = ended or "closed its stdin or stdout"
        self.fail(f"{did} before it answered {self._awaited}{self._part()}")

    def _part(self) -> str:
        """What there is of a message that never became whole."""
        rest = self._decoder.rest
        return f", in the middle of a message: {shown_bytes(rest)}" if rest else ""

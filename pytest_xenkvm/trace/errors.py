"""What goes wrong with traces, said in one sentence that names the place."""

from __future__ import annotations

from attrs import define, field


class TraceError(ValueError):
    """A trace that can't be used; `str()` is one sentence naming file, event and line as far as known."""


@define(eq=False)
class Malformed(TraceError):
    """Content that is not what the format asks for.

    `event` counts from 0; `line` is the JSON Lines line (event + 2; the header is line 1).
    """

    what: str
    path: str | None = None
    line: int | None = field(default=None, kw_only=True)
    event: int | None = field(default=None, kw_only=True)

    def __str__(self) -> str:
        place = [self.path] if self.path else []
        if self.line is not None:
            place.append(f"line {self.line}")
        if self.event is not None:
            place.append(f"event {self.event}")
        return f"{', '.join(place)}: {self.what}" if place else self.what

"""Importers of the recorders that print the kernel's tracepoints and kprobe events, each in its columns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain
from typing import Any, Final

from attrs import evolve

from pytest_xenkvm.trace.importers.ftrace import import_ftrace
from pytest_xenkvm.trace.importers.given import settled
from pytest_xenkvm.trace.importers.kprobes import PROBES, import_kprobes
from pytest_xenkvm.trace.importers.lines import DETECT_LINES, Syntax
from pytest_xenkvm.trace.importers.model import Given, Imported, Importer

_HEAD_CHARS: Final = 1 << 23
"""Characters of a recording's head that are held in memory."""

_VENDORS: Final = {"AuthenticAMD": "amd", "HygonGenuine": "amd", "GenuineIntel": "intel"}
"""What CPUID's vendors are in a trace: KVM on Hygon is KVM on AMD."""


def importer_of(syntax: Syntax) -> Importer:
    """Return the importer of one recorder's text: of scope "full" if the kprobe events are in it.

    The head of the recording tells that, and what the recorder says of the host.
    """

    def run(lines: Iterable[str], *, path: str, given: Given | None = None) -> Imported:
        lines = iter(lines)
        head: list[str] = []
        chars = 0
        for text in lines:
            head.append(text)
            chars += len(text)
            if len(head) == DETECT_LINES or chars > _HEAD_CHARS:
                break
        probed = any(shows_probes(syntax, text) for text in head)
        recorded = told_by(syntax, head, given or Given(), path)
        importer = import_kprobes if probed else import_ftrace
        return importer(chain(head, lines), path=path, given=recorded, syntax=syntax)

    return run


def shows_probes(syntax: Syntax, text: str) -> bool:
    """Whether this line is of one of the kprobe events that a configuration is known by."""
    line = syntax.parse(text, "", 0)
    return line is not None and line.event in PROBES


def told_by(syntax: Syntax, head: Iterable[str], given: Given, path: str) -> Given:
    """Return what is known of the host: from the caller, else from the recorder's own header.

    Raises `Malformed` if the two contradict each other.
    """
    for text in head:
        given = _told(given, "kernel", _found(syntax.kernel, text), path)
        vendor = _found(syntax.vendor, text)
        given = _told(given, "cpu_vendor", vendor and _VENDORS.get(vendor), path)
    return given


def _found(pattern: re.Pattern[str] | None, text: str) -> str | None:
    match = pattern.fullmatch(text) if pattern is not None else None
    return match[1] if match else None


def _told(given: Given, name: str, found: str | None, path: str) -> Given:
    if found is None:
        return given
    known = getattr(given, name)
    # A release may be given without its distribution's suffix.
    if known is not None and re.split(r"[^\d.]", found)[0] != known:
        settled(path, name.replace("_", " "), known, found)
    fields: dict[str, Any] = {name: found}
    return evolve(given, **fields)

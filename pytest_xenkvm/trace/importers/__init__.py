"""Importers: raw recordings of real guests into traces.

`detect` names the importer for a recording, `IMPORTERS` holds them, `open_text` reads one; `with_answers`
joins the two views of one run. What each can and can't see is in docs/reference/importers.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attrs import frozen

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.importers.answers import with_answers
from pytest_xenkvm.trace.importers.ftrace import import_ftrace
from pytest_xenkvm.trace.importers.ftrace_lines import parse_line
from pytest_xenkvm.trace.importers.kprobes import PROBES, import_kprobes
from pytest_xenkvm.trace.importers.model import Given, Imported, Importer, ImportReport
from pytest_xenkvm.trace.importers.qemu_log import MARK, import_qemu_log
from pytest_xenkvm.trace.importers.text import open_text

__all__ = [
    "DETECT_LINES",
    "IMPORTERS",
    "Given",
    "ImportReport",
    "Imported",
    "Importer",
    "NamedImporter",
    "detect",
    "open_text",
    "with_answers",
]

DETECT_LINES: Final = 5000
"""How many lines of a recording `detect` should be given."""


@frozen
class NamedImporter:
    """An importer and one line about it."""

    run: Importer
    description: str


IMPORTERS: Final[dict[str, NamedImporter]] = {
    "ftrace-kprobes": NamedImporter(
        import_kprobes, "ftrace text with kprobe events on KVM's Xen code: configuration, hypercalls, results"
    ),
    "ftrace": NamedImporter(
        import_ftrace,
        "ftrace text with kvm:kvm_xen_hypercall: hypercalls, forwarded or not if exits are there",
    ),
    "qemu-log": NamedImporter(
        import_qemu_log, "QEMU's trace log with kvm_xen_hypercall: forwarded hypercalls and QEMU's answers"
    ),
}
"""Every importer by its name."""


def detect(first_lines: Iterable[str], *, path: str) -> str:
    """Return the name of the importer for a recording that begins with these lines.

    The kprobe events show themselves within the first `DETECT_LINES`, since a VM's configuration comes
    first. Raises `Malformed` if no importer fits.
    """
    name = None
    for number, text in enumerate(first_lines, 1):
        if MARK in text:
            return "qemu-log"
        line = parse_line(text, path, number)
        if line is not None and line.event in PROBES:
            return "ftrace-kprobes"
        if line is not None:
            name = "ftrace"
    if name is None:
        what = f"no known recording; expected one of {', '.join(IMPORTERS)}"
        raise Malformed(what, path)
    return name

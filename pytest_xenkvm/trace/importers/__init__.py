"""Importers: raw recordings of real guests into traces.

`detect` names the importer for a recording, `IMPORTERS` holds them, `open_recording` reads one;
`with_answers` joins the two views of one run. What each can and can't see is in docs/reference/importers.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Final

from attrs import frozen

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.importers.answers import with_answers
from pytest_xenkvm.trace.importers.ftrace import import_ftrace
from pytest_xenkvm.trace.importers.ftrace_lines import FTRACE
from pytest_xenkvm.trace.importers.kprobes import import_kprobes
from pytest_xenkvm.trace.importers.lines import DETECT_LINES
from pytest_xenkvm.trace.importers.model import Forwarded, Given, Imported, Importer, ImportReport
from pytest_xenkvm.trace.importers.qemu_log import MARK, import_qemu_log
from pytest_xenkvm.trace.importers.recording import open_recording
from pytest_xenkvm.trace.importers.sources import importer_of, shows_probes
from pytest_xenkvm.trace.importers.strace import import_strace
from pytest_xenkvm.trace.importers.strace_lines import is_kvm_ioctl
from pytest_xenkvm.trace.importers.text import open_text
from pytest_xenkvm.trace.importers.tool_lines import BPFTRACE, BPFTRACE_SCRIPT, PERF, TRACE_CMD
from pytest_xenkvm.trace.installed import NotLoadable, load_entry

__all__ = [
    "BPFTRACE_SCRIPT",
    "DETECT_LINES",
    "ENTRY_POINTS",
    "IMPORTERS",
    "Forwarded",
    "Given",
    "ImportReport",
    "Imported",
    "Importer",
    "ImporterError",
    "NamedImporter",
    "all_importers",
    "detect",
    "find_importer",
    "open_recording",
    "open_text",
    "with_answers",
]

ENTRY_POINTS: Final = "xenkvm.importers"
"""Entry-point group whose members are `NamedImporter`s; an entry's name is that of its importer."""


class ImporterError(ValueError):
    """Importers that can't be had; `str()` is one sentence for the user."""


@frozen
class NamedImporter:
    """An importer and one line about it.

    `recognises`: whether a line of text shows that the recording is for this importer; None: it must be
    named. The bundled importers are asked first.
    """

    run: Importer
    description: str
    recognises: Callable[[str], bool] | None = None


IMPORTERS: Final[dict[str, NamedImporter]] = {
    "qemu-log": NamedImporter(
        import_qemu_log,
        "QEMU's trace log with kvm_xen_hypercall: forwarded hypercalls and QEMU's answers",
        lambda text: MARK in text,
    ),
    "trace-cmd": NamedImporter(
        importer_of(TRACE_CMD),
        "trace-cmd's text or trace.dat, with kvm:kvm_xen_hypercall or the kprobe events",
        TRACE_CMD.recognises,
    ),
    "perf": NamedImporter(
        importer_of(PERF),
        "what `perf script` prints, with kvm:kvm_xen_hypercall or the kprobe events",
        PERF.recognises,
    ),
    "bpftrace": NamedImporter(
        importer_of(BPFTRACE),
        "what the script of --bpftrace-script prints: hypercalls, forwarded or not",
        lambda text: BPFTRACE.mark is not None and BPFTRACE.mark.match(text) is not None,
    ),
    "strace": NamedImporter(
        import_strace,
        "strace of a VMM's ioctls: the VM; its forwarded hypercalls come from --answers",
        is_kvm_ioctl,
    ),
    "ftrace-kprobes": NamedImporter(
        import_kprobes,
        "ftrace text with kprobe events on KVM's Xen code: configuration, hypercalls, results",
        lambda text: shows_probes(FTRACE, text),
    ),
    "ftrace": NamedImporter(
        import_ftrace,
        "ftrace text with kvm:kvm_xen_hypercall: hypercalls, forwarded or not if exits are there",
        FTRACE.recognises,
    ),
}
"""The bundled importers by their names."""


def all_importers(more: Mapping[str, NamedImporter] | None = None) -> dict[str, NamedImporter]:
    """The bundled importers, those of installed packages, and `more`; raises ImporterError.

    No name may be given twice.
    """
    found = dict(IMPORTERS)
    try:
        installed = [(entry.name, load_entry(entry)) for entry in entry_points(group=ENTRY_POINTS)]
    except NotLoadable as error:
        raise ImporterError(str(error)) from error
    for name, importer in (*installed, *(more or {}).items()):
        if not isinstance(importer, NamedImporter):
            raise ImporterError(f"the importer {name!r} is {importer!r}, expected a NamedImporter")
        if found.setdefault(name, importer) is not importer:
            raise ImporterError(f"two importers have the name {name!r}: names must be unique")
    return found


def find_importer(name: str, importers: Mapping[str, NamedImporter]) -> NamedImporter:
    """The importer of that name; raises ImporterError, which says what there is."""
    if name not in importers:
        raise ImporterError(f"there is no importer {name!r}; there are {', '.join(sorted(importers))}")
    return importers[name]


def detect(
    first_lines: Iterable[str], *, path: str, importers: Mapping[str, NamedImporter] = IMPORTERS
) -> str:
    """Return the name of the one of `importers` for a recording that begins with these lines.

    The first line that shows a recorder decides; plain ftrace may turn out to have kprobe events. Those show
    themselves within the first `DETECT_LINES`, since a VM's configuration comes first. Raises `Malformed` if
    no importer fits.
    """
    name = None
    for text in first_lines:
        recognised = _recognised(text, importers)
        if recognised in IMPORTERS and recognised != "ftrace":
            return recognised
        name = name or recognised
    if name is None:
        what = f"no known recording; expected one of {', '.join(importers)}"
        raise Malformed(what, path)
    return name


def _recognised(text: str, importers: Mapping[str, NamedImporter]) -> str | None:
    for name, importer in importers.items():
        if importer.recognises is not None and importer.recognises(text):
            return name
    return None

"""Reports as files."""

from __future__ import annotations

from pathlib import Path

from pytest_xenkvm.report.html import html_report
from pytest_xenkvm.report.reading import ReportError
from pytest_xenkvm.report.results import Report, report_bytes
from pytest_xenkvm.trace.storage import complaining, replacing


def is_html(path: Path) -> bool:
    """Whether a report of this name is to be HTML; raises ReportError for a name that says neither."""
    if path.suffix not in {".html", ".json"}:
        raise ReportError(f"{path}: ends in {path.suffix or 'no suffix'}, expected .json or .html")
    return path.suffix == ".html"


def rendered(report: Report, path: Path) -> bytes:
    """What a file of this name holds of a report; raises ReportError as `is_html`."""
    if not is_html(path):
        return report_bytes(report)
    return html_report(report).encode(errors="replace")  # a file name may hold what is no character


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, and the folders that it lies in; it appears when it is whole. Raises TraceError."""
    with complaining(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(data)

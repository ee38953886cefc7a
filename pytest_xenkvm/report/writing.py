"""Reports as files."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from pytest_xenkvm.report.reading import ReportError
from pytest_xenkvm.report.results import Report, report_bytes
from pytest_xenkvm.trace.storage import complaining, replacing

_HTML: Final = "pytest_xenkvm.report.html"


def is_html(path: Path) -> bool:
    """Whether a report of this name is to be HTML; raises ReportError for a name that says neither."""
    if path.suffix not in {".html", ".json"}:
        raise ReportError(f"{path}: ends in {path.suffix or 'no suffix'}, expected .json or .html")
    if path.suffix == ".html" and find_spec(_HTML) is None:
        raise ReportError(f"{path}: this version writes no HTML reports, expected a name that ends in .json")
    return path.suffix == ".html"


def rendered(report: Report, path: Path) -> bytes:
    """What a file of this name holds of a report; raises ReportError as `is_html`."""
    if not is_html(path):
        return report_bytes(report)
    page: str = import_module(_HTML).html_report(report)
    return page.encode(errors="replace")  # a file name may hold what is no character


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, and the folders that it lies in; it appears when it is whole. Raises TraceError."""
    with complaining(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(data)

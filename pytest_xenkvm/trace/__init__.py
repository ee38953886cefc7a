"""Traces: events as frozen objects, and the two file formats that hold them."""

from pytest_xenkvm.trace.errors import Malformed, TraceError
from pytest_xenkvm.trace.files import Trace, bundled_traces, find_traces, open_trace, write_trace

__all__ = [
    "Malformed",
    "Trace",
    "TraceError",
    "bundled_traces",
    "find_traces",
    "open_trace",
    "write_trace",
]

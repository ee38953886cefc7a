"""The columns of the other recorders of ftrace's events: trace-cmd, perf and bpftrace.

None of them prints functions' names, and only later trace-cmd's flags: in their text a timer's delivery is
known by its port alone. Seen with trace-cmd 3.1.6, perf 6.1 and bpftrace 0.17.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from pytest_xenkvm.trace.importers.lines import Syntax

_CPU_AND_TIME: Final = (
    r"\[\d{1,5}\]\s{1,8}(?:(?P<flags>[^\s:]{4,8})\s{1,16})?"
    r"(?P<seconds>\d{1,10})\.(?P<fraction>\d{1,9}):\s{1,32}"
)
_EVENT: Final = r"(?P<event>[A-Za-z_]\w{0,63})(?P<fields>[:( ].*)"

TRACE_CMD: Final = Syntax(
    recorder="trace-cmd",
    columns="TASK-PID [CPU] TIME: EVENT:   ...",
    line=re.compile(
        r"(?:[^\s:]{1,64}:\s{1,64})?"  # the instance's name, if there are instances
        r"(?P<task>.{1,64}?)-(?P<pid>\d{1,7})\s{1,16}" + _CPU_AND_TIME + _EVENT,
        re.ASCII,
    ),
    lost=re.compile(r"CPU:\d{1,5} \[(?:(\d{1,18}) )?EVENTS DROPPED\]", re.ASCII),
    sure=re.compile(r"\d: {1,8}\w{1,19}:  ", re.ASCII),  # shorter names are padded, unlike ftrace's
    mark=re.compile(r"cpus=\d{1,5}$|Linux \S{1,255} \d\S{0,255} x86_64$", re.ASCII),
    kernel=re.compile(r"Linux \S{1,255} (\d\S{0,255}) x86_64", re.ASCII),
)
"""`trace-cmd report`, and the line of `trace-cmd report --uname`."""

PERF: Final = Syntax(
    recorder="perf",
    columns="TASK PID [CPU] TIME: GROUP:EVENT: ...",
    line=re.compile(
        r"(?P<task>.{1,64}?)\s{1,16}(?:\d{1,10}/)?(?P<pid>\d{1,7})\s{1,16}"
        + _CPU_AND_TIME
        + r"(?:\d{1,20}\s{1,32})?[a-z]\w{0,63}:"
        + _EVENT,
        re.ASCII,
    ),
    lost=re.compile(r".{1,64}?\s{1,16}\d{1,10}\s{1,16}\[.{1,64}: PERF_RECORD_LOST lost (\d{1,18})", re.ASCII),
    kernel=re.compile(r"# os release : (\d\S{0,255})", re.ASCII),
    vendor=re.compile(r"# cpuid : (\w{1,16}),.*", re.ASCII),
)
"""`perf script`; better with `--header --ns --show-lost-events`."""

BPFTRACE_SCRIPT: Final = Path(__file__).with_name("xenkvm.bt")
"""A program for bpftrace that records hypercalls."""

BPFTRACE: Final = Syntax(
    recorder="bpftrace",
    columns="TASK-TID [CPU] TIME: EVENT: ...",
    line=re.compile(
        r"(?P<task>.{1,64}?)-(?P<pid>\d{1,7}) " + _CPU_AND_TIME + _EVENT,
        re.ASCII,
    ),
    lost=re.compile(r"Lost (\d{1,18}) events", re.ASCII),
    mark=re.compile(r"# xenkvm\.bt|Attaching \d{1,9} probes\.\.\.", re.ASCII),
    ordered=False,
)
"""What `BPFTRACE_SCRIPT` prints: each CPU's events in order, but not those of all."""

"""Lines of strace: `[PID] [TIME] ioctl(FD<...>, REQUEST, ARGUMENT) = RESULT (EXIT REASON) <DURATION>`.

strace -f cuts a call in two where another thread's comes between: `<unfinished ...>`, `<... ioctl resumed>`.
Seen with strace 6.1 and 6.13.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from errno import errorcode
from typing import Final

from attrs import frozen

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.importers.model import ImportReport

_PREFIX: Final = re.compile(
    r"(?:\[pid\s{1,8}(\d{1,7})\]\s{1,8}|(\d{1,7})\s{1,16})?"
    r"(?:(\d{9,10})\.(\d{6,9})\s|(\d\d):(\d\d):(\d\d)(?:\.(\d{6,9}))?\s|\s{0,16}\d{1,8}\.\d{6,9}\s)?",
    re.ASCII,
)
"""Thread (-f, in a file or not); seconds (-ttt), time of day (-t, -tt), or since the last call (-r)."""
_CALL: Final = re.compile(
    r"ioctl\((?P<fd>\d{1,10})(?:<[^,]{0,255}>)?, (?P<request>KVM_[A-Z0-9_]{1,60})(?:, (?P<arg>.{0,3000}))?\)"
    r"\s{1,64}= (?P<ret>-?\d{1,10})(?:<[^,]{0,255}>)?"
    r"(?: (?P<error>E[A-Z0-9]{1,30}) \(.{1,100}\))?(?: \((?P<exit>KVM_EXIT_[A-Z0-9_]{1,40})\))?"
    r"(?: <(?P<seconds>\d{1,9})\.(?P<fraction>\d{6,9})>)?",
    re.ASCII,
)
_BEGUN: Final = " <unfinished ...>"
_RESUMED: Final = "<... ioctl resumed>"
_KVM: Final = re.compile(r"ioctl\(\d{1,10}(?:<[^,]{0,255}>)?, KVM_", re.ASCII)

_MAX_THREADS: Final = 1 << 16
"""Threads of which a call may be under way at a time."""

_NS_DIGITS: Final = 9
_ERRORS: Final = {name: -number for number, name in errorcode.items()}


@frozen(kw_only=True)
class StraceCall:
    """One call of an ioctl of KVM's that returned.

    `ns`: when it did, None without absolute times; `ret`: 0, positive or -errno; `arg`: as strace prints it;
    `exit`: why KVM_RUN returned ("KVM_EXIT_XEN"), "" if strace doesn't say.
    """

    number: int
    pid: int
    ns: int | None
    fd: int
    request: str
    arg: str
    ret: int
    exit: str


def is_kvm_ioctl(text: str) -> bool:
    """Whether a line is one of strace, about an ioctl of KVM's."""
    match = _PREFIX.match(text)
    return match is not None and _KVM.match(text, match.end()) is not None


def read_strace(lines: Iterable[str], path: str, report: ImportReport) -> Iterator[StraceCall]:
    """Yield KVM's ioctls in the order in which they returned; other lines are counted in `report`.

    The caller accounts for each call that it gets. Raises `Malformed` if there was none at all.
    """
    begun: dict[int, str] = {}
    found = False
    for number, text in enumerate(lines, 1):
        report.lines += 1
        prefix = _PREFIX.match(text)
        assert prefix is not None  # noqa: S101  # it matches nothing, too
        pid, rest = int(prefix[1] or prefix[2] or 0), text[prefix.end() :].rstrip()
        if rest.startswith(_RESUMED):
            rest = begun.pop(pid, "") + rest.removeprefix(_RESUMED)
            resumed = True
        elif rest.endswith(_BEGUN) and _KVM.match(rest):
            if len(begun) >= _MAX_THREADS:
                raise Malformed(f"more than {_MAX_THREADS:,} calls that never return", path, line=number)
            begun[pid] = rest.removesuffix(_BEGUN)
            report.skip("first halves of calls")
            continue
        else:
            resumed = False
        call = _CALL.fullmatch(rest)
        if call is not None:
            found = True
            yield _returned(number, pid, _time(prefix), call, resumed=resumed)
        elif _KVM.match(rest):
            report.skip("ioctls of KVM's that strace doesn't show whole")
        else:
            report.skip("lines that are no ioctl of KVM's")
    if not found:
        raise Malformed("no ioctl of KVM's found, expected lines 'ioctl(FD, KVM_..., ...) = RESULT'", path)


def _time(prefix: re.Match[str]) -> int | None:
    _pid, _other, seconds, fraction, hours, minutes, of_minute, of_second = prefix.groups()
    if hours is not None:
        seconds, fraction = str((int(hours) * 60 + int(minutes)) * 60 + int(of_minute)), of_second or "0"
    return None if seconds is None else _ns(seconds, fraction)


def _ns(seconds: str, fraction: str) -> int:
    return int(seconds) * 10**_NS_DIGITS + int(fraction.ljust(_NS_DIGITS, "0"))


def _returned(number: int, pid: int, ns: int | None, call: re.Match[str], *, resumed: bool) -> StraceCall:
    if ns is not None and not resumed and call["seconds"] is not None:
        ns += _ns(call["seconds"], call["fraction"])
    ret = int(call["ret"])
    return StraceCall(
        number=number,
        pid=pid,
        ns=ns,
        fd=int(call["fd"]),
        request=call["request"],
        arg=call["arg"] or "",
        ret=_ERRORS.get(call["error"], ret) if ret < 0 else ret,
        exit=call["exit"] or "",
    )

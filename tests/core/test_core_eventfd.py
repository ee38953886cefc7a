"""Eventfds and the VMM's table of files."""

from __future__ import annotations

from errno import EAGAIN, EBADF, EINVAL

import pytest
from xen_vms import refusal

from pytest_xenkvm.abi.numbers import U64_MAX
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.eventfd import EVENTFD_MAX, Eventfd, lookup


@pytest.mark.parametrize(
    ("count", "value", "errno"),
    [
        (0, 0, 0),
        (0, 1, 0),
        (0, EVENTFD_MAX, 0),
        (1, EVENTFD_MAX, EAGAIN),
        (EVENTFD_MAX, 0, 0),
        (EVENTFD_MAX, 1, EAGAIN),
        (0, U64_MAX, EINVAL),
        (EVENTFD_MAX, U64_MAX, EINVAL),
    ],
)
def test_a_write_that_does_not_fit_changes_nothing(count: int, value: int, errno: int) -> None:
    """The VMM can fill the count up to 2^64-2; more would block, and 2^64-1 is no value at all."""
    eventfd = Eventfd(count=count)
    heard: list[str] = []
    eventfd.listeners.append(lambda: heard.append("signal"))
    assert refusal(eventfd.write, value) == errno
    assert (eventfd.count, heard) == ((count, []) if errno else (count + value, ["signal"]))


def test_the_kernel_counts_one_further_than_a_writer() -> None:
    """A signal raises 2^64-2 to 2^64-1, where the count stays."""
    eventfd = Eventfd(count=EVENTFD_MAX)
    eventfd.signal()
    assert eventfd.count == U64_MAX
    eventfd.signal()
    assert eventfd.count == U64_MAX


def test_draining_takes_all() -> None:
    """A read takes the whole count and leaves none; without a count it takes 0."""
    eventfd = Eventfd(count=5)
    assert (eventfd.drain(), eventfd.drain()) == (5, 0)


def test_only_an_open_eventfd_is_found() -> None:
    """A number that isn't open is -EBADF, a file of another kind -EINVAL."""
    eventfd = Eventfd()
    files = {3: eventfd, 4: None}
    assert lookup(files, 3) is eventfd
    assert refusal(lookup, files, 4) == EINVAL
    assert refusal(lookup, files, 5) == EBADF


def test_a_refusal_names_its_errno() -> None:
    """A refused operation says what the kernel answers; a number without a name is shown too."""
    assert str(KvmError(EINVAL)) == "-EINVAL (-22)"
    assert str(KvmError(1000)) == "-E? (-1000)"

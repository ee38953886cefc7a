"""Which profiles there are: the bundled ones, those of installed packages, and those that a caller knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pytest_xenkvm.core.profile import PROFILES, Profile, profile_for_release
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.trace.events import Header
from pytest_xenkvm.trace.installed import NotLoadable, load_all

ENTRY_POINTS: Final = "xenkvm.profiles"
"""Entry-point group whose members are iterables of `Profile`."""

AUTO: Final = "auto"
"""Profile name that means: by the kernel that the trace's header names, one of the bundled ones."""


def all_profiles(more: Iterable[Profile] = ()) -> dict[str, Profile]:
    """The bundled profiles, those of installed packages, and `more`, by name; raises ReplayError."""
    try:
        added = tuple(load_all(ENTRY_POINTS, Profile))
    except NotLoadable as error:
        raise ReplayError(str(error)) from error
    found = dict(PROFILES)
    for profile in (*added, *more):
        if profile.name == AUTO or found.setdefault(profile.name, profile) is not profile:
            raise ReplayError(f"two profiles have the name {profile.name!r}: names must be unique")
    return found


def choose_profile(name: str, header: Header, more: Iterable[Profile] = ()) -> Profile:
    """The profile called `name`, or ("auto") the one of the header's kernel; raises ReplayError."""
    if name == AUTO:
        return profile_for_release(header.kernel)
    if name in PROFILES and not more:
        return PROFILES[name]
    known = all_profiles(more)
    if name not in known:
        raise ReplayError(f"there is no profile {name!r}; there are auto, {', '.join(known)}")
    return known[name]

"""Results of replays that need not be done again, in pytest's cache folder.

A result is found by all that it depends on: the bytes of the trace, the engine, everything that the profile
says, the rules and the source of this package, and what that runs on. Only bundled rules count as known, and
only kernel replays on the emulated host: nobody can tell whether a VMM behaviour, somebody else's rule or a
running kernel is what it was. Where a hook observes replays, they are done.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest
from attrs import frozen

from pytest_xenkvm.core.profile import Profile
from pytest_xenkvm.plugin.cache_folder import CacheFolder
from pytest_xenkvm.plugin.observing import Watched
from pytest_xenkvm.plugin.stored_result import Unstorable, result_of_text, result_text
from pytest_xenkvm.rules.bundled import BUNDLED
from pytest_xenkvm.rules.hosts import EMULATED
from pytest_xenkvm.rules.model import Rule
from pytest_xenkvm.rules.run import ReplayOptions, ReplayResult
from pytest_xenkvm.trace.files import Trace

_FOLDER: Final = pytest.StashKey["CacheFolder | None"]()
_OBSERVING: Final = (
    "pytest_xenkvm_before_replay",
    "pytest_xenkvm_before_event",
    "pytest_xenkvm_after_event",
    "pytest_xenkvm_divergence",
    "pytest_xenkvm_verdict",
)
"""Hooks that are told of a replay."""
_BUNDLED: Final = frozenset(map(id, BUNDLED))
_DEPENDENCIES: Final = ("attrs", "msgpack", "unicorn")
"""Packages that results depend on."""
_PACKAGE: Final = Path(__file__).parents[1]


@frozen
class Outcome:
    """A result, and whether the replay was done now or in an earlier run."""

    result: ReplayResult
    is_cached: bool = False


def replay_once(
    watched: Watched[Trace], rules: Sequence[Rule], options: ReplayOptions, replay: Callable[[], ReplayResult]
) -> Outcome:
    """The result of an equal replay that was done before; else do it, and keep its result if that is safe.

    Raises what `replay` raises, and ReplayError for a profile that there isn't.
    """
    config, trace = watched.config, watched.trace
    folder = _folder(config)
    profile = options.expected_profile(trace.header)
    if folder is None or not _is_safe(watched, rules, options, profile):
        return Outcome(replay())
    content = folder.content_of(trace.path)
    if content is None:
        return Outcome(replay())
    key = _key(content.digest, profile, options.engine, rules)
    # Workers come to a trace at the same time: one replays it, the others wait for the result.
    with folder.alone(key) if hasattr(config, "workerinput") else nullcontext():
        known = _known(folder.read(key), trace, profile, rules)
        if known is not None:
            return Outcome(known, is_cached=True)
        result = replay()
        if content.is_unchanged():
            with suppress(Unstorable):
                folder.write(key, result_text(result))
        return Outcome(result)


def _folder(config: pytest.Config) -> CacheFolder | None:
    """Where results are; None if pytest has no cache or nobody wants it used."""
    if _FOLDER not in config.stash:
        cache = None if config.option.xenkvm_no_cache else getattr(config, "cache", None)
        config.stash[_FOLDER] = None if cache is None else CacheFolder.made_by(cache)
    return config.stash[_FOLDER]


def _is_safe(
    watched: Watched[Trace], rules: Sequence[Rule], options: ReplayOptions, profile: Profile
) -> bool:
    """Whether the key says everything that the result depends on, and nobody wants to see the replay."""
    return (
        options.host == EMULATED
        and options.behaviour is None
        and options.until is None
        and type(profile) is Profile
        and all(id(rule) in _BUNDLED for rule in rules)
        and not any(watched.caller(name) for name in _OBSERVING)
    )


def _known(text: str | None, trace: Trace, profile: Profile, rules: Sequence[Rule]) -> ReplayResult | None:
    if text is None:
        return None
    try:
        return result_of_text(text, trace.name, profile.name, rules)
    except Unstorable:
        return None


def _key(digest: str, profile: Profile, engine: str, rules: Sequence[Rule]) -> str:
    parts = {
        "trace": digest,
        "profile": repr(profile),
        "engine": engine,
        "rules": [rule.id for rule in rules],
        "code": _code(),
        "on": _runs_on(),
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@lru_cache(maxsize=1)
def _code() -> str:
    """All of this package's source: its version alone doesn't tell one checkout from another."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(_PACKAGE)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _runs_on() -> list[str]:
    return [sys.version, str(sys.flags.optimize), *(f"{name} {version(name)}" for name in _DEPENDENCIES)]

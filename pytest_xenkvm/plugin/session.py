"""What the options ask for, checked once at the start: host, profile, engine, rules, VMM, traces.

Traces get their node ids here. One inside rootdir is named by its relative path, as any test file is. One
elsewhere is named by as much of the end of its path as makes it unique, which for a bundled trace is
`linux-boot.xkt`; `collect` adds it to the session.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest
from attrs import evolve, field, frozen

from pytest_xenkvm.core.profile import Profile
from pytest_xenkvm.plugin.arguments import bundled_file, bundled_files, take_arguments
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.rules.hosts import EMULATED, KVM, MODEL, HostChoice
from pytest_xenkvm.rules.model import Rule
from pytest_xenkvm.rules.profiles import AUTO
from pytest_xenkvm.rules.registry import RuleError, all_rules, select_rules
from pytest_xenkvm.trace.errors import TraceError
from pytest_xenkvm.trace.events import Header
from pytest_xenkvm.trace.files import BUNDLED_PREFIX, find_traces
from pytest_xenkvm.vmm.load import BehaviourError, Maker, find_behaviour

if TYPE_CHECKING:  # the importers are loaded when one is used
    from pytest_xenkvm.trace.importers import NamedImporter


AUTO_ITEMS: Final = "auto"
PER_RULE: Final = "rule"
PER_TRACE: Final = "trace"
"""What there is an item for; `kinds` says what "auto" comes to."""


@frozen(kw_only=True)
class TraceElsewhere:
    """A trace outside rootdir."""

    path: Path
    nodeid: str
    wanted: frozenset[str] = frozenset()
    """Names of the items to collect, with or without parameters; empty for all."""


@frozen(kw_only=True)
class Settings:
    """What options and ini file ask for."""

    profile: str
    engine: str
    host: str
    rules: str
    vmm: str
    make_vmm: Maker | None
    strict: bool
    items: str
    elsewhere: tuple[TraceElsewhere, ...] = ()
    by_option: tuple[Path, ...] = ()
    """Traces inside rootdir that options or ini file name."""
    off_arguments: Mapping[Path, frozenset[str]] = field(factory=dict)
    """Those of them that no argument leads pytest to, and the items to collect; empty for all."""
    by_argument: Mapping[Path, frozenset[str]] = field(factory=dict)
    """What arguments name: files and folders, and which items of a file, without parameters."""
    names: tuple[str, ...] = ()
    """Node ids of the traces that options or ini file name."""

    @property
    def played_by(self) -> str:
        """What plays the guest, for reports: the engine, or "kvm"."""
        return self.engine if self.host == EMULATED else self.host

    def is_named(self, path: Path) -> bool:
        """Whether options, ini file or arguments name this trace."""
        return path in self.by_option or path in self.by_argument


_Added = TypeVar("_Added")

_SETTINGS: Final = pytest.StashKey[Settings]()


def settings(config: pytest.Config) -> Settings:
    """The settings of this run."""
    if _SETTINGS not in config.stash:
        config.stash[_SETTINGS] = _said(config)
    return config.stash[_SETTINGS]


def resolve(config: pytest.Config) -> None:
    """Check the options and find the traces; raises UsageError.

    Arguments that name traces outside of rootdir are taken out of `config.args`. Traces inside that no
    argument covers are not put there: pytest collects a whole folder anew for each file that is an argument.
    """
    said = settings(config)
    try:
        choice = host_choice(config, config.hook)
        choice.check()
        choice.expected_profile(Header())
        _check_items(said.items)
        if said.rules:
            select_rules(all_rules(hooked_rules(config, config.hook)), said.rules)
        config.stash[_SETTINGS] = _with_traces(config, said)
    except (ReplayError, RuleError, TraceError) as error:
        raise pytest.UsageError(str(error)) from error


def host_choice(config: pytest.Config, hook: Any) -> HostChoice:
    """The host that options and ini file ask for; neither Unicorn nor /dev/kvm is touched yet."""
    said = settings(config)
    profiles = hooked_profiles(config, hook)
    return HostChoice(host=said.host, engine=said.engine, profile=said.profile, profiles=profiles)


def hooked_vmms(config: pytest.Config, hook: Any) -> dict[str, object]:
    """The VMM behaviours that conftest.py files and plugins add, by name; of two, the nearest one's."""
    return _by_name(hook.pytest_xenkvm_vmms(config=config))


def _by_name(added: Sequence[Mapping[str, _Added]]) -> dict[str, _Added]:
    return {name: value for mapping in reversed(added) for name, value in mapping.items()}


def hooked_profiles(config: pytest.Config, hook: Any) -> tuple[Profile, ...]:
    """The profiles that conftest.py files and plugins add."""
    return tuple(profile for profiles in hook.pytest_xenkvm_profiles(config=config) for profile in profiles)


def hooked_importers(config: pytest.Config, hook: Any) -> dict[str, NamedImporter]:
    """The importers that conftest.py files and plugins add, by name; of two, the nearest one's."""
    return _by_name(hook.pytest_xenkvm_importers(config=config))


def hooked_rules(config: pytest.Config, hook: Any) -> Iterator[Rule]:
    """The rules that conftest.py files and plugins add, as far as `hook` (a relay) reaches them."""
    for rules in hook.pytest_xenkvm_rules(config=config):
        yield from rules


def header(config: pytest.Config) -> str:
    """The line at the head of pytest's report."""
    said = settings(config)
    parts = [f"profile {said.profile}", f"engine {said.engine}"]
    if said.host == KVM:
        parts = [f"host kvm, kernel {os.uname().release}", f"profile {said.profile}"]
    if said.rules:
        parts.append(f"rules {said.rules}")
    if said.vmm:
        parts.append(f"VMM {said.vmm}")
    if said.names:
        shown, more = said.names[:3], len(said.names) - 3
        parts.append(f"traces {', '.join(shown)}{f' and {more} more' if more > 0 else ''}")
    return f"xenkvm: {', '.join(parts)}"


def _said(config: pytest.Config) -> Settings:
    option = config.option
    if option.xenkvm_vmm is not None and not option.xenkvm_vmm.strip():
        raise pytest.UsageError("--xenkvm-vmm: names no VMM behaviour; leave it out to replay as recorded")
    vmm = option.xenkvm_vmm or config.getini("xenkvm_vmm")
    return Settings(
        profile=option.xenkvm_profile or config.getini("xenkvm_profile"),
        engine=option.xenkvm_engine or config.getini("xenkvm_engine"),
        host=option.xenkvm_host or config.getini("xenkvm_host"),
        rules=option.xenkvm_rules or config.getini("xenkvm_rules"),
        vmm=vmm,
        make_vmm=_maker(config, vmm) if vmm else None,
        strict=option.xenkvm_strict,
        items=option.xenkvm_items or config.getini("xenkvm_items"),
    )


def _check_items(name: str) -> None:
    kinds = (AUTO_ITEMS, PER_RULE, PER_TRACE)
    if name not in kinds:
        raise pytest.UsageError(f"--xenkvm-items: there is no {name!r} (known: {', '.join(kinds)})")


def _maker(config: pytest.Config, spec: str) -> Maker:
    """What makes the behaviour that option or ini file name; raises UsageError."""
    try:
        return find_behaviour(spec, hooked_vmms(config, config.hook))
    except BehaviourError as error:
        raise pytest.UsageError(f"--xenkvm-vmm: {error}") from error


# ---- traces


def traces_of(spec: str, folder: Path) -> list[Path]:
    """Return the traces that `spec` names, as absolute paths; relative ones are looked up in `folder`.

    A bundled trace goes by `@NAME` or, where `folder` has no such file, by `NAME.xkt`. Raises TraceError.
    """
    if spec.startswith(BUNDLED_PREFIX):
        return find_traces(spec)
    literal = Path(os.path.abspath(folder / spec))  # noqa: PTH100 - `resolve` would follow links
    if literal.exists():
        return find_traces(literal)
    bundled = bundled_file(spec)
    if bundled is not None:
        return [bundled]
    if glob.has_magic(spec):
        return find_traces(Path(glob.escape(str(folder)), spec))
    return find_traces(literal)


def spelling(path: Path, folder: Path) -> str:
    """How a command line in `folder` names a trace: `@NAME` if it is bundled, else its path."""
    if path in bundled_files():
        return f"{BUNDLED_PREFIX}{path.stem}"
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def given_options(config: pytest.Config) -> list[str]:
    """The options of this command line that a command needs to come to the same items and results."""
    option = config.option
    named = {
        "--rootdir": option.rootdir,
        "--config-file": option.inifilename,
        "--xenkvm-profile": option.xenkvm_profile,
        "--xenkvm-host": option.xenkvm_host,
        "--xenkvm-engine": option.xenkvm_engine,
        "--xenkvm-rules": option.xenkvm_rules,
        "--xenkvm-vmm": option.xenkvm_vmm,
    }
    strict = ["--xenkvm-strict"] if option.xenkvm_strict else []
    return [*(f"{name}={value}" for name, value in named.items() if value), *strict]


def replay_options(config: pytest.Config) -> list[str]:
    """The options with which `xenkvm replay` replays on the same kernel and engine as this run."""
    said = settings(config)
    named = {
        "--profile": (said.profile, AUTO),
        "--host": (said.host, EMULATED),
        "--engine": (said.engine, MODEL),
    }
    return [f"{name}={value}" for name, (value, default) in named.items() if value != default]


def is_bundled(path: Path) -> bool:
    """Whether this is a bundled trace, which needs no option to be found."""
    return path in bundled_files()


def _with_traces(config: pytest.Config, said: Settings) -> Settings:
    optional = _found(config.option.xenkvm_trace, config.invocation_params.dir)
    configured = _found(config.getini("xenkvm_traces"), _ini_folder(config))
    arguments_given = config.args_source is config.ArgsSource.ARGS
    collected = optional if arguments_given else dict.fromkeys([*optional, *configured])
    inside_ids = {path: _relative(config, path) for path in dict.fromkeys([*optional, *configured])}
    inside = {path: nodeid for path in collected if (nodeid := inside_ids[path]) is not None}
    known = _name(config, (path for path, nodeid in inside_ids.items() if nodeid is None))
    arguments = take_arguments(config, known)
    covering = arguments.named.keys()
    named = {path: known[path] for path in collected if path in known}
    named |= {path: known[path] for path in arguments.elsewhere}
    return evolve(
        said,
        elsewhere=tuple(
            TraceElsewhere(path=path, nodeid=nodeid, wanted=arguments.elsewhere.get(path, frozenset()))
            for path, nodeid in named.items()
        ),
        by_option=tuple(inside),
        off_arguments={
            path: arguments.unsayable.get(path, frozenset())
            for path in (*inside, *arguments.unsayable.keys() - inside.keys())
            if covering.isdisjoint({path, *path.parents})
        },
        by_argument=arguments.named,
        names=(*inside.values(), *named.values()),
    )


def _found(specs: Iterable[str], folder: Path) -> dict[Path, None]:
    """The traces that the specs name, each once, in order."""
    return dict.fromkeys(path for spec in specs for path in traces_of(spec, folder))


def _ini_folder(config: pytest.Config) -> Path:
    return config.rootpath if config.inipath is None else config.inipath.parent


def _relative(config: pytest.Config, path: Path) -> str | None:
    """The path as a node id inside rootdir; None if it is elsewhere.

    A bundled trace is elsewhere, even if the virtual environment that it is installed in is not.
    """
    name, folder = str(path), str(config.rootpath).rstrip("/") + "/"
    return None if not name.startswith(folder) or path in bundled_files() else name.removeprefix(folder)


def _name(config: pytest.Config, paths: Iterable[Path]) -> dict[Path, str]:
    """A node id for each trace outside rootdir: the shortest end of its path that nothing else has."""
    named: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        ends = ("/".join(path.parts[-count:]) for count in range(1, len(path.parts) + 1))
        free = (end for end in ends if end not in taken and not (config.rootpath / end).exists())
        named[path] = next(free, str(path))
        taken.add(named[path])
    return named

"""What the options ask for, checked once at the start: host, profile, engine, rules, VMM, traces.

Traces get their node ids here. One inside rootdir is named by its relative path, as any test file is, and is
handed to pytest as an argument. One elsewhere is named by as much of the end of its path as makes it unique,
which for a bundled trace is `linux-boot.xkt`; `collect` adds it to the session.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest
from attrs import evolve, frozen

from pytest_xenkvm.core.profile import Profile
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.rules.hosts import EMULATED, KVM, MODEL, HostChoice
from pytest_xenkvm.rules.model import Rule
from pytest_xenkvm.rules.profiles import AUTO
from pytest_xenkvm.rules.registry import RuleError, all_rules, select_rules
from pytest_xenkvm.trace.errors import TraceError
from pytest_xenkvm.trace.events import Header
from pytest_xenkvm.trace.files import BUNDLED_PREFIX, bundled_traces, find_traces
from pytest_xenkvm.vmm.load import BehaviourError, Maker, find_behaviour

if TYPE_CHECKING:  # the importers are loaded when one is used
    from pytest_xenkvm.trace.importers import NamedImporter


PER_RULE: Final = "rule"
PER_TRACE: Final = "trace"
"""What there is an item for."""


@frozen(kw_only=True)
class TraceElsewhere:
    """A trace outside rootdir, or one whose name can't be said as a pytest argument."""

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
    by_argument: frozenset[Path] = frozenset()
    """Those that arguments name."""
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

    Traces inside rootdir are appended to `config.args`, unless those cover them already (pytest before 9
    would then forget the folder); arguments that name other traces are taken out.
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
    if name not in {PER_RULE, PER_TRACE}:
        raise pytest.UsageError(f"--xenkvm-items: {name!r} is neither {PER_RULE} nor {PER_TRACE}")


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
    bundled = _bundled_file(spec)
    if bundled is not None:
        return [bundled]
    if glob.has_magic(spec):
        return find_traces(Path(glob.escape(str(folder)), spec))
    return find_traces(literal)


def spelling(path: Path, folder: Path) -> str:
    """How a command line in `folder` names a trace: `@NAME` if it is bundled, else its path."""
    if path in bundled_traces().values():
        return f"{BUNDLED_PREFIX}{path.stem}"
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def given_options(config: pytest.Config) -> list[str]:
    """The options of this command line that a command needs to come to the same results."""
    option = config.option
    named = {
        "--xenkvm-profile": option.xenkvm_profile,
        "--xenkvm-host": option.xenkvm_host,
        "--xenkvm-engine": option.xenkvm_engine,
        "--xenkvm-rules": option.xenkvm_rules,
        "--xenkvm-vmm": option.xenkvm_vmm,
        "--xenkvm-items": option.xenkvm_items,
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


def node_id_suffices(config: pytest.Config, path: Path) -> bool:
    """Whether a node id leads back to this trace without an option that names it."""
    return _relative(config, path) is not None or path in bundled_traces().values()


def _bundled_file(name: str) -> Path | None:
    return {path.name: path for path in bundled_traces().values()}.get(name)


def _with_traces(config: pytest.Config, said: Settings) -> Settings:
    optional = _found(config.option.xenkvm_trace, config.invocation_params.dir)
    configured = _found(config.getini("xenkvm_traces"), _ini_folder(config))
    arguments_given = config.args_source is config.ArgsSource.ARGS
    collected = optional if arguments_given else dict.fromkeys([*optional, *configured])
    outside = [path for path in [*optional, *configured] if _relative(config, path) is None]
    inside = [path for path in collected if path not in outside]
    known = _name(config, outside)
    wanted = _take_arguments(config, known)
    folder = config.invocation_params.dir
    arguments = frozenset(Path(os.path.normpath(folder / arg.partition("::")[0])) for arg in config.args)
    config.args += [str(path) for path in inside if arguments.isdisjoint({path, *path.parents})]
    named = {path: known[path] for path in collected if path in known}
    named |= {path: known[path] for path in wanted}
    return evolve(
        said,
        elsewhere=tuple(
            TraceElsewhere(path=path, nodeid=nodeid, wanted=_items(wanted.get(path, set())))
            for path, nodeid in named.items()
        ),
        by_option=tuple(inside),
        by_argument=arguments,
        names=(*(str(_relative(config, path)) for path in inside), *named.values()),
    )


def _found(specs: Iterable[str], folder: Path) -> dict[Path, None]:
    """The traces that the specs name, each once, in order."""
    return dict.fromkeys(path for spec in specs for path in traces_of(spec, folder))


def _ini_folder(config: pytest.Config) -> Path:
    return config.rootpath if config.inipath is None else config.inipath.parent


def _relative(config: pytest.Config, path: Path) -> str | None:
    """The path as a node id inside rootdir; None if it is elsewhere or pytest would misread it.

    A bundled trace is elsewhere, even if the virtual environment that it is installed in is not.
    """
    if not path.is_relative_to(config.rootpath) or path in bundled_traces().values():
        return None
    return None if "[" in str(path) or "::" in str(path) else path.relative_to(config.rootpath).as_posix()


def _name(config: pytest.Config, paths: Iterable[Path]) -> dict[Path, str]:
    """A node id for each trace outside rootdir: the shortest end of its path that nothing else has."""
    named: dict[Path, str] = {}
    for path in paths:
        ends = ("/".join(path.parts[-count:]) for count in range(1, len(path.parts) + 1))
        named[path] = next(
            (end for end in ends if end not in named.values() and not (config.rootpath / end).exists()),
            str(path),
        )
    return named


def _take_arguments(config: pytest.Config, known: dict[Path, str]) -> dict[Path, set[str]]:
    """Take arguments such as `linux-boot.xkt::replay` out; the names that each trace is asked for.

    An argument that names a file is pytest's. A bundled trace needn't be in `known` before.
    """
    wanted: dict[Path, set[str]] = {}
    kept = []
    for argument in config.args:
        file, _, name = argument.partition("::")
        path = None if _is_file(config, file) else _called(file, known)
        if path is None:
            kept.append(argument)
            continue
        known.setdefault(path, file)
        wanted.setdefault(path, set()).add(name)
    config.args[:] = kept
    return wanted


def _items(names: set[str]) -> frozenset[str]:
    """The items that arguments name; an argument without a name is the whole trace."""
    return frozenset() if "" in names else frozenset(names)


def _is_file(config: pytest.Config, name: str) -> bool:
    return (config.invocation_params.dir / name).exists()


def _called(file: str, known: dict[Path, str]) -> Path | None:
    by_name = {nodeid: path for path, nodeid in known.items()}
    return by_name.get(file) or _bundled_file(file)

"""The reference pages that follow from the code: options, fixtures, hooks, the command line, VMM behaviours.

`python tools/reference_pages.py docs/reference` writes them. They quote the source, not run-time values, so
that they are the same with every version of Python, pytest and click.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import click
from attrs import Factory, define, frozen

from pytest_xenkvm import vmm
from pytest_xenkvm.cli.main import COMMANDS, xenkvm
from pytest_xenkvm.plugin import entry, fixtures, guest, hookspecs, imports, own_tests
from pytest_xenkvm.trace.files import Trace

_GENERATED: Final = (
    "<!-- Generated from the code by tools/reference_pages.py: change the code, not this page. -->\n"
)
_WIDTH: Final = 100
"""Characters of a signature on one line."""

_HANDED_OUT: Final[dict[str, tuple[type, ...]]] = {
    "xenkvm_trace": (Trace,),
    "xenkvm_replay": (own_tests.Replayer, own_tests.Replayed),
    "xenkvm_host": (own_tests.XenHost,),
    "xenkvm_guest": (guest.Guests, guest.Guest, guest.Registers),
    "xenkvm_import": (imports.Imports, imports.ImportedTrace),
}
"""By fixture, the types of what a test gets from it. Of `xenkvm_vmm` it gets what the project put there."""

_NOT_FOR_USERS: Final = {"host", "of", "on", "program", "request", "side", "vmm_timers"}
"""Public to the rest of the package."""

_FIXTURES: Final = """\
# Fixtures

[The plugin](plugin.md#fixtures) has an example of each. VMM behaviours, and the VMs that they and
tests hold, have [a page of their own](vmm-api.md).
"""
_HOOKS: Final = """\
# Hook specifications

[Hooks and entry points](hooks.md) tells how to use them.
"""
_VMM: Final = """\
# Python for VMM behaviours

What can be imported from `pytest_xenkvm.vmm`; [Test a VMM](../how-to/test-a-vmm.md) tells how to use it.
Methods of a VM and of a vCPU are one ioctl each, or one attribute of it, under its kernel name. Where the
kernel refuses, they raise `KvmError`, whose `errno` is the positive number. Addresses are guest physical
(GPA), guest frame numbers (GFN) or the VMM's own (HVA); times are ns.
"""


# ---- Markdown


def _words(docstring: str | None) -> str:
    """A docstring as Markdown: what looks like HTML outside of code is none."""
    pieces = re.split(r"(`[^`]*`)", inspect.cleandoc(docstring or ""))
    return "".join(piece if piece.startswith("`") else piece.replace("<", r"\<") for piece in pieces)


def _options_as_code(text: str) -> str:
    return re.sub(r"(?<![`\w-])--[\w-]+", r"`\g<0>`", text)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |\n"

    head = list(head)
    return "".join([line(head), line("---" for _ in head), *map(line, rows)])


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```\n"


# ---- Python, as its source says it

Node = TypeVar("Node", ast.FunctionDef, ast.ClassDef)


@frozen
class Source(Generic[Node]):
    """A function or class, with the text of its module that its parts are quoted from."""

    text: str
    node: Node

    def quote(self, node: ast.AST) -> str:
        """The text of a part of it, on one line."""
        return " ".join((ast.get_source_segment(self.text, node) or "").split())


def _source(kind: type[Node], module: str, name: str) -> Source[Node]:
    """What a module defines under a name."""
    text = inspect.getsource(import_module(module))
    (node,) = [node for node in ast.parse(text).body if isinstance(node, kind) and node.name == name]
    return Source(text, node)


def _signature(source: Source[ast.FunctionDef], name: str) -> str:
    """A function's signature without `self`, a parameter a line if it is long."""
    words = list(_parameters(source))
    returns = f" -> {source.quote(source.node.returns)}" if source.node.returns else ""
    line = f"{name}({', '.join(words)}){returns}"
    if len(line) <= _WIDTH:
        return line
    lines = "".join(f"    {word},\n" for word in words)
    return f"{name}(\n{lines}){returns}"


def _parameters(source: Source[ast.FunctionDef]) -> Iterator[str]:
    args = source.node.args
    missing = [None] * (len(args.args) - len(args.defaults))
    for arg, default in zip(args.args, [*missing, *args.defaults], strict=True):
        if arg.arg != "self":
            yield _parameter(source, arg, default)
    if args.vararg:
        yield f"*{_parameter(source, args.vararg, None)}"
    elif args.kwonlyargs:
        yield "*"
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield _parameter(source, arg, default)


def _parameter(source: Source[ast.FunctionDef], arg: ast.arg, default: ast.expr | None) -> str:
    annotation = f": {source.quote(arg.annotation)}" if arg.annotation else ""
    value = "" if default is None else source.quote(default)
    return f"{arg.arg}{annotation}" + (f" = {'...' if value.startswith('_') else value}" if value else "")


def _function_text(source: Source[ast.FunctionDef], called: str | None = None) -> str:
    """A function's signature and docstring; `called` is what users call it, if not by its name."""
    signature = _block("python", _signature(source, called or source.node.name))
    return f"{signature}\n{_words(ast.get_docstring(source.node))}\n"


def _class_text(kind: type, level: int, fixture: str = "") -> str:
    """What a class is, its public attributes, and its public methods under headings of `level`.

    `fixture` is the one that hands out an object of it.
    """
    source = _source(ast.ClassDef, kind.__module__, kind.__name__)
    parts = [f"{_words(ast.get_docstring(source.node))}\n", *_attributes(source)]
    for node in source.node.body:
        if not isinstance(node, ast.FunctionDef) or _decorators(node) & {"property", "overload"}:
            continue
        method = Source(source.text, node)
        if node.name == "__call__":
            parts.append(f"{'#' * level} Calling `{fixture}`\n\n{_function_text(method, fixture)}")
        elif not node.name.startswith("_") and node.name not in _NOT_FOR_USERS:
            parts.append(f"{'#' * level} `{node.name}`\n\n{_function_text(method)}")
    return "\n".join(parts)


def _attributes(source: Source[ast.ClassDef]) -> Iterator[str]:
    """The public fields and properties of a class: those that its docstring explains, and the others."""
    found = [(name, text) for name, text in _typed(source) if name.partition(":")[0] not in _NOT_FOR_USERS]
    plain = ", ".join(f"`{name}`" for name, text in found if not text)
    if plain:
        yield f"Attributes: {plain}.\n"
    explained = [(f"`{name}`", text) for name, text in found if text]
    if explained:
        yield _table(["attribute", "meaning"], explained)


def _typed(source: Source[ast.ClassDef]) -> Iterator[tuple[str, str]]:
    """Each public field and property as `name: type`, and what its own docstring says."""
    body = source.node.body
    for node, following in zip(body, [*body[1:], None], strict=True):
        match node, following:
            case ast.FunctionDef(name=str(name), returns=ast.expr() as kind), _:
                if "property" not in _decorators(node):
                    continue
                text = ast.get_docstring(node)
            case (
                ast.AnnAssign(target=ast.Name(id=str(name)), annotation=kind),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                pass
            case ast.AnnAssign(target=ast.Name(id=str(name)), annotation=kind), _:
                text = None
            case _:
                continue
        if not name.startswith("_"):
            yield f"{name}: {source.quote(kind)}", _words(text)


def _decorators(node: ast.FunctionDef) -> set[str]:
    return {mark.id for mark in node.decorator_list if isinstance(mark, ast.Name)}


# ---- the pages


@define
class Asked:
    """Stands for pytest's parser, and keeps what the plugin adds to it."""

    options: list[tuple[str, str]] = Factory(list)
    settings: list[tuple[str, str, str, str]] = Factory(list)

    def getgroup(self, _name: str, _description: str) -> Asked:
        """One group is as good as another."""
        return self

    def addoption(self, *names: str, **said: Any) -> None:
        """Keep an option: how it is written, and its help."""
        value = f" {said['metavar']}" if "metavar" in said else ""
        if "choices" in said:
            value = f" {'|'.join(said['choices'])}"
        self.options.append((", ".join(f"`{name}{value}`" for name in names), _options_as_code(said["help"])))

    def addini(self, name: str, text: str, kind: str | None = None, default: Any = None) -> None:
        """Keep a setting of the ini file: name, type, default, help."""
        kinds = {None: "text", "string": "text", "linelist": "lines", "bool": "true or false"}
        shown = "none" if default in (None, "", []) else f"`{default}`"
        self.settings.append((f"`{name}`", kinds.get(kind, str(kind)), shown, _options_as_code(text)))


def options_page() -> str:
    """Options, ini file and markers of the plugin."""
    asked = Asked()
    entry.pytest_addoption(asked)  # type: ignore[arg-type] # all that it asks for
    markers = [marker.split(": ", 1) for marker in entry._MARKERS]  # noqa: SLF001 - said nowhere else
    return f"""\
# Options, settings, markers

[The plugin](plugin.md) tells how they work together.

## Options of pytest

{_table(["option", "meaning"], asked.options)}
In `addopts`, `PYTEST_ADDOPTS` and `pytest.main([...])`, put an equals sign between option and value.

## Settings of the ini file

{_table(["setting", "type", "default", "meaning"], asked.settings)}
An option goes before its setting.

## Markers

{_table(["marker", "meaning"], [(f"`{name}`", _options_as_code(text)) for name, text in markers])}"""


def fixtures_page() -> str:
    """Each fixture, and what a test gets from it."""
    parts = [_FIXTURES]
    for name in entry.__all__:
        node = _source(ast.FunctionDef, fixtures.__name__, name).node
        parts.append(f"## `{name}`\n\n{_words(ast.get_docstring(node))}\n")
        parts += [
            f"### {kind.__name__}\n\n{_class_text(kind, 4, name)}" for kind in _HANDED_OUT.get(name, ())
        ]
    return "\n".join(parts)


def hooks_page() -> str:
    """Each hook with the types of its arguments."""
    names = [name for name in vars(hookspecs) if name.startswith("pytest_xenkvm_")]
    specs = [_source(ast.FunctionDef, hookspecs.__name__, name) for name in names]
    return "\n".join([_HOOKS, *(f"## `{spec.node.name}`\n\n{_function_text(spec)}" for spec in specs)])


def vmm_page() -> str:
    """What `pytest_xenkvm.vmm` offers to those who write VMM behaviours."""
    parts = [_VMM]
    for name in sorted(vmm.__all__, key=_importance):
        thing = getattr(vmm, name)
        if isinstance(thing, type):
            text = _class_text(thing, 3)
        else:
            text = _function_text(_source(ast.FunctionDef, thing.__module__, name))
        parts.append(f"## `{name}`\n\n{text}")
    return "\n".join(parts)


def _importance(name: str) -> tuple[int, str]:
    first = ("Vmm", "Vm", "Vcpu", "XenExit", "KvmError")
    return (first.index(name) if name in first else len(first), name)


def cli_page() -> str:
    """Each command with its arguments and options."""
    parts = [f"# The command line\n\n{_command_body(xenkvm, 'xenkvm')}"]
    for name, lazy in COMMANDS.items():
        command: click.Command = getattr(import_module(lazy.module), lazy.attribute)
        parts.append(f"## `xenkvm {name}`\n\n{_command_body(command, f'xenkvm {name}')}")
        for part, inner in command.commands.items() if isinstance(command, click.Group) else ():
            whole = f"xenkvm {name} {part}"
            parts.append(f"### `{whole}`\n\n{_command_body(inner, whole)}")
    return "\n".join(parts)


def _command_body(command: click.Command, name: str) -> str:
    usage = " ".join([name, *command.collect_usage_pieces(click.Context(command, info_name=name))])
    rows = [_option_row(option) for option in command.params if isinstance(option, click.Option)]
    parts = [_block("text", usage), f"{_words(command.help)}\n"]
    if rows:
        parts.append(_table(["option", "meaning"], rows))
    for paragraph in re.split(r"\n\n(?=\S)", command.epilog.strip("\n")) if command.epilog else ():
        shown = paragraph.removeprefix("\b\n")
        parts.append(_block("text", shown.rstrip()) if shown != paragraph else f"{_words(shown)}\n")
    return "\n".join(parts)


def _option_row(option: click.Option) -> tuple[str, str]:
    names = [*option.opts, *option.secondary_opts]
    value, choices = "", ""
    if isinstance(option.type, click.Choice):
        value, choices = (
            f" {(option.name or '').upper()}",
            f" One of {', '.join(map(str, option.type.choices))}.",
        )
    elif not option.is_flag:
        value = f" {option.metavar or option.type.name.upper()}"
    default = f" Default: `{option.default}`." if option.show_default else ""
    return ", ".join(f"`{name}{value}`" for name in names), f"{option.help}{choices}{default}"


def pages() -> dict[str, str]:
    """The pages by file name."""
    made = {
        "cli.md": cli_page(),
        "fixtures.md": fixtures_page(),
        "hook-specs.md": hooks_page(),
        "options.md": options_page(),
        "vmm-api.md": vmm_page(),
    }
    return {name: f"{_GENERATED}{text.rstrip()}\n" for name, text in made.items()}


if __name__ == "__main__":
    for name, text in pages().items():
        Path(sys.argv[1], name).write_text(text, encoding="utf-8")

"""The house keeps its floors: who may import whom, read from the source without importing it."""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = "pytest_xenkvm"
FLOORS: Final = {
    "abi": 0,
    "core": 1,
    "cpu": 1,
    "trace": 1,
    "hosts": 2,
    "vmm": 3,
    "record": 4,
    "replay": 4,
    "rules": 5,
    "lab": 6,
    "report": 6,
    "traceops": 6,
    "cli": 7,
    "plugin": 7,
}

PURE: Final = ("abi", "core")
"""Packages without I/O, clock or chance: core, and abi because core stands on it."""
PURE_EXTERNALS: Final = {"attrs"}
IMPURE_STDLIB: Final = {
    *("asyncio", "fcntl", "io", "logging", "mmap", "os", "pathlib", "select", "shutil", "signal", "socket"),
    *("subprocess", "sys", "tempfile", "threading"),  # I/O and the process around
    *("datetime", "time"),  # clocks
    *("random", "secrets", "uuid"),  # chance
    *("importlib", "runpy"),  # a way round this test
}
IMPURE_BUILTINS: Final = {"__import__", "eval", "exec", "input", "open", "print"}

House = dict[str, ast.Module]
"""Syntax trees by dotted module name; a package stands under its own name (`__init__` left out)."""


def read_house(root: Path) -> House:
    """Parse every module below `root`, the folder that holds the package."""
    house = {}
    for path in sorted((root / ROOT).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        house[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return house


def packages_of(house: House) -> set[str]:
    """Return the modules that contain others."""
    return {name.rpartition(".")[0] for name in house} | {ROOT}


def imports_of(house: House, module: str) -> set[str]:
    """Return what `module` imports anywhere in its body, as absolute names of modules.

    `from a import b` is a.b if the house has that module, else a (b is then a name that a defines).
    """
    found = set()
    for node in ast.walk(house[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                inside = module.split(".") if module in packages_of(house) else module.split(".")[:-1]
                above = inside[: len(inside) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            whole = (f"{base}.{alias.name}" for alias in node.names)
            found |= {name if name in house else base for name in whole}
    return found


def room_of(module: str) -> str | None:
    """Return the package right below the root that `module` is in, or None outside of all."""
    parts = module.split(".")
    return parts[1] if parts[0] == ROOT and len(parts) > 1 else None


def is_inside(module: str) -> bool:
    """Whether `module` belongs to the house."""
    return module == ROOT or module.startswith(f"{ROOT}.")


def wrong_floors(house: House) -> list[str]:
    """Return a line for each import that goes up or sideways, and for each module on no floor."""
    wrong = []
    for module in house:
        room = room_of(module)
        if module != ROOT and room not in FLOORS:
            wrong.append(f"{module} stands on no floor")
            continue
        own = -1 if room is None else FLOORS[room]
        for target in sorted(filter(is_inside, imports_of(house, module))):
            other = room_of(target)
            if target != ROOT and other != room and FLOORS.get(str(other), own) >= own:
                wrong.append(f"{module} imports {target}")
    return wrong


def impurities(house: House) -> list[str]:
    """Return a line for each thing in the pure packages that reaches for the world outside."""
    wrong = []
    for module, tree in house.items():
        if room_of(module) not in PURE:
            continue
        for target in sorted(imports_of(house, module)):
            top = target.split(".")[0]
            is_pure_stdlib = top in sys.stdlib_module_names and top not in IMPURE_STDLIB
            if not (is_inside(target) or is_pure_stdlib or top in PURE_EXTERNALS):
                wrong.append(f"{module} imports {target}")
        calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        called = {func.id for func in calls if isinstance(func, ast.Name)}
        wrong += [f"{module} calls {name}" for name in sorted(called & IMPURE_BUILTINS)]
    return wrong


def cycle(house: House) -> list[str]:
    """Return the modules of one import cycle, the first again at the end, or nothing.

    Imports inside functions and under TYPE_CHECKING count: they hide a cycle, they don't undo it.
    """
    graph = {module: imports_of(house, module) & house.keys() for module in house}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def house() -> House:
    """The package in this checkout."""
    return read_house(Path(__file__).parent.parent)


def test_every_floor_is_there(house: House) -> None:
    """Each package of the plan exists, so that the other tests here have something to look at."""
    assert {f"{ROOT}.{room}" for room in FLOORS} <= house.keys()


def test_imports_go_down(house: House) -> None:
    """A module imports only from its own package and from floors strictly below."""
    assert wrong_floors(house) == []


def test_core_is_pure(house: House) -> None:
    """The core and the ABI below it import no pytest, unicorn or msgpack and do no I/O, clock or chance."""
    assert impurities(house) == []


def test_no_cycles(house: House) -> None:
    """No module imports itself by way of others."""
    assert cycle(house) == []


def build(root: Path, files: dict[str, str]) -> House:
    """Write `files` below the package's folder in `root` and read them back as a house."""
    for name, text in files.items():
        path = root / ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return read_house(root)


@pytest.mark.parametrize(
    ("file", "line", "seen"),
    [
        ("core/a.py", "from pytest_xenkvm.replay import run", "core.a imports pytest_xenkvm.replay"),
        ("core/a.py", "from pytest_xenkvm.cpu import b", "core.a imports pytest_xenkvm.cpu"),
        ("rules/a.py", "import pytest_xenkvm.report.html as h", "rules.a imports pytest_xenkvm.report.html"),
        ("abi/a.py", "from .. import core", "abi.a imports pytest_xenkvm.core"),
        ("hosts/__init__.py", "from ..vmm import x", "hosts imports pytest_xenkvm.vmm"),
        ("hosts/kvm/a.py", "from ...vmm import x", "hosts.kvm.a imports pytest_xenkvm.vmm"),
        ("cpu/a.py", "def f():\n    from pytest_xenkvm import hosts", "cpu.a imports pytest_xenkvm.hosts"),
        ("__init__.py", "from pytest_xenkvm.abi import x", "pytest_xenkvm imports pytest_xenkvm.abi"),
        ("attic/a.py", "", "attic.a stands on no floor"),
        ("helpers.py", "", "helpers stands on no floor"),
    ],
)
def test_a_wrong_import_is_seen(tmp_path: Path, file: str, line: str, seen: str) -> None:
    """An import upwards or sideways is named however it is written, and so is a module on no floor."""
    rooms = {f"{room}/__init__.py": "" for room in FLOORS}
    house = build(tmp_path, {**rooms, "hosts/kvm/__init__.py": "", file: line})
    assert [wrong.removeprefix(f"{ROOT}.") for wrong in wrong_floors(house)] == [seen]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("core/a.py", "from pytest_xenkvm.abi import numbers"),
        ("core/a.py", "from . import b\nfrom .b import c"),
        ("hosts/a.py", "from pytest_xenkvm.trace.events import Event\nimport os"),
        ("plugin/a.py", "import pytest_xenkvm\nfrom ..report import x"),
    ],
)
def test_a_right_import_is_left_alone(tmp_path: Path, file: str, line: str) -> None:
    """Imports downwards, within a package and from outside the house are nobody's fault."""
    assert wrong_floors(build(tmp_path, {file: line})) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pytest",
        "from unicorn import Uc",
        "import msgpack",
        "import os.path",
        "from time import monotonic",
        "def f():\n    return open('x')",
        "import random as r",
    ],
)
def test_an_impure_core_is_seen(tmp_path: Path, line: str) -> None:
    """The world outside is noticed in the core, and is no concern in the command line."""
    assert len(impurities(build(tmp_path / "a", {"core/a.py": line}))) == 1
    assert impurities(build(tmp_path / "b", {"cli/a.py": line})) == []


def test_a_cycle_is_seen(tmp_path: Path) -> None:
    """A cycle is found though one of its imports hides in a function."""
    files = {
        "core/__init__.py": "from .a import x",
        "core/a.py": "from pytest_xenkvm.core.b import x",
        "core/b.py": "def f():\n    from . import a",
    }
    found = cycle(build(tmp_path, files))
    assert set(found) == {f"{ROOT}.core.a", f"{ROOT}.core.b"}

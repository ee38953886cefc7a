"""Which behaviour a name means, and one sentence for each that means none."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from pytest_xenkvm.vmm import Vmm, VmmBehaviour
from pytest_xenkvm.vmm.behaviour import behaviour_name
from pytest_xenkvm.vmm.bundled import BUNDLED
from pytest_xenkvm.vmm.load import BehaviourError, behaviour_maker, find_behaviour, load_behaviour

MODULE: Final = """
from pytest_xenkvm.vmm import Vmm

class Mine(Vmm):
    class Inner(Vmm):
        name = "inner"

def make():
    return Mine()

the_one = Mine()
nothing = 5
half = type("Half", (), {"configure": print})
returns_a_class = lambda: Mine
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `loadable_vmm`, and an installed distribution that offers it as `installed` and `gone`."""
    (tmp_path / "loadable_vmm.py").write_text(MODULE)
    (tmp_path / "faulty_vmm.py").write_text("1 / 0")
    metadata = tmp_path / "loadable-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: loadable\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[xenkvm.vmm]\ninstalled = loadable_vmm:Mine\ngone = loadable_vmm:gone\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("loadable_vmm:Mine", "Mine"),
        ("loadable_vmm:Mine.Inner", "inner"),
        ("loadable_vmm:make", "Mine"),
        ("installed", "Mine"),
    ],
)
def test_each_call_makes_one(spec: str, name: str) -> None:
    """A class, a function and the name of an installed package's make a new behaviour each time."""
    make = find_behaviour(spec)
    first, second = make(), make()
    assert first is not second
    assert behaviour_name(first) == behaviour_name(load_behaviour(spec)) == name


def test_a_behaviour_itself() -> None:
    """An object with the methods is taken as it is."""
    assert find_behaviour("loadable_vmm:the_one")() is load_behaviour("loadable_vmm:the_one")


def test_names_that_the_caller_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundled name counts before one of the caller's, and that before an installed package's."""

    class Bundled(Vmm):
        """One."""

    class Callers(Vmm):
        """Another."""

    others = {"installed": Callers, "both": Callers}
    assert isinstance(load_behaviour("installed", others), Callers)
    monkeypatch.setitem(BUNDLED, "both", Bundled)
    assert isinstance(load_behaviour("both", others), Bundled)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "none",
            r"no VMM behaviour 'none': there are .*gone, installed, mine.*; besides, module:Class",
        ),
        (":Mine", "':Mine' doesn't name a VMM behaviour, expected module:Class"),
        ("loadable_vmm:", "'loadable_vmm:' doesn't name a VMM behaviour, expected module:Class"),
        ("no_such_vmm:Mine", "No module named 'no_such_vmm'; is its folder on PYTHONPATH"),
        ("loadable_vmm:No", "AttributeError: module 'loadable_vmm' has no attribute 'No'"),
        ("faulty_vmm:Mine", "'faulty_vmm:Mine' can't be imported: ZeroDivisionError: division by zero"),
        ("loadable_vmm:nothing", "'loadable_vmm:nothing' is 5, expected a class or a behaviour"),
        ("loadable_vmm:half", "'loadable_vmm:half' has no method on_hypercall: it is <loadable_vmm.Half"),
        ("loadable_vmm:returns_a_class", "has no method configure: it is <class 'loadable_vmm.Mine'>"),
        (
            "gone",
            r"entry point gone = loadable_vmm:gone of loadable \(xenkvm\.vmm\) can't be loaded",
        ),
        ("cmd:", "'cmd:' names no command, expected cmd:COMMAND LINE"),
        ("cmd:./vmm 'one", '"cmd:./vmm \'one" is no command line: No closing quotation'),
    ],
)
def test_what_is_no_behaviour_is_one_sentence(spec: str, sentence: str) -> None:
    """It says what was found and what was expected, and for a name that nobody knows what there is."""
    with pytest.raises(BehaviourError, match=sentence) as caught:
        load_behaviour(spec, {"mine": Vmm})
    assert "\n" not in str(caught.value)


def test_a_name_of_ones_own() -> None:
    """Reports call a behaviour by its `name`, else by its class."""

    class Named:
        """Has the methods and a name."""

        name = "my VMM 2.0"
        configure = on_hypercall = Vmm.configure

    made: VmmBehaviour = behaviour_maker(Named, "Named")()
    assert behaviour_name(made) == "my VMM 2.0"
    assert behaviour_name(Vmm()) == "Vmm"

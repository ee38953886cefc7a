"""The bundled behaviours: the conforming ones are fine everywhere, each broken one breaks its rule alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest
from bundled_replays import BOOTS, DUTIES, KERNELS, goldens, judged, violations
from duties_guest import HEADER, events
from test_bundled_qemu import FORWARDED

from pytest_xenkvm.cli.main import run
from pytest_xenkvm.rules.bundled import BUNDLED as RULES
from pytest_xenkvm.rules.model import Judged
from pytest_xenkvm.rules.profiles import choose_profile
from pytest_xenkvm.trace import open_trace, write_trace
from pytest_xenkvm.vmm import Vmm
from pytest_xenkvm.vmm.bundled import BROKEN, BUNDLED, CONFORMING
from pytest_xenkvm.vmm.load import BehaviourError, load_behaviour

VMM_RULES: Final = [rule.id for rule in RULES if rule.judges is Judged.VMM]
ONLY_ON_BOOTS: Final = {
    "vcpu-id.is-the-guests",  # which takes a guest that is no test program
    "vcpu-id.unique",
    "shared-info.before-events",  # for a guest that maps the page first of all there is no "before"
}
"""Rules that @vmm-duties can't show broken; the others are broken there."""
PART_OF_A_BOOT: Final = 2000
"""Events until both vCPUs have long used their timers."""


@pytest.mark.parametrize("profile", KERNELS)
@pytest.mark.parametrize("name", CONFORMING)
def test_conforming_ones_do_their_duties(name: str, profile: str) -> None:
    """No rule objects to them on @vmm-duties, whatever the kernel."""
    assert violations(DUTIES, CONFORMING[name](), profile) == {}


@pytest.mark.parametrize("boot", BOOTS)
@pytest.mark.parametrize("name", CONFORMING)
def test_conforming_ones_boot_linux(name: str, boot: str) -> None:
    """No rule objects to them on a whole boot on its own kernel, nor on its beginning on the others."""
    assert violations(boot, CONFORMING[name]()) == {}
    own = choose_profile("auto", open_trace(boot).header).name
    for profile in {*KERNELS} - {own}:
        assert violations(boot, CONFORMING[name](), profile, PART_OF_A_BOOT) == {}


@pytest.mark.parametrize("folder", ["linux-6.12", "linux-7.2", "linux-7.3", "linux-7.3-max1024"])
@pytest.mark.parametrize("name", CONFORMING)
def test_conforming_ones_serve_the_guests_of_the_goldens(name: str, folder: str) -> None:
    """Those do whatever comes to mind; still no rule objects, on the kernel that was recorded."""
    for path in goldens(folder):
        assert violations(path, CONFORMING[name]()) == {}, path.name


@pytest.mark.parametrize("profile", ["linux-6.12", "linux-7.2"])
@pytest.mark.parametrize("name", CONFORMING)
def test_conforming_ones_need_no_certain_kernel(name: str, profile: str) -> None:
    """Nor on an older one."""
    for path in goldens("linux-7.3/directed"):
        assert violations(path, CONFORMING[name](), profile) == {}, path.name


def test_every_rule_about_vmms_has_its_broken_behaviour() -> None:
    """None goes unproven, and each is found under its rule's name."""
    assert sorted(BROKEN) == sorted(VMM_RULES)
    assert sorted(BUNDLED) == sorted([*CONFORMING, *(f"broken-{rule}" for rule in VMM_RULES)])


@pytest.mark.parametrize("profile", KERNELS)
@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_behaviour_breaks_one_rule(rule: str, profile: str) -> None:
    """Its own and no other, neither about VMMs nor about kernels, whatever the kernel."""
    trace, until = ("@linux-boot-7.3", PART_OF_A_BOOT) if rule in ONLY_ON_BOOTS else (DUTIES, None)
    assert [*violations(trace, BROKEN[rule](), profile, until)] == [rule]


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_behaviour_breaks_no_other_rule_elsewhere(rule: str) -> None:
    """On the other bundled traces it is its own rule or none."""
    for trace in (DUTIES, "@linux-boot-1vcpu", "@linux-boot-7.3"):
        assert {*violations(trace, BROKEN[rule](), until=PART_OF_A_BOOT)} <= {rule}


def test_every_rule_about_vmms_holds_somewhere() -> None:
    """On a bundled trace, for a conforming behaviour: broken ones don't just miss something."""
    held = {
        verdict.rule.id
        for behaviour in CONFORMING.values()
        for trace in (DUTIES, "@linux-boot-7.3")
        for verdict in judged(trace, behaviour(), until=PART_OF_A_BOOT)
        if verdict.exercised
    }
    assert sorted(held & {*VMM_RULES}) == sorted(VMM_RULES)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_ones_are_made_anew(name: str) -> None:
    """Each call makes another one, which says in a sentence what it is."""
    made = BUNDLED[name]()
    assert made is not BUNDLED[name]()
    assert isinstance(made, Vmm)
    assert made.__doc__ not in (None, Vmm.__doc__)


def test_the_trace_is_that_of_its_guest(tmp_path: Path) -> None:
    """@vmm-duties is what tests/vmm/duties_guest.py writes, byte by byte."""
    write_trace(tmp_path / "again.xkt", HEADER, events())
    bundled = open_trace(DUTIES)
    assert (tmp_path / "again.xkt").read_bytes() == bundled.path.read_bytes()
    assert [*bundled.events()] == [*events()]


def test_the_page_lists_them() -> None:
    """docs/reference/behaviours.md has a row for each, with what its class says of itself."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "behaviours.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.-]+)` \| (.*) \|$", page, re.MULTILINE)
    assert [name for name, _words in rows] == [*BUNDLED]
    broken = {name: words for name, words in rows if name.startswith("broken-")}
    assert broken == {
        f"broken-{rule}": (made.__doc__ or "").partition("\n")[0] for rule, made in BROKEN.items()
    }


def test_the_page_s_numbers_are_those_that_are_measured() -> None:
    """Its table of answers is the one that the tests of `qemu` hold."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "behaviours.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(@[\w.-]+)` \| (\d+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    assert {name: tuple(map(int, numbers)) for name, *numbers in rows} == FORWARDED


def test_the_page_s_commands_do_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """Both of them print the lines that it shows."""
    assert run(["replay", "@linux-boot", "--vmm", "qemu", "--until", "2000"]) == 0
    assert "hypercalls, VMM Qemu\n" in capsys.readouterr().out
    assert run(["replay", "@vmm-duties", "--vmm", "broken-timers.stop-cancels"]) == 1
    assert "\ntimers.stop-cancels (MUST): violated 2 of 2 times\n" in capsys.readouterr().out


def test_an_unknown_name_is_told_the_conforming_ones() -> None:
    """The many broken ones would hide what people look for; they can be named all the same."""
    with pytest.raises(
        BehaviourError, match=r"there are minimal, qemu, userspace-timers; besides"
    ) as unknown:
        load_behaviour("quemu")
    assert "broken-" not in str(unknown.value)
    assert type(load_behaviour("broken-timers.stop-cancels")) is BROKEN["timers.stop-cancels"]

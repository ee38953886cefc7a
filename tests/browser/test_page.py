"""The HTML report in a browser: verdicts, filters, colours, and that it keeps to itself."""

from __future__ import annotations

import pytest
from browser_page import BrowserPage
from page_reports import NASTY, Report, nasty_report, replay_json, report_of, small_timeline


def shown_rules(browser: BrowserPage) -> list[str]:
    """The rules in the list, by id."""
    return [rule.text for rule in browser.all("#rule-list > .rule > summary .id")]


def test_the_page_keeps_to_itself(browser: BrowserPage, several: Report) -> None:
    """Opened from disk and used, the page logs nothing and asks for nothing but itself."""
    browser.open(several)
    browser.follow("Show in timeline")
    browser.run("document.querySelectorAll('summary').forEach((summary) => summary.click())")
    browser.settle()
    assert browser.console() == []
    addresses = browser.requests()
    assert [address for address in addresses if not address.startswith(("file:", "data:"))] == []
    assert len([address for address in addresses if address.startswith("file:")]) == 1


def test_a_violation_is_told_in_full(browser: BrowserPage, boot: Report) -> None:
    """What was violated comes first and unfolded: event, decoded words, message, source and advice."""
    browser.open(boot)
    assert browser.text("#summary strong") == "Violated"
    first = browser.one("#rule-list > .rule")
    assert first.get_attribute("open") is not None
    for words in (
        "vcpu-id.set-before-timers",
        "violated 1 of",
        "event 374 (line 376), vCPU 1",
        "VCPUOP_stop_singleshot_timer(vcpu=1) -> handled in the kernel: -EINVAL (-22)",
        "vCPU 1 has no Xen ID",
        "kvm_xen_hcall_vcpu_op",
        "Advice",
    ):
        assert words in first.text


def test_divergences_show_both_sides(browser: BrowserPage, several: Report) -> None:
    """A replay that differs from its recording shows what was recorded and what happened."""
    browser.open(several)
    text = browser.one("#divergence-list").text
    assert "10 divergences from the recording" in text
    assert "recorded\nKVM_XEN_VCPU_GET_ATTR(VCPU_ID) = 0, vcpu_id=0" in text
    assert "replayed\nKVM_XEN_VCPU_GET_ATTR(VCPU_ID) = 0, vcpu_id=XEN_VCPU_ID_INVALID (0xffffffff)" in text


def test_filters_add_up(browser: BrowserPage, several: Report) -> None:
    """State, level, whom a rule judges, family, replay and text each leave only what matches."""
    browser.open(several)
    every = shown_rules(browser)
    assert len(every) == len(several["rules"])
    browser.click("[data-state='violated']")
    assert shown_rules(browser) == ["vcpu-id.set-before-timers"]
    browser.click("[data-state='']")
    browser.choose("Level", "SHOULD")
    levels = {rule["rule"]: rule["level"] for rule in several["rules"]}
    assert {levels[rule] for rule in shown_rules(browser)} == {"SHOULD"}
    browser.choose("Level", "")
    browser.choose("Judges", "vmm")
    browser.choose("Rule family", "vcpu-id")
    judges = {rule["rule"]: rule["judges"] for rule in several["rules"]}
    found = shown_rules(browser)
    assert found
    assert all(rule.startswith("vcpu-id.") and judges[rule] == "vmm" for rule in found)
    browser.choose("Judges", "")
    browser.choose("Rule family", "")
    browser.choose("Replay", "1")
    assert browser.text("#rules-count").startswith(f"{len(every)} rules, {len(every)} verdicts")
    browser.choose("Replay", "")
    browser.keys("#filters input", "REFUSES singleshot")
    assert shown_rules(browser) == ["forwarded-timers.other-id-is-refused"]
    browser.keys("#filters input", " and nothing like it")
    assert browser.text("#rule-list") == "No verdict matches."


def test_a_filter_takes_the_keyboard(browser: BrowserPage, boot: Report) -> None:
    """A rule unfolds with Enter, and a state is chosen with Space."""
    browser.open(boot)
    browser.keys("#rule-list > .held > summary", "\ue007")
    assert browser.one("#rule-list > .held").get_attribute("open") is not None
    browser.keys("[data-state='held']", " ")
    assert browser.one("[data-state='held']").get_attribute("aria-pressed") == "true"
    assert len(shown_rules(browser)) == boot["summary"]["rules"]["held"]


def test_names_are_text(browser: BrowserPage) -> None:
    """What looks like HTML in a trace's name, a message or an error is shown as it is, and does nothing."""
    browser.open(nasty_report())
    assert browser.run("return document.title") != "owned"
    assert browser.all("img") == []
    assert browser.console() == []
    for place in ("#summary", "#rule-list", "#replay-list", "#divergence-list"):
        assert NASTY.replace("\u2028", "") in browser.text(place).replace("\u2028", "")


def test_dark_and_light(browser: BrowserPage, boot: Report) -> None:
    """Colours follow the system's scheme until the switch says otherwise; the timeline's, too."""

    def look() -> tuple[int, str]:
        ground: str = browser.run("return getComputedStyle(document.documentElement).backgroundColor")
        browser.settle()
        drawn: str = browser.run("return document.querySelector('.stage canvas').toDataURL()")
        return sum(map(int, ground.strip("rgb()").split(","))), drawn

    browser.open(boot)
    light, drawn_light = look()
    browser.media(scheme="dark")
    dark, drawn_dark = look()
    assert light > 600
    assert dark < 150
    assert drawn_dark != drawn_light
    browser.click("[data-theme='light']")
    assert look() == (light, drawn_light)


def test_everything_has_a_name(browser: BrowserPage, several: Report) -> None:
    """Assistive technology finds a name for each control, table and landmark, and for the timeline."""
    browser.open(several)
    named = {
        *("button", "checkbox", "combobox", "searchbox", "textbox", "link", "application", "table"),
        *("region", "navigation", "search", "heading"),
    }
    found = [(role, name) for role, name in browser.accessible() if role in named]
    nameless = [role for role, name in found if not name.strip()]
    assert nameless == []
    roles = {role for role, _ in found}
    assert {"button", "combobox", "searchbox", "link", "application", "region"} <= roles
    (timeline,) = (name for role, name in found if role == "application")
    assert timeline.startswith("Timeline of linux-boot.xkt, 25,076 events, 1 finding")


@pytest.mark.parametrize("width", [1280, 700, 380])
def test_the_page_fits(browser: BrowserPage, several: Report, width: int) -> None:
    """The page is never wider than the window."""
    browser.size(width, 900)
    browser.open(several)
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_on_paper(browser: BrowserPage, several: Report) -> None:
    """Printed, violations and divergences are unfolded, colours light, and controls gone."""
    browser.media(scheme="dark")
    browser.open(several)
    browser.media("print", "dark")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert not browser.all("#filters, .switch, .bar")
    assert "observed" in browser.one("#divergence-list").text
    assert browser.run("return getComputedStyle(document.querySelector('.panel')).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.console() == []


@pytest.mark.parametrize(
    "report",
    [
        report_of(),
        report_of(replay_json("a.xkt", profile=None, errors=["broken"], events=None, hypercalls=None)),
        report_of(replay_json("a.xkt", timeline=small_timeline(0))),
        report_of(replay_json("a.xkt", timeline=small_timeline(600))),
        report_of(replay_json("a.xkt", timeline={"version": 2})),
        report_of(replay_json("a.xkt", timeline={"version": 1})),
    ],
    ids=["nothing", "an error", "no marks", "600 vCPUs", "another version", "a broken timeline"],
)
def test_unusual_reports_have_a_page(browser: BrowserPage, report: Report) -> None:
    """Replays that failed, timelines without marks, with hundreds of lanes or unreadable: no script error."""
    browser.open(report)
    browser.settle()
    assert browser.console() == []
    assert len(report["replays"]) == len(browser.all("#replay-list tbody tr"))

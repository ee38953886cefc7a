"""The documentation site: its generated pages are up to date, it builds strictly and needs no network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import pytest

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = ROOT / "docs" / "reference"
BADGE: Final = ROOT / "docs" / "images" / "badge.svg"
GENERATED: Final = "<!-- Generated from the code by tools/reference_pages.py"


def test_the_generated_pages_are_up_to_date(tmp_path: Path) -> None:
    """docs/reference holds what the code says: `python tools/reference_pages.py docs/reference`."""
    subprocess.run([sys.executable, ROOT / "tools" / "reference_pages.py", tmp_path], check=True)
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    texts = {path.name: path.read_text(encoding="utf-8") for path in PAGES.glob("*.md")}
    committed = {name: text for name, text in texts.items() if text.startswith(GENERATED)}
    assert set(committed) == set(made)
    assert [name for name in made if made[name] != committed[name]] == []


def test_the_badge_is_the_products(tmp_path: Path) -> None:
    """The README's badge and its text are what the command in docs/contributing.md makes."""
    contributing = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^pytest (.* --xenkvm-badge=.*)$", contributing, re.MULTILINE)
    made = tmp_path / BADGE.relative_to(ROOT)
    made.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "pytest", *line.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert made.read_bytes() == BADGE.read_bytes()
    (shown,) = re.findall(r"!\[.*\]\(docs/images/badge.svg\)", done.stdout)
    assert shown in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()


def test_pictures_are_drawings_that_explain_themselves() -> None:
    """Each picture has a title and a description, is legible in the dark too, and loads nothing."""
    pictures = [path for path in (ROOT / "docs" / "images").glob("*.svg") if path != BADGE]
    assert pictures
    for picture in pictures:
        svg = ET.parse(picture).getroot()  # noqa: S314 - our own
        explained = {part.get("id") for part in svg if part.tag.endswith(("title", "desc")) and part.text}
        assert set((svg.get("aria-labelledby") or "").split()) == explained == {"title", "desc"}
        text = picture.read_text(encoding="utf-8")
        assert "prefers-color-scheme: dark" in text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    pytest.importorskip("furo", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "--nitpicky"]
    done = subprocess.run([*command, ROOT / "docs", folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_every_page_is_on_the_site(site: Path) -> None:
    """The site is built without a warning and has each Markdown file of docs as a page."""
    sources = (path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md"))
    assert [page for page in sources if not (site / page).is_file()] == []


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    """Scripts, styles, pictures and fonts are the site's own: it can be read from disk without a network."""
    loads = re.compile(r'<(?:script|img|iframe)\b[^>]*\bsrc="(https?:)?//|<link\b[^>]*\bhref="(?:https?:)?//')
    assert [
        page.name for page in site.rglob("*.html") if loads.search(page.read_text(encoding="utf-8"))
    ] == []
    imports = re.compile(r"@import|url\(\s*[\"']?(?:https?:)?//")
    assert [
        page.name for page in site.rglob("*.css") if imports.search(page.read_text(encoding="utf-8"))
    ] == []

"""Sphinx's configuration. The pages are Markdown that reads well without Sphinx, too."""

from __future__ import annotations

from importlib.metadata import version as installed

from sphinx.application import Sphinx

project = "pytest-xenkvm"
author = "the pytest-xenkvm authors"
copyright = author  # noqa: A001 - Sphinx's name for it
release = version = installed(project)

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_heading_anchors = 4  # links to headings, spelt as forges spell them
nitpicky = True
smartquotes = False  # "--" begins an option

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False

NAVIGATION = {
    "Tutorial": ["tutorial"],
    "How to": ["how-to/*"],
    "Reference": [
        "reference/plugin",
        "reference/options",
        "reference/fixtures",
        "reference/hooks",
        "reference/hook-specs",
        "reference/vmm-api",
        "reference/behaviours",
        "reference/adapter-protocol",
        "adapters/README",
        "reference/cli",
        "rules/index",
        "reference/profiles",
        "reference/trace-format",
        "reference/report-format",
        "reference/*",
    ],
    "Explanation": ["explanation/abi-change", "architecture", "explanation/*"],
    "The project": ["contributing"],
}
"""Pages, or patterns of pages, by kind; a page that is in none of them makes Sphinx complain."""


def setup(app: Sphinx) -> None:
    """Add the navigation, which readers without Sphinx shall not see as code."""
    app.connect("source-read", _add_navigation)


def _add_navigation(_app: Sphinx, page: str, source: list[str]) -> None:
    if page == "index":
        source[0] += "".join(_tree(pages, f":caption: {kind}\n") for kind, pages in NAVIGATION.items())
    elif page == "rules/index":
        source[0] += _tree(["*"])


def _tree(pages: list[str], options: str = "") -> str:
    lines = "".join(f"{page}\n" for page in pages)
    return f"\n```{{toctree}}\n:hidden:\n:glob:\n{options}\n{lines}```\n"

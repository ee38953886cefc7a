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

html_theme = "furo"
html_title = f"{project} {release}"
html_show_sphinx = False
html_copy_source = False

_RULES = "rules/index"
_ALL_IN_FOLDER = "\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n"


def setup(app: Sphinx) -> None:
    """Put the pages of the rules below their index, which is generated for readers without Sphinx."""
    app.connect("source-read", _list_rules)


def _list_rules(_app: Sphinx, page: str, source: list[str]) -> None:
    if page == _RULES:
        source[0] += _ALL_IN_FOLDER

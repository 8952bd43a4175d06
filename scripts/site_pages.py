"""What the documentation's site does to pages (a hook of mkdocs): README, rules and changes are pages of it too.

They stay where they are, in the root; links in them, and links out of docs, are turned to what they are on the site.
Test: tests/test_docs_site.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FROM_ROOT = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"\[([^\]]*)\]\(((?!https?:|#)[^)]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page, before it becomes HTML."""
    source = page.file.src_uri
    folder = ROOT if source in FROM_ROOT else (ROOT / "docs" / source).parent
    if source in FROM_ROOT:
        markdown = (ROOT / FROM_ROOT[source]).read_text(encoding="utf-8")
    depth = "../" * source.count("/")
    pages = {name: page for page, name in FROM_ROOT.items()}

    def turned(match: re.Match[str]) -> str:
        text, address = match.groups()
        path, _, anchor = address.partition("#")
        place = (folder / path).resolve().relative_to(ROOT).as_posix()
        if place in pages or place.startswith("docs/"):
            return f"[{text}]({depth}{pages.get(place, place.removeprefix('docs/'))}{'#' + anchor if anchor else ''})"
        return text  # a file of the sources, which is not on the site

    return LINK.sub(turned, markdown)

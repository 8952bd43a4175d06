"""The documentation builds as a site without a warning, and its reference is that of the code."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by a Python that cannot import torch: the reference is read, not run."""
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    (folder / "hidden" / "torch").mkdir(parents=True)
    (folder / "hidden" / "torch" / "__init__.py").write_text("raise ImportError('torch is not for the documentation')")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder / "site")]
    env = {**os.environ, "PYTHONPATH": str(folder / "hidden")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


class Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()

    def handle_starttag(self, _: str, attributes: list[tuple[str, str | None]]) -> None:
        self.ids.update(value for name, value in attributes if name == "id" and value)


def anchors(page: Path) -> set[str]:
    parser = Anchors()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.ids


@pytest.mark.parametrize("package", ["m2ops", "m2bert"])
def test_every_public_name_is_in_the_reference(package: str, site: Path) -> None:
    module = __import__(package)
    ids = anchors(site / "reference" / f"{package}.html")
    documented = {name.rsplit(".", 1)[-1] for name in ids}
    assert set(module.__all__) - {"__version__"} <= documented


def test_pages_of_the_root_are_pages_of_the_site(site: Path) -> None:
    assert {"install", "encode", "in-other-libraries"} <= anchors(site / "index.html")
    assert "adding-an-operator" in anchors(site / "contributing.html")
    assert 'src="where.png"' in (site / "index.html").read_text(encoding="utf-8")
    assert "def index_and_search" in _text(site / "tutorial.html")


def _text(page: Path) -> str:
    words: list[str] = []
    parser = HTMLParser()
    parser.handle_data = words.append  # type: ignore[method-assign]
    parser.feed(page.read_text(encoding="utf-8"))
    return "".join(words)

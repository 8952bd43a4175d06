"""What a type checker sees of the public names: their own types under `mypy --strict`, never Any."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FACES = [
    path for path in ROOT.glob("m2bert/**/__init__.py") if "lazy_names(__name__" in path.read_text(encoding="utf-8")
]
# The package is found where it is installed, as users have it: there mypy takes its types and reports no errors in it.
# Checking torch and its like would take a minute, and nothing here depends on their types.
SETTINGS = """
[mypy]
python_version = 3.11
strict = True
[mypy-torch.*,transformers.*,tokenizers.*,numpy.*,pyarrow.*,lancedb.*,pandas.*,sklearn.*,scipy.*,m2ops.*,datasets.*]
follow_imports = skip
ignore_missing_imports = True
"""
PROGRAM = """
from m2bert import Embedder, M2BertError, SearchIndex
from m2bert.search import Corpus, Document, Section, read_corpus

def by_hand(index: SearchIndex) -> list[str]:
    corpus: Corpus = read_corpus("folder", stamps=index.stamps("folder"))
    reveal_type(index.update(corpus))
    index.add(Document(name, "text", sections=(Section(0, "page 1"),)) for name in ("a", "b"))
    index.update({"a": "text"}, source="letters")
    reveal_type(index.search("river"))
    reveal_type(index.search(["river", "stone"]))
    return [hit.place for result in index.search("river", k=3) for hit in result.passages]

with SearchIndex.open("store", Embedder()) as opened:
    reveal_type(opened)
    reveal_type(opened.search("river")[0].to_dict())
    by_hand(opened)
"""
REVEALED = [
    "m2bert.search.report.IndexReport",
    "m2bert.search.results.SearchResults",
    "list[m2bert.search.results.SearchResults]",
    "m2bert.search.index.SearchIndex",
    "dict[str, Any]",
]


WRONG = """
from m2bert import SearchIndex
from m2bert.search import Documnet
SearchIndex(5).search(query=3)
"""


def test_public_names_have_their_types_under_strict_mypy(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        "mypy.ini",
        "--cache-dir",
        "cache",
        "program.py",
        "wrong.py",
    ]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    assert re.findall(r'Revealed type is "(.*?)"', said) == REVEALED
    errors = [line for line in said.splitlines() if ": error:" in line]
    assert [error for error in errors if not error.startswith("wrong.py")] == []
    assert {error.split(":")[1] for error in errors} == {"3", "4"}, errors


@pytest.mark.parametrize("path", FACES, ids=lambda path: path.parent.name)
def test_a_face_tells_type_checkers_the_names_it_hands_out(path: Path) -> None:
    module = importlib.import_module(".".join(path.parent.relative_to(ROOT).parts))
    source = path.read_text(encoding="utf-8")
    assert "if TYPE_CHECKING:" in source, "add the names by `import name as name`"
    told = re.findall(r"(\w+) as (\w+)", source.split("if TYPE_CHECKING:")[1].split("\nelse:")[0])
    assert sorted(name for name, _ in told) == sorted(set(module.__all__) - {"__version__"})
    assert all(name == public for name, public in told)


def test_faces_are_found() -> None:
    assert len(FACES) >= 9

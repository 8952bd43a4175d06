"""Files of every kind, found by a sentence from their middle, with the page or heading it stands on or under."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from bag_of_words import BagOfWords
from real_files import REAL_FILES, RealFile

from m2bert.search.documents import read_corpus
from m2bert.search.index import SearchIndex

for library in ("pypdfium2", "mammoth", "pptx", "docx", "reportlab"):
    pytest.importorskip(library, reason="needs pip install 'm2bert[test]'")

DEBIAN = Path("/usr/share/doc")
# From Debian's packages, where they are installed: file, words of a sentence in it, and where a person finds them (the
# number printed on the page).
INSTALLED = [
    (
        "base-passwd/users-and-groups.html",
        "allows users to add local modifications to the system",
        "Chapter 2. Users and Groups",
    ),
    ("shared-mime-info/shared-mime-info-spec.pdf", "same information as the globs2, magic, subclasses", "page 11"),
    (
        "systemd/DISTRO_PORTING.md",
        "can be up to .5s off from servers that use stepped leap seconds",
        "Porting systemd To New Distributions > NTP Pool",
    ),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    folder = tmp_path_factory.mktemp("files")
    for file in REAL_FILES:
        file.make(folder / file.name, file.sentence)
    index = SearchIndex(tmp_path_factory.mktemp("real") / "store", BagOfWords(passage_words=20))
    report = index.update(read_corpus(folder))
    assert (report.added, report.skipped) == (len(REAL_FILES), [])
    assert report.guessed == ["brief.txt"]
    return index


@pytest.mark.parametrize("file", REAL_FILES, ids=lambda file: file.name)
def test_a_file_is_found_by_a_sentence_from_its_middle(index: SearchIndex, file: RealFile) -> None:
    best = index.search(file.sentence)[0]
    hit = best.passages[0]
    assert best.id == file.name and hit.place == file.place
    assert file.sentence.split()[2] in hit.text
    assert 0.2 < hit.position < 0.9


def test_what_no_reader_would_see_is_not_there(index: SearchIndex) -> None:
    page = index.document("handbook.html").text
    assert page.count("dialout") == 1 and "hidden" not in page and "color" not in page
    assert "aGVsbG8" not in index.document("analysis.ipynb").text
    mail = index.document("minutes.eml").text
    assert mail.startswith("Subject: Minutes of Tuesday's meeting\nFrom: Ann Ash <ann@example.org>\n")
    assert "JVBERi0" not in mail


def test_a_place_goes_with_the_result_as_json_and_in_arrow(index: SearchIndex) -> None:
    found = index.search("gearbox flanges", k=1)
    assert json.loads(json.dumps(found.to_dict()))["results"][0]["passages"][0]["place"] == "page 12"
    assert found.to_arrow()["passages"][0][0]["place"].as_py() == "page 12"


def test_pythons_own_source_is_found_in_its_class(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for module in (argparse, json.decoder):
        path = Path(str(module.__file__))
        (tmp_path / "files" / path.name).write_bytes(path.read_bytes())
    index = SearchIndex(tmp_path / "store", BagOfWords(passage_words=20))
    index.update(read_corpus(tmp_path / "files"))
    sentence = "This can be used to decode a JSON document from a string that may have extraneous data at the end"
    best = index.search(sentence)[0]
    assert best.id == "decoder.py" and best.passages[0].place == "JSONDecoder.raw_decode"


@pytest.mark.parametrize(("name", "words", "place"), INSTALLED)
def test_debians_own_documents_are_found(tmp_path: Path, name: str, words: str, place: str) -> None:
    if not (DEBIAN / name).is_file():
        pytest.skip(f"{DEBIAN / name} is not installed")
    index = SearchIndex(tmp_path / "store", BagOfWords(passage_words=20))
    index.update(read_corpus((DEBIAN / name).parent))
    found = {result.id: result.passages[0] for result in index.search(words, k=2)}  # one may be there as HTML too
    assert found[Path(name).name].place == place

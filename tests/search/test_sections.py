"""Sections: where a stretch of text stands, labels of headings within headings, and that a store keeps them."""

from __future__ import annotations

from pathlib import Path

import lancedb
import pytest
from bag_of_words import BagOfWords

from m2bert.errors import M2BertError
from m2bert.search.documents import Document
from m2bert.search.explain import explain_stored, explain_text
from m2bert.search.index import SearchIndex
from m2bert.search.sections import Section, SectionedText, place_of, sections_as_text, sections_of_text

TEXT = "Before. Page one is here.\n\nPage two is there. Three!"
SECTIONS = (Section(8, "page 1"), Section(27, "page 2"), Section(46, "page 3"))


@pytest.mark.parametrize(
    ("stretch", "place"),
    [
        ("Before.", ""),
        ("Before. Page", "page 1"),
        ("Page one", "page 1"),
        ("here.\n\n", "page 1"),
        ("\n\nPage two", "page 2"),
        ("here.\n\nPage", "page 1 to page 2"),
        ("Page one is here.\n\nPage two is there. Three!", "page 1 to page 3"),
        ("!", "page 3"),
        (TEXT, "page 1 to page 3"),
    ],
)
def test_a_place_is_that_of_the_words_without_the_space_around_them(stretch: str, place: str) -> None:
    assert TEXT.count(stretch) == 1
    assert place_of(SECTIONS, TEXT.index(stretch), stretch) == place


def test_a_place_without_sections_or_labels_is_empty() -> None:
    assert place_of((), 0, "text") == ""
    assert place_of((Section(0, "A"), Section(4, ""), Section(8, "A")), 5, "xy") == ""
    assert place_of((Section(0, "A"), Section(4, ""), Section(8, "A")), 0, "0123456789") == "A"


def test_headings_stand_within_those_above_them() -> None:
    out = SectionedText()
    for level, title in [(1, "A"), (2, " B \n c"), (3, "D"), (2, "E"), (1, "F"), (3, "G"), (3, "")]:
        out.head(level, title)
        out.write(f"{title}.")
    out.begin("page 9")
    out.write("text")
    out.head(2, "H")
    labels = ["A", "A > B c", "A > B c > D", "A > E", "F", "F > G", "F", "page 9", "H"]
    assert [section.label for section in out.sections] == labels
    assert [out.text[section.start :][:2] for section in out.sections[:4]] == ["A.", " B", "D.", "E."]
    assert sections_of_text(sections_as_text(out.sections)) == tuple(out.sections)
    assert sections_as_text(()) == "" and sections_of_text("") == sections_of_text(None) == ()


def paged() -> Document:
    words = [f"word{number}" for number in range(40)]
    text = " ".join(words)
    return Document("paged", text, "", (Section(0, "page 1"), Section(text.index("word20"), "page 2")))


def test_hits_and_explanations_know_their_places(tmp_path: Path) -> None:
    embedder = BagOfWords(passage_words=5)
    index = SearchIndex(tmp_path / "store", embedder)
    index.add([paged(), Document("bare", "word12 alone")])
    found = {result.id: result.passages for result in index.search("word27 word28")}
    assert found["paged"][0].place == "page 2" and "word27" in found["paged"][0].text
    assert [hit.place for hit in found["bare"]] == [""]
    assert index.search("word18 word22")[0].passages[0].place == "page 1 to page 2"
    for explanation in (
        explain_stored(index, "word27", "paged"),
        explain_text(embedder, "word27", paged().text, "paged", paged().sections),
    ):
        assert [each.place for each in explanation.contributions] == ["page 1"] * 4 + ["page 2"] * 4
        assert [each.place for each in explanation.pairs] == ["page 1"] * 3 + ["page 1 to page 2"] + ["page 2"] * 3
        assert [each.place for each in explanation.merged(2)] == ["page 1", "page 2"]
        assert explanation.to_dict()["contributions"][7]["place"] == "page 2"


def test_new_sections_of_an_old_text_are_taken_in(tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "store", BagOfWords(passage_words=5))
    index.add({"paged": paged().text})
    assert index.document("paged").sections == ()
    assert index.add([paged()]).updated == 1
    assert index.document("paged").sections == paged().sections
    assert index.add([paged()]).unchanged == 1


def test_a_store_of_before_sections_opens_and_gains_them(tmp_path: Path) -> None:
    embedder = BagOfWords(passage_words=5)
    SearchIndex(tmp_path / "store", embedder).add({"old": "word27 of old"})
    lancedb.connect(str(tmp_path / "store")).open_table("documents").drop_columns(["sections"])
    index = SearchIndex(tmp_path / "store", embedder)
    assert index.search("word27")[0].passages[0].place == "" and index.document("old").sections == ()
    assert index.add([paged(), Document("old", "word27 of old")]).unchanged == 1
    places = {result.id: result.passages[0].place for result in index.search("word27 word28")}
    assert places == {"paged": "page 2", "old": ""}


def test_sections_out_of_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        M2BertError, match=r"sections of document 'a' must be in the order of their starts, got \[5, 2\]"
    ):
        SearchIndex(tmp_path / "store", BagOfWords()).add(
            [Document("a", "text", "", (Section(5, "x"), Section(2, "y")))]
        )

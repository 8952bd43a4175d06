"""What is not what was written is noticed: staged files, rows of a store, and what `m2bert check` says of them."""

from __future__ import annotations

import logging
import random
import zlib
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from bag_of_words import BagOfWords
from tiny import story

import m2bert.search.bulk
from m2bert.errors import M2BertError, StoreError
from m2bert.search.bulk import embed_into, text_hash
from m2bert.search.check import check_store
from m2bert.search.index import SearchIndex
from m2bert.search.stores.lance import LanceStore
from m2bert.search.stores.staging import open_staging

TEXTS = {f"d{number}": story(40, number) for number in range(6)}


def encoder() -> BagOfWords:
    return BagOfWords(dim=16, passage_words=10)


def table_of(store: Path) -> Any:
    return lancedb.connect(str(store)).open_table("documents")


def test_a_checksum_is_of_all_that_was_made_of_a_text(tmp_path: Path) -> None:
    SearchIndex(tmp_path / "s", encoder()).add(TEXTS)
    for row in table_of(tmp_path / "s").to_arrow().to_pylist():
        spans = np.array([[span["start"], span["end"]] for span in row["passages"]], "<i4")
        parts = row["text_hash"].encode(), np.array(row["vector"], "<f4").tobytes(), spans.tobytes()
        assert row["checksum"] == zlib.crc32(b"".join(parts) + row["passage_vectors"])


def damage(store: Path, identity: str, column: str) -> None:
    """Change the least of one column of a row, as a bad disk would, through the database."""
    table = table_of(store)
    row = table.search().where(f"id = '{identity}'").to_arrow().select(table.schema.names).to_pylist()[0]
    value = row[column]
    if column == "vector":
        value = [*value[:-1], float(np.nextafter(np.float32(value[-1]), np.float32(9)))]
    elif column == "passages":
        value = [{**value[0], "end": value[0]["end"] + 1}, *value[1:]]
    elif column == "passage_vectors":
        value = value[:-1] + bytes([value[-1] ^ 1])
    else:
        value = value.replace("e", "o", 1)
    changed = pa.Table.from_pylist([{**row, column: value}], schema=table.schema)
    table.merge_insert(["source", "id"]).when_matched_update_all().execute(changed)


@pytest.mark.parametrize("column", ["vector", "passages", "passage_vectors", "text"])
def test_a_damaged_row_is_said_and_mended(tmp_path: Path, run: Any, column: str) -> None:
    index = SearchIndex(tmp_path / "s", encoder())
    index.add(TEXTS)
    assert check_store(tmp_path / "s").is_sound
    damage(tmp_path / "s", "d2", column)
    for ask in (lambda: index.search("river stone"), lambda: index.document("d2")):
        with pytest.raises(StoreError, match=r"document 'd2' is damaged \(.*\); `m2bert check STORE` says"):
            ask()
    assert index.document("d1").text == TEXTS["d1"]
    assert [(identity, bool(what)) for _, identity, what in check_store(tmp_path / "s").damaged] == [("d2", True)]
    code, out, _ = run("check", tmp_path / "s")
    assert code == 1 and out.startswith("d2: its ") and "--mend" in out
    assert run("check", tmp_path / "s", "--mend")[0] == 0
    assert run("check", tmp_path / "s")[:2] == (0, "sound: 5 documents\n")
    assert index.add(TEXTS).embedded == 1 and index.document("d2").text == TEXTS["d2"]
    assert len(index.search("river stone")) == 6


def test_a_store_whose_writers_cannot_be_held_is_looked_at_and_not_mended(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> Any:
        raise M2BertError("the lock cannot be taken")

    index = SearchIndex(tmp_path / "s", encoder())
    index.add(TEXTS)
    damage(tmp_path / "s", "d3", "words")
    monkeypatch.setattr("m2bert.search.check.open_staging", refuse)
    assert len(check_store(tmp_path / "s").damaged) == 1
    with pytest.raises(M2BertError, match="the lock cannot be taken"):
        check_store(tmp_path / "s", mend=True)
    assert len(check_store(tmp_path / "s").damaged) == 1, "nothing was taken out"


def test_damaged_words_are_found_by_the_check_alone(tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "s", encoder())
    index.add(TEXTS)
    damage(tmp_path / "s", "d3", "words")
    assert [each[1:] for each in check_store(tmp_path / "s").damaged] == [("d3", "its words are not those of its text")]


def test_a_flipped_bit_of_a_store_s_files_is_told_in_a_sentence(tmp_path: Path) -> None:
    """Whatever bit it is: the check finds nothing wrong, or says what; it never breaks, and searches never do."""
    index = SearchIndex(tmp_path / "s", encoder())
    index.add(TEXTS)
    right = [(result.id, result.score) for result in index.search("river stone")]
    files = sorted((tmp_path / "s" / "documents.lance" / "data").glob("*.lance"))
    noticed, generator = 0, random.Random(22)
    for _ in range(30):
        file = generator.choice(files)
        whole = file.read_bytes()
        place = generator.randrange(len(whole))
        file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << generator.randrange(8))]) + whole[place + 1 :])
        try:
            found = SearchIndex(tmp_path / "s", encoder()).search("river stone")
            sound = check_store(tmp_path / "s").is_sound
            assert not sound or [(result.id, result.score) for result in found] == right
        except M2BertError as error:
            sound = False
            assert str(error).startswith("store: ")
        noticed += not sound
        file.write_bytes(whole)
    assert noticed >= 10
    assert check_store(tmp_path / "s").is_sound


@pytest.mark.parametrize("kind", ["flip", "zero", "truncate", "empty"])
def test_damaged_staged_files_are_made_again(tmp_path: Path, monkeypatch: Any, kind: str, caplog: Any) -> None:
    """What a killed run had staged, after a power cut: nothing of it is trusted that is not what was written."""
    index = SearchIndex(tmp_path / "s", encoder())
    index.add({"first": "river"})
    store = LanceStore.open(tmp_path / "s")
    monkeypatch.setattr(m2bert.search.bulk, "CHARACTERS_BETWEEN_WRITES", 200)
    with open_staging(store.path, store.info) as staging:
        embed_into(staging, {text_hash(text): text for text in TEXTS.values()}, encoder(), None, {})
    files = sorted((tmp_path / "s" / "staging").glob("*.arrow"))
    whole, generator = files[0].read_bytes(), random.Random(7)
    place = generator.randrange(len(whole))
    changed = {
        "flip": whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :],
        "zero": whole[:place] + bytes(len(whole[place : place + 512])) + whole[place + 512 :],
        "truncate": whole[:place],
        "empty": b"",
    }
    files[0].write_bytes(changed[kind])
    with caplog.at_level(logging.WARNING):
        report = index.add(TEXTS)
    assert "is damaged" in caplog.text or "are damaged" in caplog.text
    assert report.added == 6 and 1 <= report.embedded < 6
    clean = SearchIndex(tmp_path / "clean", encoder())
    clean.add(TEXTS)
    for name in TEXTS:
        np.testing.assert_array_equal(index.document(name).vector, clean.document(name).vector)
    assert check_store(tmp_path / "s").is_sound

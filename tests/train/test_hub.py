"""Training text from Parquet files and from data sets as the hub has them: same documents as from JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from training_data import make_text, small_tokenizer, write_jsonl, write_pairs

from m2bert.data.hub import HubSource, parse_hub
from m2bert.data.pairs import load_pairs
from m2bert.data.text import expand_sources, read_documents
from m2bert.data.tokens import load_tokens
from m2bert.errors import M2BertError
from m2bert.jsonl import read_jsonl

ROWS = [{"text": make_text(i % 6, 40, i), "source": f"{'notes' if i % 2 else 'books'}/{i}"} for i in range(150)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one data set in Parquet, and the same rows in JSON lines beside it."""
    (tmp_path / "set").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "set" / "train.parquet", row_group_size=32)
    write_jsonl(tmp_path / "lines" / "rows.jsonl", ROWS)
    return tmp_path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


def test_parquet_and_hub_give_what_json_lines_give(folder: Path) -> None:
    expected = [(row["text"], row["source"].split("/")[0]) for row in ROWS]
    for source in (folder / "lines", folder / "set", f"hub:{folder / 'set'}"):
        assert [(d.text, d.source) for d in read_documents([source])] == expected
    assert expand_sources([folder / "set"]) == [folder / "set" / "train.parquet"]
    first = [d.text for d in read_documents([f"hub:{folder / 'set'}#20"])]
    assert first == [text for text, _ in expected[:20]]


def test_tokens_of_a_data_set_are_kept_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"hub:{folder / 'set'}#30"
    tokenizer = small_tokenizer()
    store = load_tokens([source, folder / "lines"], tokenizer, folder / "cache")
    assert len(store) == 150  # equal texts count once
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    again = load_tokens([source, folder / "lines"], tokenizer, folder / "cache")
    assert np.array_equal(again.tokens, store.tokens)
    with pytest.raises(M2BertError, match="within reach"):
        load_tokens([f"hub:{folder / 'set'}#31"], tokenizer, folder / "cache")


def unreachable(*args: Any, **kwargs: Any) -> Any:
    raise ConnectionError("Couldn't reach the hub\nand more lines")


def test_an_unreachable_data_set_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(M2BertError, match="must be on the hub or in a folder") as absent:
        list(read_documents([f"hub:{folder / 'absent'}"]))
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(M2BertError, match=r"within reach \(Couldn't reach the hub\); check its name") as offline:
        list(read_documents(["hub:somebody/something"]))
    for error in (absent, offline):
        assert "\n" not in str(error.value)


def test_names_on_the_hub() -> None:
    assert parse_hub("hub:allenai/c4:en:validation#7", who="x") == HubSource("allenai/c4", "en", "validation", 7)
    assert parse_hub("hub:imdb", who="x") == HubSource("imdb", "", "train", 0)
    for bad in ("hub:", "hub:a:b:c:d", "hub:a#many"):
        with pytest.raises(M2BertError, match="must read hub:NAME"):
            parse_hub(bad, who="x")
    with pytest.raises(M2BertError, match="for evaluation only"):
        parse_hub("hub:imdb::test", who="x")


def test_pairs_in_parquet(tmp_path: Path) -> None:
    lines = write_pairs(tmp_path)
    rows = [row for _, row in read_jsonl(lines, who="test")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    one, two = (load_pairs([path], [], small_tokenizer()) for path in (lines, tmp_path / "pairs.parquet"))
    assert np.array_equal(one.pairs, two.pairs) and np.array_equal(one.documents.tokens, two.documents.tokens)


def test_broken_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(M2BertError, match=r"broken\.parquet is not a whole Parquet file"):
        list(read_documents([tmp_path]))

"""What a row of a store keeps, and stores of another format, another model, shorter vectors, or damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from tiny import story, tiny_embedder, tiny_model_folder

from m2bert.encoders.embedder import Embedder
from m2bert.errors import M2BertError
from m2bert.search.documents import Document
from m2bert.search.index import SearchIndex
from m2bert.search.stores import StoreInfo
from m2bert.search.stores.columns import table_schema, to_batch, to_record, to_table_rows


@pytest.fixture(scope="module")
def embedder() -> Any:
    return tiny_embedder()


def test_passages_are_kept_in_a_byte_a_number() -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 96)).astype(np.float32)
    passages = [SimpleNamespace(start=2 * n, end=2 * n + 1, vector=vector) for n, vector in enumerate(vectors)]
    made: Any = SimpleNamespace(
        vector=vectors.sum(axis=0), passages=passages, num_tokens=50, num_windows=2, num_truncated=3
    )
    alone: Any = SimpleNamespace(vector=vectors[0], passages=passages[:1], num_tokens=1, num_windows=1, num_truncated=0)
    bare: Any = SimpleNamespace(vector=vectors[1], passages=[], num_tokens=1, num_windows=1, num_truncated=0)
    info = StoreInfo("model", "0" * 16, 96)
    batch = to_batch({"0": made, "1": alone, "2": bare}, info, {})
    documents = [Document("c", "the", "there"), Document("b", "lonely", "there"), Document("a", "Words of it", "here")]
    table = to_table_rows(batch, [2, 1, 0], documents, info)
    assert table.schema.equals(table_schema(info), check_metadata=True)
    none, one, row = table.to_pylist()
    assert [each["words"] for each in (none, one, row)] == ["", "lone", "word"]
    assert [len(each["passage_vectors"]) for each in (none, one, row)] == [0, 0, 50 * 96 + 50 * 4 + 49 * 4]
    record = to_record(row, info.dim)
    assert (record.key, record.text, record.text_hash) == (("here", "a"), "Words of it", "0")
    assert (record.num_tokens, record.num_windows, record.num_truncated) == (50, 2, 3)
    assert record.passages is not None
    steps = np.abs(vectors).max(axis=1, keepdims=True) / 127
    np.testing.assert_allclose(record.passages.vectors, np.round(vectors / steps) * steps, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(record.vector, vectors.sum(axis=0))
    np.testing.assert_array_equal(record.spans, np.arange(100).reshape(50, 2))
    # One passage is the document itself, and is not kept twice.
    assert to_record(one, info.dim).passages is None and to_record(one, info.dim).spans.tolist() == [[0, 1]]
    assert to_record(none, info.dim).passages is None and to_record(none, info.dim).spans.shape == (0, 2)
    assert replace(record, source="x").key == ("x", "a")


@pytest.mark.parametrize("version", ["2", "7"])
def test_a_store_of_another_format_is_refused_with_the_remedy(tmp_path: Path, embedder: Any, version: str) -> None:
    """Format 2 as it was: blobs of compressed passages, no words."""
    span = pa.struct([pa.field("start", pa.int64(), False), pa.field("end", pa.int64(), False)])
    schema = pa.schema(
        [
            *(pa.field(name, pa.string(), False) for name in ("source", "id", "text_hash")),
            pa.field("text", pa.large_string(), False),
            *(pa.field(name, pa.int64(), False) for name in ("num_tokens", "num_windows", "num_truncated")),
            pa.field("vector", pa.list_(pa.float32(), embedder.dim), False),
            pa.field("passages", pa.list_(span), False),
            pa.field("passage_vectors", pa.large_binary(), False),
        ],
        metadata={
            "m2bert.format": version, "m2bert.model": "m2-bert-mini", "m2bert.dim": str(embedder.dim),
            "m2bert.fingerprint": embedder.fingerprint,
        },
    )  # fmt: skip
    row = {
        "source": "", "id": "a", "text_hash": "0", "text": "river", "num_tokens": 1, "num_windows": 1,
        "num_truncated": 0, "vector": [0.25] * embedder.dim, "passages": [{"start": 0, "end": 5}],
        "passage_vectors": b"x",
    }  # fmt: skip
    lancedb.connect(str(tmp_path)).create_table("documents", pa.Table.from_pylist([row], schema=schema))
    for opened in (None, embedder):
        with pytest.raises(
            M2BertError,
            match=rf"is of store format {version}, .*reads and writes format 3; make it anew with `m2bert index .*",
        ):
            SearchIndex(tmp_path, opened)


def test_a_store_of_shortened_vectors_is_opened_again_without_saying_so(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "model")
    texts = {f"s{n}": story(30 + 300 * (n % 2), seed=n) for n in range(6)}
    SearchIndex(tmp_path / "store", Embedder(folder, truncate_dim=7)).add(texts)
    index = SearchIndex(tmp_path / "store")
    whole = Embedder(folder).encode([*texts.values(), "copper harbor"])[:, :7].astype(np.float64)
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    cosines = dict(zip(texts, whole[:-1] @ whole[-1], strict=True))
    found = {result.id: result.score for result in index.search("copper harbor", rank="whole")}
    assert found == pytest.approx(cosines, abs=1e-5)
    assert np.ptp(list(cosines.values())) > 1e-3
    assert index.dim == index.embedder.dim == 7 and len(index.document("s1").vector) == 7
    assert index.search("copper harbor", 1)[0].passages
    index.add({"new": "river"})
    for other in (Embedder(folder), Embedder(folder, truncate_dim=8)):
        with pytest.raises(M2BertError, match="was made with the model"):
            SearchIndex(tmp_path / "store", other)


def test_store_of_another_model_is_refused(tmp_path: Path, embedder: Any) -> None:
    SearchIndex(tmp_path / "store", embedder).add({"a": "river"})
    with pytest.raises(M2BertError, match="was made with the model"):
        SearchIndex(tmp_path / "store", tiny_embedder(seed=1))


def test_damaged_store_is_refused(tmp_path: Path, embedder: Any) -> None:
    SearchIndex(tmp_path / "store", embedder).add({"a": "river"})
    for manifest in (tmp_path / "store" / "documents.lance" / "_versions").glob("*.manifest"):
        manifest.write_bytes(b"rubbish")
    with pytest.raises(M2BertError, match="cannot be read"):
        SearchIndex(tmp_path / "store", embedder).search("river")

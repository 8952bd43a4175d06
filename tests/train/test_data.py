"""Reading text and pairs, masking, packing, batches: nothing lost, nothing from test splits, same by seed."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_data import make_text, small_tokenizer, write_corpus, write_jsonl, write_pairs, write_task

from m2bert.data.contrast import ContrastBatches, cloze_sources, labelled_sources
from m2bert.data.examples import (
    PretrainBatches,
    SpecialIds,
    continuing_pieces,
    cut_documents,
    pack_documents,
    part_documents,
    special_ids,
)
from m2bert.data.masking import mask_tokens
from m2bert.data.pairs import PairData, load_pairs, task_folders
from m2bert.data.text import Document, expand_sources, read_documents
from m2bert.data.tokens import TokenStore, load_tokens, tokenize_documents
from m2bert.errors import M2BertError
from m2bert.model.tokenization import encode_ids
from m2bert.train.settings import FinetuneConfig

WHOLE = gzip.compress(b"".join(b'{"text": "%d"}\n' % (number * 7919) for number in range(5000)))
DAMAGED = WHOLE[:100] + b"\xff" * 50 + WHOLE[150:]
IDS = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4, vocab_size=1000)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_tokenizer()


def made_store(lengths: list[int], sources: int = 2) -> TokenStore:
    """Documents whose tokens are all different over the whole store (up to 60,000 tokens)."""
    total = sum(lengths)
    return TokenStore(
        np.arange(5, 5 + total, dtype=np.uint16),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        (np.arange(len(lengths)) % sources).astype(np.int32),
        tuple(f"source{i}" for i in range(sources)),
    )


def test_reading_files_folders_and_globs(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "note.txt").write_text("A plain note.", encoding="utf-8")
    (tmp_path / "b" / "empty.md").write_text("  \n", encoding="utf-8")
    (tmp_path / "b" / "image.png").write_bytes(b"\x89PNG")
    assert expand_sources([tmp_path / "a", tmp_path / "a" / "*.gz"]) == [corpus]
    documents = list(read_documents([tmp_path]))
    assert len(documents) == 41
    assert Counter(document.source for document in documents) == {"books": 20, "notes": 20, "note": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.jsonl", b'{"text": "fine"}\n{"text": \n', "broken.jsonl:2: row must be one JSON object"),
        ("list.jsonl", b"[1, 2]\n", "list.jsonl:1: row must be a JSON object, got list"),
        ("other.jsonl", b'{"body": "no text"}\n', "need a string field called text"),
        ("latin.txt", "caf\xe9".encode("latin-1"), "must be UTF-8"),
        ("half.jsonl", b'{"text": "a \\ud83d\\ude00"}\n{"text": "a \\ud83d"}\n', "half.jsonl:2: text must be Unicode"),
        ("deep.jsonl", b"[" * 100_000, "deep.jsonl:1: row must be one JSON object"),
        ("damaged.jsonl.gz", DAMAGED, "not a complete gzip file"),
        ("cut.jsonl.gz", b"\x1f\x8b\x08\x00\x00", "not a complete gzip file"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(M2BertError, match=message) as raised:
        list(read_documents([tmp_path]))
    assert name in str(raised.value)


def test_missing_and_empty_data(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(M2BertError, match="names no readable file"):
        expand_sources([tmp_path / "nowhere"])
    with pytest.raises(M2BertError, match="at least one source"):
        expand_sources([])
    write_jsonl(tmp_path / "blank.jsonl", [{"text": "  "}])
    with pytest.raises(M2BertError, match="hold no text"):
        load_tokens([tmp_path / "blank.jsonl"], tokenizer)


def test_test_splits_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    train, test = write_task(tmp_path, "train"), write_task(tmp_path, "test")
    for path in (test, test / "documents.jsonl.gz", test / "queries.jsonl.gz", tmp_path / "*" / "test" / "*"):
        with pytest.raises(M2BertError, match="for evaluation only"):
            expand_sources([path])
    with pytest.raises(M2BertError, match="for evaluation only"):
        load_pairs([], [test], tokenizer)
    with pytest.raises(M2BertError, match="for evaluation only"):
        load_pairs([test / "documents.jsonl.gz"], [], tokenizer)
    # A folder of tasks is fine: only train splits are taken from it.
    assert expand_sources([tmp_path]) == [train / "documents.jsonl.gz"]
    assert task_folders(tmp_path) == task_folders(tmp_path / "tinytask") == task_folders(train) == [train]
    with pytest.raises(M2BertError, match="must hold a train split"):
        task_folders(tmp_path / "tinytask" / "nothing")


def test_tokens_come_back_from_the_cache(tmp_path: Path, tokenizer: Any) -> None:
    corpus = write_corpus(tmp_path / "data")
    seen: list[int] = []
    first = load_tokens([corpus], tokenizer, tmp_path / "cache", on_progress=lambda n, _: seen.append(n))
    second = load_tokens([corpus], tokenizer, tmp_path / "cache", on_progress=lambda n, _: seen.append(-n))
    assert seen == [40]
    assert second.sources == first.sources == ("books", "notes")
    for name in ("tokens", "offsets", "source_ids"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    text = make_text(3, 30 + 37 * 3 % 370, 3)
    assert first.document(3).tolist() == encode_ids(tokenizer, [text])[0]


def test_masking_statistics() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 1000, (200, 500))
    ids[:, 0], ids[:, -1] = IDS.cls, IDS.sep
    corrupted, labels = mask_tokens(ids, rng, rate=0.3, mask_id=IDS.mask, vocab_size=1000, special_ids=IDS.unmaskable)
    chosen = labels != -100
    count = chosen.sum()
    # Five standard deviations of a binomial.
    assert abs(chosen[:, 1:-1].mean() - 0.3) < 5 * (0.3 * 0.7 / 99_600) ** 0.5
    assert not chosen[:, [0, -1]].any()
    assert np.array_equal(corrupted[~chosen], ids[~chosen])
    assert np.array_equal(labels[chosen], ids[chosen])
    masked = (corrupted == IDS.mask)[chosen].mean()
    kept = (corrupted == ids)[chosen].mean()
    for share, expected in ((masked, 0.8), (kept, 0.1 + 0.1 / 995), (1 - masked - kept, 0.1 - 0.1 / 995)):
        assert abs(share - expected) < 5 * (expected * (1 - expected) / count) ** 0.5
    randoms = corrupted[chosen & (corrupted != IDS.mask) & (corrupted != ids)]
    assert randoms.min() >= 5
    assert len(np.unique(randoms)) > 500


def test_whole_words_are_masked_whole() -> None:
    rng = np.random.default_rng(1)
    continues = np.zeros(1000, dtype=np.bool_)
    continues[500:] = True
    ids = rng.integers(5, 1000, (200, 500))
    ids[:, 0], ids[:, 250], ids[:, -1] = IDS.cls, IDS.sep, IDS.sep
    settings = {"rate": 0.3, "mask_id": IDS.mask, "vocab_size": 1000, "special_ids": IDS.unmaskable}
    _, labels = mask_tokens(ids, rng, **settings, continues=continues)
    chosen = labels != -100
    # Row by row in plain Python: a word is a piece and the continuing pieces after it, a special token ends one.
    for row, picked in zip(ids, chosen, strict=True):
        words: list[list[int]] = []
        for place, token in enumerate(row):
            joins = continues[token] and place > 0 and row[place - 1] > 4
            words[-1].append(place) if joins else words.append([place])
        assert all(len({bool(picked[place]) for place in word}) == 1 for word in words)
    assert not chosen[ids < 5].any()
    # Each token is still chosen as often; words of two pieces on average triple the variance of their sum.
    assert abs(chosen[ids > 4].mean() - 0.3) < 5 * (3 * 0.3 * 0.7 / (ids > 4).sum()) ** 0.5
    apart = mask_tokens(ids, rng, **settings)[1] != -100
    inner = continues[ids[:, 2:-1]] & (ids[:, 1:-2] > 4)
    assert (apart[:, 2:-1] != apart[:, 1:-2])[inner].mean() > 0.3  # one by one, neighbours differ


def test_which_pieces_continue(tokenizer: Any) -> None:
    from tiny import numbered_tokenizer as tiny_tokenizer

    found = continuing_pieces(tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert found is not None and [piece.startswith("##") for piece in pieces] == found.tolist() and found.any()
    assert continuing_pieces(tiny_tokenizer()) is None


def test_packing_and_cutting_keep_every_token() -> None:
    store = made_store([3, 700, 64, 65, 10, 1, 2000, 40])
    order = np.random.default_rng(1).permutation(len(store))
    packed = pack_documents(store, order, 64, sep_id=3)
    stream = np.concatenate(packed)
    assert sorted(stream[stream != 3]) == sorted(store.tokens)
    assert (stream == 3).sum() == len(store) - 1
    assert {len(example) for example in packed[:-1]} == {64}
    parts = cut_documents(store, order, store.lengths, np.random.default_rng(2), 64)
    assert sorted(np.concatenate(parts)) == sorted(store.tokens)
    assert max(len(part) for part in parts) <= 64
    # Only documents that are short themselves make shorter parts; order within a document is kept.
    assert sum(len(part) < 10 for part in parts) == 2
    assert all((np.diff(part.astype(int)) == 1).all() for part in parts)
    assert len({len(part) for part in parts}) > 10


def epoch(batches: PretrainBatches) -> list[dict[str, np.ndarray]]:
    first = [batches[i] for i in range(1)]
    return first + [batches[i] for i in range(1, batches._first_of_epoch[1])]


def originals(batch: dict[str, np.ndarray]) -> np.ndarray:
    """The batch before masking; real, ordinary tokens only."""
    ids = np.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
    return ids[(batch["attention_mask"] == 1) & (ids > 4)]


def test_an_epoch_holds_every_token_once_at_all_lengths() -> None:
    lengths = [int(n) for n in np.random.default_rng(3).integers(5, 900, 80)]
    store = made_store(lengths)
    batches = PretrainBatches(store, IDS, lengths={32: 0.5, 256: 0.5}, batch_tokens=1024, mask_rate=0.2)
    made = epoch(batches)
    assert sorted(np.concatenate([originals(batch) for batch in made])) == sorted(store.tokens)
    assert max(batch["input_ids"].size for batch in made) <= 1024
    widths = Counter(batch["input_ids"].shape[1] for batch in made)
    assert max(widths) == 256
    long = sum(batch["attention_mask"].sum() for batch in made if batch["input_ids"].shape[1] > 32)
    assert 0.35 < long / store.num_tokens < 0.75


def test_documents_that_may_not_mix_have_rows_of_their_own() -> None:
    lengths = [int(n) for n in np.random.default_rng(3).integers(5, 900, 80)]
    store = made_store(lengths)
    parts = part_documents(store, np.arange(80), 62)
    assert np.array_equal(np.concatenate(parts), store.tokens)
    assert {len(part) for part in parts if len(part) < 10} == {n for n in lengths if n < 10}
    assert sum(len(part) == 62 for part in parts) > 0.6 * len(parts)
    document_of = np.repeat(np.arange(80), lengths)
    settings = {"lengths": {64: 0.5, 256: 0.5}, "batch_tokens": 1024}
    mixed: dict[bool, int] = {}
    for mix in (True, False):
        batches = epoch(PretrainBatches(store, IDS, **settings, mix_documents=mix))
        rows = [
            row for batch in batches for row in np.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
        ]
        texts = [document_of[row[row > 4] - 5] for row in rows]
        assert sum(len(text) for text in texts) == store.num_tokens
        mixed[mix] = sum(len(set(text)) > 1 for text in texts)
        assert max(batch["input_ids"].size for batch in batches) <= 1024
    assert mixed[False] == 0 < mixed[True]


def test_the_mixture_is_thirty_to_seventy() -> None:
    store = made_store([300] * 180)
    batches = PretrainBatches(store, IDS, lengths={64: 1.0}, batch_tokens=640, variable_share=0.3)
    sizes = [n for batch in epoch(batches) for n in batch["attention_mask"].sum(axis=1)]
    assert np.mean(np.asarray(sizes) < 64) == pytest.approx(0.3, abs=0.06)


def test_weights_repeat_and_drop_sources() -> None:
    store = made_store([100] * 40)
    batches = PretrainBatches(store, IDS, lengths={64: 1.0}, batch_tokens=640, weights={"source0": 2, "source1": 0})
    counts = Counter(np.concatenate([originals(batch) for batch in epoch(batches)]).tolist())
    assert set(counts.values()) == {2}
    assert set(counts) == {int(t) for i in range(0, 40, 2) for t in store.document(i)}
    with pytest.raises(M2BertError, match="sources that the data has"):
        PretrainBatches(store, IDS, lengths={64: 1.0}, batch_tokens=640, weights={"sauce": 1})


def test_pretraining_batches_depend_on_seed_and_index_alone() -> None:
    store = made_store([50] * 60)

    def make(seed: int) -> PretrainBatches:
        return PretrainBatches(store, IDS, lengths={32: 1.0}, batch_tokens=320, seed=seed)

    one, two, other = make(1), make(1), make(2)
    forwards = [one[i] for i in range(40)]
    # Out of order and over the end of an epoch.
    for i in (39, 3, 20, 0):
        for name, array in two[i].items():
            assert np.array_equal(array, forwards[i][name])
    assert not np.array_equal(other[0]["labels"], forwards[0]["labels"])
    assert one._first_of_epoch[1] < 40
    assert not np.array_equal(forwards[0]["labels"], forwards[one._first_of_epoch[1]]["labels"])


@pytest.mark.parametrize("lengths", [{}, {8: 1.0}, {64: 0.0}])
def test_lengths_are_checked(lengths: dict[int, float]) -> None:
    with pytest.raises(M2BertError, match="lengths must map"):
        PretrainBatches(made_store([50]), IDS, lengths=lengths, batch_tokens=320)


def test_pairs_of_files_and_tasks(tmp_path: Path, tokenizer: Any) -> None:
    pairs, train = write_pairs(tmp_path), write_task(tmp_path / "loco", "train")
    for _ in range(2):  # made, then read from the cache
        data = load_pairs([pairs], [train], tokenizer, tmp_path / "cache")
        assert data.documents.sources == ("topics", "tinytask")
        assert len(data.pairs) == 48 + 20
        assert len(data.documents) == 48 + 10
    query, document = data.pairs[-1]
    assert data.documents.document(document).tolist() == encode_ids(tokenizer, [make_text(9 % 6, 200, 2009)])[0]
    assert data.queries.document(query).tolist() == encode_ids(tokenizer, [make_text(19 % 6, 8, 3019)])[0]
    write_jsonl(tmp_path / "bad.jsonl", [{"query": "alone"}])
    with pytest.raises(M2BertError, match="string field positive"):
        load_pairs([tmp_path / "bad.jsonl"], [], tokenizer)


def make_contrast(tmp_path: Path, tokenizer: Any, **settings: Any) -> ContrastBatches:
    data = load_pairs([write_pairs(tmp_path)], [write_task(tmp_path / "loco", "train")], tokenizer)
    store = tokenize_documents(read_documents([write_corpus(tmp_path / "text")]), tokenizer)
    ends = frozenset(tokenizer.convert_tokens_to_ids(["."]))
    fields = {"lengths": {64: 1.0}, "batch_size": 8, "batch_tokens": 640, "max_query_tokens": 16, **settings}
    seed = fields.pop("seed", 17)
    weights = fields.pop("weights", None)
    chosen = FinetuneConfig(**fields)
    return ContrastBatches(
        labelled_sources(data), cloze_sources(store, ends), special_ids(tokenizer), chosen, weights=weights, seed=seed
    )


def test_contrast_batches_are_bounded_and_reproducible(tmp_path: Path, tokenizer: Any) -> None:
    batches, again = make_contrast(tmp_path, tokenizer), make_contrast(tmp_path, tokenizer)
    for i in (5, 0, 11, 30):
        batch = batches[i]
        assert all(np.array_equal(array, again[i][name]) for name, array in batch.items())
        queries, documents = batch["query_input_ids"], batch["document_input_ids"]
        assert 1 <= len(queries) <= 8
        assert len(queries) <= len(documents)
        assert queries.shape[1] <= 16
        assert documents.shape[1] <= 64
        assert documents.size <= 640
        assert len(np.unique(documents, axis=0)) == len(documents)
        assert len(np.unique(queries, axis=0)) == len(queries)
    other = make_contrast(tmp_path, tokenizer, seed=18)
    assert not all(np.array_equal(array, other[0].get(name)) for name, array in batches[0].items())


def test_labelled_documents_are_of_similar_length_unless_asked_otherwise(tmp_path: Path, tokenizer: Any) -> None:
    """Of 48 documents of 40 to 87 words, a batch of four comes from eight neighbours in length, or from all."""
    fields: dict[str, Any] = {"cloze_share": 0.0, "lengths": {256: 1.0}, "batch_size": 2, "batch_tokens": 8192}
    fields |= {"negatives": 2, "weights": {"tinytask": 0.0}, "crop": "head"}
    spreads = []
    for similar in (True, False):
        batches = make_contrast(tmp_path, tokenizer, similar_lengths=similar, **fields)
        lengths = [batches[i]["document_attention_mask"].sum(axis=1) for i in range(20)]
        assert all(len(each) == 4 for each in lengths)
        spreads.append(np.mean([each.max() / each.min() for each in lengths]))
    assert spreads[0] < 1.3 < spreads[1]


def test_labelled_batches_hold_true_pairs_of_one_set(tmp_path: Path, tokenizer: Any) -> None:
    batches = make_contrast(
        tmp_path, tokenizer, cloze_share=0.0, negatives=3, lengths={128: 1.0}, batch_tokens=4096,
        weights={"tinytask": 0.0}, crop="head",
    )  # fmt: skip
    positives = {}
    for i in range(48):
        text = make_text(i % 6, 40 + i, 1000 + i)
        positives[tuple(encode_ids(tokenizer, [text])[0][:126])] = i % 6
    batch = batches[0]
    assert (len(batch["query_input_ids"]), len(batch["document_input_ids"])) == (8, 11)
    for row, mask in zip(batch["document_input_ids"], batch["document_attention_mask"], strict=True):
        assert tuple(row[1 : mask.sum() - 1]) in positives
    for i, row in enumerate(batch["query_input_ids"]):
        length = int(batch["query_attention_mask"][i].sum())
        document = batch["document_input_ids"][i]
        document = document[: batch["document_attention_mask"][i].sum()]
        # Queries are words of their document's topic, which no other topic has.
        shared = np.isin(row[1 : length - 1], document).mean()
        assert shared > 0.3, (i, shared)


def test_other_answers_of_a_query_are_no_negatives(tokenizer: Any) -> None:
    def store(texts: list[str]) -> TokenStore:
        return tokenize_documents([Document(text, "set") for text in texts], tokenizer)

    # Query 0 has documents 0 and 3; queries 1 and 2 one each. A query is stored once per answer.
    queries = [make_text(topic, 8, 1) for topic in (0, 1, 2, 0)]
    documents = [make_text(topic, 30, 2 + place) for place, topic in enumerate((0, 1, 2, 0))]
    pairs = np.asarray([[i, i] for i in range(4)])
    (source,) = labelled_sources(PairData(store(queries), store(documents), pairs))
    settings = FinetuneConfig(lengths={512: 1.0}, batch_size=8, negatives=1)
    place_of = {source.data.documents.document(i).tobytes(): i for i in range(4)}
    found = 0
    for seed in range(8):
        drawn, texts, ignored = source.draw(np.random.default_rng(seed), settings, 510)
        topics = [(0, 1, 2, 0)[place_of[text.tobytes()]] for text in texts]
        expected = [[j != i and topics[j] == topics[i] for j in range(len(texts))] for i in range(len(drawn))]
        assert ignored.tolist() == expected
        found += int(ignored.sum())
    assert found > 0


def test_equal_texts_never_share_a_batch(tokenizer: Any) -> None:
    """Copies are one document with the queries of both; texts that differ beyond the crop alone come one at a time."""

    def store(texts: list[str]) -> TokenStore:
        return tokenize_documents([Document(text, "set") for text in texts], tokenizer)

    beginning = make_text(0, 60, 1)
    documents = [beginning + " " + make_text(1, 9, 2), beginning + " " + make_text(2, 9, 3)]
    documents += [make_text(topic, 70, 4) for topic in (3, 4, 5, 3)]
    queries = [make_text(topic % 6, 8, 10 + topic) for topic in range(6)]
    (source,) = labelled_sources(PairData(store(queries), store(documents), np.asarray([[i, i] for i in range(6)])))
    assert sorted(source.documents) == [0, 1, 2, 3, 4]  # the last is a copy of the third
    assert source.queries[2] == [2, 5]
    settings = FinetuneConfig(lengths={512: 1.0}, batch_size=8, crop="head")
    sizes: dict[int, set[int]] = {20: set(), 510: set()}
    for payload, found in sizes.items():
        for seed in range(6):
            drawn, texts, _ = source.draw(np.random.default_rng(seed), settings, payload)
            assert len({text.tobytes() for text in texts}) == len(texts) == len(drawn)
            found.add(len(texts))
    assert sizes == {20: {4}, 510: {5}}


def test_a_set_of_one_document_is_left_out(tokenizer: Any) -> None:
    documents = [Document(make_text(0, 9, i), "alone" if i == 0 else "set") for i in range(3)]
    store = tokenize_documents(documents, tokenizer)
    found = labelled_sources(PairData(store, store, np.asarray([[0, 0], [1, 1], [2, 2], [1, 0]])))
    assert [source.name for source in found] == ["set"]


def test_short_and_long_documents_come_by_their_shares(tmp_path: Path, tokenizer: Any) -> None:
    """Lengths are drawn batch by batch; a batch of long documents has fewer rows, so that its tokens are as many."""
    batches = make_contrast(
        tmp_path, tokenizer, cloze_share=0.0, lengths={32: 0.7, 128: 0.3}, batch_size=16, crop="head",
        weights={"tinytask": 0.0},
    )  # fmt: skip
    shapes = [batches[index]["document_input_ids"].shape for index in range(200)]
    assert {width for _, width in shapes} == {32, 128}
    # Five standard deviations of a binomial.
    assert np.mean([width == 128 for _, width in shapes]) == pytest.approx(0.3, abs=5 * (0.21 / 200) ** 0.5)
    assert {rows for rows, width in shapes if width == 32} == {16}
    assert {rows for rows, width in shapes if width == 128} == {640 // 128}


def test_cloze_queries_come_from_their_document(tmp_path: Path, tokenizer: Any) -> None:
    kept = make_contrast(tmp_path, tokenizer, cloze_share=1.0, keep_share=1.0, keyword_share=0.0)
    removed = make_contrast(tmp_path, tokenizer, cloze_share=1.0, keep_share=0.0, keyword_share=0.0)
    for batches, expected in ((kept, 1.0), (removed, 0.0)):
        found = []
        for index in range(6):
            batch = batches[index]
            for i, row in enumerate(batch["query_input_ids"]):
                query = row[1 : batch["query_attention_mask"][i].sum() - 1].astype(np.uint16).tobytes()
                found.append(query in batch["document_input_ids"][i].astype(np.uint16).tobytes())
        assert np.mean(found) == pytest.approx(expected, abs=0.05)


def test_contrast_refuses_what_it_cannot_serve(tmp_path: Path, tokenizer: Any) -> None:
    settings = FinetuneConfig(lengths={64: 1.0})
    with pytest.raises(M2BertError, match="needs pairs, tasks or plain text"):
        ContrastBatches([], [], IDS, settings)
    with pytest.raises(M2BertError, match="data sets that are there"):
        make_contrast(tmp_path, tokenizer, weights={"nothing": 1.0})
    with pytest.raises(M2BertError, match="must leave some data"):
        make_contrast(tmp_path, tokenizer, cloze_share=0.0, weights={"topics": 0.0, "tinytask": 0.0})

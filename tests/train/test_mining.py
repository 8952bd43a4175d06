"""Mined negatives: the best of brute force without any answer, where batches draw from, and a resumed run's lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from training_data import Stopped, logged_losses, small_tokenizer, stop_at, topic_words

from m2bert.bench.mixtures import word_scores
from m2bert.bench.tasks import RetrievalTask
from m2bert.data.contrast import ContrastBatches, LabelledSource, labelled_sources
from m2bert.data.examples import special_ids
from m2bert.data.pairs import PairData, load_pairs
from m2bert.data.tokens import TokenStore
from m2bert.errors import M2BertError
from m2bert.train.budget import process_group
from m2bert.train.finetune import finetune
from m2bert.train.mining import Mining, MiningSettings, bm25_scorer, mine, model_scorer, search_scorer
from m2bert.train.retrieval import Scoring, WholeModel
from m2bert.train.settings import FinetuneConfig


@pytest.fixture(scope="module")
def sources(world: Path) -> list[LabelledSource]:
    pairs = [world / "pairs.jsonl.gz", world / "many.jsonl"]
    return labelled_sources(load_pairs(pairs, [world / "loco"], small_tokenizer()))


def random_scorer(queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    for query in queries:
        rng = np.random.default_rng([len(query), int(query.sum())])
        yield rng.permutation(len(documents)).astype(np.float32)


def answers_of(sources: list[LabelledSource]) -> dict[int, set[bytes]]:
    """For each query the texts that answer it, from the pairs alone."""
    data = sources[0].data
    by_text: dict[bytes, set[bytes]] = {}
    for number, document in data.pairs:
        key = data.queries.document(number).tobytes()
        by_text.setdefault(key, set()).add(data.documents.document(document).tobytes())
    return {number: by_text[data.queries.document(number).tobytes()] for number in range(len(data.queries))}


def test_mined_are_the_best_that_do_not_answer(sources: list[LabelledSource]) -> None:
    mined = mine(sources, random_scorer, depth=5, pool=1000, rng=np.random.default_rng(0))
    data, answers = sources[0].data, answers_of(sources)
    assert max(len(texts) for texts in answers.values()) == 3
    for source in sources:
        documents = [data.documents.document(i) for i in source.documents]
        numbers = sorted({n for several in source.queries.values() for n in several})
        queries = [data.queries.document(number) for number in numbers]
        for number, scores in zip(numbers, random_scorer(queries, documents), strict=True):
            ranked = sorted(range(len(documents)), key=lambda i: -scores[i])
            expected = [source.documents[i] for i in ranked if documents[i].tobytes() not in answers[number]]
            assert mined[number].tolist() == expected[:5]
    assert (mined >= 0).all()


def store_of(*texts: list[int]) -> TokenStore:
    offsets = np.cumsum([0, *map(len, texts)])
    return TokenStore(np.concatenate(texts), offsets, np.zeros(len(texts), dtype=np.int32), ("set",))


def test_a_copy_of_an_answer_is_no_negative() -> None:
    data = PairData(store_of([5], [6], [7]), store_of([10, 11], [12], [10, 11]), np.asarray([[0, 0], [1, 1], [2, 2]]))
    mined = mine(labelled_sources(data), random_scorer, depth=3, pool=9, rng=np.random.default_rng(0))
    assert mined.tolist() == [[1, -1, -1], [0, -1, -1], [1, -1, -1]]


def test_what_says_nearly_the_same_as_an_answer_is_no_negative() -> None:
    """To a text of 300 tokens: all but 20 in the middle, and two thirds of it, are near; one third of it is not."""
    rng = np.random.default_rng(0)
    text, other = rng.integers(5, 900, 300).tolist(), rng.integers(5, 900, 300).tolist()
    documents = [text, text[:140] + other[:20] + text[160:], text[:100] + other[:200], text[:200], other]
    data = PairData(
        store_of(*([5 + i] for i in range(5))), store_of(*documents), np.asarray([[i, i] for i in range(5)])
    )
    mined = mine(labelled_sources(data), random_scorer, depth=5, pool=9, rng=np.random.default_rng(0))
    assert sorted(mined[0].tolist()) == [-1, -1, -1, 2, 4]
    assert sorted(mined[1].tolist()) == [-1, -1, -1, 2, 4]
    assert sorted(mined[2].tolist()) == sorted(mined[4].tolist()) == [-1, -1, 0, 1, 3]


@pytest.mark.parametrize("passages", [0.0, 0.3])
def test_the_models_own_negatives_are_scored_as_its_loss_scores(
    passages: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows than are encoded at once, of other lengths, against one text at a time."""
    monkeypatch.setattr("m2bert.train.scores.PASSAGE_TOKENS", 8)
    model, ids = tiny_model(pooling="weighted").train(), special_ids(tiny_tokenizer())
    rng = np.random.default_rng(0)
    queries, documents = ([rng.integers(5, 60, n) for n in lengths] for lengths in ((3, 9), rng.integers(2, 90, 70)))
    scoring = Scoring(WholeModel(model), 300, passages=passages)
    found = np.stack(list(model_scorer(scoring, model, ids, longest=50, bf16=False)(queries, documents)))
    assert model.training and found.shape == (2, 70)
    model.eval()

    def row(tokens: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        wrapped = torch.as_tensor([[ids.cls, *tokens[:48].tolist(), ids.sep]])
        return wrapped, torch.ones_like(wrapped)

    for i, query in enumerate(queries):
        for j in range(0, 70, 9):
            one = scoring.scores(scoring.queries(model, *row(query)), scoring.documents(model, *row(documents[j])))
            assert found[i, j] == pytest.approx(one.item(), abs=1e-5)


def test_negatives_of_search_are_ranked_by_words_too(sources: list[LabelledSource]) -> None:
    """The words' share is that which the benchmark ranks by."""
    tokenizer, source = small_tokenizer(), sources[0]
    texts = [
        [tokenizer.decode(store.document(i).tolist()) for i in numbers]
        for store, numbers in ((source.data.queries, [0, 5, 9]), (source.data.documents, source.documents))
    ]
    named = [{str(i): text for i, text in enumerate(side)} for side in texts]
    task = RetrievalTask("set", "train", named[1], named[0], {name: {"0": 1} for name in named[0]})
    queries = [source.data.queries.document(i) for i in (0, 5, 9)]
    documents = [source.data.documents.document(i) for i in source.documents]
    found = np.stack(list(search_scorer(random_scorer, tokenizer, 0.7)(queries, documents)))
    by_model = np.stack(list(random_scorer(queries, documents)))
    np.testing.assert_allclose(found - by_model, 0.7 * word_scores(task), atol=1e-5)
    assert (found - by_model).max() > 0.1


def test_a_pool_and_a_short_list(sources: list[LabelledSource]) -> None:
    mined = mine(sources, random_scorer, depth=30, pool=6, rng=np.random.default_rng(0))
    for row in mined:
        found = row[row >= 0]
        assert 3 <= len(found) <= 6 and (row[len(found) :] == -1).all() and len(set(found)) == len(found)


def test_bm25_finds_texts_of_the_same_words(sources: list[LabelledSource]) -> None:
    tokenizer = small_tokenizer()
    data = sources[0].data
    topics = next(source for source in sources if source.name == "topics")
    mined = mine([topics], bm25_scorer(tokenizer), depth=40, pool=1000, rng=np.random.default_rng(0))

    def topic_of(ids: np.ndarray) -> int:
        words = set(tokenizer.decode(ids.tolist()).replace(".", " ").split())
        return max(range(6), key=lambda topic: len(words & set(topic_words(topic))))

    # A text and a query share a word if they are of one topic: of the eight texts of each, one is the answer.
    for document in topics.documents:
        for number in topics.queries[document]:
            found = mined[number][mined[number] >= 0]
            assert 5 <= len(found) <= 7 and document not in found
            topic = topic_of(data.queries.document(number))
            assert {topic_of(data.documents.document(int(place))) for place in found} == {topic}


def real_rows(batch: dict[str, np.ndarray], side: str) -> list[bytes]:
    """Tokens of each row without special ones and padding, as the store holds them."""
    pairs = zip(batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"], strict=True)
    return [row[mask == 1][1:-1].astype(np.uint16).tobytes() for row, mask in pairs]


def test_batches_draw_mined_negatives_and_no_answers(sources: list[LabelledSource]) -> None:
    settings = FinetuneConfig(lengths={64: 1.0}, batch_size=3, negatives=4, batch_tokens=640, crop="head")
    mined = mine(sources, random_scorer, depth=5, pool=1000, rng=np.random.default_rng(0))
    data, answers = sources[0].data, answers_of(sources)
    places = {data.documents.document(i)[:62].tobytes(): i for i in range(len(data.documents))}
    numbers = {data.queries.document(i)[:62].tobytes(): i for i in range(len(data.queries))}
    batches = ContrastBatches(sources, [], special_ids(small_tokenizer()), settings)
    plain = [batches[i] for i in range(30)]
    batches.negatives_of = lambda index: mined
    hard = 0
    for index in range(30):
        batch = batches[index]
        assert np.array_equal(batch["query_input_ids"], plain[index]["query_input_ids"])
        asked = [numbers[row] for row in real_rows(batch, "query")]
        extra = [places[row] for row in real_rows(batch, "document")[len(asked) :]]
        assert len(asked) + len(extra) == len(plain[index]["document_input_ids"])
        assert len(set(extra)) == len(extra)
        hard += sum(place in mined[asked] for place in extra)
        for i, number in enumerate(asked):
            for j, place in enumerate(extra):
                answer = data.documents.document(place).tobytes() in answers[number]
                assert batch["ignored"][i, len(asked) + j] == answer
    assert hard > 100


def test_which_lists_a_batch_draws_from(sources: list[LabelledSource], tmp_path: Path) -> None:
    """Two batches a step, new lists every three steps: those of step n serve from the second step after it on."""
    settings = MiningSettings(depth=3, pool=50, refresh_steps=3, batches_per_step=2, folder=tmp_path / "mined", seed=1)
    made: list[int] = []

    def constant(queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        made.append(1)
        yield from (np.roll(np.arange(len(documents)), len(made)) for _ in queries)

    mining = Mining(sources, constant, settings)
    mining.begin(resumed=False)
    lists = {0: mining.negatives_of(0)}
    for step in range(1, 8):
        control = SimpleNamespace(should_training_stop=step == 7)
        mining.on_step_end(None, SimpleNamespace(global_step=step, max_steps=100), control)
    for version in (1, 2):
        lists[version] = np.load(tmp_path / "mined" / f"negatives-{version}.npy")
    assert sorted(path.name for path in (tmp_path / "mined").iterdir()) == [f"negatives-{v}.npy" for v in range(3)]
    used = [next(v for v in lists if np.array_equal(lists[v], mining.negatives_of(index))) for index in range(20)]
    assert used == [0] * 8 + [1] * 6 + [2] * 6
    again = Mining(sources, constant, settings)
    again.begin(resumed=True)
    assert np.array_equal(again.negatives_of(9), lists[1])
    (tmp_path / "mined" / "negatives-2.npy").unlink()
    with pytest.raises(M2BertError, match="must hold the mined negatives of the run that is resumed"):
        again.negatives_of(19)
    again.begin(resumed=False)
    assert [path.name for path in (tmp_path / "mined").iterdir()] == ["negatives-0.npy"]


def settings(world: Path, folder: Path, **overrides: Any) -> dict[str, Any]:
    return {
        "init": str(world / "model"), "pairs": [str(world / "pairs.jsonl.gz")], "output": str(folder),
        "cache": str(world / "cache"), "lengths": {64: 1.0}, "batch_size": 4, "negatives": 4, "batch_tokens": 640,
        "max_query_tokens": 16, "max_steps": 6, "logging_steps": 1, "save_steps": 3, "save_seconds": 0.0, "bf16": False,
        "threads": 1, **overrides,
    }  # fmt: skip


def test_a_run_that_mines_resumes_to_the_same_losses(world: Path, tmp_path: Path) -> None:
    mines = {"negatives_from": "self", "refresh_steps": 2, "mining_depth": 3, "learning_rate": 1e-2}
    finetune(FinetuneConfig(**settings(world, tmp_path / "whole", **mines)))
    lists = [np.load(tmp_path / "whole" / "mined" / f"negatives-{version}.npy") for version in range(3)]
    assert not np.array_equal(lists[0], lists[2])  # the model changed, and what it takes for near with it

    with pytest.raises(Stopped):
        finetune(FinetuneConfig(**settings(world, tmp_path / "stopped", **mines)), stop_at(5))
    finetune(FinetuneConfig(**settings(world, tmp_path / "stopped", **mines)))
    assert logged_losses(tmp_path / "stopped") == logged_losses(tmp_path / "whole")
    finetune(FinetuneConfig(**settings(world, tmp_path / "random", learning_rate=1e-2)))
    finetune(FinetuneConfig(**settings(world, tmp_path / "bm25", negatives_from="bm25", learning_rate=1e-2)))
    as_search = {**mines, "negatives_from": "search", "max_steps": 3}
    finetune(FinetuneConfig(**settings(world, tmp_path / "search", **as_search)))
    logs = [str(logged_losses(tmp_path / name)) for name in ("whole", "random", "bm25", "search")]
    assert len(set(logs)) == 4
    assert len(list((tmp_path / "search" / "mined").iterdir())) == 2
    # Harder negatives: the untrained model's own neighbours cost more than documents drawn at random.
    assert logged_losses(tmp_path / "whole")[1] > logged_losses(tmp_path / "random")[1]


def test_processes_that_have_not_met_know_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are made before the trainer lets the processes meet: one folder each, and the batches of all counted."""
    assert process_group() == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert process_group() == (1, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"negatives_from": "hard"}, "negatives_from must be one of random, bm25, self, search"),
        ({"negatives_from": "self", "negatives": 0}, "mined negatives need negatives above 0"),
        ({"negatives_from": "bm25", "pairs": [], "cloze": ["x"]}, "mined negatives need"),
        ({"mining_depth": 0}, "mining_depth must be at least 1"),
    ],
)
def test_bad_settings(world: Path, tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(M2BertError, match=message):
        finetune(FinetuneConfig(**settings(world, tmp_path / "run", **overrides)))

"""Embeddings: independent of batching, exactly the sum of their passages, nothing dropped silently."""

from __future__ import annotations

import collections
import copy
import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny import story, tiny_embedder, tiny_model, tiny_model_folder, tiny_tokenizer

import m2bert.encoders.windows
from m2bert.encoders.embedder import Embedder
from m2bert.encoders.passages import cut_passages
from m2bert.encoders.windows import inputs_of
from m2bert.errors import M2BertError

TEXTS = [story(length, seed=length) for length in (3, 250, 40, 1, 90, 12, 55, 700)]
ROOM = 62  # tokens of text in the tiny model's windows of 64


@functools.cache
def embedder() -> Any:
    return tiny_embedder()


def token_states(text: str, *, truncate: bool = False) -> np.ndarray:
    """All states (tokens, dim) of a text's windows, one window at a time, without padding: float64."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    count = 1 if truncate else -(-len(ids) // ROOM)
    bounds = [0, ROOM] if truncate else [number * len(ids) // count for number in range(count + 1)]
    states = []
    for first, last in itertools.pairwise(bounds):
        window = [tokenizer.cls_token_id, *ids[first:last], tokenizer.sep_token_id]
        with torch.inference_mode():
            states.append(model(torch.tensor([window])).last_hidden_state[0].double().numpy())
    return np.concatenate(states)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_encode_is_the_normalised_mean_of_all_windows_states() -> None:
    vectors = embedder().encode(TEXTS)
    assert vectors.shape == (len(TEXTS), 16) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(vector, unit(token_states(text).mean(axis=0)), atol=1e-5)
    # Random weights must tell texts apart, or the comparison above would show nothing.
    assert np.abs(vectors @ vectors.T - np.eye(len(TEXTS))).max() < 1 - 1e-3


def test_encode_agrees_with_the_models_pooling() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    ids = tokenizer.backend_tokenizer.encode(TEXTS[2], add_special_tokens=False).ids[:ROOM]
    window = torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])
    with torch.inference_mode():
        pooled = model(window).pooler_output[0].numpy()
    truncating = tiny_embedder(overflow="truncate")
    whole = len(tokenizer.backend_tokenizer.encode(TEXTS[2], add_special_tokens=False).ids)
    with pytest.warns(UserWarning, match=rf"of text 0, {whole} tokens, {ROOM} are read, .*'window' reads all of it"):
        np.testing.assert_allclose(truncating.encode([TEXTS[2]])[0], unit(pooled), atol=1e-5)
    truncating.encode([TEXTS[2]])  # said once: another warning would be an error


@pytest.mark.parametrize("batch_tokens", [1, 64, 200, 100_000])
def test_embedding_does_not_depend_on_the_batch(batch_tokens: int) -> None:
    alone = np.stack([embedder().encode([text])[0] for text in TEXTS])
    together = tiny_embedder(batch_tokens=batch_tokens).encode(TEXTS)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    reversed_order = embedder().encode(TEXTS[::-1])[::-1]
    np.testing.assert_allclose(reversed_order, alone, atol=1e-5)


def test_batches_stay_within_the_budget_longest_first(monkeypatch: Any) -> None:
    shapes: list[tuple[int, ...]] = []
    small = tiny_embedder(batch_tokens=200)

    def watching(*args: Any) -> Any:
        made = inputs_of(*args)
        shapes.append(made.input_ids.shape)
        return made

    monkeypatch.setattr("m2bert.encoders.embedder.inputs_of", watching)
    small.encode(TEXTS)
    assert all(rows == 1 or rows * seqlen <= 200 for rows, seqlen in shapes)
    assert [seqlen for _, seqlen in shapes] == sorted((seqlen for _, seqlen in shapes), reverse=True)
    assert max(rows for rows, _ in shapes) > 1


@pytest.mark.parametrize("overflow", ["window", "truncate"])
def test_passages_add_up_to_the_score(overflow: str) -> None:
    made = tiny_embedder(overflow=overflow).encode_documents(TEXTS)
    queries = tiny_embedder().encode(["copper harbor", "x", story(20, seed=77)])
    for document in made:
        shares = np.stack([passage.vector for passage in document.passages]) @ queries.T
        np.testing.assert_allclose(shares.sum(axis=0), queries @ document.vector, atol=1e-5)
    assert len(made[-1].passages) > (5 if overflow == "window" else 0)


def test_passage_vectors_are_the_sums_over_their_own_tokens() -> None:
    text = TEXTS[-1]
    document = embedder().encode_documents([text])[0]
    offsets = tiny_tokenizer().backend_tokenizer.encode(text, add_special_tokens=False).offsets
    states = token_states(text)
    norm = np.linalg.norm(states.sum(axis=0))
    count = -(-len(offsets) // ROOM)
    bounds = [number * len(offsets) // count for number in range(count + 1)]
    # Which characters each state stands for; [CLS] goes with the window's first token, [SEP] with its last.
    places = []
    for first, last in itertools.pairwise(bounds):
        inside = [offsets[number][0] for number in range(first, last)]
        places += [inside[0], *inside, inside[-1]]
    starts = np.asarray(places)
    assert len(document.passages) > 5
    for passage in document.passages:
        own = (starts >= passage.start) & (starts < passage.end)
        np.testing.assert_allclose(passage.vector, states[own].sum(axis=0) / norm, atol=1e-5)


def test_passages_cover_the_text_in_similar_pieces() -> None:
    for text, document in zip(TEXTS, embedder().encode_documents(TEXTS), strict=True):
        spans = [(passage.start, passage.end) for passage in document.passages]
        assert spans[0][0] == 0 and spans[-1][1] == len(text)
        assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
        assert all(start < end for start, end in spans)
        sizes = [len(tiny_tokenizer().tokenize(text[start:end])) for start, end in spans]
        assert len(spans) == max(1, round(sum(sizes) / 192))
        assert len(spans) == 1 or (min(sizes) >= 80 and max(sizes) <= 320)


def test_passages_of_a_truncated_text_cover_what_was_read() -> None:
    document = tiny_embedder(overflow="truncate").encode_documents([TEXTS[-1]])[0]
    end = document.passages[-1].end
    assert 0 < end < len(TEXTS[-1])
    assert len(tiny_tokenizer().tokenize(TEXTS[-1][:end])) == ROOM == document.num_tokens


def test_cut_passages_prefers_paragraphs_then_lines_then_sentences() -> None:
    def ends(text: str) -> list[str]:
        offsets = tiny_tokenizer().backend_tokenizer.encode(text, add_special_tokens=False).offsets
        _, spans = cut_passages(text, offsets, target=8)
        return [text[start:end] for start, end in spans]

    assert ends("a b c d e f g\n\n  h i\nj k l. m n o p") == ["a b c d e f g\n\n", "  h i\nj k l. m n o p"]
    assert ends("a b c d e f g.\n  h i j k l m n o p") == ["a b c d e f g.\n", "  h i j k l m n o p"]
    assert ends("a b c d e f. g h i j k l m n o p") == ["a b c d e f. ", "g h i j k l m n o p"]
    assert ends("a b c d e f g h i j k l m n o p") == ["a b c d e f g h ", "i j k l m n o p"]
    assert ends("a b\r\n\r\n") == ["a b\r\n\r\n"]


@pytest.mark.parametrize(
    "text", ["naïve café ﬁ Ǆ", "日本語のテキスト" * 40, "e\u0301" * 300, "a\u200b" * 200, "😀 " * 99]
)
def test_passages_cover_text_beyond_ascii(text: str) -> None:
    document = embedder().encode_documents([text])[0]
    spans = [(passage.start, passage.end) for passage in document.passages]
    assert "".join(text[start:end] for start, end in spans) == text


def test_counts_of_tokens_windows_and_truncation() -> None:
    total = len(tiny_tokenizer().tokenize(TEXTS[-1]))
    windowed = embedder().encode_documents([TEXTS[-1], "river"])
    assert (windowed[0].num_tokens, windowed[0].num_truncated) == (total, 0)
    assert windowed[0].num_windows == -(-total // ROOM)
    assert (windowed[1].num_tokens, windowed[1].num_windows, windowed[1].num_truncated) == (1, 1, 0)
    truncated = tiny_embedder(overflow="truncate").encode_documents([TEXTS[-1]])[0]
    assert (truncated.num_tokens, truncated.num_windows, truncated.num_truncated) == (ROOM, 1, total - ROOM)


def test_overflow_error_names_the_text_and_its_tokens() -> None:
    total = len(tiny_tokenizer().tokenize(TEXTS[1]))
    with pytest.raises(M2BertError, match=rf"text 1 has {total} tokens .* at most {ROOM}; use overflow="):
        tiny_embedder(overflow="error").encode(["river", TEXTS[1]])
    assert tiny_embedder(overflow="error").encode(["river"]).shape == (1, 16)


@pytest.mark.parametrize("pooling", ["cls", "cls_dense"])
def test_other_poolings_average_window_vectors_without_passages(pooling: str) -> None:
    other = tiny_embedder(pooling=pooling)
    model, tokenizer = tiny_model(pooling=pooling), tiny_tokenizer()
    ids = tokenizer.backend_tokenizer.encode(TEXTS[1], add_special_tokens=False).ids
    count = -(-len(ids) // ROOM)
    pooled = []
    for number in range(count):
        part = ids[number * len(ids) // count : (number + 1) * len(ids) // count]
        with torch.inference_mode():
            pooled.append(model(torch.tensor([[2, *part, 3]])).pooler_output[0].double().numpy())
    document = other.encode_documents([TEXTS[1], "river"])[0]
    assert document.passages == [] and document.num_windows == count > 2
    np.testing.assert_allclose(document.vector, unit(np.mean(pooled, axis=0)), atol=1e-5)
    np.testing.assert_allclose(other.encode([TEXTS[1]])[0], document.vector, atol=1e-6)


def test_padded_models_count_their_padding_in_the_budget() -> None:
    model = tiny_model(pad_to_max_length=True)
    padded = Embedder((model, tiny_tokenizer()), batch_tokens=200)
    alone = np.concatenate([padded.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(padded.encode(TEXTS), alone, atol=1e-5)
    plans = list(padded._plan_all(["river"] * 10, with_passages=False))
    assert [len(batch) for batch in padded._batches(plans)] == [3, 3, 3, 1]


def test_encode_and_encode_documents_agree() -> None:
    vectors = embedder().encode(TEXTS)
    documents = embedder().encode_documents(TEXTS)
    np.testing.assert_allclose([document.vector for document in documents], vectors, atol=1e-6)


def test_empty_list_is_no_error() -> None:
    assert embedder().encode([]).shape == (0, 16)
    assert embedder().encode_documents([]) == []


def test_progress_ends_with_all_tokens() -> None:
    calls: list[tuple[int, int]] = []
    tiny_embedder(batch_tokens=128).encode(TEXTS, progress=lambda done, total: calls.append((done, total)))
    assert calls[0][0] == 0 and calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert len({total for _, total in calls}) == 1 and len(calls) > 5


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["river", ""], "text 1 is empty"),
        (["river", " \n\t"], "text 1 is empty"),
        (["river", "\u200b\u200b"], "text 1 holds no tokens"),
        (["river", None], "text 1 must be a string, got NoneType"),
        (["river", b"bytes"], "text 1 must be a string, got bytes"),
        (["river", "a\ud800b"], "lone surrogate at character 1"),
        ("river", "a list of strings, got one str"),
        (None, "a list of strings, got NoneType"),
        ({"a": "river"}, "a list of strings, got dict"),
        (iter(["river"]), "a list of strings, got list_iterator"),
    ],
)
def test_bad_texts_are_refused(texts: Any, message: str) -> None:
    for encode in (embedder().encode, embedder().encode_documents):
        with pytest.raises(M2BertError, match=message):
            encode(texts)


@pytest.mark.parametrize("options", [{"overflow": "wrap"}, {"batch_tokens": 0}, {"batch_tokens": 2.5}, {"threads": 0}])
def test_bad_options_are_refused(options: Any) -> None:
    with pytest.raises(M2BertError, match="Embedder: "):
        tiny_embedder(**options)


def test_damaged_weights_name_the_text() -> None:
    model = tiny_model()
    with torch.no_grad():
        row = tiny_tokenizer().convert_tokens_to_ids("river")
        model.get_input_embeddings().weight[row] = float("nan")
    damaged = Embedder((model, tiny_tokenizer()))
    assert np.isfinite(damaged.encode(["stone"])).all()
    with pytest.raises(M2BertError, match="the embedding of text 1 must be finite"):
        damaged.encode(["stone", "a river"])


def test_training_mode_threads_and_autocast_are_left_as_they_were() -> None:
    model = tiny_model(hidden_dropout_prob=0.5).train()
    dropping = Embedder((model, tiny_tokenizer()), threads=1)
    before = torch.get_num_threads()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = dropping.encode(TEXTS[:3])
        assert torch.is_autocast_enabled("cpu")
    assert model.training and torch.get_num_threads() == before
    np.testing.assert_allclose(first, embedder().encode(TEXTS[:3]), atol=1e-5)


def test_model_folder_keeps_name_fingerprint_and_embeddings(tmp_path: Any) -> None:
    folder = tiny_model_folder(tmp_path / "small")
    loaded = Embedder(folder)
    assert (loaded.name, loaded.location) == ("small", str(folder))
    assert loaded.fingerprint == Embedder(str(folder)).fingerprint == embedder().fingerprint
    assert loaded.fingerprint != tiny_embedder(seed=1).fingerprint
    assert (loaded.dim, loaded.max_tokens) == (16, 64)
    np.testing.assert_allclose(loaded.encode(TEXTS), embedder().encode(TEXTS), atol=1e-6)
    with pytest.raises(M2BertError, match="a model must be a folder"):
        Embedder("no-such-model")


@pytest.mark.parametrize("model", [None, 5, (1, 2), (1, 2, 3), ["m2-bert-mini"]])
def test_other_things_than_models_are_refused(model: Any) -> None:
    with pytest.raises(M2BertError, match="model must be a name, a folder or a pair"):
        Embedder(model)


def test_tokenizer_of_another_model_is_refused() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_tokens(["unheard"])
    with pytest.raises(M2BertError, match="use the tokenizer it was trained with"):
        Embedder((tiny_model(), tokenizer))


def test_documents_without_passages_have_the_same_vectors_and_counts() -> None:
    for document, bare in zip(
        embedder().encode_documents(TEXTS), embedder().encode_documents(TEXTS, passages=False), strict=True
    ):
        assert bare.passages == [] and document.passages
        np.testing.assert_allclose(bare.vector, document.vector, atol=1e-6)
        for name in ("num_tokens", "num_windows", "num_truncated"):
            assert getattr(bare, name) == getattr(document, name)


def term_embedder() -> tuple[Embedder, np.ndarray]:
    """The tiny model with weights that are told apart; those of "stone" and of full stops are 0."""
    model = tiny_model(term_weights=True)
    weights = np.linspace(0.5, 2.5, int(model.config.vocab_size))
    weights[[tiny_tokenizer().convert_tokens_to_ids(piece) for piece in ("stone", ".")]] = 0.0
    with torch.no_grad():
        model.term_weights.weight.copy_(torch.from_numpy(weights))
    return Embedder((model, tiny_tokenizer())), weights


def test_sparse_vectors_are_weighted_counts_of_pieces() -> None:
    sparse, weights = term_embedder()
    texts = ["river River, stone. cab", *TEXTS]
    pieces = tiny_tokenizer().get_vocab()
    vectors = sparse.encode_sparse(texts)
    rows = []
    for text, vector in zip(texts, vectors, strict=True):
        counts = collections.Counter(tiny_tokenizer().tokenize(text))
        values = {pieces[piece]: weights[pieces[piece]] * math.log2(1 + count) for piece, count in counts.items()}
        values = {index: value for index, value in sorted(values.items()) if value}
        norm = math.sqrt(sum(value * value for value in values.values()))
        assert vector.indices.tolist() == list(values)
        np.testing.assert_allclose(vector.values, [value / norm for value in values.values()], rtol=1e-6)
        assert vector.indices.dtype == np.int32 and vector.values.dtype == np.float32
        assert float(np.linalg.norm(vector.values.astype(np.float64))) == pytest.approx(1.0, abs=1e-6)
        rows.append({index: value / norm for index, value in values.items()})
    assert [sparse.piece(index) for index in vectors[0].indices] == ["river", "c", ",", "##a", "##b"]
    # The product of two is the sum over the pieces that they share.
    for one, vector in zip(rows, vectors, strict=True):
        shared = sum(value * rows[2].get(index, 0.0) for index, value in one.items())
        assert vector.dot(vectors[2]) == pytest.approx(shared, abs=1e-6)
    assert len(TEXTS[-1]) > 64 and sparse.encode_sparse([]) == []


def test_sparse_vectors_that_cannot_be_are_refused() -> None:
    with pytest.raises(M2BertError, match="has no term weights, so its texts have no sparse vectors; use"):
        embedder().encode_sparse(["river"])
    sparse, _ = term_embedder()
    with pytest.raises(M2BertError, match=r"text 1 holds no word of weight, got 'stone\. stone'"):
        sparse.encode_sparse(["river", "stone. stone"])
    with pytest.raises(M2BertError, match="text 1 is empty"):
        sparse.encode_sparse(["river", " "])
    with pytest.raises(M2BertError, match=f"an index must be 0 or more and below {len(tiny_tokenizer())}, got 10000"):
        sparse.piece(10_000)


def test_a_model_folder_may_have_a_mixture_of_its_own(tmp_path: Any) -> None:
    folder = tiny_model_folder(tmp_path / "small")
    assert Embedder(folder).mixture.words == 0.7
    (folder / "ranking.json").write_text('{"whole": 1, "passages": 0, "words": 0.25}')
    assert Embedder(folder).mixture.used == ["whole", "words"] and Embedder(folder).mixture.words == 0.25
    (folder / "ranking.json").write_text('{"wholes": 1}')
    with pytest.raises(M2BertError, match=r"ranking\.json must hold weights such as"):
        Embedder(folder)


def test_a_stream_gives_what_a_list_gives_and_reads_no_further(monkeypatch: Any) -> None:
    monkeypatch.setattr(m2bert.encoders.windows, "TEXTS_STREAMED", 4)
    monkeypatch.setattr(m2bert.encoders.windows, "CHARACTERS_STREAMED", 200)
    encoder = tiny_embedder()
    texts = [story(3 + n % 7, seed=n) for n in range(11)] + [story(90, seed=1)]
    given: list[int] = []
    stream = encoder.encode_stream(given.append(n) or text for n, text in enumerate(texts))
    first = next(stream)
    assert 0 < len(given) <= 4
    vectors = np.stack([first, *stream])
    assert vectors.shape == (12, encoder.dim) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, encoder.encode(texts), atol=2e-6)
    assert list(encoder.encode_stream(iter(()))) == []
    with pytest.raises(M2BertError, match="text 9 is empty"):
        list(encoder.encode_stream([*texts[:9], " "]))
    for wrong in ("a text", 5):
        with pytest.raises(M2BertError, match="iterable of strings"):
            next(encoder.encode_stream(wrong))  # type: ignore[arg-type]

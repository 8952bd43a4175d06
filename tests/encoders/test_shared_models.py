"""An Embedder and its model: neither disturbs the other, filters follow the weights, and transformers is not needed."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import story, tiny_embedder, tiny_model, tiny_tokenizer

from m2bert.encoders.embedder import Embedder
from m2bert.errors import M2BertError
from m2bert.model.filters import LongConv

TEXTS = [story(length, seed=length) for length in (3, 250, 40, 1, 90, 12, 55, 700)]


def state_of(model: Any) -> list[Any]:
    return [model.add_pooling, model.filter_bank.pinned, [part.training for part in model.modules()]]


@pytest.mark.parametrize("training", [False, True])
def test_a_model_in_use_stays_as_it_is(training: bool) -> None:
    """Two calls overlap, and at every step of either the model pools, drops out and looks for changes as before."""
    model = tiny_model(pooling="weighted", hidden_dropout_prob=0.5).train(training)
    shared, before = Embedder((model, tiny_tokenizer()), batch_tokens=64), state_of(model)
    second_began, first_ended = threading.Event(), threading.Event()
    found: dict[str, Any] = {}

    def first() -> None:
        def progress(done: int, total: int) -> None:
            assert state_of(model) == before and (done == 0 or second_began.wait(20))

        found["first"] = shared.encode(TEXTS, progress=progress)
        first_ended.set()

    def second() -> None:
        def progress(done: int, total: int) -> None:
            second_began.set()
            assert (done == 0 or first_ended.wait(20)) and state_of(model) == before

        found["second"] = shared.encode(TEXTS, progress=progress)

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    alone = Embedder((tiny_model(pooling="weighted"), tiny_tokenizer()), batch_tokens=64).encode(TEXTS)
    for name in ("first", "second"):
        np.testing.assert_allclose(found[name], alone, atol=1e-6)
    assert state_of(model) == before


def test_embeddings_follow_the_weights() -> None:
    model = tiny_model()
    following = Embedder((model, tiny_tokenizer()))
    before = following.encode(TEXTS)
    for parameter in model.parameters():
        parameter.data.mul_(1.05)
    other = tiny_model()
    other.load_state_dict(model.state_dict())
    expected = Embedder((other, tiny_tokenizer())).encode(TEXTS)
    np.testing.assert_allclose(following.encode(TEXTS), expected, rtol=0, atol=0)
    assert np.abs(expected - before).max() > 1e-4


def test_a_second_query_makes_no_filters(monkeypatch: Any) -> None:
    made, generate = [], LongConv.blocks
    monkeypatch.setattr(LongConv, "blocks", lambda conv, *args: made.append(conv.index) or generate(conv, *args))
    warm = tiny_embedder()
    warm.encode(["river stone"])
    assert len(made) == 4
    warm.encode(["a longer query about a river"])
    assert len(made) == 4
    warm._model.embeddings.norm.weight.data.mul_(2)  # no parameter of a filter
    warm.encode(["river"])
    assert len(made) == 4
    warm._model.encoder.blocks[0].sequence_mixer.long_conv.frequency.data.mul_(2)
    warm.encode(["river"])
    assert len(made) == 5


def test_a_default_dtype_of_others_changes_nothing() -> None:
    expected = tiny_embedder().encode(TEXTS)
    fresh = tiny_embedder()
    torch.set_default_dtype(torch.bfloat16)
    try:
        np.testing.assert_allclose(fresh.encode(TEXTS), expected, atol=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)


def test_encoding_needs_no_transformers() -> None:
    code = """
import sys
from m2bert import Embedder
(document,) = Embedder().encode_documents(["a heron by the lake"])
assert len(document.vector) == 768 and document.passages
for package in ("transformers", "torch._dynamo", "sympy"):
    assert package not in sys.modules, package
import m2bert
from m2bert.model import load_tokenizer
sys.modules["transformers"] = None  # as where it is not installed
for needed in (lambda: m2bert.M2BertModel, lambda: m2bert.M2BertConfig, lambda: load_tokenizer(m2bert.model_folder())):
    try:
        needed()
    except m2bert.M2BertError as error:
        assert "needs transformers; run pip install '.[transformers]'" in str(error)
    else:
        raise AssertionError("transformers was not needed")
"""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")


def test_models_without_the_layers_of_their_pooling_are_refused() -> None:
    learned = ({"bilinear_features": 8}, {"projection_dim": 8}, {"term_weights": True})
    for fields in (*learned, {"pooling": "weighted"}, {"pooling": "cls_dense"}):
        bare = type(tiny_model())(tiny_model(**fields).config, add_pooling_layer=False)
        with pytest.raises(M2BertError, match="must have the layers of its pooling"):
            Embedder((bare, tiny_tokenizer()))
    bare = type(tiny_model())(tiny_model().config, add_pooling_layer=False).eval()
    assert Embedder((bare, tiny_tokenizer())).encode(["river"]).shape == (1, 16)

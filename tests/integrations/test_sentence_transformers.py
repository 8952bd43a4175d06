"""Our model folders as SentenceTransformers and SparseEncoders: options, saving, training, no `import m2bert`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optional import needs
from tiny import WORDS, story, tiny_model, tiny_tokenizer

from m2bert.encoders.embedder import Embedder
from m2bert.errors import M2BertError
from m2bert.integrations import sparse_encoder
from m2bert.model.checkpoints import save_model

pytestmark = needs("peers", "sentence_transformers")
FIELDS = {"pooling": "weighted", "bilinear_features": 8, "projection_dim": 12, "term_weights": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("opened") / "model"
    model = tiny_model(**FIELDS)
    with torch.no_grad():
        model.term_weights.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(5))
    save_model(model, tiny_tokenizer(), place)
    return place


TEXTS = [story(n, seed=n) for n in (1, 3, 20, 50, 200, 700)]


def opened(folder: Path, kind: str = "SentenceTransformer", **options: Any) -> Any:
    """By their class."""
    import sentence_transformers

    return getattr(sentence_transformers, kind)(str(folder), device="cpu", **options)


def unit(x: Any) -> np.ndarray:
    rows = np.asarray(x, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_options_of_encode_mean_what_they_say(folder: Path) -> None:
    model = opened(folder)
    vectors = model.encode(TEXTS)
    assert abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    for encode in (model.encode_query, model.encode_document):
        np.testing.assert_allclose(encode(TEXTS), vectors, atol=1e-6)  # their prompts are empty
    assert model.prompts == {"query": "", "document": ""}
    np.testing.assert_allclose(
        model.encode(TEXTS, prompt="river: "), model.encode(["river: " + text for text in TEXTS]), atol=1e-6
    )
    shorter = opened(folder, truncate_dim=5)
    assert shorter.get_embedding_dimension() == 5
    np.testing.assert_allclose(unit(shorter.encode(TEXTS)), Embedder(folder, truncate_dim=5).encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(model.similarity(vectors, vectors), vectors @ vectors.T, atol=1e-6)
    bits = model.encode(TEXTS, precision="binary")
    np.testing.assert_array_equal(bits.astype(np.int16) + 128, np.packbits(vectors > 0, axis=1))
    ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
    bytes_ = sentence_bytes(vectors, ranges)
    assert bytes_.dtype == np.int8 and bytes_.shape == vectors.shape


def sentence_bytes(vectors: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    from sentence_transformers.util import quantize_embeddings

    made = quantize_embeddings(vectors, precision="int8", ranges=ranges)
    step = (ranges[1] - ranges[0]) / 255
    np.testing.assert_allclose((made.astype(float) + 128) * step + ranges[0], vectors, atol=float(step.max()) * 1.01)
    return np.asarray(made)


def test_nothing_is_cut_unless_asked_for(folder: Path) -> None:
    model = opened(folder)
    assert model.max_seq_length > 10**6
    model.max_seq_length = 34
    expected = Embedder((model[0].model, model.tokenizer), overflow="truncate")
    assert expected.max_tokens == 34
    read = expected.encode_documents(TEXTS)
    assert [one.num_truncated > 0 for one in read] == [False, False, False, True, True, True]
    whole = max(one.num_tokens + one.num_truncated for one in read) + 2
    with pytest.warns(
        UserWarning, match=rf"of a text of {whole} tokens 34 are read, because max_seq_length is 34; raise"
    ):
        np.testing.assert_allclose(model.encode(TEXTS), [one.vector for one in read], atol=1e-5)
    model.encode(TEXTS)  # it was said: a second warning would be an error
    model.max_seq_length = 33
    with pytest.warns(UserWarning, match="33 are read"):
        model.encode(TEXTS)
    model.max_seq_length = 32
    model.encode(["river " * 30])  # fits


def test_a_saved_model_opens_again(folder: Path, tmp_path: Path) -> None:
    model = opened(folder)
    model.save(str(tmp_path / "saved"))
    saved = opened(tmp_path / "saved")
    assert saved.max_seq_length == 64  # which sentence-transformers does not save: it takes the model's positions
    saved.max_seq_length = model.max_seq_length
    for either in (saved, Embedder(tmp_path / "saved")):
        np.testing.assert_allclose(either.encode(TEXTS), model.encode(TEXTS), atol=1e-5)
    # What transformers alone saves is as good, and keeps nothing of sentence-transformers from doing so.
    model[0].model.save_pretrained(tmp_path / "bare")
    model.tokenizer.save_pretrained(tmp_path / "bare")
    bare = opened(tmp_path / "bare")
    np.testing.assert_allclose(bare.encode(TEXTS), model.encode(TEXTS), atol=1e-5)


def test_the_words_of_a_text_are_a_sparse_encoder(folder: Path, tmp_path: Path) -> None:
    model = sparse_encoder(folder, device="cpu")
    assert model.get_embedding_dimension() == len(tiny_tokenizer()) and model.similarity_fn_name == "dot"
    expected = np.zeros((len(TEXTS), len(tiny_tokenizer())))
    for row, one in zip(expected, Embedder(folder).encode_sparse(TEXTS), strict=True):
        row[one.indices] = one.values
    found = model.encode(TEXTS)
    assert found.is_sparse
    np.testing.assert_allclose(found.to_dense(), expected, atol=1e-6)
    np.testing.assert_allclose(model.encode(TEXTS, batch_size=1).to_dense(), expected, atol=1e-6)
    model.save(str(tmp_path / "words"))
    again = opened(tmp_path / "words", "SparseEncoder")
    np.testing.assert_allclose(again.encode_query(TEXTS).to_dense(), expected, atol=1e-6)
    save_model(tiny_model(), tiny_tokenizer(), tmp_path / "wordless")
    with pytest.raises(M2BertError, match=r"sparse_encoder: the model must have term weights, .*wordless.* has none"):
        sparse_encoder(tmp_path / "wordless")


@pytest.mark.parametrize("kind", ["SparseEncoder", "MultiVectorEncoder"])
def test_other_kinds_of_models_are_not_made_of_ours_in_silence(folder: Path, kind: str) -> None:
    remedy = "sparse_encoder({name!r})" if kind == "SparseEncoder" else "open it as a SentenceTransformer"
    said = f"{kind}: {str(folder)!r} is a model of dense vectors, and a {kind} of it would have layers that nobody has"
    with pytest.raises(M2BertError, match=re.escape(said) + ".*" + re.escape(remedy.format(name=str(folder)))):
        opened(folder, kind)


@pytest.mark.filterwarnings("ignore")  # of the trainers' own future
def test_their_trainer_and_losses_train_our_model(tmp_path: Path) -> None:
    import datasets
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    words = WORDS.split()
    pairs = [(word, f"{words[(n + 5) % 15]} {words[(n + 5) % 15]}") for n, word in enumerate(words)]
    fresh = tiny_model(**FIELDS, identity_init=True, filter_window="multiscale")
    save_model(fresh, tiny_tokenizer(), tmp_path / "fresh")
    model = opened(tmp_path / "fresh")
    before = model.encode(["river"])
    evaluator = InformationRetrievalEvaluator(
        {str(n): one for n, (one, _) in enumerate(pairs)}, {str(n): two for n, (_, two) in enumerate(pairs)},
        {str(n): {str(n)} for n in range(15)}, name="pairs",
    )  # fmt: skip
    score = evaluator(model)["pairs_cosine_ndcg@10"]
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path), max_steps=15, per_device_train_batch_size=15, learning_rate=1e-2, use_cpu=True,
            report_to="none", disable_tqdm=True, save_strategy="no", lr_scheduler_type="constant",
        ),
        train_dataset=datasets.Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]}),
        loss=MultipleNegativesRankingLoss(model),
    )  # fmt: skip
    trainer.train()
    assert score < 0.5 and evaluator(model)["pairs_cosine_ndcg@10"] > 0.8
    model.save(str(tmp_path / "trained"))
    embedder = Embedder(tmp_path / "trained")
    assert abs(embedder.encode(["river"]) - before).max() > 1e-2
    np.testing.assert_allclose(embedder.encode(TEXTS), model.encode(TEXTS), atol=1e-5)


# The process of the pool is forked, because a new one would take seconds to import all of this; it gets its work alike.
FRESH = """
import json, multiprocessing, sys
import torch
from sentence_transformers import SentenceTransformer
torch.set_num_threads(1)
torch.multiprocessing.get_context = lambda method: multiprocessing.get_context("fork")
if __name__ == "__main__":
    folder, texts = sys.argv[1], json.loads(sys.argv[2])
    try:
        SentenceTransformer(folder, device="cpu")
    except ValueError as error:
        refused = str(error)
    assert "m2bert" not in sys.modules
    remote = SentenceTransformer(folder, device="cpu", trust_remote_code=True)
    assert type(remote[0].model).__module__ == "m2bert.model.modeling", type(remote[0].model).__module__
    elsewhere = remote.encode(texts, device=["cpu"], chunk_size=2)
    print(json.dumps([refused, remote.encode(texts).tolist(), elsewhere.tolist()]))
"""


def test_without_our_package_imported_there_are_no_other_vectors(folder: Path, tmp_path: Path) -> None:
    """It is refused with the flag's name; with the flag our package is imported; a process of a pool gives the same."""
    program = tmp_path / "program.py"
    program.write_text(FRESH, encoding="utf-8")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, str(program), str(folder), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    refused, alone, elsewhere = json.loads(done.stdout.splitlines()[-1])
    assert "trust_remote_code=True" in refused
    expected = Embedder(folder).encode(TEXTS)
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    np.testing.assert_allclose(elsewhere, expected, atol=1e-5)

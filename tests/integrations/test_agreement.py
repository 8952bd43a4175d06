"""One vector for a text, whoever computes it: every way into every kind of model folder that our commands write.

Oracle: the definition, written out here: states of windows from AutoModel, pooled in float64 by the formulas of
docs/architecture.md's poolings. 200 texts of 1 to 20,000 tokens, most of them short, in batches of different make-up.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optional import needs
from tiny import WORDS, tiny_model, tiny_tokenizer
from transformers import AutoModel, AutoTokenizer

import m2bert  # noqa: F401 - what users do
from m2bert.encoders.embedder import Embedder
from m2bert.model.checkpoints import save_model
from m2bert.model.modeling import M2BertForMaskedLM

pytestmark = needs("peers", "sentence_transformers")

POSITIONS = 64
EVERYTHING = {"pooling": "weighted", "bilinear_features": 8, "projection_dim": 12, "term_weights": True}
KINDS: dict[str, dict[str, Any]] = {
    "mean": {},
    "weighted, with all layers": EVERYTHING,
    "as released": {"pooling": "cls_dense", "pad_to_max_length": True},
    "masked language model": {},
}
# Words of the texts: around the edges of one window and of two, some long ones, one of 20,000, and many short ones.
EDGES = [1, 2, 3, 17, 61, 62, 63, 64, 100, 124, 125, 300, 1000, 5]
LENGTHS = [*EDGES, *(1 + 7 * number % 59 for number in range(180)), 400, 700, 1500, 2500, 5000, 20_000]


def texts() -> list[str]:
    assert len(LENGTHS) == 200
    rng = np.random.default_rng(0)
    words = WORDS.split()
    return [" ".join(rng.choice(words, length)) for length in LENGTHS]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of one kind; its tokenizer says that it reads less than the model does."""
    place = tmp_path_factory.mktemp("kind") / "model"
    model = tiny_model(max_tokens=POSITIONS, **KINDS[request.param])
    if request.param == "masked language model":
        model = M2BertForMaskedLM(model.config).eval()
    else:
        with torch.no_grad():
            for layer in (model.token_weights, model.projection, model.term_weights):
                if layer is not None:
                    layer.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(5))
    save_model(model, tiny_tokenizer(32), place, dtype=torch.bfloat16)
    return place


def unit(x: Any) -> np.ndarray:
    rows = np.asarray(x, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@torch.no_grad()
def pooled_by_hand(model: Any, tokenizer: Any, text: str) -> np.ndarray:
    """The vector of one text, from the states that AutoModel gives for each of its windows."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    body, room = ids[1:-1], POSITIONS - 2
    count = -(-len(body) // room)
    cuts = [len(body) * part // count for part in range(count + 1)]
    windows = [[ids[0], *body[start:stop], ids[-1]] for start, stop in pairwise(cuts)]
    times = {token: sum(window.count(token) for window in windows) for token in set(ids)}
    total = 0.0
    for window in windows:
        out = model(torch.tensor([window]))
        if model.config.pooling == "cls_dense":
            total = total + out.pooler_output[0].double()
            continue
        states = out.last_hidden_state[0]
        weights = torch.ones(len(window), dtype=torch.float64)
        if model.config.pooling == "weighted":
            factors = [np.log2(1 + times[token]) / times[token] for token in window]
            weights = model.token_weights(states).double() * torch.tensor(factors, dtype=torch.float64)
        features = states if model.bilinear_features is None else model.bilinear_features(states)
        total = total + weights @ features.double()
    if model.projection is not None:
        total = model.projection.weight.double() @ total
    return unit(total.numpy())


def test_every_way_gives_the_same_vectors(folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    given = texts()
    expected = Embedder(folder).encode(given)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    written_out = [*range(len(EDGES)), *range(20, 200, 30)]  # some are computed by hand, all are compared below
    by_hand = [pooled_by_hand(model, tokenizer, given[number]) for number in written_out]
    np.testing.assert_allclose(expected[written_out], by_hand, atol=1e-5)
    opened = SentenceTransformer(str(folder), device="cpu")
    assert opened.get_embedding_dimension() == expected.shape[1] and opened.similarity_fn_name == "cosine"
    for batch_size in (1, 32):
        np.testing.assert_allclose(opened.encode(given, batch_size=batch_size), expected, atol=1e-5)
    assert model.dtype == torch.float32 and tokenizer.model_max_length == POSITIONS
    with torch.no_grad():
        for start, stop in ((0, 14), (14, 194), (194, 199), (199, 200)):  # padded to the longest of each
            inputs = tokenizer(given[start:stop], padding=True, return_tensors="pt", verbose=False)
            np.testing.assert_allclose(unit(model(**inputs).pooler_output), expected[start:stop], atol=1e-5)
    assert abs(unit(expected) @ unit(expected).T).min() < 0.99  # not all zeros
    shuffled = np.roll(expected, 1, axis=0)
    assert abs(shuffled - expected).max() > 1e-2  # another text is told apart


@pytest.mark.parametrize("folder", ["weighted, with all layers"], indirect=True)
@pytest.mark.filterwarnings("ignore")  # other packages warn of their own future
@needs("test", "mteb", "langchain_core", "llama_index")
def test_other_libraries_give_the_same_vectors(folder: Path) -> None:
    from datasets import Dataset
    from mteb._create_dataloaders import create_dataloader
    from mteb.models import SentenceTransformerEncoderWrapper
    from mteb.types import PromptType
    from sentence_transformers import SentenceTransformer

    from m2bert.bench.mteb_adapter import as_mteb_model
    from m2bert.integrations import LangChainEmbeddings, LlamaIndexEmbedding

    given, embedder = texts(), Embedder(folder)
    expected = embedder.encode(given)
    opened = SentenceTransformer(str(folder), device="cpu")
    batches = create_dataloader(Dataset.from_dict({"text": given}), task_metadata=_task(), batch_size=7)
    for prompt_type in (PromptType.query, PromptType.document):
        for wrapped in (as_mteb_model(embedder), SentenceTransformerEncoderWrapper(opened)):
            found = wrapped.encode(
                batches, task_metadata=_task(), hf_split="test", hf_subset="default", prompt_type=prompt_type
            )
            np.testing.assert_allclose(np.asarray(found), expected, atol=1e-5)
    chain, llama = LangChainEmbeddings(embedder), LlamaIndexEmbedding(embedder)
    np.testing.assert_allclose(chain.embed_documents(given), expected, atol=1e-6)
    np.testing.assert_allclose(chain.embed_query(given[3]), expected[3], atol=1e-5)
    np.testing.assert_allclose(llama.get_text_embedding_batch(given), expected, atol=1e-5)
    np.testing.assert_allclose(llama.get_query_embedding(given[3]), expected[3], atol=1e-5)


def _task() -> Any:
    from m2bert.bench.mteb_adapter import as_mteb_task
    from m2bert.bench.tasks import RetrievalTask

    return as_mteb_task(RetrievalTask("none", "test", {"d": "w"}, {"q": "w"}, {"q": {"d": 1}})).metadata

"""Encoders as ordinary models of mteb, and retrieval tasks as ordinary tasks of it: BEIR, MTEB, and a second opinion.

    import mteb
    from m2bert import Embedder
    from m2bert.bench.mteb_adapter import as_mteb_model
    results = mteb.evaluate(as_mteb_model(Embedder()), mteb.get_tasks(["NFCorpus", "SciFact"]))

Needs mteb 2 (the extra `mteb`) when a function is called; mteb fetches its own tasks from the hub.
Test: tests/bench/test_mteb_adapter.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2bert.bench.tasks import RetrievalTask
from m2bert.encoders.protocol import Encoder
from m2bert.errors import M2BertError


def load_mteb() -> Any:
    """The mteb module; M2BertError if it is missing."""
    try:
        import mteb
    except ImportError as error:
        raise M2BertError("mteb: needs mteb; run pip install '.[mteb]' in the project's folder") from error
    return mteb


def as_mteb_model(encoder: Encoder) -> Any:
    """A model for mteb.evaluate: queries through `encode`, everything else through `encode_documents`, as they are.

    No prompt is put before a text. mteb's corpora hold texts without words, which have no embedding: they get the
    zero vector, whose similarity with everything is 0.
    """
    load_mteb()
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType

    class MtebModel(AbsEncoder):
        mteb_model_meta = ModelMeta.create_empty({
            "name": f"m2bert/{encoder.name}", "revision": encoder.fingerprint, "max_tokens": encoder.max_tokens,
            "similarity_fn_name": ScoringFunction.COSINE, "open_weights": True,
        })  # fmt: skip

        def __init__(self) -> None:
            self.model = encoder

        def encode(self, inputs: Any, *, prompt_type: Any = None, **options: Any) -> NDArray[np.float32]:
            """Embeddings (texts, dim) float32; `inputs` are batches of {"text": [...]}."""
            texts = [text for batch in inputs for text in batch["text"]]
            return _encode(encoder, texts, is_query=prompt_type == PromptType.query)

    return MtebModel()


def _encode(encoder: Encoder, texts: list[str], *, is_query: bool) -> NDArray[np.float32]:
    worded = [number for number, text in enumerate(texts) if text.strip()]
    if not worded:
        raise M2BertError(f"mteb: needs a text with words, got {len(texts)} without")
    chosen = [texts[number] for number in worded]
    if is_query:
        found = np.asarray(encoder.encode(chosen), dtype=np.float32)
    else:
        found = np.stack([document.vector for document in encoder.encode_documents(chosen, passages=False)])
    vectors = np.zeros((len(texts), found.shape[1]), dtype=np.float32)
    vectors[worded] = found
    return vectors


def as_mteb_task(task: RetrievalTask) -> Any:
    """A task for mteb.evaluate that is read from memory, never from the hub; its main score is nDCG@10."""
    load_mteb()
    import datasets
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    rows = {
        "corpus": [{"id": doc_id, "title": "", "text": text} for doc_id, text in task.corpus.items()],
        "queries": [{"id": query_id, "text": text} for query_id, text in task.queries.items()],
    }

    class MtebTask(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=task.name, description=f"{task.name}, read from memory", reference=None, type="Retrieval",
            category="t2t", modalities=["text"], eval_splits=[task.split], eval_langs=["eng-Latn"],
            main_score="ndcg_at_10", dataset={"path": f"m2bert/{task.name}", "revision": task.fingerprint},
            date=None, domains=None, task_subtypes=None, license=None, annotations_creators=None, dialect=None,
            sample_creation=None, bibtex_citation="",
        )  # fmt: skip

        def load_data(self, *args: Any, **options: Any) -> None:
            """Fill in what a download would."""
            relevant = {query_id: dict(row) for query_id, row in task.qrels.items()}
            made = {name: datasets.Dataset.from_list(part) for name, part in rows.items()}
            self.dataset = {"default": {task.split: {**made, "relevant_docs": relevant, "top_ranked": None}}}
            self.data_loaded = True

    return MtebTask()

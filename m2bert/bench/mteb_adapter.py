"""Encoders as ordinary models of mteb, and retrieval tasks as ordinary tasks of it: BEIR, MTEB, and a second opinion.

    import mteb
    from m2bert import Embedder
    from m2bert.bench.mteb_adapter import as_mteb_model
    results = mteb.evaluate(as_mteb_model(Embedder()), mteb.get_tasks(["NFCorpus", "SciFact"]))

as_mteb_model compares vectors of whole texts; as_mteb_search ranks as our search does, by whole, passages and words.
Needs mteb 2 (the extra `mteb`) when a function is called; mteb fetches its own tasks from the hub.
Test: tests/bench/test_mteb_adapter.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2bert.bench.mixtures import MixedSystem, PartScores
from m2bert.bench.tasks import RetrievalTask
from m2bert.encoders.protocol import Encoder
from m2bert.errors import M2BertError, missing_package
from m2bert.ranking.parts import ALL


def load_mteb() -> Any:
    """The mteb module; M2BertError if it is missing."""
    try:
        import mteb
    except ImportError as error:
        raise missing_package("mteb", "mteb", "mteb") from error
    return mteb


def as_mteb_model(encoder: Encoder) -> Any:
    """A model for mteb.evaluate: queries through `encode`, everything else through `encode_documents`, as they are.

    No prompt is put before a text. mteb's corpora hold texts without words, which have no embedding: they get the
    zero vector, whose similarity with everything is 0.
    """
    load_mteb()
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.types import PromptType

    class MtebModel(AbsEncoder):
        mteb_model_meta = _meta_of(encoder)

        def __init__(self) -> None:
            self.model = encoder

        def encode(self, inputs: Any, *, prompt_type: Any = None, **options: Any) -> NDArray[np.float32]:
            """Embeddings (texts, dim) float32; `inputs` are batches of {"text": [...]}."""
            texts = [text for batch in inputs for text in batch["text"]]
            return _encode(encoder, texts, is_query=prompt_type == PromptType.query)

    return MtebModel()


def as_mteb_search(encoder: Encoder, rank: str = ALL) -> Any:
    """A search model for mteb.evaluate that ranks documents as SearchIndex does, without a store.

    rank: "all" parts, or some of them joined by + (m2bert.ranking.parts). Texts without words are never found. Raises
    M2BertError for another rank, and without mteb.
    """
    load_mteb()
    scores = PartScores(encoder)
    system = MixedSystem(scores, rank)

    class MtebSearch:
        mteb_model_meta = _meta_of(encoder, f"{encoder.name}-search-{rank}")

        def index(self, corpus: Any, **options: Any) -> None:
            """Take in rows of id, text and perhaps title; they are encoded with the first queries."""
            texts = {row["id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in corpus}
            self.corpus = {doc_id: text for doc_id, text in texts.items() if text}

        def search(
            self, queries: Any, *, top_k: int, top_ranked: Any = None, **options: Any
        ) -> dict[str, dict[str, float]]:
            """Scores of the `top_k` best documents of each query; of `top_ranked` ones alone where they are given."""
            asked = {row["id"]: row["text"] for row in queries if row["text"].strip()}
            task = RetrievalTask("mteb", "test", self.corpus, asked, {})
            depth = top_k if top_ranked is None else len(self.corpus)
            run = system.rank(task, depth, lambda what, fraction: None).run
            if top_ranked is None:
                return {query_id: dict(found) for query_id, found in run.items()}
            return {
                query_id: {doc_id: score for doc_id, score in found.items() if doc_id in top_ranked.get(query_id, ())}
                for query_id, found in run.items()
            }

    return MtebSearch()


def mini_meta() -> Any:
    """What mteb wants to know of m2-bert-mini, as its list of models takes it."""
    load_mteb()
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    return ModelMeta(
        loader=_load_mini,
        name="m2bert/m2-bert-mini",
        revision="6cb6c7d643d9f219",  # the fingerprint of its weights, configuration and tokenizer
        release_date="2026-11-29",
        languages=["eng-Latn"],
        n_parameters=15_656_833,
        n_embedding_parameters=6_291_456,
        memory_usage_mb=32,
        max_tokens=8192,
        embed_dim=768,
        license="apache-2.0",
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch", "Sentence Transformers", "Transformers", "safetensors"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=False,
        adapted_from="sentence-transformers/all-MiniLM-L6-v2",  # its teacher
        training_datasets={"LEMBQMSumRetrieval", "MedicalQARetrieval", "NQ", "XQuADRetrieval"},
        citation=None,
    )


def _load_mini(name: str, revision: str | None = None, **options: Any) -> Any:
    """The loader of mini_meta: mteb gives it the name and the revision."""
    from m2bert.encoders.embedder import Embedder

    return as_mteb_model(Embedder())


def _meta_of(encoder: Encoder, name: str = "") -> Any:
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    return ModelMeta.create_empty({
        "name": f"m2bert/{name or encoder.name}", "revision": encoder.fingerprint, "max_tokens": encoder.max_tokens,
        "embed_dim": encoder.dim, "similarity_fn_name": ScoringFunction.COSINE, "open_weights": True,
    })  # fmt: skip


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

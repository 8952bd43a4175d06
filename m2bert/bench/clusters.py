"""Do texts of one kind lie together? Embeddings of several kinds of text, as numbers and as a t-SNE map.

The paper's figure 3 shows a t-SNE of a sample of RedPajama for the eye alone. Two numbers stand beside it here, both
of the embeddings themselves and not of the map: the silhouette by kind, cosine distance (-1 to 1, 0 for chance), and
the V-measure of k-means with as many clusters as kinds (0 to 1), the measure of MTEB's clustering tasks. Needs
scikit-learn (the extra `plots`).
Test: tests/bench/test_clusters.py.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m2bert.bench.systems import Progress
from m2bert.encoders.protocol import Encoder
from m2bert.errors import M2BertError, missing_package
from m2bert.jsonl import read_jsonl
from m2bert.provenance import provenance

RUN_VERSION = 1
TEXT_COLUMNS = ("text", "passage", "positive")
KIND_COLUMNS = ("source", "dataset")
FEWEST = 5


def load_sklearn() -> Any:
    """The sklearn module; M2BertError if it is missing. A long run asks before it begins."""
    try:
        import sklearn.cluster
        import sklearn.manifold
        import sklearn.metrics
    except ImportError as error:
        raise missing_package("clusters", "scikit-learn", "plots") from error
    return sklearn


def read_kinds(files: Sequence[Path | str], per_kind: int = 100, seed: int = 0) -> dict[str, list[str]]:
    """{kind: at most `per_kind` texts, drawn by the seed} from JSON lines.

    The kind is the row's `source` or `dataset` up to the first slash, else the file's name. Raises M2BertError for a
    row without text, fewer than two kinds, and kinds of fewer than 5 texts.
    """
    kinds: dict[str, list[str]] = {}
    for file in files:
        for where, row in read_jsonl(Path(file), who="clusters"):
            text = next((row[name] for name in TEXT_COLUMNS if name in row), None)
            if text is None:
                raise M2BertError(f"clusters: {where}: needs a text under {', '.join(TEXT_COLUMNS)}; mend the row")
            kind = next((row[name] for name in KIND_COLUMNS if row.get(name)), Path(file).name.split(".")[0])
            if text.strip():
                kinds.setdefault(str(kind).split("/")[0], []).append(text)
    small = [kind for kind, texts in kinds.items() if min(len(texts), per_kind) < FEWEST]
    if len(kinds) < 2 or small:
        got = ", ".join(f"{kind} {len(texts)}" for kind, texts in kinds.items()) or "none"
        raise M2BertError(f"clusters: needs at least 2 kinds of {FEWEST} texts each, got {got}")
    return {kind: _drawn(texts, per_kind, f"{seed}/{kind}") for kind, texts in sorted(kinds.items())}


def _drawn(texts: list[str], count: int, key: str) -> list[str]:
    generator = random.Random(key)
    order = sorted(range(len(texts)), key=[generator.random() for _ in texts].__getitem__)
    return [texts[number] for number in sorted(order[:count])]


def run_clusters(
    kinds: Mapping[str, Sequence[str]],
    encoders: Sequence[Encoder],
    *,
    perplexity: float = 30.0,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """A run of kind "clusters": per encoder silhouette, V-measure and a point (x, y) per text, kind after kind."""
    sklearn = load_sklearn()
    labels = [place for place, texts in enumerate(kinds.values()) for _ in texts]
    texts = [text for group in kinds.values() for text in group]
    systems = []
    for encoder in encoders:

        def progress(done: int, total: int, name: str = encoder.name) -> None:
            if on_progress is not None:
                on_progress(f"clusters: {name}", done / total if total else 1.0)

        documents = encoder.encode_documents(texts, passages=False, progress=progress)
        vectors = np.stack([document.vector for document in documents])
        vectors = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
        means = sklearn.cluster.KMeans(len(kinds), n_init=10, random_state=seed).fit_predict(vectors)
        widest = min(perplexity, (len(texts) - 1) / 3)
        places = sklearn.manifold.TSNE(
            perplexity=widest, metric="cosine", init="random", learning_rate="auto", random_state=seed
        ).fit_transform(vectors)
        systems.append({
            "name": encoder.name, "fingerprint": encoder.fingerprint,
            "silhouette": float(sklearn.metrics.silhouette_score(vectors, labels, metric="cosine")),
            "v_measure": float(sklearn.metrics.v_measure_score(labels, means)),
            "points": [[round(float(x), 3) for x in point] for point in places],
        })  # fmt: skip
    settings = {"perplexity": perplexity, "seed": seed, "kinds": {kind: len(group) for kind, group in kinds.items()}}
    return {"kind": "clusters", "version": RUN_VERSION, "systems": systems, "settings": settings, **provenance()}

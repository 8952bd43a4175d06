"""A projection of embeddings fitted to text without gradients: `m2bert project`.

Vectors of one encoder point into few directions, which all texts share, and cosines then tell little. Whitening turns
and scales the space so that every direction counts alike (Su et al., arXiv 2103.15316); its full strength also lifts
directions that hold only noise, so here the scale is a power of the variance, and there is no shift: sums over passages
must stay sums. Directions are ordered by variance, so that the first numbers of a vector are an embedding too.
Test: tests/train/test_fit_projection.py.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m2bert.data.pairs import read_pairs
from m2bert.encoders.devices import chosen_device
from m2bert.encoders.embedder import Embedder
from m2bert.errors import M2BertError
from m2bert.files import make_output
from m2bert.model.checkpoints import load_model, save_model, with_pooling

# Of a document no more than this is read: more documents tell more than more of one.
MOST_CHARACTERS = 8_000
OnProgress = Callable[[int, int], None]


def second_moment(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The mean (dim, dim) of v v^T over the rows of `vectors (n, dim)`, each brought to unit norm first."""
    unit = np.asarray(vectors, dtype=np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    moment: NDArray[np.float64] = unit.T @ unit / len(unit)
    return moment


def whitening(moment: NDArray[np.float64], dim: int, exponent: float) -> NDArray[np.float64]:
    """Rows (dim, n) of a projection: the first eigenvectors of `moment (n, n)` times eigenvalue^-exponent.

    exponent: 0 turns without scaling, 0.5 is whitening. The largest row has norm 1 or less, whatever the scale.
    """
    values, vectors = np.linalg.eigh(moment)
    values, vectors = values[::-1][:dim], vectors[:, ::-1][:, :dim]
    scales = np.maximum(values, values[0] * 1e-9) ** -exponent
    # eigh leaves the signs open: the largest number of a row is positive.
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(dim)])
    rows: NDArray[np.float64] = (vectors * signs * scales / scales.max()).T
    return rows


def spread(sources: Sequence[str], count: int, seed: int) -> list[int]:
    """The numbers of at most `count` texts, given as the source of each, evenly over the sources."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, source in enumerate(sources):
        groups[source].append(number)
    draw = random.Random(seed)
    for numbers in groups.values():
        draw.shuffle(numbers)
    chosen: list[int] = []
    for turn in range(max(map(len, groups.values()))):
        chosen += [numbers[turn] for _, numbers in sorted(groups.items()) if turn < len(numbers)]
        if len(chosen) >= count:
            break
    return sorted(chosen[:count])


def fit_projection(
    checkpoint: str,
    output: str,
    *,
    pairs: Sequence[str] = (),
    loco: Sequence[str] = (),
    dim: int = 768,
    exponent: float = 0.3,
    texts: int = 2000,
    seed: int = 17,
    device: str | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Fit a projection for the model `checkpoint` and save it with the model in the folder `output`.

    Second moments of the passages of `texts` documents, of each its first MOST_CHARACTERS, and of as many queries,
    drawn evenly from the data sets of `pairs` and the train splits of `loco`, count one half each. A projection that
    the model has is replaced. device: "cpu" or "cuda"; None takes the GPU, if there is one. Returns the folder, and the
    numbers of passages and queries. Raises M2BertError for models, data, sizes and devices that do not fit.
    """
    who = "project"
    place = str(chosen_device(device, who))
    model, tokenizer = load_model(checkpoint)
    size = model.config.pooled_size
    if not 1 <= dim <= size:
        raise M2BertError(f"{who}: dim must be 1 to {size}, the length of what the model pools, got {dim}")
    if not 0.0 <= exponent <= 1.0:
        raise M2BertError(f"{who}: exponent must be 0 to 1, got {exponent}; 0.5 is whitening")
    data = read_pairs(pairs, loco, who=who)
    with_pooling(model, projection_dim=size)
    make_output(output)
    _set(model, torch.eye(size))
    embedder = Embedder((model, tokenizer), device=place)
    documents, queries = (
        [rows[number].text[:MOST_CHARACTERS] for number in spread([row.source for row in rows], texts, seed)]
        for rows in (data.documents, data.queries)
    )
    made = embedder.encode_documents(documents, progress=on_progress)
    passages = np.stack([passage.vector for document in made for passage in document.passages])
    moment = (second_moment(passages) + second_moment(embedder.encode(queries))) / 2
    with_pooling(model, projection_dim=dim)
    _set(model, torch.from_numpy(whitening(moment, dim, exponent)))
    save_model(model, tokenizer, output)
    return {"model": output, "dim": dim, "exponent": exponent, "passages": len(passages), "queries": len(queries)}


def _set(model: Any, weight: torch.Tensor) -> None:
    with torch.no_grad():
        model.projection.weight.copy_(weight)

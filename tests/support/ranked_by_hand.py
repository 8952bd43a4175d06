"""What stores must rank by, number by number: BM25 by its formula, the best pair of passages, the cosine; and texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from tiny import story

from m2bert.ranking.words import words_of
from m2bert.search.index import SearchIndex

RANKS = ("all", "whole", "passages", "words", "whole+passages", "whole+words", "words+passages", "whole+passages+words")
WEIGHTS = {"whole": 0.7, "passages": 0.3, "words": 0.7}
QUERIES = ["copper harbor in winter", "the heron of ladder 7", "zebra", "is it not?", "river river stone"]
ODD = {
    "long": "begin " + "abcdefghij" * 6 + " end",
    "numbers": "in 2024 it was 3,141 and v2",
    "lines": "max_token_length under_score_",
    "umlauts": "Käse über Öl, naïve café 東京",
    "single": "C and R",
}


def bm25_by_hand(texts: Mapping[str, str], words: list[str]) -> dict[str, float]:
    """Scores of all documents by the formula: k1 = 1.2, b = 0.75, times 2.2, Lucene's idf, repeats counted."""
    counts = {name: Counter(words_of(text)) for name, text in texts.items()}
    lengths = {name: sum(own.values()) for name, own in counts.items()}
    mean = sum(lengths.values()) / len(texts)
    scores = dict.fromkeys(texts, 0.0)
    for word in words:
        holding = sum(own[word] > 0 for own in counts.values())
        idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        for name, own in counts.items():
            spread = 1.2 * (1 - 0.75 + 0.75 * lengths[name] / mean)
            scores[name] += idf * 2.2 * own[word] / (own[word] + spread)
    return scores


def rounded(vector: Any) -> list[float]:
    """A passage in 127 steps on each side of 0."""
    step = float(np.float32(max(abs(float(x)) for x in vector) / 127))
    return [round(float(x) / step) * step for x in vector]


def best_pair(query: Any, passages: list[Any]) -> float:
    vectors = [rounded(passage.vector) for passage in passages]
    found = []
    for one, other in pairwise(vectors):
        pair = [x + y for x, y in zip(one, other, strict=True)]
        product = sum(x * float(y) for x, y in zip(pair, query, strict=True))
        found.append(product / math.sqrt(sum(x * x for x in pair)))
    return max(found)


def by_hand(encoder: Any, texts: Mapping[str, str], query: str) -> dict[str, dict[str, float]]:
    """What each part says of each document, number by number."""
    vector, words = encoder.encode([query])[0], words_of(query)
    scale = 1 / (math.sqrt(max(len(words), 1)) * math.log(1 + len(texts)))
    scores = {name: {"words": score * scale} for name, score in bm25_by_hand(texts, words).items()}
    for name, one in zip(texts, encoder.encode_documents(list(texts.values())), strict=True):
        whole = sum(float(x) * float(y) for x, y in zip(one.vector, vector, strict=True))
        scores[name]["whole"] = whole
        scores[name]["passages"] = best_pair(vector, one.passages) if len(one.passages) > 1 else whole
    return scores


def weights_of(rank: str) -> dict[str, float]:
    names = list(WEIGHTS) if rank == "all" else rank.split("+")
    return {names[0]: 1.0} if len(names) == 1 else {name: WEIGHTS[name] for name in names}


def scores_of(index: SearchIndex, query: str, k: int = 1000, rank: str = "words") -> dict[str, float]:
    return {result.id: result.score for result in index.search(query, k, passages=0, rank=rank)}


def mixed_texts(count: int = 64) -> dict[str, str]:
    """Every third of one passage, the others of two to eight; every fifth says a word of its own, every seventh too."""
    sizes = (20, 300, 900)
    texts = {f"d{n:02d}": story(sizes[n % 3] + 3 * n, seed=n) for n in range(count)}
    return {
        name: text + " heron" * (n % 5 == 0) + " zebra" * (n % 7 == 0) for n, (name, text) in enumerate(texts.items())
    }

"""Latency and recall of a search over shards, simulated from figures that were measured on one store.

    python scripts/simulate_shards.py --documents 1e9 --documents-a-shard 1e6 5e6 2e7
    python scripts/simulate_shards.py --queries-a-second 10 --hedge-ms 400

What is assumed, and may be changed by options:
* Every document is in one shard by chance (a hash of its name), so each of the best k is in any shard alike.
* A query asks all shards at once and merges what they find, k each, by their scores. The scores are comparable: vectors
  and passages need nothing else, and words take the numbers of documents and of those that hold a word from all shards
  together, once a minute.
* One shard answers in `milliseconds` in the median for `measured-documents` documents, of which `fixed-share` does not
  depend on their number; the rest grows with their number to the power of `growth`, between the square root, as the
  partitions of an index of vectors do, and 1, as the lists of documents that hold a common word. Times are log-normal,
  and independent between shards; `straggler-share` of answers take ten times as long (a pause, a cold file).
* A shard serves one query at a time on each of its cores; queries come by chance (Poisson) and wait in one line. A
  second copy of a shard is asked where `hedge-ms` pass without an answer.
* A shard finds each of the best k of its own with the probability `recall`; so does the whole.
Test: tests/search/test_simulate_shards.py.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Assumptions:
    """See the module; times in milliseconds."""

    documents: float = 1e9
    documents_a_shard: float = 5e6
    k: int = 10
    milliseconds: float = 156.0
    measured_documents: float = 1e6
    fixed_share: float = 0.3
    growth: float = 0.7
    spread: float = 0.35
    straggler_share: float = 0.001
    hedge_ms: float = math.inf
    recall: float = 0.98
    queries_a_second: float = 2.0
    cores: int = 2
    network_ms: float = 2.0
    gigabytes_a_million: float = 7.0
    queries: int = 2000
    seed: int = 0

    @property
    def shards(self) -> int:
        return max(1, math.ceil(self.documents / self.documents_a_shard))


def shard_milliseconds(given: Assumptions) -> float:
    """The median time of one shard of `documents_a_shard` for one query, alone."""
    grown = (given.documents_a_shard / given.measured_documents) ** given.growth
    return given.milliseconds * (given.fixed_share + (1 - given.fixed_share) * grown)


def waiting(arrivals: NDArray[np.float64], work: NDArray[np.float64], cores: int) -> NDArray[np.float64]:
    """When each query is answered (queries,), counted from its arrival; served in order by whichever core is free."""
    free = [0.0] * cores
    answered = np.empty(len(arrivals))
    for number, (arrival, own) in enumerate(zip(arrivals, work, strict=True)):
        done = max(arrival, heapq.heappop(free)) + own
        heapq.heappush(free, done)
        answered[number] = done - arrival
    return answered


def simulate(given: Assumptions) -> dict[str, Any]:
    """Times of whole queries, recall of their merged ten, and what the shards take."""
    draw = np.random.default_rng(given.seed)
    arrivals = np.cumsum(draw.exponential(1000 / given.queries_a_second, given.queries))
    slowest = np.zeros(given.queries)
    median = shard_milliseconds(given)
    for _ in range(given.shards):
        answered = waiting(arrivals, _work(given, median, draw), given.cores)
        if math.isfinite(given.hedge_ms):  # a copy begins later, and is as busy
            copy = given.hedge_ms + waiting(arrivals, _work(given, median, draw), given.cores)
            answered = np.minimum(answered, copy)
        slowest = np.maximum(slowest, answered)
    slowest += given.network_ms
    busy = median / 1000 * given.queries_a_second / given.cores
    return {
        "shards": given.shards,
        "one_shard_ms": round(median, 1),
        "busy": round(busy, 3),
        "median_ms": round(float(np.median(slowest)), 1),
        "p99_ms": round(float(np.percentile(slowest, 99)), 1),
        "recall": round(float(np.mean(merged_recall(given, draw))), 4),
        "gigabytes_a_shard": round(given.gigabytes_a_million * given.documents_a_shard / 1e6, 1),
        "most_queries_a_second": round(1000 * given.cores / median, 1),
    }


def merged_recall(given: Assumptions, draw: np.random.Generator) -> NDArray[np.float64]:
    """The share of the best k of all that are in the merged k (queries,): each is found by its shard or not."""
    found = draw.random((given.queries, given.k)) < given.recall  # and hands over k, so that none of them is cut off
    return found.mean(axis=1)


def _work(given: Assumptions, median: float, draw: np.random.Generator) -> NDArray[np.float64]:
    times = median * np.exp(given.spread * draw.standard_normal(given.queries))
    return times * np.where(draw.random(given.queries) < given.straggler_share, 10.0, 1.0)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = asdict(Assumptions())
    sizes = [defaults.pop("documents_a_shard")]
    parser.add_argument("--documents-a-shard", type=float, nargs="+", default=sizes)
    for name, value in defaults.items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    options = vars(parser.parse_args())
    for size in options.pop("documents_a_shard"):
        given = replace(Assumptions(**options), documents_a_shard=size)
        print(json.dumps({"documents_a_shard": size, **simulate(given)}))


if __name__ == "__main__":
    main()

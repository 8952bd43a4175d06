"""The indexes of a large table, made by the workers of a Ray cluster.

Every worker makes a segment of some of the table's fragments; put together, the segments of words are the index that
one process would make, with the same BM25, and so are those of vectors, which share their partitions and rotation. A
segment is shown to nobody before all of them are. Test: tests/search/test_many_machines.py.
"""

from __future__ import annotations

from typing import Any

from m2bert.search.stores.lance_indexes import (
    BEHIND,
    INDEX_BITS,
    INDEXED_FROM,
    VECTOR_INDEX,
    WORDS_INDEX,
    WORDS_OPTIONS,
    check_vectors,
    lacks_vectors,
    lacks_words,
    words_behind,
)
from m2bert.search.stores.ranked import CANDIDATES

ROWS_A_PARTITION = 4_096  # of the index of vectors, as LanceDB has it


def index_with_ray(ray: Any, uri: str, table: Any, workers: int, cpus: float) -> None:
    """Make the indexes of words and vectors that a change has left behind, of a table that is large.

    uri: the table's place, for the workers; table: the same, of LanceDB, at its latest version. cpus: of each worker.
    Smaller indexes, and those of metadata, cost one process less than a worker costs to start.
    """
    rows = table.count_rows()
    if rows < INDEXED_FROM:
        return
    if lacks_words(table, words_behind(table)):
        _make(ray, uri, workers, cpus, "words", "INVERTED", WORDS_INDEX, WORDS_OPTIONS)
        table.checkout_latest()
    if lacks_vectors(table, BEHIND):
        _make(ray, uri, workers, cpus, "vector", "IVF_RQ", VECTOR_INDEX, _shared(uri, rows))
        table.checkout_latest()
        check_vectors(table, rows, CANDIDATES)


def _make(
    ray: Any, uri: str, workers: int, cpus: float, column: str, kind: str, name: str, options: dict[str, Any]
) -> None:
    import lance

    dataset = lance.dataset(uri)
    fragments = [each.fragment_id for each in dataset.get_fragments()]
    make = ray.remote(num_cpus=cpus)(_segment)
    made = [
        make.remote(uri, dataset.version, column, kind, name, fragments[first::workers], options)
        for first in range(min(workers, len(fragments)))
    ]
    dataset.commit_existing_index_segments(name, column, [dataset.merge_existing_index_segments(ray.get(made))])


def _segment(
    uri: str, version: int, column: str, kind: str, name: str, fragments: list[int], options: dict[str, Any]
) -> Any:
    """What a worker does: an index of some fragments, which nobody sees."""
    import lance

    dataset = lance.dataset(uri, version=version)
    return dataset.create_index_uncommitted(column, kind, name=name, replace=True, fragment_ids=fragments, **options)


def _shared(uri: str, rows: int) -> dict[str, Any]:
    """What the segments of an index of vectors must have in common."""
    import lance
    from lance.indices import IndicesBuilder
    from lance.lance import indices

    dataset, partitions = lance.dataset(uri), max(rows // ROWS_A_PARTITION, 1)
    dim = dataset.schema.field("vector").type.list_size
    centroids = IndicesBuilder(dataset, "vector").train_ivf(partitions, distance_type="dot").centroids
    return {
        "metric": "dot", "num_partitions": partitions, "ivf_centroids": centroids, "num_bits": INDEX_BITS,
        "rabitq_model": indices.build_rq_model(dim, INDEX_BITS),
    }  # fmt: skip

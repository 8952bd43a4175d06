"""Index a folder of documents and search it: `python examples/search_folder.py FOLDER "what to look for"`.

Running it again reads and embeds only the files that changed. The store lies beside the folder, as FOLDER.store.
"""

from __future__ import annotations

import sys
from pathlib import Path

from m2bert import Embedder, SearchIndex
from m2bert.search.documents import read_corpus


def main(folder: str, query: str) -> None:
    """Bring the folder's index up to date and print the best five documents with the place of the match."""
    place = Path(folder).resolve()
    index = SearchIndex(place.with_name(place.name + ".store"), Embedder())
    report = index.update(read_corpus(place, stamps=index.stamps(place)))
    print(f"{report.added} added, {report.updated} updated, {report.removed} removed, {len(report.skipped)} skipped")
    for result in index.search(query, k=5):
        print(f"{result.rank}. {result.id}  {result.score:.3f}")
        for hit in result.passages[:1]:
            print(f"   at {hit.place or format(hit.position, '.0%')}: {' '.join(hit.text.split())[:90]}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit('usage: python examples/search_folder.py FOLDER "what to look for"')
    main(sys.argv[1], sys.argv[2])

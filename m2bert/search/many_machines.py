"""Embedding a source on many machines: Ray reads it, a pool of actors embeds, one commit shows all of it.

Every actor writes what it has embedded as fragments of the store's LanceDB table, which no reader sees, and notes them
in the store's folder `ray`, by what they are made of. A run that is begun again, and an actor that takes over from one
that died, find the notes and embed nothing twice. At the end one commit adds all fragments and takes out the documents
that they replace; so each document is there once, whatever died meanwhile.
Test: tests/search/test_many_machines.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs

from m2bert.encoders.protocol import Encoder
from m2bert.errors import M2BertError, missing_package
from m2bert.search.adding import fits
from m2bert.search.bulk import document_hash, embed_into
from m2bert.search.documents import Document, Skipped
from m2bert.search.ledger import READ, Ledger
from m2bert.search.metadata import metadata_as_text
from m2bert.search.places import Place, place_of
from m2bert.search.ray_indexes import index_with_ray
from m2bert.search.ray_source import documents_of_batch, read_source
from m2bert.search.stores import StoredState, StoreInfo
from m2bert.search.stores.checksums import text_hash
from m2bert.search.stores.columns import to_table_rows
from m2bert.search.stores.fields import fields_of, quoted
from m2bert.search.stores.lance_places import TABLE, connect, files_at, one_line
from m2bert.search.stores.lance_writing import completed, widen
from m2bert.search.stores.staging import open_staging

FOLDER = "ray"
DOCUMENTS_A_FRAGMENT = 2_000
# Bytes of the object store of a cluster on this machine, which holds no more than texts on their way.
OBJECT_STORE_BYTES = 200 * 2**20
MakeEncoder = Callable[[], Encoder]


@dataclass(frozen=True)
class Cluster:
    """Where to work. address: `local`, for a cluster of this run alone, or that of one. workers: actors, each with the
    model; None: one fewer than CPUs, on this machine one. gpus: of each."""

    address: str = "local"
    workers: int | None = None
    gpus: float = 0


@dataclass
class RayReport:
    """What a run did, in numbers of documents. reused: of them, embedded by a run before this one."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    reused: int = 0
    fragments: int = 0
    skipped: list[Skipped] = field(default_factory=list)


def embed_with_ray(
    source: str,
    store: str | Path,
    make_encoder: MakeEncoder,
    cluster: Cluster | None = None,
    *,
    documents_a_fragment: int = DOCUMENTS_A_FRAGMENT,
    progress: Callable[[int, int], None] | None = None,
) -> RayReport:
    """Embed the documents of `source` into a store of LanceDB; those of the same name are replaced, none is removed.

    source: a folder or a file, here or in object storage, that every machine can read: .parquet, .jsonl (both with the
    columns id and text), or a folder of plain text. store: a folder that every machine can write, or its place in
    object storage. make_encoder: called by each worker; what it holds travels there.
    Raises M2BertError where the source cannot be read, a name stands for two documents, or the store is of another
    model; then the store is as it was, and what has been embedded waits for the next run.
    """
    try:
        import lance  # noqa: F401
        import ray
    except ImportError as error:
        raise missing_package("embed", f"the package {error.name}", "ray") from error
    place = place_of(store)
    if place.address is not None:
        raise M2BertError(
            f"embed: Ray writes into a folder or object storage, got {place.name!r}; use `m2bert index` for PostgreSQL"
        )
    info = _made(place, make_encoder())
    cluster = cluster or Cluster()
    began_here = not ray.is_initialized()
    if began_here:
        _connect(ray, cluster)
    try:
        share, workers = _share(ray, cluster)
        options = ray.data.DataContext.get_current()
        options.execution_options.preserve_order = True  # so that a second run has the same batches
        options.enable_progress_bars = False
        dataset, name = read_source(ray, source)
        # A block is what is lost with a worker, so blocks are as large as fragments.
        manifests = dataset.repartition(target_num_rows_per_block=documents_a_fragment).map_batches(
            FragmentWriter,
            fn_constructor_args=(make_encoder, place.name, name, info),
            batch_size=documents_a_fragment,
            batch_format="pyarrow",
            num_cpus=share,
            num_gpus=cluster.gpus or None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
        )
        with redirect_stdout(sys.stderr):  # where Ray's own messages belong: standard output is the command's
            told = (row["manifest"] for row in manifests.iter_rows())
            return _collect(told, place, name, progress, lambda: _index(ray, place, workers, share))
    except ray.exceptions.RayError as error:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if isinstance(cause, M2BertError):
            raise cause from error
        raise M2BertError(
            f"embed: Ray gave up ({one_line(cause)}); what is embedded already is kept, run the command again"
        ) from error
    finally:
        if began_here:
            ray.shutdown()


class FragmentWriter:
    """An actor: batches of rows in, one note of what became of each batch out."""

    def __init__(self, make_encoder: MakeEncoder, store: str, source: str, info: StoreInfo) -> None:
        self._encoder, self.info, self._source = make_encoder(), info, source
        place = place_of(store)
        self._store = place.open()
        self._files, folder = _notes(place)
        self._folder, self._table = folder, connect(_root(place)).open_table(TABLE)
        self._uri = _uri(place)
        self._batches: list[pa.RecordBatch] = []

    def __call__(self, batch: pa.Table) -> dict[str, list[str]]:
        documents, skipped = documents_of_batch(batch, self._source)
        hashes = {(each.source, each.id): document_hash(each) for each in documents}
        if len(hashes) < len(documents):
            raise _doubled(documents)
        states = self._store.states(list(hashes))
        changed = [each for each in documents if not self._is_current(states.get((each.source, each.id)), each)]
        name = text_hash("\0".join([self.info.fingerprint, self._encoder.overflow, *map(_identity, changed)]))[:32]
        note = self._read(name) if changed else None
        reused = note is not None
        if note is None:
            refused = self._embed(changed, hashes)
            skipped += [
                Skipped(each.id, refused[hashes[each.source, each.id]], "nothing")
                for each in changed
                if hashes[each.source, each.id] in refused
            ]
            changed = [each for each in changed if hashes[each.source, each.id] not in refused]
            note = {"fragments": self._write(changed, hashes), "ids": [each.id for each in changed]}
            self._keep(name, note)
        elsewhere = states.keys() - {(self._source, identity) for identity in note["ids"]}
        told = {
            **note,
            "reused": reused,
            "replaced": [each.id for each in changed if (each.source, each.id) in states],
            "unchanged": [each.id for each in documents if (each.source, each.id) in elsewhere],
            "skipped": [[each.id, each.reason] for each in skipped],
        }
        return {"manifest": [json.dumps(told)]}

    def append(self, batch: pa.RecordBatch) -> None:
        """As m2bert.search.stores.staging.Staging, for embed_into; in memory."""
        self._batches.append(batch)

    hold = append

    def _is_current(self, state: StoredState | None, document: Document) -> bool:
        if state is None or state.text_hash != document_hash(document) or not fits(state, self._encoder):
            return False
        return state.metadata == metadata_as_text(document.metadata, document.id)

    def _embed(self, documents: list[Document], hashes: dict[tuple[str, str], str]) -> dict[str, str]:
        self._batches = []
        texts = {hashes[each.source, each.id]: each.text for each in documents}
        names = {hashes[each.source, each.id]: each.id for each in documents}
        staging: Any = self
        return embed_into(staging, texts, self._encoder, None, names, leave_out=True, so_far="nothing is shown yet")

    def _write(self, documents: list[Document], hashes: dict[tuple[str, str], str]) -> list[str]:
        """Fragments of the rows, as JSON; the table learns the names of metadata that it does not have."""
        import lance

        if not documents:
            return []
        waiting: dict[str, list[Document]] = {}
        for document in documents:
            waiting.setdefault(hashes[document.source, document.id], []).append(document)
        rows = []
        for batch in self._batches:
            pairs = [(row, each) for row, known in enumerate(batch["text_hash"].to_pylist()) for each in waiting[known]]
            rows.append(to_table_rows(batch, [row for row, _ in pairs], [each for _, each in pairs], self.info))
        self._table.checkout_latest()
        widen(self._table, self.info, fields_of(each.metadata for each in documents))
        reader = completed(rows, self._table.schema)
        made = lance.fragment.write_fragments(reader, lance.dataset(self._uri), mode="append")
        return [json.dumps(each.to_json()) for each in made]

    def _read(self, name: str) -> dict[str, Any] | None:
        path = f"{self._folder}/{name}.json"
        if self._files.get_file_info(path).type != pyarrow.fs.FileType.File:
            return None
        with self._files.open_input_file(path) as file:
            found: dict[str, Any] = json.loads(file.read())
        return found

    def _keep(self, name: str, note: dict[str, Any]) -> None:
        """Whole or not at all: in object storage writing is, on a disk moving is."""
        self._files.create_dir(self._folder)
        path = f"{self._folder}/{name}.json"
        local = isinstance(self._files, pyarrow.fs.LocalFileSystem)
        with self._files.open_output_stream(path + ".new" if local else path) as file:
            file.write(json.dumps(note).encode())
        if local:
            self._files.move(path + ".new", path)


def _collect(
    manifests: Iterator[str],
    place: Place,
    source: str,
    progress: Callable[[int, int], None] | None,
    index: Callable[[], None],
) -> RayReport:
    """Read what the workers tell, commit it, and let them `index` what is large."""
    report = RayReport()
    fragments: list[str] = []
    replaced: list[str] = []
    done = 0
    with Ledger() as ledger:
        for text in manifests:
            told = json.loads(text)
            for identity in [*told["ids"], *told["unchanged"]]:
                if ledger.note(identity, READ):
                    raise M2BertError(
                        f"embed: two documents are called {identity!r}; give each an id of its own; nothing is shown"
                    )
            fragments += told["fragments"]
            replaced += told["replaced"]
            report.added += len(told["ids"])
            report.reused += len(told["ids"]) if told["reused"] else 0
            report.unchanged += len(told["unchanged"])
            report.skipped += [Skipped(*each) for each in told["skipped"]]
            done += len(told["ids"]) + len(told["unchanged"]) + len(told["skipped"])
            if progress is not None:
                progress(done, 0)
    if report.added + report.unchanged == 0:
        reasons = f", the first of {len(report.skipped)}: {report.skipped[0].reason}" if report.skipped else ""
        raise M2BertError(f"embed: {source!r} must hold at least one readable document, got none{reasons}")
    report.fragments = len(fragments)
    report.updated, report.added = len(replaced), report.added - len(replaced)
    store = place.open()
    with open_staging(store.path, store.info):
        if fragments:
            _commit(place, fragments, source, replaced)
            index()
        store.refresh()
        files, folder = _notes(place)
        if files.get_file_info(folder).type != pyarrow.fs.FileType.NotFound:
            files.delete_dir(folder)
    return report


def _index(ray: Any, place: Place, workers: int, cpus: float) -> None:
    index_with_ray(ray, _uri(place), connect(_root(place)).open_table(TABLE), workers, cpus)


def _commit(place: Place, fragments: list[str], source: str, replaced: list[str]) -> None:
    """Add fragments and delete what they replace, in one version of the table."""
    import lance
    from lance.fragment import FragmentMetadata

    table = lance.dataset(_uri(place))
    removed, changed = [], []
    if replaced:
        gone = f"source = {quoted(source)} AND id IN ({', '.join(map(quoted, replaced))})"
        for fragment in table.get_fragments():
            left = fragment.delete(gone)
            if left is None:
                removed.append(fragment.fragment_id)
            elif left.num_deletions != fragment.metadata.num_deletions:
                changed.append(left)
    added = [FragmentMetadata.from_json(text) for text in fragments]
    operation = (
        lance.LanceOperation.Update(removed_fragment_ids=removed, updated_fragments=changed, new_fragments=added)
        if replaced
        else lance.LanceOperation.Append(added)
    )
    try:
        lance.LanceDataset.commit(table, operation, read_version=table.version)
    except OSError as error:
        raise M2BertError(
            f"embed: another writer changed {place.name!r} at the same time ({one_line(error)}); run it again, "
            f"nothing is embedded twice"
        ) from error


def _made(place: Place, encoder: Encoder) -> StoreInfo:
    """The binding of the store, which is made if it is not there. Raises M2BertError for one of another model."""
    wanted = StoreInfo(encoder.location, encoder.fingerprint, encoder.dim)
    found = (place.open_if_made() or place.create(wanted)).info
    if (found.fingerprint, found.dim) != (wanted.fingerprint, wanted.dim):
        raise M2BertError(
            f"embed: {place.name!r} was made with the model {found.model!r} of fingerprint {found.fingerprint} and "
            f"{found.dim} dimensions, got {wanted.model!r} of {wanted.fingerprint} and {wanted.dim}; use that model"
        )
    return found


def _connect(ray: Any, cluster: Cluster) -> None:
    if cluster.address == "local":
        workers = cluster.workers or 1
        ray.init(
            address="local", num_cpus=workers + 1, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False,
            log_to_driver=False, logging_level="error",
        )  # fmt: skip
        return
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise M2BertError(
            f"embed: no cluster of Ray answers at {cluster.address!r} ({one_line(error)}); start one with "
            f"`ray start --head`, or give --ray local"
        ) from error


def _share(ray: Any, cluster: Cluster) -> tuple[float, int]:
    """CPUs of each worker, and how many workers: together they leave one CPU, or half of the only one, to the tasks
    that read; actors that held every CPU would wait for these for ever."""
    there = float(ray.cluster_resources().get("CPU", 1))
    workers = cluster.workers or max(1, int(there) - 1)
    return min(1.0, (there - 1 if there > 1 else 0.5) / workers), workers


def _doubled(documents: list[Document]) -> M2BertError:
    ids = [each.id for each in documents]
    twice = next(identity for identity in ids if ids.count(identity) > 1)
    return M2BertError(f"embed: two documents are called {twice!r}; give each an id of its own; nothing is shown")


def _identity(document: Document) -> str:
    return json.dumps(
        [document.source, document.id, document_hash(document), metadata_as_text(document.metadata, document.id)]
    )


def _root(place: Place) -> str | Path:
    return place.name if place.is_remote else place.folder


def _uri(place: Place) -> str:
    """The table's place for Lance itself."""
    return f"{place.name if place.is_remote else place.folder.absolute()}/{TABLE}.lance"


def _notes(place: Place) -> tuple[pyarrow.fs.FileSystem, str]:
    files, path = files_at(_root(place))
    return files, f"{path}/{FOLDER}"

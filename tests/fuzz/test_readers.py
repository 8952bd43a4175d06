"""Every reader takes hundreds of damaged and absurd files: what it reads, or a sentence that says why not.

M2BERT_FUZZ=5000 python -m pytest tests/fuzz     a campaign: so many files for each reader (200 without)
M2BERT_FUZZ_SEED=7                               other files (22 without)
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bag_of_words import BagOfWords
from mutations import absurd, damaged
from tiny import story, tiny_model_folder

from m2bert.bench.original_files import read_pairs
from m2bert.bench.tasks import find_tasks, load_task
from m2bert.encoders.cache import CachedEncoder
from m2bert.encoders.embedder import Embedder
from m2bert.errors import M2BertError
from m2bert.jsonl import read_jsonl
from m2bert.search.bulk import embed_into, text_hash
from m2bert.search.check import check_store
from m2bert.search.documents import read_corpus
from m2bert.search.formats import FormatError, parse
from m2bert.search.index import SearchIndex
from m2bert.search.stores.lance import LanceStore
from m2bert.search.stores.staging import open_staging
from m2bert.train.reading import config_from_mapping, read_settings
from m2bert.train.settings import PretrainConfig

FILES = int(os.environ.get("M2BERT_FUZZ", "200"))
SEED = int(os.environ.get("M2BERT_FUZZ_SEED", "22"))
SECONDS = 10
ROWS = [{"id": f"d{number}", "text": story(20, number)} for number in range(12)]

Reader = Callable[[random.Random], object]
"""Makes one bad file of a generator, and reads it."""


def hung(signum: int, frame: Any) -> None:
    raise AssertionError(f"takes longer than {SECONDS} s")


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def peak() -> int:
    """The most bytes of memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def as_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def bad_rows(rows: list[Any], generator: random.Random) -> bytes:
    """JSON lines with an absurd row, or damaged ones."""
    if generator.random() < 0.5:
        return damaged(as_lines(rows), generator)
    changed = list(rows)
    place = generator.randrange(len(rows))
    changed[place] = absurd(rows[place], generator)
    return as_lines(changed)


def jsonl(folder: Path) -> Reader:
    def read(generator: random.Random) -> object:
        data, packed = bad_rows(ROWS, generator), generator.random() < 0.4
        if packed:
            data = gzip.compress(data)
            data = damaged(data, generator) if generator.random() < 0.5 else data
        path = folder / ("rows.jsonl.gz" if packed else "rows.jsonl")
        path.write_bytes(data)
        with contextlib.suppress(M2BertError):
            list(read_jsonl(path, who="fuzz"))
        return read_corpus(path)

    return read


def settings(folder: Path) -> Reader:
    import yaml

    good = {
        "output": "run", "max_steps": 1, "lengths": {32: 1.0}, "batch_tokens": 128, "learning_rate": 0.001, "seed": 17,
        "threads": 1, "logging_steps": 1, "weights": {}, "mask_rate": 0.3, "validation": [], "report_to": [],
        "tokenizer": "t", "data": ["a"], "model": {"hidden_size": 16, "num_hidden_layers": 1},
    }  # fmt: skip

    def read(generator: random.Random) -> object:
        if generator.random() < 0.6:
            data = yaml.safe_dump(absurd(good, generator), allow_unicode=True).encode("utf-8", "surrogatepass")
        else:
            data = damaged(yaml.safe_dump(good).encode(), generator)
        (folder / "s.yaml").write_bytes(data)
        config = config_from_mapping(PretrainConfig, read_settings(folder / "s.yaml", "fuzz"), "fuzz")
        config.check("fuzz")
        return config

    return read


def model(folder: Path) -> Reader:
    good = tiny_model_folder(folder / "good")
    files = {path.name: path.read_bytes() for path in good.iterdir() if path.is_file()}
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]

    def read(generator: random.Random) -> object:
        name = generator.choice(names)
        data = damaged(files[name], generator)
        if name.endswith(".json") and generator.random() < 0.7:
            data = json.dumps(absurd(json.loads(files[name]), generator)).encode()
        elif name.endswith(".safetensors") and generator.random() < 0.5:
            size = int.from_bytes(files[name][:8], "little")
            header = json.dumps(absurd(json.loads(files[name][8 : 8 + size]), generator)).encode()
            data = len(header).to_bytes(8, "little") + header + files[name][8 + size :]
        (good / name).write_bytes(data)
        try:
            return Embedder(good).encode(["river stone"])
        finally:
            (good / name).write_bytes(files[name])

    return read


def staged(folder: Path) -> Reader:
    SearchIndex(folder / "s", BagOfWords(dim=8)).add({"a": "river"})
    store = LanceStore.open(folder / "s")
    with open_staging(store.path, store.info) as staging:
        for number in range(3):
            text = story(30, number)
            embed_into(staging, {text_hash(text): text}, BagOfWords(dim=8), None, {})
            staging.append(staging._held.pop())
    files = {path: path.read_bytes() for path in (store.path / "staging").glob("*.arrow")}

    def read(generator: random.Random) -> object:
        path = generator.choice(sorted(files))
        data = damaged(files[path], generator)
        path.write_bytes(data)
        with open_staging(store.path, store.info) as found:
            assert len(found.states) == (3 if data == files[path] else 2)
        path.write_bytes(files[path])
        return found

    return read


def cache(folder: Path) -> Reader:
    encoder = BagOfWords(dim=8, passage_words=4)
    texts = [row["text"] for row in ROWS]
    cached = CachedEncoder(encoder, folder)
    right = [one.vector.tolist() for one in cached.encode_documents(texts)]
    good = cached.path.read_bytes()

    def read(generator: random.Random) -> object:
        cached.path.write_bytes(damaged(good, generator))
        found = [one.vector.tolist() for one in cached.encode_documents(texts)]
        assert found == right  # or a sentence, but never other numbers
        return found

    return read


def store(folder: Path) -> Reader:
    index = SearchIndex(folder / "s", BagOfWords(dim=8, passage_words=4))
    index.add({row["id"]: row["text"] for row in ROWS})
    index.add({"more": "river stone"})
    files = sorted(path for path in (folder / "s" / "documents.lance").rglob("*") if path.is_file())

    def read(generator: random.Random) -> object:
        path = generator.choice(files)
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, generator))
        try:
            SearchIndex(folder / "s", BagOfWords(dim=8, passage_words=4)).search("river stone")
            return check_store(folder / "s")
        finally:
            path.write_bytes(whole)

    return read


def formats(folder: Path) -> Reader:
    html = "<html><head><title>A</title></head><body><h1>River</h1><p>stone <b>light</b></p><pre>x</pre></body></html>"
    mail = "From: a@b\nTo: c@d\nSubject: River\nMIME-Version: 1.0\nContent-Type: text/html; charset=utf-8\n\n" + html
    cells = [{"cell_type": kind, "source": ["# River\n", "stone"]} for kind in ("markdown", "code")]
    book = io.BytesIO()
    with zipfile.ZipFile(book, "w") as archive:
        root = '<container><rootfiles><rootfile full-path="p.opf"/></rootfiles></container>'
        item = '<package><manifest><item id="i" href="c.html"/></manifest><spine><itemref idref="i"/></spine></package>'
        for name, text in {"META-INF/container.xml": root, "p.opf": item, "c.html": html}.items():
            archive.writestr(name, text)
    files = {
        "a.html": html.encode(), "a.eml": mail.encode(), "a.epub": book.getvalue(), "a.txt": story(40).encode(),
        "a.md": b"---\nx: 1\n---\n# River\n\nstone\n\n```\n# no\n```\n## Light\n",
        "a.py": b"class A:\n    def f(self): ...\n",
        "a.ipynb": json.dumps({"cells": cells}).encode(),
    }  # fmt: skip

    def read(generator: random.Random) -> object:
        name = generator.choice(sorted(files))
        data = files[name]
        for _ in range(generator.choice([1, 1, 2, 5])):
            data = damaged(data, generator)
        return parse(data, name)

    return read


def tasks(folder: Path) -> Reader:
    task = folder / "tasks" / "t" / "test"
    task.mkdir(parents=True)
    documents = [{"dataset": "t", "pid": row["id"], "passage": row["text"]} for row in ROWS]
    queries = [{"dataset": "t", "qid": "q", "query": "river", "answer_pids": ["d0"]} for _ in range(3)]
    report = [{"id": row["id"], "pid": row["id"], "input": row["text"], "output": "river"} for row in ROWS]

    def read(generator: random.Random) -> object:
        kind = generator.randrange(3)
        if kind == 2:
            with zipfile.ZipFile(folder / "qmsum.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for name in ("train.jsonl", "validation.jsonl"):
                    archive.writestr(name, bad_rows(report, generator))
            if generator.random() < 0.3:
                (folder / "qmsum.zip").write_bytes(damaged((folder / "qmsum.zip").read_bytes(), generator))
            return list(read_pairs("qmsum", folder / "qmsum.zip"))
        (task / "documents.jsonl").write_bytes(bad_rows(documents, generator) if kind else as_lines(documents))
        (task / "queries.jsonl").write_bytes(as_lines(queries) if kind else bad_rows(queries, generator))
        return [load_task(name, files) for name, files in find_tasks(folder / "tasks").items()]

    return read


# The share of the files that a reader gets which takes longer for each.
READERS: list[tuple[Callable[[Path], Reader], float]] = [
    (jsonl, 1), (settings, 1), (model, 0.5), (staged, 0.5), (cache, 0.5), (store, 0.1), (formats, 1), (tasks, 0.5),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "share"), READERS, ids=lambda part: getattr(part, "__name__", ""))
def test_what_is_bad_is_said(make: Callable[[Path], Reader], share: float, tmp_path: Path) -> None:
    read, said, count = make(tmp_path), 0, max(int(FILES * share), 10)
    before = peak()
    for number in range(count):
        generator = random.Random(f"{SEED} {make.__name__} {number}")
        try:
            with in_time():
                read(generator)
        except (M2BertError, FormatError) as error:
            assert str(error).strip() and len(str(error)) < 4000
            said += 1
        except BaseException as error:
            error.add_note(f"file {number} of {make.__name__}, seed {SEED}")
            raise
    shutil.rmtree(tmp_path, ignore_errors=True)
    print(f"{make.__name__}: {count} files, {said} refused, memory {peak() >> 20} MB at its most")
    # By itself under a gigabyte; in a process in which other tests have had more, little beyond that.
    assert peak() < max(before + (64 << 20), 1 << 30)
    assert said or make is staged  # which says it in the log

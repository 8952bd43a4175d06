"""`--device`, `--batch-tokens` and `--threads` reach the models, and only where they are given."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bag_of_words import BagOfWords
from tiny import tiny_embedder, tiny_model_folder

import m2bert.cli
from m2bert.cli.models import Running
from m2bert.search.index import SearchIndex

GIVEN = ("--device", "cuda:1", "--batch-tokens", "512", "--threads", "2")


@pytest.fixture()
def made(monkeypatch: Any) -> list[Any]:
    """What the Embedder and open_encoder were called with, in place of opening a model."""
    calls: list[Any] = []
    tiny = tiny_embedder()

    def embedder(model: Any, **options: Any) -> Any:
        calls.append((str(model), options, torch.get_num_threads()))
        return tiny

    def open_encoder(model: str, overflow: str, **options: Any) -> Any:
        calls.append((model, {"overflow": overflow, **options}, torch.get_num_threads()))
        encoder = BagOfWords(limit=30)
        encoder.batch_tokens = 8192
        calls.append(encoder)
        return encoder

    monkeypatch.setattr("m2bert.encoders.embedder.Embedder", embedder)
    monkeypatch.setattr("m2bert.encoders.opening.open_encoder", open_encoder)
    return calls


def run(monkeypatch: Any, *arguments: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["m2bert", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        m2bert.cli.main()
    assert not ended.value.code


def test_commands_of_one_model_pass_them_on(made: Any, monkeypatch: Any, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("river stone")
    store = tmp_path / "store"
    run(monkeypatch, "index", tmp_path / "texts", "--store", store, "--overflow", "truncate", *GIVEN)
    run(monkeypatch, "search", store, "river", *GIVEN)
    run(monkeypatch, "explain", "river", "a.txt", "--store", store, *GIVEN)
    run(monkeypatch, "explain", "river", tmp_path / "texts" / "a.txt", *GIVEN)
    options = {"device": "cuda:1", "batch_tokens": 512}
    assert made == [
        ("m2-bert-mini", {"overflow": "truncate", **options}, 2),
        ("unnamed", {"overflow": "window", "truncate_dim": 16, **options}, 2),
        ("unnamed", {"overflow": "window", "truncate_dim": 16, **options}, 2),
        ("m2-bert-mini", {"overflow": "window", **options}, 2),
    ]  # fmt: skip


def test_demo_passes_them_on(made: Any, monkeypatch: Any, tmp_path: Path) -> None:
    from m2bert.demo import stdlib_help
    from m2bert.search.documents import Document

    documents = [Document("csv", "Reads rows.", stdlib_help.stdlib_source())]
    monkeypatch.setattr(stdlib_help, "read_stdlib_help", lambda **options: (documents, []))
    run(monkeypatch, "demo", "--store", tmp_path / "store", *GIVEN, "Where are rows?")
    assert made == [("m2-bert-mini", {"overflow": "window", "device": "cuda:1", "batch_tokens": 512}, 2)]


@pytest.mark.parametrize("study", ["loco", "needle", "encode-time", "clusters", "mixture"])
def test_evaluations_pass_them_on(made: Any, monkeypatch: Any, tmp_path: Path, study: str) -> None:
    rows = [{"query": f"topic{n}", "positive": f"topic{n} filler", "dataset": "ab"[n % 2]} for n in range(20)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, rows)))
    for task in ("animals/test", "a/train", "b/train", "c/train"):
        folder = tmp_path / "data" / task
        folder.mkdir(parents=True)
        (folder / "documents.jsonl").write_text(json.dumps({"pid": "d", "passage": "river stone"}))
        (folder / "queries.jsonl").write_text(json.dumps({"qid": "q", "query": "river", "answer_pids": ["d"]}))
    arguments = {
        "loco": ("--data", tmp_path / "data", "--no-cache"),
        "needle": ("--needles", pairs, "--queries", 5, "--passages", 2, "--no-cache"),
        "encode-time": ("--lengths", 20, "--repeats", 1),
        "clusters": (pairs, "--no-cache"),
        "mixture": ("--data", tmp_path / "data", "--no-cache"),
    }
    run(monkeypatch, "evaluate", study, *arguments[study], "--model", "x", *GIVEN)
    call, encoder = made
    assert call == ("x", {"overflow": "window", "device": "cuda:1"}, 2) and encoder.batch_tokens == 512


def test_what_is_not_given_is_left_to_the_library(made: Any) -> None:
    """An Embedder without the argument `device` opens as long as nobody asks for a device."""
    threads = torch.get_num_threads()
    Running().embedder(None)
    Running().encoder("x")
    assert made[0] == ("m2-bert-mini", {"overflow": "window"}, threads)
    assert made[1] == ("x", {"overflow": "window"}, threads) and made[2].batch_tokens == 8192


def test_a_budget_is_not_put_on_encoders_that_have_none(monkeypatch: Any) -> None:
    peer = SimpleNamespace(name="peer")
    monkeypatch.setattr("m2bert.encoders.opening.open_encoder", lambda model, overflow: peer)
    assert Running(batch_tokens=64).encoder("a/peer") is peer and not hasattr(peer, "batch_tokens")


def test_a_real_model_takes_a_budget(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "tiny")
    running = Running(batch_tokens=64, threads=1)
    one, two = running.embedder(str(folder)), running.encoder(str(folder))
    assert one.batch_tokens == two.batch_tokens == 64  # type: ignore[attr-defined]
    assert one.encode(["river"]).tobytes() == two.encode(["river"]).tobytes()


def test_a_store_is_searched_with_the_batch_that_was_asked_for(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    """The store's own model, opened by its folder, gives the scores of the library."""
    folder = tiny_model_folder(tmp_path / "tiny")
    index = SearchIndex(tmp_path / "store", Running().embedder(str(folder)))
    index.add({"a": "river stone", "b": "paper engine"})
    run(monkeypatch, "search", tmp_path / "store", "river", "--batch-tokens", "64", "--json")
    found = json.loads(capsys.readouterr().out)["results"]
    assert [each["score"] for each in found] == [each.score for each in index.search("river")]

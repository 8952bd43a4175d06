"""The command: what it refuses, a stop that finishes what was accepted, and several processes behind one port."""

from __future__ import annotations

import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import ask
from tiny import story, tiny_embedder, tiny_model_folder

import m2bert.cli
from m2bert.encoders.embedder import Embedder
from m2bert.errors import M2BertError
from m2bert.search.index import SearchIndex
from m2bert.serve.running import address_of, allowed_hosts, listen

SUPPORT = Path(__file__).resolve().parents[1] / "support"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@contextmanager
def started(*command: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server in a process of its own, when it answers; it is stopped at the end."""
    path = os.pathsep.join([str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": path},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            said = ""
            while not (found := re.search(r"http://[^/]*", said)):
                said = process.stdout.readline()
                assert said, "ended before it served"
            deadline = time.monotonic() + 120
            while not is_ready(found[0]):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield found[0], process
        finally:
            process.terminate()


def is_ready(url: str) -> bool:
    try:
        return ask(url + "/health").status == 200
    except OSError:
        return False


def test_sigterm_finishes_what_was_accepted_and_refuses_the_rest(model: Path, tmp_path: Path) -> None:
    store = tmp_path / "notes"
    SearchIndex(store, Embedder(model)).add({"a": "river stone", "b": "paper engine"})
    texts = [story(300, seed=number) for number in range(30)]
    options = (store, "--model", model, "--batch-tokens", "64", "--port", "0", "--threads", "1")
    with started("-m", "m2bert", "serve", *options) as (url, process), ThreadPoolExecutor(1) as pool:
        assert ask(url + "/search?query=river&rank=words").json["results"][0]["id"] == "a"
        assert [each["id"] for each in ask(url + "/v1/models").json["data"]] == ["tiny"]  # the store's is the same
        answer = pool.submit(ask, url + "/v1/embeddings", {"input": texts})
        while not re.search(rb"^m2bert_waiting_requests [1-9]", ask(url + "/metrics").body, re.M):
            assert not answer.done(), "too quick to be stopped"
        process.send_signal(signal.SIGTERM)
        made = answer.result()
        assert made.status == 200
        vectors = np.array([each["embedding"] for each in made.json["data"]])
        np.testing.assert_allclose(vectors, tiny_embedder().encode(texts), atol=1e-5)
        process.wait(30)
        assert not is_ready(url)


def test_several_processes_serve_one_port_and_add_up_their_numbers() -> None:
    with started(SUPPORT / "serving_words.py") as (url, process):
        for number in range(20):
            assert ask(url + "/v1/embeddings", {"input": story(5, seed=number)}).status == 200
        text = ask(url + "/metrics").body.decode()
        [count] = re.findall(r'm2bert_requests_total\{route="/v1/embeddings",status="200"\} (\S+)', text)
        assert float(count) == 20
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.fixture()
def run(capsys: Any, monkeypatch: Any) -> Any:
    """Run the command line in this process: (exit code, stderr)."""

    def call(*arguments: Any) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["m2bert", "serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            m2bert.cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return call


def test_what_cannot_be_served_is_one_sentence(run: Any, tmp_path: Path, model: Path) -> None:
    assert run() == (2, "m2bert: serve: there must be something to serve, got nothing; name a STORE, or --model NAME\n")
    code, said = run(tmp_path / "nowhere", "--port", "0")
    assert code == 2 and "there is no store at" in said
    code, said = run("--model", model, "--token", " ")
    assert code == 2 and "the token must not be empty" in said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = run("--model", model, "--port", taken.getsockname()[1])
    assert code == 2 and "Address already in use); choose another address or port" in said


def test_a_missing_extra_is_told(run: Any, model: Path, monkeypatch: Any) -> None:
    load = importlib.import_module

    def without_fastapi(name: str, package: str | None = None) -> Any:
        if name == "m2bert.serve.app":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return load(name, package)

    monkeypatch.setattr(importlib, "import_module", without_fastapi)
    code, said = run("--model", model)
    assert code == 2 and "serve: needs fastapi, which is not installed; run pip install '.[serve]'" in said


def test_addresses() -> None:
    with listen("127.0.0.1", 0) as listening:
        assert address_of(listening) == f"http://127.0.0.1:{listening.getsockname()[1]}/"
    with pytest.raises(M2BertError, match=r"serve: cannot listen on nowhere\.invalid:80"):
        listen("nowhere.invalid", 80)
    assert allowed_hosts("localhost") == ("127.0.0.1", "localhost", "::1") and allowed_hosts("0.0.0.0") is None

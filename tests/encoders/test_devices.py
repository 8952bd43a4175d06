"""Which device an Embedder takes, and what it says of one that is not there."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from tiny import tiny_embedder, tiny_model, tiny_model_folder, tiny_tokenizer
from typer.testing import CliRunner

import m2bert.encoders.devices
from m2bert.cli import build_app
from m2bert.encoders.devices import chosen_device
from m2bert.encoders.embedder import Embedder
from m2bert.encoders.opening import open_encoder
from m2bert.errors import M2BertError
from m2bert.train.projection import fit_projection
from m2bert.train.settings import PretrainConfig
from m2bert.train.trainer import training_arguments
from m2bert.train.validation import validate_checkpoint


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m2bert.encoders.devices, "cuda_loaded", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_the_gpu_is_taken_where_there_is_one(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [str(chosen_device(name, "x")) for name in (None, "cuda", "cuda:1", "cpu")] == [
        "cuda", "cuda", "cuda:1", "cpu",
    ]  # fmt: skip
    with pytest.raises(M2BertError, match=r"x: device 'cuda:2' must be there, but there are 2 GPUs, cuda:0 to cuda:1"):
        chosen_device("cuda:2", "x")
    monkeypatch.setattr(m2bert.encoders.devices, "cuda_loaded", False)
    assert str(chosen_device(None, "x")) == "cpu"
    with pytest.raises(M2BertError, match="m2ops has no kernels for it; use 'cpu'"):
        chosen_device("cuda", "x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(tmp_path) -> None:
    folder = tiny_model_folder(tmp_path / "small")
    for model in (folder, (tiny_model(), tiny_tokenizer())):
        with pytest.raises(M2BertError, match="Embedder: device 'cuda:1' must be there, but torch sees no GPU"):
            Embedder(model, device="cuda:1")
    assert Embedder(folder).device == Embedder(folder, device="cpu").device == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "", "mps", 0, "meta"])
def test_other_names_are_refused(name: object) -> None:
    with pytest.raises(M2BertError, match="device must be cpu, cuda, or cuda: and a number, got"):
        tiny_embedder(device=name)


def test_a_model_that_was_given_stays_where_it_is(two_gpus: None) -> None:
    assert tiny_embedder().device == "cpu"  # moving it would fail here


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_encoder_opened_by_name_runs_where_it_is_told(tmp_path) -> None:
    folder = str(tiny_model_folder(tmp_path / "small"))
    assert open_encoder(folder, device="cpu").device == "cpu"  # type: ignore[attr-defined]
    with pytest.raises(M2BertError, match="device 'cuda:1' must be there, but torch sees no GPU"):
        open_encoder(folder, device="cuda:1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_commands_that_run_a_model_refuse_a_device_before_they_begin(tmp_path) -> None:
    refused = "device 'cuda' must be there, but torch sees no GPU"
    with pytest.raises(M2BertError, match=f"validate: {refused}"):
        validate_checkpoint("nowhere", [], device="cuda")
    with pytest.raises(M2BertError, match=f"project: {refused}"):
        fit_projection("nowhere", str(tmp_path / "out"), device="cuda")
    settings = {"output": str(tmp_path), "tokenizer": "t", "max_steps": 1}
    with pytest.raises(M2BertError, match=f"train: {refused}"):
        training_arguments(PretrainConfig(**settings, device="cuda"))
    assert training_arguments(PretrainConfig(**settings, device="cpu")).use_cpu
    for name in ("project", "validate", "pretrain", "finetune", "distill"):
        assert "--device" in CliRunner().invoke(build_app(), [name, "--help"], terminal_width=200).output, name


def test_a_fork_of_a_process_that_has_computed_is_told() -> None:
    """Without the refusal the fork waits for threads that it does not have; one thread needs no others."""
    torch.set_num_threads(2)
    embedder = tiny_embedder()
    want = embedder.encode(["river stone"])
    outcomes = []
    for threads in (2, 1):
        process = os.fork()
        if process == 0:
            torch.set_num_threads(threads)
            signal.alarm(20)
            try:
                os._exit(0 if np.array_equal(embedder.encode(["river stone"]), want) else 1)
            except M2BertError as error:
                os._exit(3 if "'spawn'" in str(error) else 1)
        outcomes.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
    assert outcomes == [3, 0]

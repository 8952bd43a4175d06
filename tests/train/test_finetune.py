"""Fine-tuning end to end on a tiny model: both losses learn to retrieve, it resumes exactly, test data is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import run_until_killed
from training_data import TOPICS, Stopped, logged_losses, make_text, stop_at, topic_words
from typer.testing import CliRunner

from m2bert import load_model
from m2bert.errors import M2BertError
from m2bert.train.finetune import finetune
from m2bert.train.losses import LOSSES
from m2bert.train.retrieval import Scoring, Vectors, WholeModel, encode, retrieval_loss
from m2bert.train.settings import FinetuneConfig, has_bf16
from m2bert.train.trainer import last_checkpoint, prepare_output, run_training


def settings(world: Path, folder: Path, **overrides: Any) -> dict[str, Any]:
    return {
        "init": str(world / "model"), "pairs": [str(world / "pairs.jsonl.gz")], "loco": [str(world / "loco")],
        "cloze": [str(world / "text")], "output": str(folder), "cache": str(world / "cache"), "lengths": {64: 1.0},
        "batch_size": 8, "batch_tokens": 640, "max_query_tokens": 16, "max_steps": 6, "logging_steps": 1,
        "save_steps": 3, "save_seconds": 0.0, "bf16": False, "threads": 1,
        **overrides,
    }  # fmt: skip


def topic_accuracy(folder: Path) -> float:
    """Share of new queries of topic words whose nearest of one new document per topic is their own topic's."""
    model, tokenizer = load_model(folder)
    documents = [make_text(topic, 60, 9000) for topic in range(TOPICS)]
    queries = [" ".join(topic_words(topic)[i : i + 4]) for topic in range(TOPICS) for i in range(0, 12, 4)]

    def vectors(texts: list[str]) -> torch.Tensor:
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            return torch.nn.functional.normalize(model(**inputs).pooler_output, dim=-1)

    nearest = (vectors(queries) @ vectors(documents).T).argmax(dim=1)
    return float((nearest == torch.arange(TOPICS).repeat_interleave(3)).float().mean())


def test_it_learns_to_retrieve_with_both_losses_in_turn(world: Path, tmp_path: Path) -> None:
    values = {"learning_rate": 3e-3, "save_steps": 0, "logging_steps": 25, "bf16": has_bf16()}
    finetune(FinetuneConfig(**settings(world, tmp_path / "mnrl", max_steps=150, **values)))
    ranking = logged_losses(tmp_path / "mnrl")
    assert ranking[150] < 0.75 * ranking[1]
    assert topic_accuracy(tmp_path / "mnrl" / "model") >= 0.8
    assert topic_accuracy(world / "model") < 0.6
    start = {"init": str(tmp_path / "mnrl"), "loss": "opl", "max_steps": 100}
    finetune(FinetuneConfig(**settings(world, tmp_path / "opl", **start, **values)))
    projection = logged_losses(tmp_path / "opl")
    # Equal cosines for all pairs would leave the orthogonal projection at 0.25 at best.
    assert projection[100] < min(0.2, 0.95 * projection[1])
    assert topic_accuracy(tmp_path / "opl" / "model") >= 0.7
    assert load_model(tmp_path / "opl" / "model")[0].config.pooling == "mean"


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing interrupts; for reading alone."""
    output = tmp_path_factory.mktemp("whole")
    finetune(FinetuneConfig(**settings(world, output)))
    return output


def test_a_stopped_run_continues_to_the_same_losses(world: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        finetune(FinetuneConfig(**settings(world, tmp_path / "stopped")), stop_at(5))
    finetune(FinetuneConfig(**settings(world, tmp_path / "stopped")))
    assert logged_losses(tmp_path / "stopped") == logged_losses(whole)


def test_a_killed_process_continues(world: Path, whole: Path, tmp_path: Path) -> None:
    killed = settings(world, tmp_path / "killed")
    run_until_killed("finetune", "FinetuneConfig", killed, 5, tmp_path)
    reached = last_checkpoint(tmp_path / "killed")
    assert reached is not None and reached.name == "checkpoint-3"
    finetune(FinetuneConfig(**killed))
    # Float32 sums of another process may round otherwise; a batch missed or repeated moves losses by 1e-2.
    assert logged_losses(tmp_path / "killed") == pytest.approx(logged_losses(whole), rel=1e-5)


def test_a_run_of_all_that_search_scores_resumes(world: Path, whole: Path, tmp_path: Path) -> None:
    """Passages, first numbers and changed queries together: the same losses after a stop, and others than without."""
    every = {"passages": 0.3, "matryoshka": [16], "query_variants": 0.5}
    finetune(FinetuneConfig(**settings(world, tmp_path / "all", **every)))
    with pytest.raises(Stopped):
        finetune(FinetuneConfig(**settings(world, tmp_path / "stopped", **every)), stop_at(4))
    finetune(FinetuneConfig(**settings(world, tmp_path / "stopped", **every)))
    assert logged_losses(tmp_path / "stopped") == logged_losses(tmp_path / "all") != logged_losses(whole)


class SingleQueries:
    """The queries of one batch, one at a time, each with its positive first and all other documents after it."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch

    def __getitem__(self, index: int) -> dict[str, Any]:
        count = len(self.batch["query_input_ids"])
        i = index % count
        order = [i, *(j for j in range(len(self.batch["document_input_ids"])) if j != i)]
        rows = {name: array[[i]] for name, array in self.batch.items() if name.startswith("query")}
        return rows | {name: array[order] for name, array in self.batch.items() if name.startswith("document")}


class SameBatch:
    """One batch for ever."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.batch


def tiny_batch(world: Path, rows: int = 4) -> dict[str, Any]:
    _, tokenizer = load_model(world / "model")
    sides = {
        "query": [" ".join(topic_words(topic)[:4]) for topic in range(rows)],
        "document": [make_text(topic, 20 + 9 * topic, 7) for topic in range(rows + 2)],
    }
    batch = {}
    for side, texts in sides.items():
        made = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="np")
        batch |= {f"{side}_{name}": made[name] for name in ("input_ids", "attention_mask")}
    return batch


def test_opl_one_query_at_a_time_accumulates_to_the_large_batch(world: Path, tmp_path: Path) -> None:
    batch = tiny_batch(world)
    norms = {}
    for name, source, batches in (("large", SameBatch(batch), 1), ("single", SingleQueries(batch), 4)):
        model, _ = load_model(world / "model")
        model.train()
        values = settings(world, tmp_path / name, max_steps=1, gradient_accumulation_steps=batches, warmup_ratio=0.0)
        config = FinetuneConfig(**values, lr_scheduler_type="constant")
        prepare_output(config)
        loss_of = retrieval_loss(LOSSES["opl"], Scoring(WholeModel(model), 10_000))
        run_training(config, model, source, loss_of, stage="test")
        row = json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])
        norms[name] = row["grad_norm"]
    assert norms["single"] == pytest.approx(norms["large"], rel=1e-4)
    assert norms["large"] > 1e-3


def gradients(world: Path, loss: str, batches: list[dict[str, Any]], **options: Any) -> torch.Tensor:
    """Mean gradient over `batches` of all parameters, one vector."""
    model, _ = load_model(world / "model")
    model.train()
    scoring = Scoring(WholeModel(model), options.pop("chunk_tokens", 10_000), **options)
    loss_of = retrieval_loss(LOSSES[loss], scoring)
    for batch in batches:
        inputs = {name: torch.as_tensor(array) for name, array in batch.items()}
        (loss_of(model, inputs) / len(batches)).backward()
    found = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat(found)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_opl_gradient_is_a_mean_over_queries_and_that_of_mnrl_pairs_is_not(world: Path) -> None:
    batch = tiny_batch(world)
    single = SingleQueries(batch)
    whole = gradients(world, "opl", [batch])
    assert distance(gradients(world, "opl", [single[i] for i in range(4)]), whole) < 1e-4
    assert distance(gradients(world, "opl", [single[0]] * 4), whole) > 1e-1
    # The ranking loss cannot be had from small batches: half of the documents are another problem.
    halves = [{name: array[i : i + 2] for name, array in batch.items()} for i in (0, 2)]
    assert distance(gradients(world, "mnrl", halves), gradients(world, "mnrl", [batch])) > 1e-1


class Kept:
    """Counts the elements autograd keeps for the backward pass."""

    def __init__(self) -> None:
        self.elements = 0

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        self.elements += x.numel()
        return x


@pytest.mark.parametrize("loss", LOSSES)
def test_cached_gradients_are_those_of_the_full_batch(world: Path, loss: str) -> None:
    batch = tiny_batch(world)
    whole = gradients(world, loss, [batch])
    assert distance(gradients(world, loss, [batch], chunk_tokens=60, cached=True), whole) < 1e-4
    assert distance(torch.zeros_like(whole), whole) == pytest.approx(1.0)


def pooled(model: Any) -> Vectors:
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask).pooler_output


def test_cached_encoding_keeps_vectors_only(world: Path) -> None:
    model, _ = load_model(world / "model")
    batch = {name: torch.as_tensor(array) for name, array in tiny_batch(world).items()}
    kept = {}
    for cached in (False, True):
        count = Kept()
        with torch.autograd.graph.saved_tensors_hooks(count.pack, lambda x: x):
            encode(pooled(model), batch["document_input_ids"], batch["document_attention_mask"], 60, cached=cached)
        kept[cached] = count.elements
    assert kept[True] < 0.02 * kept[False]


def test_encoding_in_groups_gives_the_same_vectors(world: Path) -> None:
    model, tokenizer = load_model(world / "model")
    texts = [make_text(0, words, 1) for words in (3, 40, 12, 25)]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        whole = encode(pooled(model), **inputs, chunk_tokens=10_000)
        pieces = encode(pooled(model), **inputs, chunk_tokens=60)
        single = torch.cat([model(**tokenizer([text], return_tensors="pt")).pooler_output for text in texts])
    assert torch.allclose(pieces, single, atol=1e-5)
    assert torch.allclose(whole, single, atol=1e-5)
    assert not torch.allclose(whole, single.flip(0), atol=1e-2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"loco": ["{world}/loco/tinytask/test"]}, "for evaluation only"),
        ({"cloze": ["{world}/loco/tinytask/test/documents.jsonl.gz"]}, "for evaluation only"),
        ({"init": ""}, "needs init"),
        ({"init": "nowhere"}, "a model must be a folder"),
        ({"loss": "triplet"}, "loss must be one of mnrl, mnrl-symmetric, opl, cosent"),
        ({"lengths": {256: 1.0}}, "within the model's 128 positions"),
        ({"batch_size": 1}, "a batch needs 2 documents"),
        ({"crop": "tail"}, "crop must be one of head, random, mixed"),
        ({"pooling": "max"}, "pooling must be one of mean, cls, cls_dense, weighted, got 'max'"),
        ({"pooling": "cls", "projection_dim": 8}, "projection_dim needs pooling mean or weighted, got 'cls'; set it"),
        ({"only_term_weights": True}, "only_term_weights needs a model with term weights, got none"),
        ({"passages": 1.5}, "passages must be at least 0 and at most 1, got 1.5; lower it"),
        ({"passages": 0.3, "pooling": "cls"}, "passages needs pooling mean or weighted, got 'cls'; set it to 0"),
        ({"matryoshka": [16, 32]}, "matryoshka must be below the 32 numbers of a vector, got .16, 32.; lower it"),
        ({"matryoshka": ["a"]}, "matryoshka must be whole numbers of at least 1, got .'a'."),
        ({"only_term_weights": True, "passages": 0.3}, "neither passages nor first numbers; set passages to 0"),
        ({"keep_share": 2.0}, "keep_share must be at least 0 and at most 1, got 2.0; lower it"),
        ({"pairs": [], "loco": [], "cloze": []}, "needs pairs, tasks or plain text"),
    ],
)
def test_bad_settings(world: Path, tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    for name, value in overrides.items():
        if isinstance(value, list):
            overrides[name] = [item.format(world=world) if isinstance(item, str) else item for item in value]
    with pytest.raises(M2BertError, match=message):
        finetune(FinetuneConfig(**settings(world, tmp_path, **overrides)))


def test_command(world: Path, tmp_path: Path) -> None:
    from m2bert.cli import build_app

    flags = ["--init", str(world / "model"), "--output", str(tmp_path), "--pairs", str(world / "pairs.jsonl.gz")]
    flags += ["--loss", "opl", "--lengths", "64", "--batch-size", "2", "--negatives", "2", "--max-steps", "2"]
    flags += ["--passages", "0.3", "--matryoshka", "8", "--matryoshka", "16", "--set", "query_variants=0.3"]
    done = CliRunner().invoke(build_app(), ["finetune", *flags, "--set", "cloze_share=0"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["step"] == 2
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "settings.json").read_text())["matryoshka"] == [8, 16]

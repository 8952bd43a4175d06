"""A small world to train on: texts about topics with words of their own, pairs, a retrieval task, a tokenizer."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOPICS = 6
WORDS_PER_TOPIC = 12
FILLERS = ["the", "a", "of", "and", "to", "in", "is", "it", "that", "for"]


def topic_words(topic: int) -> list[str]:
    """Words that only this topic uses: pronounceable, so that WordPiece finds pieces in them."""
    rng = random.Random(topic)
    return ["".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(3)) for _ in range(WORDS_PER_TOPIC)]


def make_text(topic: int, words: int, seed: int) -> str:
    """Sentences about a topic."""
    rng = random.Random(f"{topic}-{seed}")
    own = topic_words(topic)
    tokens = [rng.choice(own) if rng.random() < 0.6 else rng.choice(FILLERS) for _ in range(words)]
    return " ".join(word + "." if i % 9 == 8 else word for i, word in enumerate(tokens))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows, through gzip when the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def write_corpus(folder: Path, texts: int = 40) -> Path:
    """Plain text of two sources, 30 to 400 words each."""
    rows = [
        {"text": make_text(i % TOPICS, 30 + 37 * i % 370, i), "source": f"{'notes' if i % 2 else 'books'}/{i}"}
        for i in range(texts)
    ]
    return write_jsonl(folder / "corpus.jsonl.gz", rows)


def write_pairs(folder: Path, pairs: int = 48) -> Path:
    """Queries of four topic words and the text they come from."""
    rows = []
    for i in range(pairs):
        text = make_text(i % TOPICS, 40 + i, 1000 + i)
        query = " ".join(random.Random(i).sample(topic_words(i % TOPICS), 4))
        rows.append({"query": query, "positive": text, "dataset": "topics"})
    return write_jsonl(folder / "pairs.jsonl.gz", rows)


def write_task(folder: Path, split: str, documents: int = 10) -> Path:
    """A retrieval task in LoCoV1's columns with two queries per document."""
    target = folder / "tinytask" / split
    passages = [
        {"dataset": "tinytask", "pid": f"d{i}", "passage": make_text(i % TOPICS, 200, 2000 + i)}
        for i in range(documents)
    ]
    queries = [
        {
            "dataset": "tinytask",
            "qid": f"q{i}",
            "query": make_text(i % TOPICS, 8, 3000 + i),
            "answer_pids": [f"d{i // 2}"],
        }
        for i in range(2 * documents)
    ]
    write_jsonl(target / "documents.jsonl.gz", passages)
    write_jsonl(target / "queries.jsonl.gz", queries)
    return target


def write_world(folder: Path) -> None:
    """Text, pairs (of many.jsonl one query has three answers), a task with both splits, a tokenizer, two models.

    `model` is an untrained masked LM of 128 positions, `teacher` an encoder of 34 whose vectors tell topics apart.
    """
    import torch

    from m2bert.model.checkpoints import save_model
    from m2bert.model.configuration import M2BertConfig
    from m2bert.model.modeling import M2BertForMaskedLM, M2BertModel

    write_corpus(folder / "text")
    write_pairs(folder)
    many = [("which texts are about this", make_text(0, 40, i)) for i in range(3)]
    many += [(make_text(i % TOPICS, 7, 90 + i), make_text(i % TOPICS, 40, 50 + i)) for i in range(20)]
    write_jsonl(folder / "many.jsonl", [{"query": q, "positive": p, "dataset": "many"} for q, p in many])
    write_task(folder / "loco", "train")
    write_task(folder / "loco", "test")
    small_tokenizer().save_pretrained(folder / "tokenizer")
    sizes = {"vocab_size": 192, "hidden_size": 32, "intermediate_size": 64, "filter_order": 8}
    torch.manual_seed(0)
    model = M2BertForMaskedLM(
        M2BertConfig(**sizes, num_hidden_layers=2, max_position_embeddings=128, filter_window="multiscale")
    )
    save_model(model, small_tokenizer(), folder / "model", dtype=torch.float32)
    torch.manual_seed(1)
    near = {"identity_init": True, "initializer_range": 0.5}
    teacher = M2BertModel(M2BertConfig(**sizes, **near, num_hidden_layers=1, max_position_embeddings=34))
    save_model(teacher, small_tokenizer(), folder / "teacher", dtype=torch.float32)


def logged_losses(output: Path) -> dict[int, float]:
    """Step -> loss, of a run's log."""
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


class Stopped(Exception):
    """Stands for a killed process."""


def stop_at(step: int) -> Callable[[Any], None]:
    """What a run reports its progress to; it stops the run after `step` steps of training."""

    def watch(progress: Any) -> None:
        if progress.fraction > 0 and progress.step == step:
            raise Stopped

    return watch


def train_small_tokenizer(vocab_size: int = 160) -> Any:
    """A tokenizer of our own trainer on the texts above; its pieces differ from process to process."""
    from m2bert.model.tokenization import train_tokenizer

    texts = [make_text(topic, 300, seed) for topic in range(TOPICS) for seed in range(3)]
    return train_tokenizer(texts, vocab_size, max_tokens=128)


def small_tokenizer() -> Any:
    """One result of train_small_tokenizer, kept in a file so that every run of the tests trains on the same ids."""
    from m2bert.model.tokenization import load_tokenizer

    return load_tokenizer(Path(__file__).parent / "small_tokenizer")

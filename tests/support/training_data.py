"""A small world to train on: texts about topics with words of their own, pairs, a retrieval task, a tokenizer."""

from __future__ import annotations

import gzip
import json
import random
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


def train_small_tokenizer(vocab_size: int = 160) -> Any:
    """A tokenizer of our own trainer on the texts above; its pieces differ from process to process."""
    from m2bert.model.tokenization import train_tokenizer

    texts = [make_text(topic, 300, seed) for topic in range(TOPICS) for seed in range(3)]
    return train_tokenizer(texts, vocab_size, max_tokens=128)


def small_tokenizer() -> Any:
    """One result of train_small_tokenizer, kept in a file so that every run of the tests trains on the same ids."""
    from m2bert.model.tokenization import load_tokenizer

    return load_tokenizer(Path(__file__).parent / "small_tokenizer")

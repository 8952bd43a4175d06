"""A day with m2bert for somebody who knows sentence-transformers: `python examples/tour.py FOLDER`.

Encodes 1,000 texts, compares and searches some, indexes a folder of files, evaluates a task with mteb, fine-tunes on
200 pairs and opens the result again. What it writes goes into FOLDER. Needs the extras peers, mteb and train.
"""

from __future__ import annotations

import sys
from pathlib import Path

import mteb
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import m2bert
from m2bert import Embedder, SearchIndex
from m2bert.bench import RetrievalTask
from m2bert.bench.mteb_adapter import as_mteb_search, as_mteb_task
from m2bert.search import read_corpus

ANIMALS = "camel octopus whale sparrow spider tortoise wolf salmon beetle horse"
FACTS = ("eats", "fears", "builds", "remembers", "carries", "finds", "guards", "follows", "hides", "shares")
THINGS = "leaves bread stones water honey seeds ropes candles baskets letters"


def sentences() -> list[str]:
    """1,000 short texts, all different."""
    return [f"The {animal} {fact} {thing}." for animal in ANIMALS.split() for fact in FACTS for thing in THINGS.split()]


def encode(model: SentenceTransformer, texts: list[str]) -> None:
    """Vectors, and the text nearest to a question."""
    vectors = model.encode_document(texts)
    scores = model.similarity(model.encode_query("Which animal builds baskets?"), vectors)[0]
    print(f"encoded {vectors.shape}; nearest: {texts[int(scores.argmax())]}")


def index_and_search(folder: Path) -> None:
    """A folder of files, indexed and searched."""
    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    (files / "camel.txt").write_text("Camels live in dry deserts. Their humps store fat, used when food is scarce.")
    (files / "octopus.md").write_text("# Octopus\n\nThe octopus has three hearts and blue blood.")
    (files / "whale.html").write_text(
        "<html><body><h1>Whale</h1><p>Whales breathe air through a blowhole.</p></body></html>"
    )
    (files / "wolf.py").write_text('"""Wolves hunt in packs and howl at night."""\n')
    index = SearchIndex(folder / "store", Embedder())
    report = index.update(read_corpus(files))
    best = index.search("How many hearts does it have?", k=1)[0]
    print(f"indexed {report.added} files; found {best.id}: {' '.join(best.passages[0].text.split())[:60]}")


def evaluate(model: SentenceTransformer, texts: list[str]) -> float:
    """nDCG@10 of a small task by the model's vectors, and by our search."""
    corpus = {f"d{number}": text for number, text in enumerate(texts[::10])}
    queries = {f"q{number}": f"What {' '.join(text.split()[1:3])}?" for number, text in enumerate(texts[::10])}
    task = RetrievalTask("animals", "test", corpus, queries, {query: {"d" + query[1:]: 1} for query in queries})
    scores = []
    for name, system in (("vectors", model), ("search", as_mteb_search(Embedder()))):
        result = mteb.evaluate(system, [as_mteb_task(task)], cache=None)
        scores.append(result[0].scores["test"][0]["ndcg_at_10"])
        print(f"mteb, {name}: nDCG@10 {scores[-1]:.3f}")
    return float(scores[0])


def finetune(model: SentenceTransformer, texts: list[str], folder: Path) -> None:
    """200 pairs of a question and its answer."""
    answers = texts[::5]
    questions = [f"Tell me of the {text.split()[1]} and {text.split()[3]}" for text in answers]
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(folder / "run"), num_train_epochs=1, per_device_train_batch_size=20, learning_rate=1e-4,
            report_to="none", save_strategy="no",
        ),
        train_dataset=Dataset.from_dict({"anchor": questions, "positive": answers}),
        loss=MultipleNegativesRankingLoss(model),
    )  # fmt: skip
    trainer.train()
    model.save(str(folder / "tuned"))


def main(folder: str) -> None:
    """All of it, in order."""
    place, texts = Path(folder), sentences()
    model = SentenceTransformer(str(m2bert.model_folder("m2-bert-mini")), device="cpu")
    encode(model, texts)
    index_and_search(place)
    evaluate(model, texts)
    finetune(model, texts, place)
    again = SentenceTransformer(str(place / "tuned"), device="cpu")
    same = abs(again.encode(texts[:5]) - Embedder(place / "tuned", device="cpu").encode(texts[:5])).max()
    print(f"opened again; SentenceTransformer and Embedder differ by {same:.0e}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/tour.py FOLDER")
    main(sys.argv[1])

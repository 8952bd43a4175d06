"""A day with m2bert for somebody who knows sentence-transformers: `python examples/tour.py OUT DOCUMENTS QUESTION ...`.

Encodes 1,000 texts, compares and searches some, indexes the files in the folder DOCUMENTS and asks them the questions,
evaluates a task with mteb, fine-tunes on 200 pairs and opens the result again. What it writes goes into OUT. Needs the
extras peers, mteb, train and documents.
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


def index_and_search(embedder: Embedder, documents: Path, questions: list[str], store: Path) -> None:
    """A folder of files of all kinds, indexed and searched; the second reading finds that nothing has changed."""
    with SearchIndex(store, embedder) as index:
        report = index.update(read_corpus(documents))
        print(f"indexed {report.added} files, of which {len(report.guessed)} had to be guessed at their encoding")
        for item in report.skipped:
            print(f"left out {item.id}: {item.reason}")
        again = index.update(read_corpus(documents, stamps=index.stamps(documents)))
        print(f"read again: {again.unchanged} unchanged")
        for question, results in zip(questions, index.search(questions, k=1), strict=True):
            for result in results:
                passage = result.passages[0]
                print(f"{question!r} is in {result.id}, {passage.place or f'{passage.position:.0%} into it'}")


def evaluate(model: SentenceTransformer, embedder: Embedder, texts: list[str]) -> None:
    """nDCG@10 of a small task by the model's vectors, and by our search."""
    corpus = {f"d{number}": text for number, text in enumerate(texts[::10])}
    queries = {f"q{number}": f"What {' '.join(text.split()[1:3])}?" for number, text in enumerate(texts[::10])}
    task = RetrievalTask("animals", "test", corpus, queries, {query: {"d" + query[1:]: 1} for query in queries})
    for name, system in (("vectors", model), ("search", as_mteb_search(embedder))):
        result = mteb.evaluate(system, [as_mteb_task(task)], cache=None)
        print(f"mteb, {name}: nDCG@10 {result[0].scores['test'][0]['ndcg_at_10']:.3f}")


def finetune(model: SentenceTransformer, texts: list[str], folder: Path) -> None:
    """200 pairs of a question and its answer."""
    answers = texts[::5]
    questions = [f"Tell me of the {text.split()[1]} and {text.split()[3]}" for text in answers]
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(folder / "run"), num_train_epochs=1, per_device_train_batch_size=50, learning_rate=1e-4,
            report_to="none", save_strategy="no",
        ),
        train_dataset=Dataset.from_dict({"anchor": questions, "positive": answers}),
        loss=MultipleNegativesRankingLoss(model),
    )  # fmt: skip
    trainer.train()
    model.save(str(folder / "tuned"))


def main(out: Path, documents: Path, questions: list[str]) -> None:
    """All of it, in order."""
    texts = sentences()
    model = SentenceTransformer(str(m2bert.model_folder("m2-bert-mini")), device="cpu")
    embedder = Embedder(device="cpu")
    encode(model, texts)
    index_and_search(embedder, documents, questions, out / "store")
    evaluate(model, embedder, texts)
    finetune(model, texts, out)
    again = SentenceTransformer(str(out / "tuned"), device="cpu")
    same = abs(again.encode(texts[:5]) - Embedder(out / "tuned", device="cpu").encode(texts[:5])).max()
    print(f"opened again; SentenceTransformer and Embedder differ by {same:.0e}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python examples/tour.py OUT DOCUMENTS [QUESTION ...]")
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])

"""The command `m2bert demo`: search the help of Python's standard library, on this machine, at once.

Test: tests/cli/test_cli_search.py.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m2bert.cli.models import Running
from m2bert.cli.options import BatchTokens, Device, Json, JsonCommand, Model, Quiet, Rank, Threads
from m2bert.cli.output import check_files, deliver
from m2bert.cli.progress import announced, counted, notice, warnings_noticed
from m2bert.cli.results import encodable, format_results
from m2bert.errors import M2BertError
from m2bert.files import cache_folder
from m2bert.jsonl import read_jsonl

if TYPE_CHECKING:
    from m2bert.encoders.embedder import Embedder
    from m2bert.search.index import SearchIndex
    from m2bert.search.results import SearchResult

QUESTIONS = (
    "How do I wait for several network requests at the same time without using threads?",
    "How can I measure how long a small piece of code takes?",
    "How do I unpack a zip archive into a folder?",
    "How can I read settings from a file with sections and key = value lines?",
    "How do I break a long paragraph into lines of at most 70 characters?",
)
SHOWN = 5
FIRST = 10


@dataclass(frozen=True)
class Question:
    """A question and the modules that answer it equally well."""

    question: str
    modules: tuple[str, ...]


def register(app: typer.Typer) -> None:
    """Add the command `demo`."""
    app.command("demo", cls=JsonCommand)(demo)


def demo(
    questions: Annotated[list[str] | None, typer.Argument(metavar="[QUESTION]...", help="Your own questions.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--questions", help='JSON lines {"question", "modules"}: measure how well they are found.'),
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="With --questions: show the answers too, not only their ranks.")
    ] = False,
    store: Annotated[
        Path | None, typer.Option("--store", help="Folder of the store; by default in your cache folder.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Index the first N modules alone, by name, into a store of their own: a quick look.",
        ),
    ] = None,
    model: Model = None,
    rank: Rank = "all",
    device: Device = None,
    batch_tokens: BatchTokens = None,
    threads: Threads = None,
    json_to: Json = None,
    quiet: Quiet = False,
) -> None:
    """Index the help text of Python's standard library, and answer questions about it."""
    check_files(json_to, None, "demo")
    if limit is not None and store is not None:
        raise M2BertError(
            f"demo: --limit {limit} fills a store of its own in the cache folder, got --store {store} too, which a "
            "later demo would take for the whole library; leave one of the two out"
        )
    asked = None if file is None else read_questions(file)
    index = open_demo_index(store, model, Running(device, batch_tokens, threads), limit)
    if asked is not None:
        measured = measure(index, asked, rank=rank)
        shown = index if show_all else None
        deliver(measured, lambda: print(format_measured(measured, shown, rank=rank)), json_to, who="demo")
        return
    found = [(text, index.search(text, SHOWN, rank=rank)) for text in questions or QUESTIONS]
    answers = [results.to_dict() for _, results in found]
    deliver({"answers": answers}, lambda: print_answers(found), json_to, who="demo")
    if not questions and json_to is None and sys.stdin.isatty() and sys.stdout.isatty():
        converse(index, rank=rank)
    if json_to is None:
        notice(f"\nthe same on a page in your browser: {shlex.join([*command(), 'serve', str(index.path)])}")


def read_questions(file: Path) -> list[Question]:
    """Questions from JSON lines with "question" and "modules". Raises M2BertError naming the line that is wrong."""
    found = []
    for where, row in read_jsonl(file, who="demo"):
        question, modules = row.get("question"), row.get("modules")
        if not isinstance(question, str) or not isinstance(modules, list) or not modules:
            raise M2BertError(
                f'demo: {where}: row must be {{"question": "...", "modules": ["..."]}}, got {str(row)[:60]}; correct it'
            )
        found.append(Question(question, tuple(str(name) for name in modules)))
    if not found:
        raise M2BertError(f"demo: {str(file)!r} must hold at least one question, got none; add some")
    return found


def open_demo_index(store: Path | None, model: str | None, running: Running, limit: int | None = None) -> SearchIndex:
    """The index of the standard library's help, or of its first `limit` modules, filled at the first call."""
    from m2bert.demo.stdlib_help import stdlib_source

    embedder = running.embedder(model)
    with announced("opening the store"):
        from m2bert.search.index import SearchIndex

        index = SearchIndex(default_store(embedder, limit) if store is None else store, embedder)
    source = stdlib_source()
    # One step fills the store, so a single document of this Python's library means that all are there.
    if index.model is None or not any(key[0] == source for key in index.stats(documents=True).documents):
        fill(index, source, limit)
    return index


def fill(index: SearchIndex, source: str, limit: int | None) -> None:
    """Read the help of all modules, or of the first `limit`, and index it."""
    from m2bert.demo.stdlib_help import read_stdlib_help
    from m2bert.search.documents import Corpus

    notice(f"indexing the help of {source}'s standard library, once; the store is {index.path}")
    with counted("reading help", "modules") as progress:
        documents, skipped = read_stdlib_help(progress=progress, limit=limit)
    with warnings_noticed(), counted("embedding", "tokens") as progress:
        report = index.update(Corpus(source, documents, skipped), progress=progress)
    left_out = f"; {len(skipped)} left out, which do not import here" if skipped else ""
    notice(f"indexed {len(documents)} module{'s' * (len(documents) != 1)}, {report.num_tokens:,} tokens{left_out}")


def default_store(embedder: Embedder, limit: int | None = None) -> Path:
    """A folder in the user's cache for this Python, this model, and as many modules."""
    from m2bert.demo.stdlib_help import stdlib_source

    return cache_folder(f"{stdlib_source()}-{embedder.fingerprint[:8]}{f'-{limit}' if limit else ''}")


def command() -> list[str]:
    """This program as it was called, without its folder where a shell finds it."""
    called = sys.argv[0]
    if Path(called).name == "__main__.py":
        return [sys.executable, "-m", "m2bert"]
    name = Path(called).name
    return [name if shutil.which(name) == called else called]


def print_answers(found: Sequence[tuple[str, Sequence[SearchResult]]]) -> None:
    """Print questions, each with its ranked modules."""
    for question, results in found:
        print(f"\n{encodable(question)}\n{format_results(results)}", flush=True)


def converse(index: SearchIndex, *, rank: str = "all") -> None:
    """Answer questions typed by the user until an empty line."""
    while True:
        try:
            question = input("\nYour question (empty line to end): ")
        except EOFError:
            return
        if not question.strip():
            return
        print_answers([(question, index.search(question, SHOWN, rank=rank))])


def measure(index: SearchIndex, asked: Sequence[Question], *, rank: str = "all") -> dict[str, Any]:
    """The rank of the right module for each question, and how many are within the first five.

    Figures for the first ten questions and for all. A rank is None where no right module exists here.
    """
    size = index.stats().num_documents
    ranks: list[int | None] = []
    questions: list[dict[str, Any]] = []
    for item in asked:
        found = [result.id for result in index.search(item.question, size, passages=0, rank=rank)]
        place = min((found.index(name) + 1 for name in item.modules if name in found), default=None)
        ranks.append(place)
        questions.append(asdict(item) | {"rank": place, "first": found[:SHOWN]})
    figures = {}
    for name, part in ((f"first_{FIRST}", ranks[:FIRST]), ("all", ranks)):
        hits = sum(rank is not None and rank <= SHOWN for rank in part)
        figures[name] = {"questions": len(part), f"within_first_{SHOWN}": hits}
    return {"num_modules": size, **figures, "questions": questions}


def format_measured(measured: dict[str, Any], answering: SearchIndex | None, *, rank: str = "all") -> str:
    """The measurement as text; with an index, each question's answers too."""
    lines = ["rank  question -> right module"]
    for row in measured["questions"]:
        place = "   -" if row["rank"] is None else f"{row['rank']:4d}"
        lines.append(f"{place}  {row['question']} -> {' or '.join(row['modules'])}")
        if answering is not None:
            lines += [format_results(answering.search(row["question"], SHOWN, rank=rank)), ""]
    for name in (f"first_{FIRST}", "all"):
        part = measured[name]
        label = name.replace("_", " ").replace("all", f"all {part['questions']}")
        lines.append(f"{label}: {part[f'within_first_{SHOWN}']} of {part['questions']} within the first {SHOWN}")
    return "\n".join(encodable(line) if "\n" not in line else line for line in lines)

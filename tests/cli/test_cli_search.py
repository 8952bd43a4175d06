"""The commands index, search and demo: what they print, as text and as JSON, and how they refuse."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_of_words import BagOfWords
from tiny import story, tiny_embedder, tiny_model_folder

from m2bert.cli import demo, results
from m2bert.demo import stdlib_help
from m2bert.encoders.embedder import Embedder
from m2bert.search.documents import Document, Skipped
from m2bert.search.index import SearchIndex
from m2bert.search.results import snippet

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PASSAGE_KEYS = {"start", "end", "score", "contribution", "text", "document_length", "place"}
RESULT_KEYS = {"rank", "id", "source", "score", "parts", "num_tokens", "passages"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "texts"
    (place / "sub").mkdir(parents=True)
    for number in range(4):
        (place / f"text {number}.txt").write_text(story(20 + 10 * number, seed=number))
    (place / "sub" / "long.txt").write_text(story(600, seed=9))
    (place / "photo.png").write_bytes(b"\x89PNG\0")
    return place


def test_index_reports_what_it_did(run: Any, folder: Path, model: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    code, out, err = run("index", folder, "--store", store, "--model", model)
    assert code == 0
    assert out.startswith("documents: 5 added, 0 updated, 0 unchanged, 0 removed, 1 skipped; ")
    assert "longer than the model: " in out and "encoded in windows and averaged" in out
    assert "skipped photo.png: binary: byte 0x00 at position 4" in err
    (folder / "text 0.txt").write_text("a river")
    (folder / "text 1.txt").unlink()
    (folder / "new.txt").write_text("a new stone")
    code, out, _ = run("index", folder, "--store", store)
    assert (code, out.split(";")[0]) == (0, "documents: 1 added, 1 updated, 3 unchanged, 1 removed, 1 skipped")


def test_index_prints_json(run: Any, folder: Path, model: str, tmp_path: Path) -> None:
    options = ("--store", tmp_path / "store", "--model", model, "--overflow", "truncate", "--json")
    code, out, _ = run("index", folder, *options)
    report = json.loads(out)
    assert code == 0 and report["store"] == str(tmp_path / "store") and report["source"] == str(folder)
    counts = {key: report[key] for key in ("added", "updated", "unchanged", "removed", "embedded")}
    assert counts == {"added": 5, "updated": 0, "unchanged": 0, "removed": 0, "embedded": 5}
    assert report["skipped"] == [{"id": "photo.png", "reason": "binary: byte 0x00 at position 4"}]
    assert report["num_truncated_documents"] >= 1 and report["num_truncated_tokens"] > 300
    assert report["num_windowed"] == 0 and report["num_tokens"] > 100


def test_a_skipped_file_takes_one_line_whatever_its_name(run: Any, folder: Path, model: str, tmp_path: Path) -> None:
    (folder / "two\nlines\x1b[31m").write_bytes(b"\0")
    _, _, err = run("index", folder, "--store", tmp_path / "store", "--model", model)
    assert "skipped two lines [31m: binary" in err and "\x1b" not in err


def test_store_inside_the_folder_is_not_indexed(run: Any, folder: Path, model: str) -> None:
    for unchanged in (0, 5):
        code, out, _ = run("index", folder, "--store", folder / "store", "--model", model, "--json")
        report = json.loads(out)
        assert (code, report["unchanged"], len(report["skipped"])) == (0, unchanged, 1)


def test_search_prints_json_with_stable_keys(run: Any, folder: Path, model: str, tmp_path: Path) -> None:
    run("index", folder, "--store", tmp_path / "store", "--model", model)
    code, out, err = run("search", tmp_path / "store", "copper harbor é", "-k", "3", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert set(found) == {"query", "results"} and found["query"] == "copper harbor é"
    assert [result["rank"] for result in found["results"]] == [1, 2, 3]
    expected = SearchIndex(tmp_path / "store", tiny_embedder()).search("copper harbor é", 3)
    for result, other in zip(found["results"], expected, strict=True):
        assert set(result) == RESULT_KEYS and result["source"] == str(folder)
        assert (result["id"], result["score"]) == (other.id, pytest.approx(other.score, abs=1e-6))
        assert set(result["parts"]) == {"whole", "passages", "words"} and result["parts"]["words"] > 0
        assert result["score"] == pytest.approx(sum(result["parts"].values()), abs=1e-6)
        text = (folder / result["id"]).read_text()
        for passage in result["passages"]:
            assert set(passage) == PASSAGE_KEYS
            assert passage["text"] == text[passage["start"] : passage["end"]]


def test_search_prints_ranks_scores_and_places(run: Any, folder: Path, model: str, tmp_path: Path) -> None:
    run("index", folder, "--store", tmp_path / "store", "--model", model)
    code, out, _ = run("search", tmp_path / "store", "copper harbor", "-k", "5")
    lines = out.splitlines()
    heads = [line for line in lines if not line.startswith("      ")]
    assert code == 0 and [line.split(".")[0].strip() for line in heads] == ["1", "2", "3", "4", "5"]
    assert any("sub/long.txt" in line and "tokens)" in line for line in heads)
    bars = [line for line in lines if line.startswith("      [")]
    assert len(bars) == 6, "one line per passage: two of the long text, one of each short one"
    assert all(set(line[7:17]) <= set("·█") and "█" in line[7:17] for line in bars)
    assert "██████████" in out


def test_json_lines_can_be_indexed(run: Any, model: str, tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "river stone"}, {"id": "b", "text": "paper engine"}, {"id": "c"}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, err = run("index", tmp_path / "d.jsonl", "--store", tmp_path / "store", "--model", model)
    assert code == 0 and "2 added" in out and "skipped c: line 3 must have a string" in err
    assert json.loads(run("search", tmp_path / "store", "paper engine", "--json")[1])["results"][0]["id"] == "b"


def refusals(folder: Path, model: str, tmp_path: Path) -> dict[str, tuple[tuple[Any, ...], str]]:
    store, other = tmp_path / "store", tmp_path / "other"
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(b"no gzip")
    text = folder / "text 0.txt"
    index = ("index", folder, "--model", model, "--store")
    return {
        "missing source": (("index", tmp_path / "no", "--store", other), "there is no folder or file"),
        "one text file": (("index", text, "--store", other), "must be a folder or a .jsonl"),
        "empty folder": (("index", empty, "--store", other, "--model", model), "at least one readable document"),
        "broken gzip": (("index", broken, "--store", other), "breaks off"),
        "not a store": ((*index, folder), "is not a store of m2bert"),
        "file as store": ((*index, text), "is not a store of m2bert"),
        "unknown overflow": ((*index, other, "--overflow", "wrap"), "overflow must be one of error, truncate"),
        "too long": ((*index, other, "--overflow", "error"), "use overflow='window'"),
        "unknown model": (("index", folder, "--store", other, "--model", "none"), "a model must be a folder"),
        "missing store": (("search", other, "river"), "there is no store at"),
        "search in no store": (("search", folder, "river"), "is not a store of m2bert"),
        "empty query": (("search", store, " "), "the query must be some words"),
        "unknown rank": (("search", store, "river", "--rank", "best"), "joined by +, got 'best'"),
        "no results": (("search", store, "river", "-k", "0"), "k must be a whole number of at least 1"),
        "missing questions": (("demo", "--questions", tmp_path / "no"), "demo: cannot read"),
        "broken questions": (("demo", "--questions", text), ":1: row must be"),
        "no questions": (("demo", "--questions", empty / "none.jsonl"), "at least one question"),
    }


@pytest.mark.parametrize(
    "case",
    """missing source|one text file|empty folder|broken gzip|not a store|file as store|unknown overflow|too long
    |unknown model|missing store|unknown rank|search in no store|empty query|no results|missing questions
    |broken questions|no questions""".replace("\n", "").split("|"),
)
def test_bad_input_is_one_line_and_exit_code_2(run: Any, folder: Path, model: str, tmp_path: Path, case: str) -> None:
    SearchIndex(tmp_path / "store", tiny_embedder()).add({"a": "river"})
    arguments, message = refusals(folder, model, tmp_path)[case.strip()]
    (tmp_path / "empty" / "none.jsonl").write_text("\n") if case.strip() == "no questions" else None
    before = sorted(str(path) for path in tmp_path.rglob("*") if "other" not in path.name)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("m2bert: ") and message in err and err.count("\n") == 1, err
    after = sorted(str(path) for path in tmp_path.rglob("*") if "other" not in path.parts)
    assert [path for path in after if "/other" not in path] == before


def test_search_in_an_emptied_store_is_refused(run: Any, model: str, tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "store", tiny_embedder())
    index.add({"a": "river"})
    index.delete(["a"])
    code, _, err = run("search", tmp_path / "store", "river")
    assert code == 2 and "holds no documents" in err


def test_search_in_a_pipe_prints_results_alone(folder: Path, model: str, tmp_path: Path) -> None:
    SearchIndex(tmp_path / "store", tiny_embedder()).add({"a": "river é", "b": "stone"})
    code = f"from m2bert.cli import main; import sys; sys.argv[1:] = {['search', str(tmp_path / 'store'), 'river']}"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", f"{code} + ['--model', {model!r}]; main()"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "  1.  " in done.stdout and "[##########]" in done.stdout
    # On a slow machine the command says after two seconds what it is at, as it should.
    assert all(line.endswith(" ...") for line in done.stderr.splitlines()), done.stderr


HELP = {"argparse": "Reads options of the command line.", "zipfile": "Reads archives.", "csv": "Reads rows."}


@pytest.fixture()
def library(monkeypatch: Any) -> list[int | None]:
    """A small standard library in place of the real one; notes how many modules were asked for at each reading."""
    calls: list[int | None] = []

    def read(**options: Any) -> Any:
        calls.append(options["limit"])
        source = stdlib_help.stdlib_source()
        texts = list(HELP.items())[: options["limit"]]
        return [Document(name, text, source) for name, text in texts], [Skipped("msvcrt", "no such module")]

    monkeypatch.setattr(stdlib_help, "read_stdlib_help", read)
    return calls


def test_demo_answers_and_reads_the_library_once(
    run: Any, library: Any, model: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, out, err = run("demo", "--model", model)
    assert code == 0 and all(question in out for question in demo.QUESTIONS)
    assert out.count("  1.  ") == len(demo.QUESTIONS) and "indexed 3 modules" in err and "1 left out" in err
    (store,) = (tmp_path / "cache" / "m2bert").iterdir()
    assert store.name.startswith(stdlib_help.stdlib_source() + "-")
    assert err.endswith(f"\nthe same on a page in your browser: m2bert serve {store}\n")
    code, out, err = run("demo", "--model", model, "--json", "Where are archives?")
    (answer,) = json.loads(out)["answers"]
    assert (code, err, answer["query"], len(library)) == (0, "", "Where are archives?", 1)
    assert {result["id"] for result in answer["results"]} == set(HELP)
    assert all(set(result) == RESULT_KEYS for result in answer["results"])
    # A quick look has a store of its own, so that the next whole demo is whole.
    code, out, err = run("demo", "--model", model, "--limit", "1", "Where are archives?")
    assert (code, library) == (0, [None, 1]) and "indexed 1 module," in err and "argparse" in out
    assert {path.name for path in (tmp_path / "cache" / "m2bert").iterdir()} == {store.name, f"{store.name}-1"}
    code, _, err = run("demo", "--model", model, "--limit", "1", "--store", tmp_path / "s", "Where are archives?")
    assert code == 2 and "leave one of the two out" in err and not (tmp_path / "s").exists()
    code, _, err = run("demo", "--model", model, "--limit", "0")
    assert code == 2 and "Invalid value" in err


def test_demo_measures_questions(run: Any, library: Any, model: str, tmp_path: Path) -> None:
    rows = [{"question": "Where are archives?", "modules": ["zipfile"]}] * 11
    rows += [{"question": "Windows keys?", "modules": ["msvcrt"]}]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    options = ("demo", "--model", model, "--store", tmp_path / "store", "--questions", file)
    measured = json.loads(run(*options, "--json")[1])
    assert measured["num_modules"] == 3
    assert measured["first_10"] == {"questions": 10, "within_first_5": 10}
    assert measured["all"] == {"questions": 12, "within_first_5": 11}
    assert measured["questions"][0]["rank"] in (1, 2, 3) and measured["questions"][11]["rank"] is None
    first = measured["questions"][0]
    assert first["first"][first["rank"] - 1] == "zipfile"
    code, out, _ = run(*options)
    assert code == 0 and "first 10: 10 of 10 within the first 5" in out
    assert "all 12: 11 of 12 within the first 5" in out and "  1.  " not in out
    assert "  1.  " in run(*options, "--all")[1]
    # Only one text has the word.
    by_words = json.loads(run(*options, "--rank", "words", "--json")[1])
    assert [row["rank"] for row in by_words["questions"][:11]] == [1] * 11
    assert by_words["questions"][0]["first"] == ["zipfile"], "nothing else has a word of the question"
    shown = run(*options, "--all", "--rank", "words")[1]
    assert shown.count("  1.  ") == 11 and "  2.  " not in shown and "first 10: 10 of 10 within" in shown
    asked = ("demo", "--model", model, "--store", tmp_path / "store", "--rank", "words", "--json", "archives")
    (result,) = json.loads(run(*asked)[1])["answers"][0]["results"]
    assert result["id"] == "zipfile"


def test_search_by_some_of_the_parts(run: Any, folder: Path, model: str, tmp_path: Path) -> None:
    """The parts do not depend on which are asked for: each is what it was in the score of all, if not alone."""
    (folder / "sub" / "rare.txt").write_text(story(300, seed=3) + " xylophone")
    run("index", folder, "--store", tmp_path / "store", "--model", model)

    def found(rank: str, query: str = "copper xylophone") -> dict[str, Any]:
        code, out, _ = run("search", tmp_path / "store", query, "--rank", rank, "--json")
        assert code == 0
        return {result["id"]: result for result in json.loads(out)["results"]}

    whole, every = found("whole"), found("all")
    assert list(found("words", "xylophone")) == ["sub/rare.txt"]
    assert len(every) == len(whole) == 6 and list(every) != list(whole)
    assert next(iter(every)) == "sub/rare.txt"
    embedder = tiny_embedder()
    query = embedder.encode(["copper xylophone"])[0]
    for name, result in whole.items():
        cosine = float(query @ embedder.encode([(folder / name).read_text()])[0])
        assert result["score"] == pytest.approx(cosine, abs=1e-5) and result["parts"] == {"whole": result["score"]}
        assert every[name]["parts"]["whole"] == pytest.approx(0.7 * cosine, abs=1e-5)
    for name, result in found("whole+words").items():
        parts = every[name]["parts"]
        assert result["parts"] == {part: pytest.approx(parts[part], abs=1e-6) for part in ("whole", "words")}
        assert result["score"] == pytest.approx(parts["whole"] + parts["words"], abs=1e-6)
    alone = found("passages")
    for name, result in alone.items():
        assert 0.3 * result["score"] == pytest.approx(every[name]["parts"]["passages"], abs=1e-6)
        assert result["score"] == pytest.approx(result["passages"][0]["score"], abs=1e-6)
    assert alone["sub/rare.txt"]["score"] != pytest.approx(whole["sub/rare.txt"]["score"], abs=1e-3)


def test_search_by_words_loads_no_model(run: Any, tmp_path: Path) -> None:
    """The model's folder is gone, so that any other search is refused."""
    folder = tiny_model_folder(tmp_path / "gone")
    SearchIndex(tmp_path / "store", Embedder(folder)).add({"a": "river stone", "b": "paper engine"})
    shutil.rmtree(folder)
    code, out, _ = run("search", tmp_path / "store", "engines", "--rank", "words")
    assert code == 0 and out.startswith("  1.  ") and "  b  (" in out and "  2.  " not in out
    assert run("search", tmp_path / "store", "engines")[0] == 2


def test_parts_are_shown_behind_the_score(run: Any, folder: Path, model: str, tmp_path: Path) -> None:
    run("index", folder, "--store", tmp_path / "store", "--model", model)
    search = ("search", tmp_path / "store", "copper harbor")
    (first, *_), shown = json.loads(run(*search, "--json")[1])["results"], run(*search)[1].splitlines()
    parts = " + ".join(f"{part} {first['parts'][part]:.2f}" for part in ("whole", "passages", "words"))
    assert shown[0].startswith(f"  1.  {first['score']:.3f}  {first['id']}  (") and shown[0].endswith(f"  = {parts}")
    assert f"] {first['passages'][0]['score']:5.2f}  " in shown[1]
    assert "=" not in run(*search, "--rank", "whole")[1].splitlines()[0]


def test_a_store_keeps_the_first_numbers_alone(run: Any, folder: Path, model: str, tmp_path: Path) -> None:
    """The oracle: cosines of the first five numbers of what the model makes."""
    store = tmp_path / "store"
    run("index", folder, "--store", store, "--model", model, "--truncate-dim", 5)
    assert SearchIndex(store).dim == 5
    code, out, _ = run("search", store, "copper harbor", "--rank", "whole", "--json")
    embedder = tiny_embedder()
    first = embedder.encode(["copper harbor"])[0, :5]
    for result in json.loads(out)["results"]:
        other = embedder.encode([(folder / result["id"]).read_text()])[0, :5]
        cosine = float(first @ other / np.linalg.norm(first) / np.linalg.norm(other))
        assert result["score"] == pytest.approx(cosine, abs=1e-5)
    (folder / "new.txt").write_text("a new stone")
    for index in (("index", folder, "--store", store), ("index", folder, "--store", store, "--model", model)):
        code, out, _ = run(*index)
        assert code == 0 and re.search(r"\b[56] unchanged", out), "the store says how many numbers are kept"
    code, _, err = run("index", folder, "--store", store, "--model", model, "--truncate-dim", 4)
    assert code == 2 and "use that model, or index into a new folder" in err
    code, _, err = run("index", folder, "--store", tmp_path / "other", "--model", model, "--truncate-dim", 17)
    assert code == 2 and "truncate_dim must be at most 16" in err
    assert run("index", folder, "--store", tmp_path / "other", "--model", model, "--truncate-dim", 0)[0] == 2
    assert not (tmp_path / "other").exists()


def test_questions_may_hold_any_line_separator_of_unicode(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "a\u2028b", "modules": ["csv"]}\r\n', encoding="utf-8")
    assert demo.read_questions(tmp_path / "q.jsonl") == [demo.Question("a\u2028b", ("csv",))]


def test_example_questions_name_modules_that_they_do_not_quote() -> None:
    asked = demo.read_questions(EXAMPLES / "stdlib_questions.jsonl")
    assert len(asked) == 30 and len({item.question for item in asked}) == 30
    for item in asked:
        words = re.findall(r"\w+", item.question.lower())
        for name in item.modules:
            assert name.split(".")[0] in sys.stdlib_module_names
            assert not set(name.lower().split(".")) & set(words), item.question


def test_example_program_indexes_and_searches_a_folder(folder: Path, capsys: Any) -> None:
    program = runpy.run_path(str(EXAMPLES / "search_folder.py"))
    program["main"].__globals__["Embedder"] = tiny_embedder
    for added in ("5 added, 0 updated, 0 removed, 1 skipped", "0 added"):
        program["main"](str(folder), "copper harbor")
        out = capsys.readouterr().out
        assert out.startswith(added) and "5. " in out and "   at " in out
    assert (folder.parent / "texts.store").is_dir()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_demo_converses_on_a_terminal_only(library: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    SearchIndex(tmp_path / "store", BagOfWords()).add(HELP)
    index = SearchIndex(tmp_path / "store", BagOfWords())
    monkeypatch.setattr(sys, "stdin", Terminal("Where are archives?\nand rows?\n\nnever read\n"))
    demo.converse(index)
    out = capsys.readouterr().out
    assert "Where are archives?" in out and out.count("  1.  ") == 2 and "never read" not in out
    monkeypatch.setattr(sys, "stdin", Terminal("rows?"))
    demo.converse(index)  # ends at the end of the input


def test_position_bar_and_its_ascii_form(monkeypatch: Any) -> None:
    utf8 = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", utf8)
    assert results.position_bar(340, 380, 1000) == "[···█······]"
    assert results.position_bar(0, 1, 1000) == "[█·········]"
    assert results.position_bar(999, 1000, 1000) == "[·········█]"
    assert results.position_bar(0, 7, 7) == "[██████████]" and results.position_bar(0, 1, 1) == "[██████████]"
    assert results.position_bar(500, 800, 1000) == "[·····███··]"
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", latin)
    assert results.position_bar(340, 380, 1000) == "[---#------]"
    assert results.encodable("naïve 日\x1b[31m") == "naïve ? [31m"


def test_snippet_is_one_line_cut_at_a_word() -> None:
    assert snippet(" |  one\n |  ---\n |  two  three", 80) == "one two three"
    assert snippet("word " * 50, 23) == "word word word word..."
    assert len(snippet("x" * 500, 30)) <= 30

"""Files that hang, crash or take too much memory stop no others, and are named with the bound they met."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from real_files import CONTAINER, make_epub

from m2bert.errors import M2BertError
from m2bert.search.documents import read_corpus, read_document
from m2bert.search.formats import FormatError
from m2bert.search.reading import Limits, Readers

# A worker that does what the file's name says.
ACTS = """
import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    name = os.path.basename(json.loads(line))
    if name == "hangs":
        time.sleep(600)
    if name == "crashes":
        os.abort()
    print(json.dumps({"text": name, "sections": [], "guessed": False, "lost": []}), flush=True)
"""
ACTING = (sys.executable, "-c", ACTS)


def test_a_file_that_hangs_or_crashes_stops_no_other() -> None:
    begun = time.monotonic()
    with Readers(Limits(seconds=0.5, megabytes=512), ACTING) as readers, ThreadPoolExecutor(2) as pool:
        names = ["a", "hangs", "b", "crashes", "c"]
        found: list[str] = []

        def read(name: str) -> str:
            try:
                return readers.read(Path("/nowhere") / name).text
            except FormatError as error:
                return error.reason

        found = list(pool.map(read, names))
    assert found[0::2] == ["a", "b", "c"]
    assert found[1] == "takes longer to read than the limit of 0.5 s (--seconds-per-file)"
    assert found[3].startswith("ends the process that reads it (code -6): broken, or beyond the limit of 512 MB of mem")
    assert time.monotonic() - begun < 20


def test_readers_leave_no_process_behind() -> None:
    with Readers(Limits(), ACTING) as readers:
        readers.read(Path("a"))
        (worker,) = readers._running
    assert worker._process.poll() is not None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound memory")
def test_a_book_that_unpacks_without_end_is_skipped_and_the_rest_is_read(tmp_path: Path) -> None:
    make_epub(tmp_path / "good.epub", {"a.xhtml": "<p>good"})
    with (
        zipfile.ZipFile(tmp_path / "good.epub") as good,
        zipfile.ZipFile(tmp_path / "bomb.epub", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb,
    ):
        bomb.writestr("META-INF/container.xml", CONTAINER)
        bomb.writestr("OEBPS/book.opf", good.read("OEBPS/book.opf"))
        with bomb.open("OEBPS/text/a.xhtml", "w") as chapter:
            for _ in range(300):
                chapter.write(bytes(1 << 20))
    assert (tmp_path / "bomb.epub").stat().st_size < 4 << 20
    corpus = read_corpus(tmp_path, limits=Limits(megabytes=256))
    assert [document.id for document in corpus.documents] == ["good.epub"]
    reason = "takes more to read than the limit of 256 MB of memory (--megabytes-per-file)"
    assert [item.reason for item in corpus.skipped] == [reason]


def test_plain_text_beyond_the_limit_is_not_taken_into_memory(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("small")
    with open(tmp_path / "b.log", "wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    corpus = read_corpus(tmp_path)
    assert [document.id for document in corpus.documents] == ["a.txt"]
    assert [item.reason for item in corpus.skipped] == [
        "has 1,048,576 MB, over the limit of 1,024 (--megabytes-per-file)"
    ]


def test_a_worker_that_does_not_start_is_an_error_with_the_command() -> None:
    expected = pytest.raises(M2BertError, match=r"a process that reads files must start, got code 3; try `.*python")
    with expected, Readers(Limits(), (sys.executable, "-c", "raise SystemExit(3)")) as readers:
        readers.read(Path("a"))


def test_one_file_is_read_by_itself(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Head\n\ntext\n")
    document = read_document(tmp_path / "a.md")
    assert document.text == "# Head\n\ntext\n" and document.sections[0].label == "Head"
    (tmp_path / "b.txt").write_bytes(b"\0")
    with pytest.raises(
        M2BertError, match=r"explain: .*b\.txt must be a document .* got one that is: binary: byte 0x00"
    ):
        read_document(tmp_path / "b.txt", who="explain")
    (tmp_path / "c.txt").write_text(" ")
    with pytest.raises(M2BertError, match="holds no text"):
        read_document(tmp_path / "c.txt")


def test_a_program_without_a_guard_may_read_the_folder_it_works_in(tmp_path: Path) -> None:
    """Processes that begin by importing the program again would begin it again; modules of the folder are documents."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.html").write_text("<p>read")
    (docs / "json.py").write_text("raise SystemExit('run')")
    program = tmp_path / "program.py"
    program.write_text(
        "from m2bert.search import read_corpus\nprint([each.text.strip() for each in read_corpus('.').documents])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    del environment["PYTHONSAFEPATH"]
    done = subprocess.run([sys.executable, program], cwd=docs, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "['read', \"raise SystemExit('run')\"]\n"

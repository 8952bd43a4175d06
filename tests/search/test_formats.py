"""What each reader makes of a file, and the sentence for each that it cannot read."""

from __future__ import annotations

import codecs
import json
import sys
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from real_files import make_epub, make_pdf

from m2bert.search.documents import read_corpus
from m2bert.search.formats import READERS, FormatError, Parsed, has_reader, parse


def places(parsed: Parsed) -> list[tuple[str, str]]:
    """Each section's label, and the first line of what stands there."""
    return [(section.label, parsed.text[section.start :].split("\n")[0]) for section in parsed.sections]


@pytest.mark.parametrize(
    ("data", "text", "guessed"),
    [
        ("plain ü".encode(), "plain ü", False),
        (codecs.BOM_UTF8 + "ü".encode(), "ü", False),
        ("\ufeffÜber\r\n".encode("utf-16-le"), "Über\r\n", False),
        ("\ufeffÜber".encode("utf-16-be"), "Über", False),
        ("\ufeffÜber 🜁".encode("utf-32-le"), "Über 🜁", False),
        ("caf\xe9 \u20ac \u201cquoted\u201d".encode("cp1252"), "café € “quoted”", True),
        ("old \x1b[1mcolours\x1b[0m\x0c ü".encode("cp1252"), "old \x1b[1mcolours\x1b[0m\x0c ü", True),
    ],
)
def test_encodings_are_told_by_rule(data: bytes, text: str, guessed: bool) -> None:
    assert parse(data, "a.txt") == Parsed(text, (), guessed)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"text\0", "binary: byte 0x00 at position 4"),
        (b"\x89PNG\r\n\x1a\n\xff", "binary: byte 0x1a at position 6"),
        (b"a \x81\x8d", "neither UTF-8 nor Windows-1252 text: byte 0x81 at position 2"),
        (b"\xff\xfea", "not the utf-16 text that its first bytes announce: truncated data"),
        (b"\xff\xfe\x00\xd8a\x00", "not the utf-16 text that its first bytes announce: illegal UTF-16 surrogate"),
    ],
)
def test_what_is_no_text_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError) as refused:
        parse(data, "a.txt")
    assert refused.value.reason == reason


def test_a_page_is_what_a_reader_sees() -> None:
    html = """<!doctype html><html><head><title>My  page</title><script>if (1 < 2) "<p>no</p>"</script>
    <style>p {}</style></head><body><nav>Home <ul><li>nowhere</ul></nav><p>Before</p>
    <h1 class="x">Install</h1><div>Hello   <b>big</b>
    world<br>again</div><h2>On <i>Linux</i></h2><ul><li>one<li>two</ul><noscript>no</noscript><pre>def f():

    return 1 &lt; 2
</pre><table><tr><td>a</td><td>b</td></tr><tr><td>c<td>d</table><h1>Use<p>caf&eacute; &amp; <img alt="no"> tea"""
    parsed = parse(html.encode(), "a.HTML")
    assert parsed.text == (
        "My page\n\nBefore\n\nInstall\n\nHello big world\nagain\n\nOn Linux\n\none\ntwo\n\n"
        "def f():\n\n    return 1 < 2\n\na b\nc d\n\nUse\n\ncafé & tea\n\n"
    )
    assert places(parsed) == [
        ("My page", "My page"),
        ("Install", "Install"),
        ("Install > On Linux", "On Linux"),
        ("Use", "Use"),
    ]


def test_navigation_that_never_ends_does_not_swallow_the_page() -> None:
    assert parse(b"<nav>Menu<p>All of the page", "a.htm").text == "Menu\n\nAll of the page\n\n"


@pytest.mark.parametrize(
    ("html", "text", "guessed"),
    [
        ('<meta charset="iso-8859-2"><p>\xb3'.encode("latin-1"), "ł", False),
        ('<?xml version="1.0" encoding="Shift_JIS"?><p>\u65e5'.encode("shift-jis"), "日", False),
        ('<meta charset="latin-9000"><p>\xe9'.encode("latin-1"), "é", True),
        ('<meta charset="iso-8859-1"><p>é'.encode(), "é", False),
    ],
)
def test_pages_say_their_encoding(html: bytes, text: str, guessed: bool) -> None:
    assert (parse(html, "a.html").text.strip(), parse(html, "a.html").guessed) == (text, guessed)


def test_headings_of_markdown_are_those_of_commonmark() -> None:
    text = "---\ntitle: x\n---\n\nIntro\n\n# A *b* `c` [d](e)\n\n```\n# no\n```\n\n    # no\n\n"
    text += "Sub\r\nject\r\n---\r\n\n#no\n### F ##\n"
    parsed = parse(text.encode(), "a.md")
    assert parsed.text == text
    assert places(parsed) == [
        ("A b c d", "# A *b* `c` [d](e)"),
        ("A b c d > Sub ject", "Sub\r"),
        ("A b c d > Sub ject > F", "### F ##"),
    ]


def test_python_is_in_sections_of_classes_and_functions() -> None:
    text = "import x\n\n@x.y\nclass A:\n    def f(self):\n        def g(): pass\n\n    z = 1\n\n"
    text += "async def h():\n    pass\ny = 1\n"
    assert places(parse(text.encode(), "a.py")) == [
        ("A", "@x.y"),
        ("A.f", "    def f(self):"),
        ("A", ""),
        ("", ""),
        ("h", "async def h():"),
        ("", "y = 1"),
    ]
    assert parse(b"print 'of Python 2'\n", "old.py") == Parsed("print 'of Python 2'\n")


def test_a_notebook_is_its_cells() -> None:
    cells = [
        {"cell_type": "code", "source": "x = 1"},
        {"cell_type": "markdown", "source": ["words\n", "# Head\n", "more"]},
        {"cell_type": "code", "source": "y = 2", "outputs": [{"text": "out"}]},
    ]
    parsed = parse(json.dumps({"cells": cells}).encode(), "a.ipynb")
    assert parsed.text == "x = 1\n\nwords\n# Head\nmore\n\ny = 2\n\n"
    assert places(parsed) == [("cell 1", "x = 1"), ("cell 2", "words"), ("Head", "# Head")]
    old = {"worksheets": [{"cells": [{"cell_type": "code", "input": "z = 3"}]}]}
    assert parse(json.dumps(old).encode(), "a.ipynb").text == "z = 3\n\n"


def test_mail_is_its_text_and_what_is_attached() -> None:
    inner = EmailMessage()
    inner["Subject"], inner["From"] = "Inner", "c@example.org"
    inner.set_content("forwarded words")
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = "Äpfel", "a@example.org", "b@example.org"
    message.set_content("<h1>Apples</h1><p>html <b>alone</b></p>", subtype="html")
    message.add_attachment("# Notes\n\nattached words", subtype="markdown", filename="notes.md")
    message.add_attachment(b"\0\1\2", maintype="image", subtype="png", filename="apple.png")
    message.add_attachment(inner)
    parsed = parse(message.as_bytes(), "a.eml")
    assert parsed.text.startswith("Subject: Äpfel\nFrom: a@example.org\nTo: b@example.org\n\nApples\n\nhtml alone\n")
    assert [label for label, _ in places(parsed)] == [
        *("Äpfel", "Apples", "notes.md", "notes.md, Notes", "apple.png", "message.eml", "message.eml, Inner"),
    ]
    assert "attached words" in parsed.text and "forwarded words" in parsed.text
    assert parsed.lost == (("apple.png", "binary: byte 0x00 at position 0"),)


def test_a_lost_attachment_is_told_and_costs_nothing_else(tmp_path: Path) -> None:
    def mail(*parts: tuple[bytes, str]) -> EmailMessage:
        message = EmailMessage()
        message["Subject"], message["From"] = "Scans", "a@example.org"
        message.set_content("see below")
        for data, name in parts:
            message.add_attachment(data, maintype="application", subtype="octet-stream", filename=name)
        return message

    outer = mail((b"\0\1\2", "photo.jpg"))
    outer.add_attachment(mail((b"PK\x03\x04 and no more", "half.docx")))
    (tmp_path / "a.eml").write_bytes(outer.as_bytes())
    corpus = read_corpus(tmp_path)
    assert [document.id for document in corpus.documents] == ["a.eml"]
    (photo, word) = corpus.skipped
    assert (photo.id, word.id) == ("a.eml: photo.jpg", "a.eml: message.eml: half.docx")
    assert "binary" in photo.reason and word.reason.startswith("broken, or not what its name says: ")
    assert corpus.gone(["a.eml"]) == []


def test_a_book_is_read_in_the_order_of_its_chapters(tmp_path: Path) -> None:
    make_epub(tmp_path / "a.epub", {"b.xhtml": "<h1>One</h1><p>first", "a.xhtml": "<h2>Two</h2><p>second"})
    parsed = parse((tmp_path / "a.epub").read_bytes(), "a.epub")
    assert parsed.text.split() == ["One", "first", "Two", "second"]
    assert [label for label, _ in places(parsed)] == ["One", "One > Two"]


DRM = '<encryption><EncryptedData><CipherReference URI="OEBPS/text/a.xhtml"/></EncryptedData></encryption>'


def test_what_cannot_be_read_is_skipped_with_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("reportlab", reason="needs pip install 'm2bert[test]'")
    make_pdf(tmp_path / "locked.pdf", ["secret"], password="open sesame")
    make_pdf(tmp_path / "scan.pdf", ["", ""])
    make_pdf(tmp_path / "whole.pdf", ["some text"])
    (tmp_path / "half.pdf").write_bytes((tmp_path / "whole.pdf").read_bytes()[:200])
    (tmp_path / "locked.docx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    (tmp_path / "half.docx").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "half.pptx").write_bytes(b"PK\x03\x04 and no more")
    make_epub(tmp_path / "locked.epub", {"a.xhtml": "<p>x"}, {"META-INF/encryption.xml": DRM})
    (tmp_path / "half.epub").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "empty.html").write_text("<html><script>x</script></html>")
    (tmp_path / "broken.ipynb").write_text('{"cells": 5}')
    (tmp_path / "none.eml").write_text("no mail at all")
    corpus = read_corpus(tmp_path)
    assert [document.id for document in corpus.documents] == ["whole.pdf"]
    reasons = {item.id: item.reason for item in corpus.skipped}
    assert reasons.pop("scan.pdf") == "holds no text on its 2 pages, a scan perhaps; run text recognition (OCR) on it"
    assert reasons.pop("locked.pdf") == "encrypted: it opens with a password only; save it without one"
    assert reasons.pop("locked.docx") == "encrypted, or of an old Office; save it as .docx without a password"
    assert reasons.pop("locked.epub") == "encrypted: its chapters open in the shop's own program only"
    assert reasons.pop("half.pdf").startswith("broken, or not a PDF")
    assert reasons.pop("empty.html") == "holds no text"
    assert reasons.pop("none.eml").startswith("broken, or not an e-mail")
    assert set(reasons) == {"half.docx", "half.pptx", "half.epub", "broken.ipynb"}
    assert all(reason.startswith("broken, or not what its name says: ") for reason in reasons.values()), reasons
    kept = {item.id: item.keeps for item in corpus.skipped}
    assert kept["scan.pdf"] == kept["empty.html"] == "nothing" and kept["locked.pdf"] == "document"


@pytest.mark.parametrize(("name", "library"), [("a.pdf", "pypdfium2"), ("a.docx", "mammoth"), ("a.pptx", "pptx")])
def test_a_missing_library_is_named_with_its_extra(monkeypatch: Any, name: str, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(FormatError, match=rf"^needs the library {library}: pip install 'm2bert\[documents\]'$"):
        parse(b"anything", name)


def test_every_reader_is_there() -> None:
    assert all(has_reader("a" + suffix) and has_reader("A" + suffix.upper()) for suffix in READERS)
    assert not any(map(has_reader, ("a.txt", "a.rs", "README", "pdf", "a.pdf.bak")))
    for suffix in READERS:
        with pytest.raises(FormatError):
            parse(b"\0", "a" + suffix)

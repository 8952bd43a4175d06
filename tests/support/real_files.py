"""Real files of every kind the index reads, made by the libraries that people make them with.

Each has one rare sentence in its middle, on a known page or under a known heading; the rest is filler of other words.
"""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

WORDS = "ledger harbour lantern meadow copper orchard kettle saddle timber velvet anchor barley cellar drift ember"


def filler(words: int, seed: int = 0) -> str:
    """Lines of filler, about 60 characters each."""
    generator = random.Random(seed)
    chosen = [generator.choice(WORDS.split()) for _ in range(words)]
    return "\n".join(" ".join(chosen[first : first + 9]) for first in range(0, words, 9))


@dataclass(frozen=True)
class RealFile:
    """A file, the rare sentence in its middle, and the page or heading where that stands; empty where it has none."""

    name: str
    sentence: str
    place: str
    make: Callable[[Path, str], None]


def make_pdf(path: Path, pages: list[str], password: str | None = None) -> None:
    """A PDF with a page of text for each string; an empty one is a page with a picture, as in a scan."""
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path), encrypt=password)
    for page in pages:
        if page:
            text = canvas.beginText(60, 780)
            for line in page.splitlines():
                text.textLine(line)
            canvas.drawText(text)
        else:
            canvas.rect(100, 100, 300, 500, fill=1)
        canvas.showPage()
    canvas.save()


def _pdf(pages: int, at: int) -> Callable[[Path, str], None]:
    def make(path: Path, sentence: str) -> None:
        texts = [filler(250, seed=number) for number in range(1, pages + 1)]
        lines = texts[at - 1].splitlines()
        texts[at - 1] = "\n".join([*lines[:14], sentence, *lines[14:]])
        make_pdf(path, texts)

    return make


def _docx(path: Path, sentence: str) -> None:
    from docx import Document

    document = Document()
    document.add_heading("Lease", level=0)
    document.add_paragraph(filler(120, seed=1))
    document.add_heading("Terms", level=1)
    document.add_paragraph(filler(120, seed=2))
    document.add_heading("Payment", level=2)
    document.add_paragraph(filler(90, seed=3))
    document.add_paragraph(sentence)
    document.add_paragraph(filler(90, seed=4))
    document.add_heading("Notice", level=2)
    document.add_paragraph(filler(120, seed=5))
    document.save(str(path))


def _docx_table(path: Path, sentence: str) -> None:
    from docx import Document

    document = Document()
    document.add_heading("Inventory", level=1)
    document.add_paragraph(filler(150, seed=6))
    document.add_heading("Kitchen", level=1)
    table = document.add_table(rows=9, cols=2)
    for number, row in enumerate(table.rows):
        row.cells[0].text = sentence if number == 4 else filler(18, seed=number)
        row.cells[1].text = filler(9, seed=20 + number)
    document.save(str(path))


def _pptx(path: Path, sentence: str) -> None:
    from pptx import Presentation

    deck = Presentation()
    for number, title in enumerate(["Welcome", "Method", "Results", "Thanks"], start=1):
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = title
        middle = sentence if number == 3 else filler(18, seed=30 + number)
        slide.placeholders[1].text = f"{filler(54, seed=number)}\n{middle}\n{filler(54, seed=40 + number)}"
    deck.save(str(path))


def _html(path: Path, sentence: str) -> None:
    def paragraph(seed: int) -> str:
        return f"<p>{filler(120, seed=seed)}</p>"

    path.write_text(
        "<!doctype html><html><head><title>Handbook</title><style>p {color: red}</style>"
        f"<script>var hidden = '{sentence}';</script></head><body><nav><a href=/>{sentence}</a></nav>"
        f"<h1>Installation</h1>{paragraph(1)}<h2>Windows</h2>{paragraph(2)}"
        f"<h2>On <em>Linux</em></h2>{paragraph(3)}<p>{sentence.replace(' ', '&#32;', 1)}</p>{paragraph(4)}"
        f"<h1>Use</h1>{paragraph(5)}</body></html>",
        encoding="utf-8",
    )


CONTAINER = """<?xml version="1.0"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<rootfiles><rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""


def make_epub(path: Path, chapters: dict[str, str], extra: dict[str, str] | None = None) -> None:
    """An EPUB whose chapters are read in the order given, which is not that of the archive."""
    items = "".join(
        f'<item id="c{number}" href="text/{name.replace(" ", "%20")}" media-type="application/xhtml+xml"/>'
        for number, name in enumerate(chapters)
    )
    spine = "".join(f'<itemref idref="c{number}"/>' for number in range(len(chapters)))
    package = (
        '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0">'
        f"<manifest>{items}</manifest><spine>{spine}</spine></package>"
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        for name, body in sorted(chapters.items(), reverse=True):
            page = f'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body>{body}</body></html>'
            book.writestr(f"OEBPS/text/{name}", page)
        book.writestr("OEBPS/book.opf", package)
        book.writestr("META-INF/container.xml", CONTAINER)
        for name, text in (extra or {}).items():
            book.writestr(name, text)


def _epub(path: Path, sentence: str) -> None:
    chapters = {}
    for number in range(1, 6):
        middle = f"<p>{sentence}</p>" if number == 3 else ""
        before, after = filler(90, seed=number), filler(90, seed=10 + number)
        chapters[f"part {number}.xhtml"] = f"<h1>Chapter {number}</h1><p>{before}</p>{middle}<p>{after}</p>"
    make_epub(path, chapters)


def _markdown(path: Path, sentence: str) -> None:
    parts = ["# Guide", filler(90, seed=1), "```sh\n# no heading\nls\n```", "Setup\n-----", filler(90, seed=2)]
    parts += ["### With *pip*", filler(60, seed=3), sentence, filler(60, seed=4), "# Limits", filler(90, seed=5)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _email(path: Path, sentence: str) -> None:
    message = EmailMessage()
    message["Subject"] = "Minutes of Tuesday's meeting"
    message["From"], message["To"] = "Ann Ash <ann@example.org>", "bob@example.org"
    message.set_content(filler(100, seed=1))
    message.add_alternative(f"<p>{filler(30, seed=2)}</p>", subtype="html")
    attached = path.with_name("attached.pdf.part")
    _pdf(4, at=2)(attached, sentence)
    message.add_attachment(attached.read_bytes(), maintype="application", subtype="pdf", filename="minutes.pdf")
    attached.unlink()
    path.write_bytes(message.as_bytes())


def _encoded(encoding: str) -> Callable[[Path, str], None]:
    def make(path: Path, sentence: str) -> None:
        path.write_bytes(f"{filler(120, seed=1)}\n{sentence}\n{filler(120, seed=2)}\n".encode(encoding))

    return make


def _python(path: Path, sentence: str) -> None:
    def method(name: str, text: str) -> str:
        return f'    def {name}(self):\n        """{text}"""\n        return 1\n\n'

    inner = f"{filler(45, seed=3)}\n{sentence}\n{filler(45, seed=4)}"
    code = f'"""{filler(60, seed=1)}"""\n\nclass Store:\n{method("open", filler(60, seed=2))}{method("add", inner)}'
    path.write_text(f"{code}\ndef main():\n    '''{filler(60, seed=5)}'''\n", encoding="utf-8")


def _notebook(path: Path, sentence: str) -> None:
    def cell(kind: str, source: str) -> dict[str, object]:
        return {"cell_type": kind, "metadata": {}, "source": source.splitlines(keepends=True)}

    cells = [
        cell("markdown", f"# Load\n\n{filler(90, seed=1)}"),
        cell("code", "import pandas as pd"),
        cell("markdown", f"# Clean\n\n{filler(60, seed=2)}"),
        cell("code", f"# {filler(9, seed=3)}\n# {sentence}\n# {filler(9, seed=4)}")
        | {"outputs": [{"output_type": "display_data", "data": {"image/png": "aGVsbG8gd29ybGQ" * 400}}]},
        cell("markdown", f"{filler(60, seed=5)}\n\n# Plot\n\n{filler(90, seed=6)}"),
    ]
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")


REAL_FILES = [
    RealFile("report.pdf", "Marmots whistle before avalanches reach Zermatt", "page 3", _pdf(5, at=3)),
    RealFile("manual.pdf", "Unscrew gearbox flanges clockwise using pliers", "page 12", _pdf(14, at=12)),
    RealFile("lease.docx", "Tenants transfer deposits every fortnight via cheque", "Terms > Payment", _docx),
    RealFile("inventory.docx", "Nine chipped porcelain saucers behind refrigerator", "Kitchen", _docx_table),
    RealFile("talk.pptx", "Accuracy doubled across Finnish dialect recordings", "slide 3: Results", _pptx),
    RealFile("handbook.html", "Append yourself into dialout group", "Installation > On Linux", _html),
    RealFile("novel.epub", "Captain Oduya burned her maps quietly", "Chapter 3", _epub),
    RealFile("guide.md", "Wheels compile faster behind proxies", "Guide > Setup > With pip", _markdown),
    RealFile("minutes.eml", "Budget vote postponed until Thursday afternoon", "minutes.pdf, page 2", _email),
    RealFile("brief.txt", "Schöne Grüße aus Köln schickt Jürgen", "", _encoded("cp1252")),
    RealFile("windows.txt", "Registry exports überraschen Администратор", "", _encoded("utf-16")),
    RealFile("store.py", "Rejects duplicate fingerprints without locking", "Store.add", _python),
    RealFile("analysis.ipynb", "drop negative rainfall measurements from Bergen", "Clean", _notebook),
]

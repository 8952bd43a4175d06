"""PDF, DOCX and PPTX, by pypdfium2, mammoth and python-pptx (`pip install 'm2bert[documents]'`).

Test: tests/search/test_formats.py, tests/search/test_real_documents.py.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from m2bert.search.formats import FormatError, Parsed, library
from m2bert.search.formats.markup import write_html
from m2bert.search.sections import SectionedText

# Office files with a password are not archives any more, but of the kind that old Office files are.
OLD_OFFICE = b"\xd0\xcf\x11\xe0"
# The hyphen that a line of a PDF ends with; PDFium marks it so, and the word goes on in the next line.
HYPHEN = re.compile("[\ufffe\x02](?:\r?\n)?")


def read_pdf(data: bytes) -> Parsed:
    """The pages of a PDF, each a section: "page 12", counted from 1."""
    pdfium = library("pypdfium2")
    try:
        pdf = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if "password" in str(error).lower():
            raise FormatError("encrypted: it opens with a password only; save it without one") from error
        raise FormatError(f"broken, or not a PDF: {error}") from error
    out = SectionedText()
    for number, page in enumerate(pdf, start=1):
        text = page.get_textpage().get_text_bounded()
        out.begin(f"page {number}")
        out.write(HYPHEN.sub("", text).replace("\r\n", "\n").strip() + "\n\n")
    if not out.text.strip():
        raise FormatError(
            f"holds no text on its {len(pdf)} pages, a scan perhaps; run text recognition (OCR) on it",
            holds_nothing=True,
        )
    return Parsed.of(out)


def read_docx(data: bytes) -> Parsed:
    """A Word document; its headings, by their styles, are sections."""
    mammoth = library("mammoth")
    _check_archive(data, "docx")
    made = mammoth.convert_to_html(
        io.BytesIO(data),
        style_map="p[style-name='Title'] => h1:fresh",
        convert_image=mammoth.images.img_element(lambda image: {}),
    )
    out = SectionedText()
    write_html(out, made.value)
    return Parsed.of(out)


def read_pptx(data: bytes) -> Parsed:
    """The slides of a presentation with their notes, each a section: "slide 3: Results"."""
    pptx = library("pptx")
    _check_archive(data, "pptx")
    out = SectionedText()
    for number, slide in enumerate(pptx.Presentation(io.BytesIO(data)).slides, start=1):
        title = slide.shapes.title
        words = " ".join(title.text_frame.text.split()) if title is not None else ""
        out.begin(f"slide {number}: {words}" if words else f"slide {number}")
        texts = list(_texts_of(slide.shapes))
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            texts.append(slide.notes_slide.notes_text_frame.text)
        out.write("\n".join(text for text in texts if text.strip()) + "\n\n")
    return Parsed.of(out)


def _texts_of(shapes: Any) -> Iterator[str]:
    for shape in shapes:
        if hasattr(shape, "shapes"):
            yield from _texts_of(shape.shapes)
        elif shape.has_text_frame:
            yield shape.text_frame.text
        elif getattr(shape, "has_table", False) and shape.has_table:
            for row in shape.table.rows:
                yield " ".join(cell.text for cell in row.cells)


def _check_archive(data: bytes, suffix: str) -> None:
    if data.startswith(OLD_OFFICE):
        raise FormatError(f"encrypted, or of an old Office; save it as .{suffix} without a password")

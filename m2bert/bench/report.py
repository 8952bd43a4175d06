"""Runs as one page to read: tables, the paper's figures drawn anew, its numbers beside ours, and where they come from.

    runs (m2bert.bench.runs) -> sections of text, tables and figures (m2bert.bench.report_sections) -> HTML | Markdown

The HTML holds everything in one file; the Markdown has its figures as PNG in a folder beside it.
Test: tests/bench/test_report.py.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2bert.bench import plots
from m2bert.bench.report_sections import Section, build_sections
from m2bert.bench.runs import load_run
from m2bert.bench.tables import Table
from m2bert.files import write_text

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.3rem; margin-top: 2.5rem; border-bottom: 1px solid #999 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: .9rem }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ccc; text-align: right; vertical-align: top }
th { border-bottom: 2px solid #333 } th.text, td.text { text-align: left }
.wide { overflow-x: auto } figure { margin: 1.5rem 0 } figure svg { max-width: 100%; height: auto }
figcaption { font-size: .9rem; color: #333 } .foot, .note { font-size: .85rem }
@media print { body { max-width: none; margin: 0; font-size: 10pt } figure, table { break-inside: avoid } }
"""


def read_runs(files: Sequence[Path | str]) -> dict[str, dict[str, Any]]:
    """{file name: run}. Raises M2BertError for a file that is no run."""
    return {str(file): load_run(file) for file in files}


def write_report(
    runs: Mapping[str, Mapping[str, Any]], page: Path | str, markdown: Path | str | None = None, title: str = "Report"
) -> None:
    """Write the HTML page and, if wanted, the Markdown with its figures in `<stem>_figures/` beside it.

    runs: {name: run}; they appear by kind in the order given. Raises M2BertError if a file cannot be written.
    """
    sections = build_sections(runs)
    write_text(page, render_html(sections, title), who="report")
    if markdown is not None:
        markdown = Path(markdown)
        folder = markdown.with_name(f"{markdown.stem}_figures")
        write_text(markdown, render_markdown(sections, title, folder.name), who="report")
        folder.mkdir(exist_ok=True)
        for section in sections:
            for figure in section.figures:
                plots.save(figure.drawing, folder / f"{figure.name}.png")


def render_html(sections: Sequence[Section], title: str) -> str:
    """The page, with its style and its figures (SVG) inside; nothing is loaded from elsewhere."""
    lines = ["<!doctype html>", '<html lang="en">', '<meta charset="utf-8">']
    lines += ['<meta name="viewport" content="width=device-width, initial-scale=1">']
    lines += [f"<title>{html.escape(title)}</title>", f"<style>{STYLE}</style>", f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        kind = ' class="foot"' if section.foot else ""
        lines += [f"<section{kind}>", f"<h2>{html.escape(section.heading)}</h2>"]
        lines += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.text]
        lines += [_html_table(table) for table in section.tables]
        for figure in section.figures:
            caption = html.escape(figure.caption)
            lines += [f"<figure>{plots.svg(figure.drawing)}<figcaption>{caption}</figcaption></figure>"]
        lines += ["</section>"]
    return "\n".join([*lines, "</html>", ""])


def _html_table(table: Table) -> str:
    head = _html_row(table, [column.heading for column in table.columns], "th")
    body = "\n".join(_html_row(table, row, "td") for row in table.all_rows)
    notes = "".join(f'\n<p class="note">{html.escape(note)}</p>' for note in table.notes)
    caption = f"<caption>{html.escape(table.title)}</caption>"
    return f'<div class="wide"><table>{caption}\n{head}\n{body}\n</table></div>{notes}'


def _html_row(table: Table, cells: Sequence[str], tag: str) -> str:
    kinds = ["" if column.numeric else ' class="text"' for column in table.columns]
    made = (f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
    return f"<tr>{''.join(made)}</tr>"


def render_markdown(sections: Sequence[Section], title: str, folder: str) -> str:
    """The same as Markdown; figures are links into `folder`."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.heading}", ""]
        for paragraph in section.text:
            lines += [paragraph, ""]
        for table in section.tables:
            lines += [*_markdown_table(table), ""]
        for figure in section.figures:
            lines += [f"![{figure.caption}]({folder}/{figure.name}.png)", "", figure.caption, ""]
    return "\n".join(lines)


def _markdown_table(table: Table) -> list[str]:
    lines = [f"**{table.title}**", "", _markdown_row([column.heading for column in table.columns])]
    lines.append("|" + "".join("---:|" if column.numeric else "---|" for column in table.columns))
    lines += map(_markdown_row, table.all_rows)
    return lines + [line for note in table.notes for line in ("", note)]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

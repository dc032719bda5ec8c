"""A page: sections of text, tables and figures in; one self-contained HTML file, and a Markdown twin with PNGs beside it, out.

Whatever a name, a reason or a sample holds is shown as it is written and does nothing: it is escaped here and nowhere else.
One number: 0 requests; plotly's code is inside the page once, and the page forbids itself to load anything.
Choice not taken: a template language, for two dozen lines of HTML.
"""

import html
import json
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gpt2_lightning.errors import OutputError
from gpt2_lightning.report.style import SCRIPT, STYLE

__all__ = [
    "Figure", "Page", "Section", "Table", "Verbatim", "anchor", "duration", "number", "plain", "write_bytes", "write_page",
]  # fmt: skip

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
INDEX, TWIN = "index.html", "report.md"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of plain values; the first column names a row."""

    heads: list[str]
    rows: list[list[Any]]

    def numeric(self, i: int) -> bool:
        """Whether a column holds numbers, or nothing."""
        return all(row[i] is None or is_number(row[i]) for row in self.rows)


class Verbatim(str):
    """Text as it is."""


@dataclass(frozen=True, slots=True)
class Figure:
    """``spec``: the figure as plotly's JSON has it; ``png`` draws it for the Markdown twin; ``caption``: what is to be seen."""

    name: str
    caption: str
    spec: dict[str, Any]
    png: Callable[[], bytes]


Block = str | Table | Verbatim | Figure


class Section(NamedTuple):
    """What stands under one heading."""

    title: str
    blocks: list[Block]


class Page(NamedTuple):
    """What a report says. ``lead`` is its first sentence."""

    title: str
    lead: str
    sections: list[Section]

    def figures(self) -> list[Figure]:
        """All figures, in order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]


def write_page(page: Page, folder: Path, code: str) -> list[Path]:
    """Write both forms, plotly's ``code`` inside the first; returns their paths. Raises OutputError."""
    try:
        for figure in page.figures():
            write_bytes(folder / f"{figure.name}.png", figure.png())
        write_bytes(folder / TWIN, as_markdown(page).encode())
        write_bytes(folder / INDEX, as_html(page, code).encode())
    except OSError as error:
        raise OutputError("report", key="out", value=str(folder), rule=f"cannot be written: {error.strerror}") from error
    return [folder / INDEX, folder / TWIN]


def write_bytes(path: Path, data: bytes) -> None:
    """Have the file whole or not at all, for several agents of a study may end at once; one that is right already is left."""
    with suppress(OSError):
        if path.read_bytes() == data:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{socket.gethostname()}.{os.getpid()}.partial")  # TensorBoard would read one that is named alike
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def as_html(page: Page, code: str) -> str:
    """The page as one HTML file."""
    body = []
    for section in page.sections:
        body.append(f'<section id="{anchor(section.title)}"><h2>{text(section.title)}</h2>')
        body += [*map(html_block, section.blocks), "</section>"]
    links = " ".join(f'<a href="#{anchor(s.title)}">{text(s.title)}</a>' for s in page.sections)
    lines = "\n".join(body)
    scripts = f"<script>{code}</script>\n<script>{SCRIPT}</script>" if page.figures() else f"<script>{SCRIPT}</script>"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{text(page.title)}</title><style>{STYLE}</style></head>
<body><header><h1>{text(page.title)}</h1><p class="lead">{text(page.lead)}</p><nav>{links}</nav></header>
<main>
{lines}
</main>
{scripts}
</body></html>
"""


def html_block(block: Block) -> str:
    """A paragraph, table, text as it is, or figure."""
    if isinstance(block, Table):
        looks = [' class="number"' if block.numeric(i) else "" for i in range(len(block.heads))]
        heads = "".join(f'<th scope="col"{look}>{text(head)}</th>' for head, look in zip(block.heads, looks, strict=True))
        rows = "\n".join(f"<tr>{''.join(map(html_cell, row, looks))}</tr>" for row in block.rows)
        return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    if isinstance(block, Verbatim):
        return f"<pre>{html.escape(clean(block))}</pre>"
    if isinstance(block, Figure):
        spec = json.dumps(harmless(block.spec), allow_nan=False)
        spec = spec.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")  # it can end no script
        data = f'<script type="application/json">{spec}</script>'
        return f'<figure><div class="plot">{data}</div><figcaption>{text(block.caption)}</figcaption></figure>'
    return f"<p>{text(block)}</p>"


def html_cell(value: Any, look: str) -> str:
    """A cell; a number with what it is sorted by."""
    sort = f' data-value="{value}"' if is_number(value) else ""
    return f"<td{look}{sort}>{text(plain(value))}</td>"


def as_markdown(page: Page) -> str:
    """The page as Markdown, its figures as files beside it."""
    parts = [f"# {mark(page.title)}", mark(page.lead)]
    for section in page.sections:
        parts += [f"## {mark(section.title)}", *map(markdown_block, section.blocks)]
    return "\n\n".join(parts) + "\n"


def markdown_block(block: Block) -> str:
    """A paragraph, table, text as it is, or figure."""
    if isinstance(block, Table):
        aligned = ["--:" if block.numeric(i) else "---" for i in range(len(block.heads))]
        lines = [[mark(head) for head in block.heads], aligned]
        lines += [[mark(plain(value)) for value in row] for row in block.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if isinstance(block, Verbatim):
        body = clean(block).rstrip("\n")
        fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", body) or [""]))
        return f"{fence}text\n{body}\n{fence}"
    if isinstance(block, Figure):
        return f"![{mark(block.caption)}]({block.name}.png)\n\n*{mark(block.caption)}*"
    return mark(block)


def text(value: str) -> str:
    """Text in one line of HTML."""
    return html.escape(one_line(value))


def mark(value: str) -> str:
    """Text in one line of Markdown, none of which is markup, HTML, or a link."""
    escaped = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", one_line(value))
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("://", ":&#47;/")
    return re.sub(r"^(\s*)([#+-]|\d+[.)])(\s)", r"\1\\\2\3", escaped)


def one_line(value: str) -> str:
    """Text whose line ends are blanks."""
    return " ".join(clean(value).split())


def clean(value: str) -> str:
    """Text that every file can hold: what moves a cursor or is no character becomes U+FFFD."""
    whole = value.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", "\ufffd", whole)


def harmless(value: Any) -> Any:
    """A figure's JSON, its texts as plotly shows them: it reads a few tags, of which only the line break is ours."""
    if isinstance(value, dict):
        return {harmless(key) if isinstance(key, str) else key: harmless(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [harmless(one) for one in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"<(?!br>|extra></extra>|/extra>)", "&lt;", clean(value).replace("&", "&amp;").replace("$", "&#36;"))


def plain(value: Any) -> str:
    """A value as people read it."""
    if value is None or value == "":
        return "-"
    if is_number(value):
        return number(value)
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def is_number(value: Any) -> bool:
    """Whether it is one; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: int | float) -> str:
    """A number in few digits: as it is written where that is short."""
    if isinstance(value, int):
        return f"{value:,}"
    if 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return repr(value) if len(repr(value)) < 7 else f"{value:.4f}" if 0.1 <= abs(value) < 1000 else f"{value:.4g}"


def duration(seconds: int | float) -> str:
    """Hours, minutes and seconds, the larger two."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m:02d} min" if hours else f"{m} min {s:02d} s" if m else f"{s} s"


def anchor(title: str) -> str:
    """A section's place in the page."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")

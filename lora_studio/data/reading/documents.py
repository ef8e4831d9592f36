"""Text of documents: web pages, PDF, Word, PowerPoint, e-books.

Libraries read the formats. What comes out is Markdown: headings as `#`, paragraphs parted by blank
lines, lists, tables. Pictures and the addresses of links are left out. Nothing is fetched.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from typing import Any

from lora_studio.data.reading import encodings
from lora_studio.data.reading.epub import read_epub
from lora_studio.data.reading.packages import check_package, translated
from lora_studio.data.reading.pdf import read_pdf
from lora_studio.errors import DatasetError

NOISE = ["nav", "aside", "footer", "dialog", "button", "[role=navigation]", "[aria-hidden=true]"]
# Where a page names its encoding (HTML Standard, section 13.2.3.2), or its XML declaration does.
DECLARED = re.compile(
    rb"""(?:charset|<\?xml[^>]*encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE
)
DECLARED_WITHIN_BYTES = 1024
# Names that Word and Hangul give headings in Korean; mammoth knows the English ones.
STYLES = "\n".join(
    [
        "p[style-name='Title'] => h1:fresh",
        "p[style-name='제목'] => h1:fresh",
        *(
            f"p[style-name='{name} {level}'] => h{level}:fresh"
            for name in ("제목", "개요")
            for level in range(1, 7)
        ),
    ]
)


def read_html(raw: bytes, file: str) -> str:
    """Return a web page's text without its scripts, styles and navigation.

    Raises:
        DatasetError: If it is no text, or nested beyond reason.
    """
    return _markdown(_unwrapped(_decoded(raw, file=file)), file=file)


def read_docx(raw: bytes, file: str) -> str:
    """Return a Word document's text, with its footnotes at the end.

    Raises:
        DatasetError: If it is broken, locked, too large, or something else.
    """
    import mammoth

    check_package(BytesIO(raw), file=file)
    with translated(file):
        html = mammoth.convert_to_html(
            BytesIO(raw),
            style_map=STYLES,
            include_embedded_style_map=False,
            convert_image=lambda _: [],
        ).value
    return _markdown(html, file=file)


def read_pptx(raw: bytes, file: str) -> str:
    """Return the slides' text under their titles, with tables and the speaker's notes.

    Raises:
        DatasetError: If it is broken, locked, too large, or something else.
    """
    from pptx import Presentation

    check_package(BytesIO(raw), file=file)
    with translated(file):
        slides = Presentation(BytesIO(raw)).slides
        blocks = [block for slide in slides for block in _slide(slide)]
    return "\n\n".join(block for block in blocks if block)


DOCUMENTS: dict[str, Callable[[bytes, str], str]] = {
    ".html": read_html,
    ".htm": read_html,
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".pptx": read_pptx,
    ".epub": lambda raw, file: read_epub(raw, file, page_text=partial(read_html, file=file)),
}
"""Ending -> what makes text of a file's content; takes its name too, for errors."""


class _Links:
    """Keeps of a link what a reader sees."""

    def visit_link(
        self, _context: Any, _address: str, text: str, _title: str | None
    ) -> dict[str, str]:
        return {"type": "custom", "output": text}


def _markdown(html: str, *, file: str) -> str:
    import html_to_markdown

    options = html_to_markdown.ConversionOptions(
        extract_metadata=False,
        skip_images=True,
        compact_tables=True,
        autolinks=False,
        exclude_selectors=NOISE,
    )
    links: Any = _Links()  # the stubs want every method of a visitor
    with translated(file):
        result = html_to_markdown.convert(html, options, visitor=links)
    text = result.content or ""
    if not text.strip() and result.warnings:  # nested too deep: nothing is left of it
        raise DatasetError("data.broken_document", file=file)
    lines = [line.rstrip() for line in text.replace("\0", "").replace("\xa0", " ").split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _decoded(raw: bytes, *, file: str) -> str:
    """Return the page's text: UTF-8 if it fits, else as declared, else as detected."""
    declared = DECLARED.search(raw[:DECLARED_WITHIN_BYTES])
    named = declared[1].decode("ascii", "replace") if declared else ""
    found = encodings.detect(raw, is_whole=True)
    if found is None:
        raise DatasetError("data.binary_file", file=file)
    if found.startswith("utf") or not named:
        return raw.decode(found, "replace")
    try:
        # Korean and Western pages mean the larger sets that Windows uses (Encoding Standard, 4.2).
        wider = {
            "euc_kr": "cp949",
            "iso8859-1": "cp1252",
            "shift_jis": "cp932",
            "gb2312": "gb18030",
        }
        name = codecs.lookup(named).name
        return raw.decode(wider.get(name, name))
    except (LookupError, UnicodeDecodeError, ValueError):
        return raw.decode(found, "replace")


def _unwrapped(html: str) -> str:
    """Make line ends spaces, which they mean in HTML, but for those of preformatted text."""
    parts = re.split(r"(</?pre\b)", html, flags=re.IGNORECASE)
    depth = 0
    for at, part in enumerate(parts):
        if at % 2:
            depth = max(0, depth + (-1 if part.startswith("</") else 1))
        elif not depth:
            parts[at] = re.sub(r"[\r\n]+", " ", part)
    return "".join(parts)


def _slide(slide: Any) -> Iterator[str]:
    title = slide.shapes.title
    if title is not None and title.has_text_frame:
        heading = " ".join(title.text_frame.text.split())
        yield f"# {heading}" if heading else ""
    for shape in _shapes(slide.shapes):
        if shape.has_table:
            yield _table([[cell.text for cell in row.cells] for row in shape.table.rows])
        elif shape.has_text_frame and (title is None or shape.shape_id != title.shape_id):
            yield _paragraphs(shape)
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        yield "\n\n".join(_filled(slide.notes_slide.notes_text_frame))


def _shapes(shapes: Any) -> Iterator[Any]:
    """Yield the shapes, also those in groups, without dates, footers and slide numbers."""
    from pptx.enum.shapes import MSO_SHAPE_TYPE, PP_PLACEHOLDER

    noise = (PP_PLACEHOLDER.DATE, PP_PLACEHOLDER.FOOTER, PP_PLACEHOLDER.SLIDE_NUMBER)
    for shape in shapes:
        if shape.shape_type == MSO_SHAPE_TYPE.GROUP:
            yield from _shapes(shape.shapes)
        elif not (shape.is_placeholder and shape.placeholder_format.type in noise):
            yield shape


def _paragraphs(shape: Any) -> str:
    """Return a list where a slide's body has several points, else paragraphs."""
    from pptx.enum.shapes import PP_PLACEHOLDER

    body = (PP_PLACEHOLDER.BODY, PP_PLACEHOLDER.OBJECT)
    filled = _filled(shape.text_frame)
    if shape.is_placeholder and shape.placeholder_format.type in body and len(filled) > 1:
        levels = [p.level for p in shape.text_frame.paragraphs if p.text.strip()]
        points = zip(levels, filled, strict=True)
        return "\n".join(f"{'  ' * level}- {' '.join(text.split())}" for level, text in points)
    return "\n\n".join(filled)


def _filled(frame: Any) -> list[str]:
    """Return the paragraphs with text; a vertical tab is a line break in PowerPoint."""
    texts = (paragraph.text.replace("\v", "\n").strip() for paragraph in frame.paragraphs)
    return [text for text in texts if text]


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    lines[1:1] = ["| " + " | ".join("---" for _ in rows[0]) + " |"] if rows else []
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

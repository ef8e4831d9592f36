"""Documents and spreadsheets made here in code, as programs write them, and broken on purpose."""

from __future__ import annotations

import datetime as dt
import random
import threading
import zipfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook

from lora_studio.data.examples import Record
from lora_studio.data.reading import packages
from lora_studio.data.reading.documents import DOCUMENTS
from lora_studio.data.reading.rows import Position
from lora_studio.data.reading.spreadsheets import read_xlsx
from lora_studio.errors import DatasetError

PACKAGES = (".docx", ".pptx", ".epub", ".xlsx")
OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a0 "lol">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    + "]><a>&a9;</a>"
)


def text(kind: str, raw: bytes) -> str:
    return DOCUMENTS[kind](raw, f"file{kind}")


def html(body: str) -> str:
    return text(".html", f"<!doctype html><html><body>{body}</body></html>".encode())


def read(kind: str, raw: bytes) -> Any:
    if kind == ".xlsx":
        return list(read_xlsx(BytesIO(raw), file="file.xlsx", position=Position()))
    return text(kind, raw)


def refused(kind: str, raw: bytes) -> str:
    with pytest.raises(DatasetError) as caught:
        read(kind, raw)
    assert f"file{kind}" in caught.value.say("en")
    assert caught.value.say("ko") != caught.value.say("en")
    return caught.value.key


def rewritten(raw: bytes, **changes: str | bytes | None) -> bytes:
    """Change the members whose names end so; None leaves them out."""
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(raw)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            content: str | bytes | None = old.read(entry)
            for name, change in changes.items():
                if Path(entry.filename).name.split(".")[0] == name:
                    content = change
            if content is not None:
                new.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def bomb(megabytes: int) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/media.bin", bytes(megabytes * 2**20))
    return out.getvalue()


# Web pages


def test_a_web_page_becomes_headings_paragraphs_lists_and_tables() -> None:
    page = """<h1>The Mill</h1><p>It <b>grinds</b>
      flour &amp; more.</p><h2>역사</h2><p>1890년에 지어졌어요.</p>
      <ul><li>one<li>two</ul>
      <table><tr><th>Name<th>Area<tr><td>Cotto<td>river|side</table>"""
    assert html(page) == (
        "# The Mill\n\nIt **grinds** flour & more.\n\n## 역사\n\n1890년에 지어졌어요.\n\n"
        "- one\n- two\n\n| Name | Area |\n| --- | --- |\n| Cotto | river\\|side |"
    )


def test_what_is_not_the_text_of_a_web_page_is_left_out() -> None:
    page = """<head><title>T</title><style>p{}</style><script>var x = "<p>no</p>"</script></head>
      <header><nav><a href=/>Home</a></nav></header><div role=navigation>crumbs</div>
      <main><p>Read <a href="http://x.y/z">this</a>.</p><p hidden>hidden</p>
      <img src="data:image/png;base64,AAAA" alt=picture><!-- comment --></main>
      <aside>related</aside><footer>(c)</footer>"""
    assert html(page) == "Read this."


def test_preformatted_text_keeps_its_lines() -> None:
    assert html("<p>a\nb</p><pre>def f():\n    return 1</pre>") == (
        "a b\n\n```\ndef f():\n    return 1\n```"
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "euc-kr"])
@pytest.mark.parametrize("declared", ["", "<meta charset=euc-kr>"])
def test_korean_web_pages_are_read_in_their_encoding(encoding: str, declared: str) -> None:
    raw = f"<html>{declared}<p>대한민국의 수도는 서울이에요.</p>".encode(encoding)
    assert text(".htm", raw) == "대한민국의 수도는 서울이에요."


def test_a_declared_encoding_decides_where_utf8_does_not_fit() -> None:
    raw = "<meta charset='windows-1251'><p>Мельница стоит у реки.</p>".encode("cp1251")
    assert text(".html", raw) == "Мельница стоит у реки."


@pytest.mark.parametrize("name", ["no-such-encoding", "base64", "rot13", "undefined"])
def test_a_declared_encoding_that_is_none_is_passed_over(name: str) -> None:
    raw = f"<meta charset='{name}'><p>한국어 문장이에요. 그렇지요?</p>".encode("cp949")
    assert text(".html", raw) == "한국어 문장이에요. 그렇지요?"


def test_a_web_page_nested_beyond_reason_is_refused() -> None:
    assert refused(".html", b"<div>" * 100_000 + b"deep") == "data.broken_document"


# PDF


def pdf(*pages: Sequence[tuple[float, float, float, str]], font: str = "Times-Roman") -> bytes:
    """Write lines (x, y, size, text) on pages; y counts downwards from the top."""
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont
    from reportlab.pdfgen import canvas

    pdfmetrics.registerFont(UnicodeCIDFont("HYSMyeongJo-Medium"))
    out = BytesIO()
    sheet = canvas.Canvas(out)
    for lines in pages:
        for x, y, size, line in lines:
            sheet.setFont(font, size)
            sheet.drawString(x, 800 - y, line)
        sheet.showPage()
    sheet.save()
    return out.getvalue()


def column(x: float, y: float, *lines: str) -> list[tuple[float, float, float, str]]:
    return [(x, y + 14 * at, 11.0, line) for at, line in enumerate(lines)]


LEFT = ("The clerk keeps the records of", "the town in a stone house. She", "copies the regis-")
RIGHT = (
    "trations of all the vessels in",
    "autumn. The well-known clerk is",
    "a well-",
    "known one.",
)


def test_a_pdf_in_two_columns_is_read_column_by_column() -> None:
    raw = pdf([(72, 40, 20.0, "Records"), *column(72, 80, *LEFT), *column(310, 80, *RIGHT)])
    assert text(".pdf", raw) == (
        "# Records\n\nThe clerk keeps the records of the town in a stone house. She copies the"
        " registrations of all the vessels in autumn. The well-known clerk is a well-known one."
    )


def test_headings_of_a_pdf_are_told_by_their_size() -> None:
    raw = pdf(
        [
            (72, 40, 24.0, "Book"),
            (72, 80, 16.0, "Chapter one"),
            *column(72, 110, "First text that is long enough.", "It goes on."),
            (72, 160, 16.0, "Chapter two"),
            *column(72, 190, "Second text."),
        ]
    )
    assert text(".pdf", raw).split("\n\n") == [
        "# Book",
        "## Chapter one",
        "First text that is long enough. It goes on.",
        "## Chapter two",
        "Second text.",
    ]


def test_paragraphs_of_a_pdf_are_told_by_gaps_indents_and_short_ends() -> None:
    raw = pdf(
        [
            *column(72, 40, "One line that fills the whole width of it.", "Short end."),
            *column(
                72, 68, "Two lines that fill the whole width of it", "and go on to its end now."
            ),
            *column(72, 120, "Three begins after a gap, and is as wide."),
            *column(
                90,
                134,
                "Four is indented and fills the line too,",
            ),
            *column(72, 148, "and goes on at the margin."),
        ]
    )
    assert [part.split()[0] for part in text(".pdf", raw).split("\n\n")] == [
        "One",
        "Two",
        "Three",
        "Four",
    ]


def test_rows_of_a_table_in_a_pdf_stay_lines() -> None:
    wide = "A sentence as wide as the page, which says how wide lines are."
    raw = pdf([*column(72, 40, wide, wide), *column(74, 100, "Name Area", "Cotto riverside")])
    assert text(".pdf", raw).endswith("\n\nName Area\nCotto riverside")


def test_korean_words_that_a_line_of_a_pdf_cuts_are_whole_again() -> None:
    lines = (
        "항구 마을은 기록을 보관해요. 가을마다 서",
        "기가 어선 장부를 옮겨 적고 견주어 보며",
        "다른 곳을 표시해요. 그 서기가 마을의 기",
        "록을 견주어 보며 다른 기록을 또 적어요.",
    )
    whole = text(".pdf", pdf(column(72, 40, *lines), font="HYSMyeongJo-Medium"))
    assert whole == (
        "항구 마을은 기록을 보관해요. 가을마다 서기가 어선 장부를 옮겨 적고 견주어 보며 "
        "다른 곳을 표시해요. 그 서기가 마을의 기록을 견주어 보며 다른 기록을 또 적어요."
    )


def test_page_numbers_and_running_titles_of_a_pdf_are_left_out() -> None:
    pages = [
        [
            (72, 20, 9.0, "The Harbour Times"),
            *column(72, 60, f"Text {word} begins here and", "goes on here,", "and ends now."),
            (300, 780, 9.0, f"- {at} -"),
        ]
        for at, word in enumerate(["alpha", "beta", "gamma", "delta"], 1)
    ]
    found = text(".pdf", pdf(*pages))
    assert "Harbour" not in found
    assert "- 1 -" not in found
    assert all(word in found for word in ("alpha", "delta"))


def test_a_pdf_of_pictures_says_that_it_needs_text_recognition() -> None:
    assert refused(".pdf", pdf([])) == "data.scanned_pdf"


def test_a_pdf_with_a_password_is_refused() -> None:
    from reportlab.lib.pdfencrypt import StandardEncryption
    from reportlab.pdfgen import canvas

    out = BytesIO()
    sheet = canvas.Canvas(out, encrypt=StandardEncryption("secret", "owner"))
    sheet.drawString(72, 700, "text")
    sheet.save()
    assert refused(".pdf", out.getvalue()) == "data.locked_document"


def test_a_pdf_cut_off_is_read_or_refused_but_never_more() -> None:
    raw = pdf(column(72, 40, *LEFT))
    for share in range(1, 10):
        try:
            text(".pdf", raw[: len(raw) * share // 10])
        except DatasetError:
            continue


def test_pdfs_are_read_from_several_threads() -> None:
    raw = pdf(column(72, 40, *LEFT), column(72, 40, *RIGHT))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(text(".pdf", raw))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


# Word


def docx(fill: Callable[[Any], None]) -> bytes:
    from docx import Document

    document = Document()
    fill(document)
    out = BytesIO()
    document.save(out)
    return out.getvalue()


def report(document: Any) -> None:
    document.add_heading("보고서", 0)
    document.add_heading("Chapter", 1)
    document.add_paragraph("첫 문단이에요.")
    document.add_paragraph("one", style="List Bullet")
    document.add_paragraph("two", style="List Bullet")
    table = document.add_table(2, 2)
    for at, cell in enumerate(cell for row in table.rows for cell in row.cells):
        cell.text = f"c{at}"


def test_a_word_document_keeps_headings_lists_and_tables() -> None:
    found = text(".docx", docx(report))
    assert found.startswith("# 보고서\n\n# Chapter\n\n첫 문단이에요.\n\n")
    assert "one\n" in found
    assert "| c0 | c1 |" in found
    assert "| c2 | c3 |" in found


@pytest.mark.parametrize(("style", "mark"), [("제목 1", "#"), ("개요 2", "##")])
def test_korean_names_of_heading_styles_are_known(style: str, mark: str) -> None:
    from docx.enum.style import WD_STYLE_TYPE

    def fill(document: Any) -> None:
        document.styles.add_style(style, WD_STYLE_TYPE.PARAGRAPH)
        document.add_paragraph("머리말", style=style)
        document.add_paragraph("본문")

    assert text(".docx", docx(fill)) == f"{mark} 머리말\n\n본문"


def test_pictures_of_a_word_document_leave_no_trace() -> None:
    from PIL import Image

    picture = BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "png")

    def fill(document: Any) -> None:
        document.add_paragraph("Before.")
        document.add_picture(BytesIO(picture.getvalue()))
        document.add_paragraph("After.")

    assert text(".docx", docx(fill)) == "Before.\n\nAfter."


# PowerPoint


def pptx() -> bytes:
    from pptx import Presentation
    from pptx.util import Inches

    slides = Presentation()
    slide = slides.slides.add_slide(slides.slide_layouts[1])
    slide.shapes.title.text = "방앗간"
    slide.placeholders[1].text = "first\nsecond"
    slide.placeholders[1].text_frame.paragraphs[1].level = 1
    slide.notes_slide.notes_text_frame.text = "Say hello."
    slide = slides.slides.add_slide(slides.slide_layouts[6])
    group = slide.shapes.add_group_shape()
    group.shapes.add_textbox(0, 0, Inches(1), Inches(1)).text_frame.text = "Within a group."
    table = slide.shapes.add_table(2, 2, 0, 0, Inches(2), Inches(1)).table
    for at, cell in enumerate(cell for row in table.rows for cell in row.cells):
        cell.text = f"c|{at}"
    out = BytesIO()
    slides.save(out)
    return out.getvalue()


def test_slides_give_titles_points_notes_groups_and_tables() -> None:
    assert text(".pptx", pptx()) == (
        "# 방앗간\n\n- first\n  - second\n\nSay hello.\n\nWithin a group.\n\n"
        "| c\\|0 | c\\|1 |\n| --- | --- |\n| c\\|2 | c\\|3 |"
    )


# E-books

OPF = """<package xmlns="http://www.idpf.org/2007/opf"><manifest>
<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="b" href="text/%EB%91%98.xhtml" media-type="application/xhtml+xml"/>
<item id="a" href="../one.xhtml" media-type="application/xhtml+xml"/>
<item id="c" href="cover.jpg" media-type="image/jpeg"/></manifest>
<spine><itemref idref="nav"/><itemref idref="c"/><itemref idref="a"/><itemref idref="b"/></spine>
</package>"""
CONTAINER = """<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>
<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles>
</container>"""
CHAPTER = """<?xml version="1.0" encoding="utf-8"?><!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml"><head><title/><script src="x.js"/></head>
<body><a id="p1"/><h1>{0}</h1><p>Text of {0}.</p></body></html>"""


def epub(**more: str) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as book:
        book.writestr("mimetype", "application/epub+zip")
        book.writestr("META-INF/container.xml", CONTAINER)
        book.writestr("OEBPS/book.opf", OPF)
        book.writestr("OEBPS/nav.xhtml", "<p>contents</p>")
        book.writestr("one.xhtml", CHAPTER.format("One"))
        book.writestr("OEBPS/text/둘.xhtml", CHAPTER.format("둘"))
        for name, content in more.items():
            book.writestr(f"META-INF/{name}.xml", content)
    return out.getvalue()


def test_an_e_book_is_read_along_its_spine() -> None:
    assert text(".epub", epub()) == "# One\n\nText of One.\n\n# 둘\n\nText of 둘."


def encrypted(member: str) -> str:
    return f'<e xmlns="x"><CipherReference URI="{member}"/></e>'


def test_an_e_book_with_locked_text_is_refused() -> None:
    assert refused(".epub", epub(encryption=encrypted("one.xhtml"))) == "data.locked_document"


def test_an_e_book_with_locked_fonts_is_read() -> None:
    assert "One" in text(".epub", epub(encryption=encrypted("OEBPS/font.otf")))


# Spreadsheets


def xlsx(**sheets: Sequence[Sequence[Any]]) -> bytes:
    book = Workbook()
    book.remove(book.worksheets[0])
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(list(row))
    out = BytesIO()
    book.save(out)
    return out.getvalue()


def records(raw: bytes) -> list[Record]:
    return list(read_xlsx(BytesIO(raw), file="file.xlsx", position=Position()))


def test_rows_of_a_sheet_are_numbered_as_the_spreadsheet_does() -> None:
    raw = xlsx(표=[[], ["질문", "답변"], [], ["수도는?", "서울"], ["둘째", None], [None, " "]])
    assert records(raw) == [
        Record("file.xlsx", 4, {"질문": "수도는?", "답변": "서울"}),
        Record("file.xlsx", 5, {"질문": "둘째", "답변": None}),
    ]


def test_sheets_with_rows_are_told_apart_by_name() -> None:
    raw = xlsx(One=[["a"], [1]], Empty=[], Header=[["a"]], 둘=[["b"], [2]])
    assert records(raw) == [
        Record("file.xlsx/One", 2, {"a": 1}),
        Record("file.xlsx/둘", 2, {"b": 2}),
    ]


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (3.0, 3),
        (0.1 + 0.2, 0.3),
        (True, True),
        (dt.datetime(2024, 5, 1), "2024-05-01"),
        (dt.datetime(2024, 5, 1, 9, 30), "2024-05-01 09:30:00"),
        (dt.date(2024, 5, 1), "2024-05-01"),
        (dt.time(9, 30), "09:30:00"),
        (dt.timedelta(hours=30), "1 day, 6:00:00"),
        ("두\r\n줄", "두\n줄"),
        ("_x0041_b", "Ab"),
        ("#N/A", None),
    ],
)
def test_values_are_what_a_person_sees(value: Any, seen: Any) -> None:
    ((record),) = records(xlsx(One=[["a", "b"], ["there", value]]))
    assert record.value == {"a": "there", "b": seen}
    assert type(record.value["b"]) is type(seen)


def test_columns_without_a_name_are_counted_and_numbers_are_names() -> None:
    (record,) = records(xlsx(One=[["a", None, 2024.0], [1, 2, 3]]))
    assert record.value == {"a": 1, "column 2": 2, "2024": 3}


def test_a_column_name_that_stands_twice_is_refused() -> None:
    assert refused(".xlsx", xlsx(One=[["a", "a "], [1, 2]])) == "data.duplicate_column"


def test_a_cell_beside_the_named_columns_is_named() -> None:
    with pytest.raises(DatasetError, match="Cell D3"):
        records(xlsx(One=[["a"], [1], [2, None, None, "note"]]))


@pytest.mark.parametrize("sheets", [{"One": []}, {"One": [["a", "b"]]}])
def test_a_workbook_without_rows_is_refused(sheets: dict[str, Any]) -> None:
    assert refused(".xlsx", xlsx(**sheets)) == "data.header_only"


def test_a_formula_that_was_never_computed_names_its_cell() -> None:
    rows = [["a", "b", "c"], [1, 2, 3], [2, None, 3], [3, 4, "=A4*2"], ["=A3", 1, 1]]
    with pytest.raises(DatasetError, match=r"Cell C4 of file\.xlsx"):
        records(xlsx(One=rows))


def test_a_computed_formula_gives_its_value_even_an_empty_text() -> None:
    raw = xlsx(One=[["a", "b", "c"], [1, "=A2*2", '=IF(A2>1,"x","")']])
    with zipfile.ZipFile(BytesIO(raw)) as book:
        sheet = book.read("xl/worksheets/sheet1.xml").decode()
    sheet = sheet.replace("<f>A2*2</f><v></v>", "<f>A2*2</f><v>2</v>")
    sheet = sheet.replace('<c r="C2">', '<c r="C2" t="str">')
    assert sheet.count("<v>2</v>") == 1
    (record,) = records(rewritten(raw, sheet1=sheet))
    assert record.value == {"a": 1, "b": 2, "c": None}


def test_a_sheet_that_lies_about_its_size_is_read_whole() -> None:
    raw = xlsx(One=[["a", "b"], [1, 2]])
    with zipfile.ZipFile(BytesIO(raw)) as book:
        sheet = book.read("xl/worksheets/sheet1.xml").decode()
    for size in ("A1", "A1:XFD1048576"):
        lying = sheet.replace('<dimension ref="A1:B2"', f'<dimension ref="{size}"')
        assert lying != sheet
        assert len(records(rewritten(raw, sheet1=lying))) == 1


# What is none of it

MADE: dict[str, Callable[[], bytes]] = {
    ".docx": lambda: docx(report),
    ".pptx": pptx,
    ".epub": epub,
    ".xlsx": lambda: xlsx(One=[["a"], [1]]),
    ".pdf": lambda: pdf(column(72, 40, *LEFT)),
}


@pytest.mark.parametrize("kind", [*PACKAGES, ".pdf"])
@pytest.mark.parametrize("raw", [b"", b"junk", b"PK\3\4 junk", random.Random(0).randbytes(5000)])
def test_what_is_no_document_is_refused(kind: str, raw: bytes) -> None:
    assert refused(kind, raw) == "data.broken_document"


def test_random_bytes_are_no_web_page() -> None:
    raw = random.Random(0).randbytes(5000)
    assert refused(".html", raw) == "data.binary_file"


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_zip_of_something_else_is_refused(kind: str) -> None:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("holiday/photo.jpg", b"photo")
    assert refused(kind, out.getvalue()) == "data.broken_document"


@pytest.mark.parametrize("kind", PACKAGES)
@pytest.mark.parametrize("other", PACKAGES)
def test_a_document_under_the_ending_of_another_is_refused(kind: str, other: str) -> None:
    if kind != other:
        assert refused(kind, MADE[other]()) == "data.broken_document"


@pytest.mark.parametrize("kind", PACKAGES)
def test_office_files_with_a_password_or_from_before_2007_are_refused(kind: str) -> None:
    assert refused(kind, OLD_OFFICE) == "data.old_or_locked_document"


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_zip_bomb_is_refused_before_it_is_unpacked(kind: str) -> None:
    assert refused(kind, bomb(20)) == "data.large_document"


@pytest.mark.parametrize("limit", ["MOST_UNPACKED_BYTES", "MOST_PARTS"])
def test_a_document_beyond_a_limit_is_refused(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, limit, 3)
    assert refused(".docx", docx(report)) == "data.large_document"


@pytest.mark.parametrize(
    ("kind", "member"),
    [
        (".docx", "document"),
        (".pptx", "slide1"),
        (".epub", "book"),
        (".xlsx", "workbook"),
        (".xlsx", "sheet1"),
    ],
)
@pytest.mark.parametrize("content", [BILLION_LAUGHS, "<not closed", None])
def test_a_broken_part_or_a_bomb_of_entities_is_refused(
    kind: str, member: str, content: str | None
) -> None:
    key = refused(kind, rewritten(MADE[kind](), **{member: content}))
    is_gone = (member, content) == ("sheet1", None)  # the rest of such a workbook can be read
    assert key == ("data.header_only" if is_gone else "data.broken_document")


@pytest.mark.parametrize("kind", [*PACKAGES, ".pdf"])
def test_damaged_documents_are_read_or_refused_but_never_more(kind: str) -> None:
    whole = MADE[kind]()
    dice = random.Random(kind)
    for _ in range(20):
        raw = bytearray(whole)
        for _ in range(dice.randint(1, 30)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        try:
            read(kind, bytes(raw))
        except DatasetError:
            continue


def test_reading_imports_no_library_of_formats_before_it_is_needed() -> None:
    import subprocess
    import sys

    code = (
        "import sys, lora_studio.data.reading.documents, lora_studio.data.reading.spreadsheets\n"
        "names = {'pypdfium2', 'html_to_markdown', 'mammoth', 'pptx', 'openpyxl', 'lxml'}\n"
        "sys.exit(str(names & set(sys.modules)) if names & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

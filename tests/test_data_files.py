from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_studio.data.examples import Record
from lora_studio.data.reading.sources import Unreadable, fingerprint, open_sources
from lora_studio.errors import DatasetError

KOREAN = "질문,답변\n대한민국의 수도는 어디예요?,서울이에요.\n"


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def read(paths: Sequence[Path]) -> list[Record]:
    """Return all records; the first row that cannot be read is an error."""
    found = []
    with open_sources(paths) as sources:
        for row in (row for source in sources for row in source.records()):
            if isinstance(row, Unreadable):
                raise row.error
            found.append(row)
    return found


def refused(*files: Path) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        read(files)
    assert caught.value.say("ko") != caught.value.say("en")
    return caught.value


def values(file: Path) -> list[Any]:
    return [record.value for record in read([file])]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (record,) = read([written(tmp_path, "a.txt", "One.\r\n\r\nTwo 🍋.\r\n")])
    assert (record.file, record.number, record.value) == ("a.txt", 1, "One.\n\nTwo 🍋.\n")


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "cp949", "euc-kr"]
)
def test_korean_tables_are_read_in_every_common_encoding(tmp_path: Path, encoding: str) -> None:
    if encoding == "utf-16-le-bom":
        raw = b"\xff\xfe" + KOREAN.encode("utf-16-le")
    else:
        raw = KOREAN.encode(encoding)
    (row,) = values(written(tmp_path, "k.csv", raw))
    assert row == {"질문": "대한민국의 수도는 어디예요?", "답변": "서울이에요."}


def test_western_european_text_is_detected(tmp_path: Path) -> None:
    text = "Le garçon a mangé une crêpe à l'école, où le maître était déjà fâché. " * 5
    (document,) = values(written(tmp_path, "f.txt", text.encode("cp1252")))
    assert document == text


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_of_a_csv_is_found(tmp_path: Path, delimiter: str) -> None:
    text = "question,answer\nyes,no\n".replace(",", delimiter)
    assert values(written(tmp_path, "d.csv", text)) == [{"question": "yes", "answer": "no"}]


def test_a_tsv_is_cut_at_tabs_only(tmp_path: Path) -> None:
    file = written(tmp_path, "d.tsv", "question, please\tanswer\na, b\tc\n")
    assert values(file) == [{"question, please": "a, b", "answer": "c"}]


def test_quoted_cells_keep_newlines_and_commas(tmp_path: Path) -> None:
    file = written(tmp_path, "q.csv", 'question,answer\r\n"a\r\nb, ""c""",d\r\n\r\ne,f\r\n')
    records = read([file])
    assert [r.value for r in records] == [
        {"question": 'a\nb, "c"', "answer": "d"},
        {"question": "e", "answer": "f"},
    ]


def test_rows_of_a_table_are_numbered_as_in_a_spreadsheet(tmp_path: Path) -> None:
    file = written(tmp_path, "n.csv", "question,answer\na,b\n\n,\nc,d\n")
    assert [record.number for record in read([file])] == [2, 5]


def test_a_cell_may_be_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    chapter = "long " * 60_000
    (row,) = values(written(tmp_path, "l.csv", f"text,id\n{chapter},1\n"))
    assert row["text"] == chapter


def test_empty_columns_of_a_spreadsheet_export_do_no_harm(tmp_path: Path) -> None:
    (row,) = values(written(tmp_path, "e.csv", "question,answer,,\na,b,,,\n"))
    assert (row["question"], row["answer"]) == ("a", "b")


def test_a_ragged_row_is_named_with_both_widths(tmp_path: Path) -> None:
    error = refused(written(tmp_path, "r.csv", "question,answer\na,b\nc,d,e\n"))
    assert error.key == "data.ragged_row"
    assert error.values == {"file": "r.csv", "row": 3, "expected": 2, "found": 3}


def test_a_duplicated_column_is_named(tmp_path: Path) -> None:
    error = refused(written(tmp_path, "d.csv", "q,a,a\n1,2,3\n"))
    assert (error.key, error.values["column"]) == ("data.duplicate_column", "a")


def test_an_open_quotation_mark_is_named_with_its_row(tmp_path: Path) -> None:
    error = refused(written(tmp_path, "o.csv", 'q,a\n1,2\n"3,4\n5,6\n'))
    assert (error.key, error.values["row"]) == ("data.broken_csv", 3)


@pytest.mark.parametrize(
    "content",
    [
        [{"a": 1}, {"a": 2}],
        {"data": [{"a": 1}, {"a": 2}]},
        {"version": 3, "rows": [{"a": 1}, {"a": 2}]},
    ],
)
def test_json_rows_are_found_at_the_top_or_one_level_down(tmp_path: Path, content: Any) -> None:
    file = written(tmp_path, "j.json", json.dumps(content, indent=1))
    assert values(file) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("name", ["j.json", "j.jsonl"])
def test_json_lines_are_read_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    records = read([written(tmp_path, name, '{"a": 1}\n\n{"a": "two\\nlines"}\n')])
    assert [(r.number, r.value) for r in records] == [(1, {"a": 1}), (3, {"a": "two\nlines"})]


def test_a_jsonl_that_holds_a_list_is_read_as_one(tmp_path: Path) -> None:
    assert values(written(tmp_path, "l.jsonl", '[\n{"a": 1}\n]\n')) == [{"a": 1}]


def test_an_object_with_a_conversation_is_one_row(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    assert values(written(tmp_path, "c.json", json.dumps(chat))) == [chat]


def test_a_line_separator_inside_a_json_string_is_not_a_line(tmp_path: Path) -> None:
    assert values(written(tmp_path, "u.jsonl", '{"a": "x\u2028y\x85z"}\n')) == [
        {"a": "x\u2028y\x85z"}
    ]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("b.json", '[\n{"a": 1},\n{"a": }\n]', 3),
        ("b.jsonl", '{"a": 1}\n{"a": 2\n', 2),
        ("b.json", '{"a": 1}\n{"a": 2\n', 2),
        ("b.json", "[" * 100_000, 1),
        ("b.json", "[" + "9" * 5000 + "]", 1),
    ],
)
def test_broken_json_is_named_with_its_line(
    tmp_path: Path, name: str, content: str, line: int
) -> None:
    error = refused(written(tmp_path, name, content))
    assert (error.key, error.values["line"]) == ("data.broken_json", line)


@pytest.mark.parametrize("name", ["r.json", "r.jsonl"])
def test_a_row_that_is_no_object_is_named(tmp_path: Path, name: str) -> None:
    content = '{"a": 1}\n[2]\n' if name.endswith("l") else '[{"a": 1}, 2]'
    error = refused(written(tmp_path, name, content))
    assert (error.key, error.values["row"]) == ("data.row_not_object", 2)


def test_parquet_rows_keep_their_types(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"question": "6×7?", "answer": 42}, {"question": "?", "answer": None}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    records = read([tmp_path / "p.parquet"])
    assert [(r.number, r.value) for r in records] == [(1, rows[0]), (2, rows[1])]


@pytest.mark.parametrize(
    ("name", "content", "key"),
    [
        ("empty.txt", b"", "data.empty_file"),
        ("blank.md", b" \n\t\r\n", "data.empty_file"),
        ("bom.txt", b"\xef\xbb\xbf", "data.empty_file"),
        ("empty.jsonl", b"\n\n", "data.empty_file"),
        ("empty.parquet", b"", "data.empty_file"),
        ("picture.txt", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "data.binary_file"),
        ("noise.txt", bytes(range(1, 256)) * 4, "data.binary_file"),
        ("broken.parquet", b"PAR1 and nothing more", "data.broken_parquet"),
        ("head.csv", b"question,answer\n", "data.header_only"),
        ("none.json", b"[]", "data.header_only"),
        ("number.json", b"42", "data.no_rows"),
        ("two.json", b'{"train": [{"a": 1}], "test": [{"a": 2}]}', "data.no_rows"),
        ("sheet.ods", b"PK", "data.unknown_kind"),
        ("noending", b"hello", "data.unknown_kind"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, key: str) -> None:
    error = refused(written(tmp_path, name, content))
    assert error.key == key
    assert name in str(error)


def test_missing_files_folders_and_no_files_say_so(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    assert refused(tmp_path / "gone.txt").key == "data.missing_file"
    assert refused(tmp_path / "folder.txt").key == "data.nothing_known"
    assert refused().key == "data.no_files"


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(written(tmp_path / folder, "x.txt", folder))
    assert [record.file for record in read(paths)] == ["a/x.txt", "b/x.txt"]


def test_the_fingerprint_follows_contents_not_names(tmp_path: Path) -> None:
    first, same = written(tmp_path, "a.txt", "one"), written(tmp_path, "b.txt", "one")
    other = written(tmp_path, "c.txt", "two")
    assert fingerprint([first]) == fingerprint([same])
    assert len({fingerprint([first]), fingerprint([other]), fingerprint([first, other])}) == 3

"""What streams, every encoding, archives that mean harm, and bytes at random."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import stat
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_studio.data.examples import Record
from lora_studio.data.reading import streams, texts
from lora_studio.data.reading.locations import COLUMNAR, DOCUMENTS, SPREADSHEETS, TABLES, TEXTS
from lora_studio.data.reading.sources import (
    KNOWN,
    Source,
    Unreadable,
    fingerprint,
    open_sources,
)
from lora_studio.errors import DatasetError

KOREAN = (
    "안녕하세요. 오늘 날씨가 참 좋네요.",
    "환불은 구매 후 7일 안에 신청해 주세요.",
    "대한민국의 수도는 어디예요? 서울이에요.",
    "주문 번호를 알려 주시면 바로 확인해 드리겠습니다.",
    "세탁기 탈수 오류 코드 E3 해결법",
)
JAPANESE = (
    "こんにちは",
    "日本の首都はどこですか。東京です。",
    "お問い合わせありがとうございます。ご注文番号を教えてください。",
    "カメラの電池が切れました。",
    "東京都千代田区丸の内",
)
CHINESE = (
    "你好，世界",
    "中国的首都是哪里？北京。",
    "请问退款需要多长时间？一般需要三到五个工作日。",
    "今天天气很好，我们去公园散步吧。",
    "手机屏幕碎了怎么办",
)
WESTERN = ("Größe: 3 Äpfel für 2 €", "Le garçon a mangé une crêpe à l'école.", "café")
ROWS = [{"question": "6×7?", "answer": "42"}, {"question": "서울?", "answer": "네"}]
Row = Record | Unreadable


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def zipped(folder: Path, members: dict[str, str | bytes], name: str = "z.zip") -> Path:
    file = folder / name
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, content in members.items():
            archive.writestr(inside, content)
    return file


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    raw = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), raw)
    return raw.getvalue()


def arrow_bytes(rows: list[dict[str, Any]], *, is_stream: bool = False) -> bytes:
    import pyarrow as pa

    raw = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if is_stream else pa.ipc.new_file)(raw, table.schema) as out:
        out.write_table(table)
    return raw.getvalue()


def listed(*paths: Path, encoding: str = "auto") -> list[Row]:
    with open_sources(paths, encoding=encoding) as sources:
        return [row for source in sources for row in source.records()]


def values(*paths: Path, encoding: str = "auto") -> list[Any]:
    rows = listed(*paths, encoding=encoding)
    assert all(isinstance(row, Record) for row in rows)
    return [row.value for row in rows if isinstance(row, Record)]


def names(*paths: Path) -> list[str]:
    with open_sources(paths) as sources:
        assert [next(iter(source.records())).file for source in sources] == [
            source.name for source in sources
        ]
        return [source.name for source in sources]


def only(path: Path, encoding: str = "auto") -> Source:
    with open_sources([path], encoding=encoding) as sources:
        (source,) = sources
        return source


def refused(*paths: Path, encoding: str = "auto") -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        listed(*paths, encoding=encoding)
    assert caught.value.say("ko") != caught.value.say("en")
    return caught.value


# Kinds


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst", "A.TXT", "a.txt.gz"])
def test_a_document_is_one_record(tmp_path: Path, name: str) -> None:
    raw = b"One.\r\n\r\nTwo.\r"
    file = written(tmp_path, name, gzip.compress(raw) if name.endswith("gz") else raw)
    assert listed(file) == [Record(name, 1, "One.\n\nTwo.\n")]
    assert only(file).kind == name.lower().removesuffix(".gz")[1:]


TABLE_CONTENTS: dict[str, bytes] = {
    ".csv": "question,answer\n6×7?,42\n서울?,네\n".encode(),
    ".tsv": "question\tanswer\n6×7?\t42\n서울?\t네\n".encode(),
    ".json": json.dumps(ROWS).encode(),
    ".jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    ".ndjson": "\n".join(map(json.dumps, ROWS)).encode(),
    ".parquet": parquet_bytes(ROWS),
    ".arrow": arrow_bytes(ROWS, is_stream=True),
    ".feather": arrow_bytes(ROWS),
}


@pytest.mark.parametrize("kind", TABLE_CONTENTS)
@pytest.mark.parametrize("packing", ["", ".gz", ".zip"])
def test_every_kind_of_table_is_read_plain_and_packed(
    tmp_path: Path, kind: str, packing: str
) -> None:
    raw = TABLE_CONTENTS[kind]
    if packing == ".zip":
        file, name = zipped(tmp_path, {f"t{kind}": raw}), f"z.zip/t{kind}"
    else:
        file = written(tmp_path, f"t{kind}{packing}", gzip.compress(raw) if packing else raw)
        name = file.name
    with open_sources([file]) as (source,):
        assert (source.name, source.kind) == (name, kind)
        assert source.encoding == ("utf-8" if kind in TABLES else None)
        first, again = list(source.records()), list(source.records())
    assert [row.value for row in first if isinstance(row, Record)] == ROWS
    assert {row.file for row in first} == {name}
    assert first == again


def test_two_readings_of_one_source_do_not_disturb_each_other(tmp_path: Path) -> None:
    file = zipped(tmp_path, {"t.jsonl": "\n".join(f'{{"a": {at}}}' for at in range(100_000))})
    with open_sources([file]) as (source,):
        pairs = zip(source.records(), source.records(), strict=True)
        assert all(one == other for one, other in itertools.islice(pairs, 50_000))


def test_temporary_files_are_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    file = zipped(tmp_path, {"../x.parquet"[3:]: TABLE_CONTENTS[".parquet"]})
    with open_sources([file]) as (source,):
        next(iter(source.records()))
        assert [inside.name for inside in (tmp_path / "tmp").rglob("*") if inside.is_file()] == [
            "unpacked"
        ]
    assert not list((tmp_path / "tmp").iterdir())


def test_a_page_is_one_record_of_its_text(tmp_path: Path) -> None:
    page = "<html><body><p>서울은 대한민국의 수도예요.</p></body></html>"
    for file in (written(tmp_path, "p.html", page), zipped(tmp_path, {"p.html": page})):
        (row,) = listed(file)
        assert isinstance(row, Record)
        assert isinstance(row.value, str)
        assert "서울은 대한민국의 수도예요." in row.value
        assert only(file).encoding is None


def test_a_table_of_one_column_is_a_table_of_texts(tmp_path: Path) -> None:
    assert values(written(tmp_path, "one.csv", "text\nHello there\n")) == [{"text": "Hello there"}]


def test_all_known_kinds_are_listed_plain_and_packed() -> None:
    assert {".txt", ".txt.gz", ".jsonl.gz", ".parquet", ".docx", ".xlsx", ".zip"} <= set(KNOWN)
    assert ".zip.gz" not in KNOWN


# Rows that cannot be read


def test_a_ragged_row_leaves_the_others_readable(tmp_path: Path) -> None:
    rows = listed(written(tmp_path, "r.csv", "q,a\n1,2\n1,2,3\n4\n5,6,\n"))
    assert [type(row) for row in rows] == [Record, Unreadable, Unreadable, Record]
    assert [row.number for row in rows] == [2, 3, 4, 5]
    assert isinstance(rows[2], Unreadable)
    assert rows[2].error.values == {"file": "r.csv", "row": 4, "expected": 2, "found": 1}


def test_a_broken_line_leaves_the_others_readable(tmp_path: Path) -> None:
    deep = "[" * 100_000
    lines = ['{"a": 1}', '{"a": ', "[1]", '{"a": ' + deep, '{"a": ' + "9" * 5000 + "}", '{"a": 2}']
    rows = listed(written(tmp_path, "r.jsonl", "\n".join(lines)))
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6]
    keys = [row.error.key if isinstance(row, Unreadable) else "" for row in rows]
    broken = "data.broken_json"
    assert keys == ["", broken, "data.row_not_object", broken, broken, ""]


def test_an_open_quotation_mark_does_not_swallow_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_studio.data.reading.delimited.LONGEST_LINE", 1000)
    file = written(tmp_path, "o.csv", 'q,a\n1,2\n"' + "x,y\n" * 10_000)
    error = refused(file)
    assert (error.key, error.values["row"]) == ("data.broken_csv", 3)
    crafted = written(tmp_path, "c.csv", 'q,a\n1,2\n"' + 'x","y\n' * 10_000)
    assert refused(crafted).key == "data.broken_csv"


def test_a_line_of_ten_million_characters_is_read_and_a_longer_one_than_any_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "x" * 10_000_000
    file = written(tmp_path, "l.jsonl", f'{{"a": 1}}\n{{"a": "{long}"}}\n{{"a": 2}}')
    assert values(file) == [{"a": 1}, {"a": long}, {"a": 2}]
    monkeypatch.setattr(texts, "LONGEST_LINE", 9_000_000)
    error = refused(file)
    assert (error.key, error.values["line"]) == ("data.long_line", 2)


def test_documents_and_json_beyond_their_size_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_studio.data.reading.sources.LARGEST_TEXT_BYTES", 10)
    monkeypatch.setattr("lora_studio.data.reading.json_rows.LARGEST_JSON_BYTES", 10)
    assert refused(written(tmp_path, "a.txt", "eleven char")).key == "data.large_text"
    assert refused(written(tmp_path, "a.json", '[{"a": 10}]')).key == "data.large_json"
    assert refused(written(tmp_path, "a.jsonl", '[{"a": 10}]')).key == "data.large_json"
    assert values(written(tmp_path, "b.jsonl", '{"a": 1000}')) == [{"a": 1000}]


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".jsonl.gz"])
def test_a_large_table_streams_in_little_memory(tmp_path: Path, kind: str) -> None:
    line = '{"text": "' + "some words " * 40 + '"}\n' if "json" in kind else "words " * 70 + "\n"
    raw = (line * 60_000).encode()
    file = written(tmp_path, "big" + kind, gzip.compress(raw, 1) if "gz" in kind else raw)
    tracemalloc.start()
    with open_sources([file]) as (source,):
        assert sum(1 for _ in source.records()) >= 59_999
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < len(raw) / 2


# Odd values


def odd(path: Path) -> list[tuple[Any, tuple[str, ...]]]:
    return [(row.value, row.oddities) for row in listed(path) if isinstance(row, Record)]


ODD_LINES = [
    ('{"a": NaN}', {"a": None}, ("nan",)),
    ('{"a": [1.5, {"b": -Infinity}], "c": 1e999}', {"a": [1.5, {"b": None}], "c": None}, ("nan",)),
    ('{"a": 1, "a": 2}', {"a": 2}, ("duplicate_key",)),
    ('{"a": {"b": 1, "b": NaN}}', {"a": {"b": None}}, ("duplicate_key", "nan")),
    ('{"a": "x\\u0000y", "b\\u0000": 1}', {"a": "xy", "b": 1}, ("nul",)),
    ('{"a": "x\0y"}', {"a": "xy"}, ("nul",)),
    ('{"a": "NaN \\ud83c\\udf4b"}', {"a": "NaN 🍋"}, ()),
    ('{"a": "half \\ud800 pair"}', {"a": "half � pair"}, ()),
    ('{"fine": "\\ud55c"}', {"fine": "한"}, ()),
]


@pytest.mark.parametrize(("line", "value", "oddities"), ODD_LINES)
def test_odd_values_of_a_json_line_are_mended_and_named(
    tmp_path: Path, line: str, value: Any, oddities: tuple[str, ...]
) -> None:
    file = written(tmp_path, "o.jsonl", '{"fine": 0}\n' * 5 + line)
    assert odd(file)[:5] == [({"fine": 0}, ())] * 5
    assert odd(file)[5] == (value, oddities)


def test_odd_values_of_a_json_list_are_named_at_their_rows(tmp_path: Path) -> None:
    lines = [line for line, _, _ in ODD_LINES]
    file = written(tmp_path, "o.json", f"[{', '.join(lines)}]")
    assert odd(file) == [(value, oddities) for _, value, oddities in ODD_LINES]


def test_nul_characters_are_taken_out_of_tables_and_texts(tmp_path: Path) -> None:
    table = written(tmp_path, "n.csv", "q\0uestion,answer\na\0b,c and some more\nd,e\n")
    assert odd(table) == [
        ({"question": "ab", "answer": "c and some more"}, ("nul",)),
        ({"question": "d", "answer": "e"}, ()),
    ]
    assert values(written(tmp_path, "n.txt", "Hello there\0, you.")) == ["Hello there, you."]


def test_nul_characters_after_a_json_list_do_no_harm(tmp_path: Path) -> None:
    assert values(written(tmp_path, "n.json", '[{"a": "some words"}]\n\0\0')) == [
        {"a": "some words"}
    ]


def test_missing_numbers_of_a_parquet_file_are_named(tmp_path: Path) -> None:
    raw = parquet_bytes([{"a": float("nan"), "b": "x\0"}, {"a": 1.5, "b": "y"}])
    assert odd(written(tmp_path, "n.parquet", raw)) == [
        ({"a": None, "b": "x"}, ("nan", "nul")),
        ({"a": 1.5, "b": "y"}, ()),
    ]


@pytest.mark.parametrize("name", ["b.csv", "b.txt", "b.jsonl", "b.json"])
def test_what_is_mostly_binary_is_no_text(tmp_path: Path, name: str) -> None:
    for raw in (os.urandom(5000) + b"\0" * 500, b"text, then\n" + b"\0" * 5000):
        assert refused(written(tmp_path, name, raw)).key == "data.binary_file"


# Encodings

ENCODED = [
    *((text, encoding) for text in KOREAN for encoding in ("cp949", "euc_kr")),
    *((text, "shift_jis") for text in JAPANESE),
    *((text, encoding) for text in CHINESE for encoding in ("gb18030", "gb2312")),
    *((text, "cp1252") for text in WESTERN),
    *(
        (text, encoding)
        for text in (KOREAN[0], JAPANESE[1], CHINESE[2], WESTERN[0])
        for encoding in ("utf-8", "utf-8-sig", "utf-16")
    ),
    *((KOREAN[0], encoding) for encoding in ("utf-16-le", "utf-16-be")),
    *(("question,answer\nyes,no\n", encoding) for encoding in ("utf-16-le", "utf-16-be")),
]
SAME = {"euc_kr": "cp949", "gb2312": "gb18030"}


@pytest.mark.parametrize(("text", "encoding"), ENCODED)
def test_short_texts_are_recognised_in_every_encoding(
    tmp_path: Path, text: str, encoding: str
) -> None:
    file = written(tmp_path, "t.txt", text.encode(encoding))
    assert values(file) == [text]
    assert only(file).encoding == SAME.get(encoding, encoding)


@pytest.mark.parametrize(
    ("texts_", "encoding"), [(KOREAN, "cp949"), (JAPANESE, "shift_jis"), (CHINESE, "gb18030")]
)
def test_a_character_cut_at_the_end_of_the_sample_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts_: tuple[str, ...], encoding: str
) -> None:
    text = "".join(texts_)
    raw = text.encode(encoding)
    for size in range(20, 40):
        monkeypatch.setattr(texts, "HEAD_BYTES", size)
        monkeypatch.setattr(texts, "BLOCK_BYTES", 7)
        assert values(written(tmp_path, "c.txt", raw)) == [text]


@pytest.mark.parametrize(
    ("text", "encoding"), [(KOREAN[2], "cp949"), (JAPANESE[2], "shift_jis"), (WESTERN[1], "cp1252")]
)
def test_an_encoding_that_shows_only_late_is_found(
    tmp_path: Path, text: str, encoding: str
) -> None:
    lines = ['{"a": "plain"}\n'] * 150_000 + [json.dumps({"a": text}, ensure_ascii=False)]
    file = written(tmp_path, "late.jsonl", "".join(lines).encode(encoding))
    with open_sources([file]) as (source,):
        *_, last = source.records()
        assert source.encoding == encoding
    assert isinstance(last, Record)
    assert last.value == {"a": text}


def test_one_broken_byte_in_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    for repeat in (3, 40_000):
        raw = "\n".join(KOREAN * repeat).encode() + b"\n\xff\n"
        error = refused(written(tmp_path, "b.txt", raw))
        assert error.key == "data.wrong_encoding"
        assert (error.values["encoding"], error.values["line"]) == ("utf-8", 5 * repeat + 1)


@pytest.mark.parametrize(
    ("texts_", "encoding"), [(KOREAN, "cp949"), (JAPANESE, "shift_jis"), (CHINESE, "gb18030")]
)
@pytest.mark.parametrize("repeat", [3, 20_000])
def test_one_broken_byte_in_an_old_encoding_makes_no_other_of_it(
    tmp_path: Path, texts_: tuple[str, ...], encoding: str, repeat: int
) -> None:
    raw = "\n".join(texts_ * repeat).encode(encoding) + b"\n\x82\n"
    error = refused(written(tmp_path, "b.txt", raw))
    assert error.key == "data.wrong_encoding"
    assert (error.values["encoding"], error.values["line"]) == (encoding, 5 * repeat + 1)


def test_a_chosen_encoding_is_used_as_it_is(tmp_path: Path) -> None:
    file = written(tmp_path, "c.txt", "żółć".encode("cp1250"))
    assert values(file, encoding="cp1250") == ["żółć"]
    assert only(file, "windows-1250").encoding == "cp1250"


def test_a_chosen_encoding_that_does_not_fit_names_another(tmp_path: Path) -> None:
    file = written(tmp_path, "c.txt", ("plain\n" + KOREAN[1]).encode("cp949"))
    error = refused(file, encoding="utf-8")
    assert error.key == "data.other_encoding"
    assert (error.values["line"], error.values["other"]) == (2, "cp949")


@pytest.mark.parametrize(
    "name", ["nonsense", "base64", "zlib", "undefined", "utf-7", "", "x\0y", "ü"]
)
def test_an_encoding_that_is_none_says_so(tmp_path: Path, name: str) -> None:
    assert refused(written(tmp_path, "c.txt", "abc"), encoding=name).key == "data.unknown_encoding"


def test_line_ends_across_blocks_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in range(1, 8):
        monkeypatch.setattr(texts, "BLOCK_BYTES", size)
        assert values(written(tmp_path, "l.txt", "ab\r\ncd\r\n\r\ne")) == ["ab\ncd\n\ne"]
        assert values(written(tmp_path, "l.csv", 'q\r\n"a\r\nb"\r\nc')) == [
            {"q": "a\nb"},
            {"q": "c"},
        ]


# Folders and names


def test_a_folder_gives_its_known_files_in_order(tmp_path: Path) -> None:
    home = tmp_path / "book"
    for name in ("b.txt", "a/2.md", "a/1.txt", ".hidden.txt", ".git/x.txt", "picture.png"):
        written(home, name, name)
    assert names(home) == ["book/a/1.txt", "book/a/2.md", "book/b.txt"]
    assert fingerprint([home]) == fingerprint([home / "a/1.txt", home / "a/2.md", home / "b.txt"])


def test_a_folder_or_archive_without_known_files_says_so(tmp_path: Path) -> None:
    written(tmp_path / "f", ".hidden.txt", "x")
    written(tmp_path / "f", "x.png", "x")
    assert refused(tmp_path / "f").key == "data.nothing_known"
    inner = zipped(tmp_path, {"a.txt": "a"}, "inner.zip").read_bytes()
    nested = {"inner.zip": inner, "x.png": "x", "__MACOSX/._a.txt": "x", "empty/": ""}
    assert refused(zipped(tmp_path, nested)).key == "data.nothing_known"


def test_same_names_are_told_apart(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    for home in (one, two):
        written(home, "x.txt", "x")
        zipped(home, {"a.txt": "a", "b/a.txt": "b"})
    assert names(one / "x.txt", two / "x.txt") == ["1/x.txt", "2/x.txt"]
    assert names(one / "z.zip", two / "z.zip")[1:3] == ["1/z.zip/b/a.txt", "2/z.zip/a.txt"]
    same = names(one / "x.txt", one / "x.txt")
    assert len(set(same)) == 2


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    written(tmp_path / "f", "a.txt", "a")
    (tmp_path / "f" / "loop").symlink_to(tmp_path / "f")
    (tmp_path / "f" / "dead.txt").symlink_to(tmp_path / "nowhere")
    assert names(tmp_path / "f") == ["f/a.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has none")
def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert refused(tmp_path / "pipe.txt").key == "data.unreadable"


def test_impossible_paths_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 5000 + ".txt"), tmp_path / "a\0b.txt", tmp_path / "\udcff.txt"):
        assert refused(path).key in ("data.unreadable", "data.missing_file")


# Archives


@pytest.mark.parametrize(
    "entry", ["../a.txt", "a/../../b.txt", "/etc/a.txt", "C:\\a.txt", "..\\a.txt", "c:/a.txt"]
)
def test_an_entry_that_points_elsewhere_is_refused(tmp_path: Path, entry: str) -> None:
    error = refused(zipped(tmp_path, {"good.txt": "x", entry: "x"}))
    assert error.key == "data.unsafe_archive"
    assert error.values["entry"] == entry.replace("\\", "/")


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "l.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert refused(tmp_path / "l.zip").key == "data.unsafe_archive"


def test_an_encrypted_archive_says_so(tmp_path: Path) -> None:
    raw = bytearray(zipped(tmp_path, {"a.txt": "secret"}).read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        raw[raw.index(mark) + at] |= 1
    assert refused(written(tmp_path, "e.zip", bytes(raw))).key == "data.encrypted_archive"


def test_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = zipped(tmp_path, {f"{at}.txt": "x" for at in range(11)})
    monkeypatch.setattr(streams, "MOST_ENTRIES", 10)
    assert refused(file).key == "data.too_many_files"
    monkeypatch.setattr(streams, "LARGEST_DIRECTORY_BYTES", 10)
    assert refused(file).key == "data.too_many_files"


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
@pytest.mark.parametrize("packing", ["gz", "zip", "zipped gz"])
def test_a_bomb_is_noticed_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, packing: str
) -> None:
    monkeypatch.setattr(streams, "FREE_OF_RATIO_BYTES", 2**20)
    raw = b"x" * 8 * 2**20
    if packing == "gz":
        file = written(tmp_path, f"b{kind}.gz", gzip.compress(raw))
    elif packing == "zip":
        file = zipped(tmp_path, {f"b{kind}": raw})
    else:
        file = zipped(tmp_path, {f"b{kind}.gz": gzip.compress(raw)})
    assert refused(file).key == "data.archive_too_large"


def test_the_whole_of_an_archive_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MOST_UNPACKED_BYTES", 2500)
    two = {"a.txt": os.urandom(500).hex(), "b.txt": os.urandom(500).hex()}
    assert len(names(zipped(tmp_path, two))) == 2
    three = two | {"c.txt": os.urandom(500).hex()}
    assert refused(zipped(tmp_path, three)).key == "data.archive_too_large"


def test_a_lying_size_does_not_help_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "FREE_OF_RATIO_BYTES", 2**20)
    raw = bytearray(zipped(tmp_path, {"b.txt": b"x" * 8 * 2**20}).read_bytes())
    at = raw.index(b"PK\1\2") + 24
    raw[at : at + 4] = (100).to_bytes(4, "little")
    assert refused(written(tmp_path, "l.zip", bytes(raw))).key == "data.broken_archive"


@pytest.mark.parametrize("name", ["t.txt.gz", "t.zip", "t.parquet.gz"])
def test_a_broken_archive_says_so(tmp_path: Path, name: str) -> None:
    if name.endswith(".zip"):
        whole = zipped(tmp_path, {"a.txt": os.urandom(5000).hex()}).read_bytes()
        damaged = [whole[:-30], whole[:1000] + b"\0" * 50 + whole[1050:], b"PK", b"text"]
    else:
        whole = gzip.compress(os.urandom(5000).hex().encode())
        damaged = [whole[:-30], whole[:1000] + b"\0" * 50 + whole[1050:], b"\x1f\x8b", b"text"]
    for raw in damaged:
        assert refused(written(tmp_path, name, raw)).key == "data.broken_archive"
    empty = b"" if name.endswith(".zip") else gzip.compress(b"")
    assert refused(written(tmp_path, name, empty)).key == "data.empty_file"


def test_korean_names_of_old_archives_are_read(tmp_path: Path) -> None:
    raw = zipped(tmp_path, {"xxxx.txt": "글"}).read_bytes()
    file = written(tmp_path, "k.zip", raw.replace(b"xxxx", "한글".encode("cp949")))
    assert names(file) == ["k.zip/한글.txt"]


# Bytes at random

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FEW = settings(
    max_examples=12,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PLAIN = (*TEXTS, *TABLES, *COLUMNAR, *SPREADSHEETS, *DOCUMENTS)
STARTS = (b"", b"PAR1", b"ARROW1\0\0", b"PK\3\4", b"\x1f\x8b\x08", b"\xff\xfe", b'{"a": ', b'"a","')


def assert_only_dataset_errors(file: Path) -> None:
    """Read it all; whatever comes out can be written as UTF-8."""
    try:
        for row in listed(file):
            if isinstance(row, Record):
                json.dumps(row.value, ensure_ascii=False, default=str).encode()
    except DatasetError as error:
        assert error.say("ko")


@pytest.mark.parametrize("kind", [*PLAIN, ".zip", ".txt.gz", ".parquet.gz"])
@FEW
@given(start=st.sampled_from(STARTS), raw=st.binary(max_size=300))
def test_random_bytes_never_give_another_error(
    tmp_path: Path, kind: str, start: bytes, raw: bytes
) -> None:
    assert_only_dataset_errors(written(tmp_path, f"r{kind}", start + raw))


@pytest.mark.parametrize("kind", TABLES)
@FEW
@given(value=JSON_VALUES, is_escaped=st.booleans())
def test_random_json_never_gives_another_error(
    tmp_path: Path,
    kind: str,
    value: Any,
    is_escaped: bool,  # noqa: FBT001
) -> None:
    text = "\n".join([json.dumps({"a": value}, ensure_ascii=is_escaped), json.dumps(value)])
    assert_only_dataset_errors(written(tmp_path, f"r{kind}", text.encode("utf-8", "replace")))


def damaged(raw: bytes) -> Callable[[int, int], bytes]:
    def at(place: int, byte: int) -> bytes:
        place %= len(raw)
        return raw[:place] + bytes([byte]) + raw[place + 1 :]

    return at


@pytest.mark.parametrize("kind", COLUMNAR)
@settings(FEW, max_examples=60)
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_one_damaged_byte_never_gives_another_error(
    tmp_path: Path, kind: str, place: int, byte: int
) -> None:
    raw = damaged(TABLE_CONTENTS[kind])(place, byte)
    assert_only_dataset_errors(written(tmp_path, f"d{kind}", raw))

"""What settings make of encoded rows: cuts, held-out rows, the cache, pages to look at."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_studio.data import cache as caching
from lora_studio.data import filling, templates
from lora_studio.data.cache import KEPT, Cache
from lora_studio.data.encoding import IGNORE_INDEX
from lora_studio.data.preparation import prepare
from lora_studio.data.prepared import Prepared
from lora_studio.errors import DatasetError
from lora_studio.recipe import ChecksSpec, DataSpec


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Forty rows, each a little longer than the one before."""
    file = tmp_path / "rows.jsonl"
    lines = [
        {"prompt": f"Question {at}" + " long" * at, "completion": f"Answer {at}" + " word" * at}
        for at in range(40)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def prepared(tokenizer: Any, file: Path, *, cache: Path | None = None, **values: Any) -> Prepared:
    found = prepare(DataSpec(files=(str(file),), **values), tokenizer, 0, cache=cache)
    report = found.report
    assert report.rows == len(found.train) + len(found.evaluation) + sum(report.skipped.values())
    return found


def found_in(report: Any) -> dict[str, int]:
    return {finding.check: finding.count for finding in report.findings}


def test_the_end_the_start_or_the_whole_row_is_cut(tokenizer: Any, rows: Path) -> None:
    end = prepared(tokenizer, rows, max_length=60)
    over = end.report.truncated
    assert 0 < over < 40
    assert all(row.cut_start == 0 for row in end.train)
    assert found_in(end.report)["lost_ends"] == over + sum(end.report.skipped.values())

    start = prepared(tokenizer, rows, max_length=60, truncation="start")
    cut = [row for row in start.train if row.truncated]
    assert cut
    assert all(row.cut_start > 0 == row.cut_end and len(row.input_ids) == 60 for row in cut)
    assert all(tokenizer.eos_token_id in row.labels for row in cut)
    assert "lost_ends" not in found_in(start.report)

    drop = prepared(tokenizer, rows, max_length=60, truncation="drop")
    assert drop.report.truncated == 0
    assert drop.report.skipped == {"data.skip_too_long": start.report.truncated}
    assert drop.report.lengths == start.report.lengths
    assert sum(count for _, count in drop.report.lengths) == 40


def test_lost_ends_are_kept_fixed_skipped_or_stop(tokenizer: Any, rows: Path) -> None:
    def with_choice(choice: Any) -> Prepared:
        return prepared(tokenizer, rows, max_length=60, checks=ChecksSpec(lost_ends=choice))

    kept, fixed, skipped = (with_choice(choice) for choice in ("keep", "fix", "skip"))
    lost = found_in(kept.report)["lost_ends"]
    ends = [row for row in fixed.train if row.truncated]
    assert all(tokenizer.eos_token_id in row.labels for row in ends)
    assert not fixed.report.skipped
    assert skipped.report.skipped == {"data.skip_lost_ends": lost}
    with pytest.raises(DatasetError, match=r"rows\.jsonl"):
        with_choice("stop")


def test_a_held_out_row_that_is_also_trained_on_is_found(tokenizer: Any, tmp_path: Path) -> None:
    # Fewer than ten questions: each row is held out by itself, also one that stands there twice.
    file = tmp_path / "rows.csv"
    lines = [f"q{at},a{at}" for at in range(6)] * 3
    file.write_text("\n".join(["question,answer", *lines]), encoding="utf-8")
    kept, fixed = (
        prepared(tokenizer, file, eval_fraction=0.3, checks=ChecksSpec(leaks=choice))
        for choice in ("keep", "fix")
    )
    leaking = found_in(kept.report)["leaks"]
    assert 0 < leaking == found_in(fixed.report)["leaks"]
    assert len(kept.evaluation) - len(fixed.evaluation) == leaking
    trained = [row.input_ids for row in fixed.train]
    assert not any(row.input_ids in trained for row in fixed.evaluation)
    with pytest.raises(DatasetError, match=r"rows\.csv"):
        prepared(tokenizer, file, eval_fraction=0.3, checks=ChecksSpec(leaks="stop"))


def test_moving_the_length_encodes_nothing_again(
    tokenizer: Any, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = prepared(tokenizer, rows, cache=cache)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("encoded again")

    monkeypatch.setattr(filling.ChatEncoder, "tokenise", refuse)
    again = prepared(tokenizer, rows, cache=cache)
    assert list(again.train) == list(first.train)
    assert again.report == first.report
    shorter = prepared(tokenizer, rows, cache=cache, max_length=60)
    assert max(len(row.input_ids) for row in shorter.train) == 60
    with pytest.raises(AssertionError, match="encoded again"):
        prepared(
            tokenizer, rows, cache=cache, columns={"question": "completion", "answer": "prompt"}
        )


def test_other_content_under_the_same_name_is_encoded(
    tokenizer: Any, rows: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert prepared(tokenizer, rows, cache=cache).report.rows == 40
    with rows.open("a", encoding="utf-8") as out:
        out.write('{"prompt": "one", "completion": "more"}\n')
    assert prepared(tokenizer, rows, cache=cache).report.rows == 41


def test_half_made_rows_are_removed_and_old_ones_make_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get("a", fail)
    assert list((tmp_path / "cache").iterdir()) == []
    killed = tmp_path / "cache" / ".killed"
    killed.mkdir()
    os.utime(killed, (0, 0))
    places = [cache.get(at, lambda folder: None) for at in range(KEPT + 3)]
    assert [place.exists() for place in places] == [False] * 3 + [True] * KEPT
    assert not killed.exists()


def test_what_another_process_removes_as_it_is_found_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache")
    place = cache.get("a", lambda folder: (folder / "first").touch())
    utime = os.utime

    def late(path: Path, *times: Any) -> None:
        if (path / "first").exists():
            shutil.rmtree(path)
        utime(path, *times)

    monkeypatch.setattr(caching.os, "utime", late)
    assert cache.get("a", lambda folder: (folder / "second").touch()) == place
    assert [file.name for file in place.iterdir()] == ["second"]


def test_large_results_make_room_for_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "MOST_BYTES", 100)
    cache = Cache(tmp_path / "cache")

    def made(name: str, size: int) -> Path:
        def fill(folder: Path) -> None:
            (folder / "rows").write_bytes(b"x" * size)

        place = cache.get(name, fill)
        os.utime(place, (len(places), len(places)))
        return place

    places: list[Path] = []
    for name, size in [("a", 30), ("b", 40), ("c", 50), ("d", 50), ("e", 500)]:
        places.append(made(name, size))
        if name == "c":
            assert [place.exists() for place in places] == [False, True, True]
        if name == "d":
            assert [place.exists() for place in places] == [False, False, True, True]
    assert [place.exists() for place in places] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("check", "other"), [("duplicates", "keep"), ("odd_values", "fix"), ("empty_answers", "skip")]
)
def test_rows_that_a_check_stops_at_are_encoded_once(
    tokenizer: Any,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check: str,
    other: str,
) -> None:
    with rows.open("a", encoding="utf-8") as out:
        out.write('{"prompt": "p", "completion": "c", "score": NaN}\n')
        out.write('{"prompt": "p", "completion": "c"}\n{"prompt": "p", "completion": ""}\n')
    cache = tmp_path / "cache"
    for _ in range(2):
        with pytest.raises(DatasetError) as caught:
            prepared(tokenizer, rows, cache=cache, checks=ChecksSpec(**{check: "stop"}))
        assert caught.value.key == f"data.check_stops_{check}"
        monkeypatch.setattr(filling.ChatEncoder, "tokenise", None)
    again = prepared(tokenizer, rows, cache=cache, checks=ChecksSpec(**{check: other})).report
    monkeypatch.undo()
    assert again == prepared(tokenizer, rows, checks=ChecksSpec(**{check: other})).report


def test_a_row_that_cannot_be_read_stops_again_where_it_was_skipped_before(
    tokenizer: Any, rows: Path, tmp_path: Path
) -> None:
    with rows.open("a", encoding="utf-8") as out:
        out.write('{"prompt": "broken\n')
    cache = tmp_path / "cache"
    prepared(tokenizer, rows, cache=cache, checks=ChecksSpec(broken_rows="skip"))
    with pytest.raises(DatasetError, match="Line 41"):
        prepared(tokenizer, rows, cache=cache)


def test_a_cancelled_preparation_leaves_nothing(
    tokenizer: Any, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "BATCH", 10)
    seen: list[int] = []

    def stop(done: int, _: int) -> None:
        seen.append(done)
        if done >= 10:
            raise KeyboardInterrupt

    spec = DataSpec(files=(str(rows),))
    with pytest.raises(KeyboardInterrupt):
        prepare(spec, tokenizer, 0, stop, cache=tmp_path / "cache")
    assert max(seen) < 40
    assert list((tmp_path / "cache").iterdir()) == []


def test_rows_are_shown_in_pages_and_found_by_their_words(tokenizer: Any, rows: Path) -> None:
    found = prepared(tokenizer, rows)
    first, last = found.page("train", 1), found.page("train", 99)
    assert (first["total"], first["pages"], len(first["rows"])) == (38, 8, 5)
    assert (last["page"], len(last["rows"])) == (8, 3)
    assert first["rows"][0]["file"] == "rows.jsonl"
    (only,) = found.page("train", 1, "ANSWER 17 WORD")["rows"]
    assert only["number"] == 18
    assert found.page("evaluation", 1)["total"] == 2
    assert found.page("train", 1, "nowhere") == {"total": 0, "pages": 1, "page": 1, "rows": []}


def test_skipped_rows_are_shown_by_name(tokenizer: Any, rows: Path) -> None:
    found = prepared(tokenizer, rows, max_length=60, truncation="drop")
    page = found.page("skipped", 1)
    assert page["total"] == sum(found.report.skipped.values())
    assert page["rows"][0] == {
        "file": "rows.jsonl",
        "number": page["rows"][0]["number"],
        "reason": "data.skip_too_long",
    }


def test_the_words_of_a_text_lead_to_their_piece(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "story.txt"
    file.write_text("\n\n".join(f"Chapter {at}. It rained." for at in range(60)), encoding="utf-8")
    found = prepared(tokenizer, file, max_length=48, eval_fraction=0)
    assert len(found.train) > 10
    (only,) = found.page("train", 1, "chapter 41.")["rows"]
    assert "Chapter 41." in only["text"]


def test_an_answer_without_a_beginning_has_labels_where_the_text_says(
    tokenizer: Any, rows: Path
) -> None:
    found = prepared(tokenizer, rows)
    shown = found.sample("train", 3)
    row = found.train[3]
    assert [int(label != IGNORE_INDEX) for label in row.labels] == list(shown.mask)
    assert shown.text == tokenizer.decode(row.input_ids)


def test_rows_that_cannot_be_read_stop_or_are_skipped(tokenizer: Any, rows: Path) -> None:
    with rows.open("a", encoding="utf-8") as out:
        out.write('{"prompt": "broken\n')
    with pytest.raises(DatasetError, match="Line 41"):
        prepared(tokenizer, rows)
    report = prepared(tokenizer, rows, checks=ChecksSpec(broken_rows="skip")).report
    assert report.skipped == {"data.skip_broken_rows": 1}
    assert found_in(report)["broken_rows"] == 1
    assert report.rows == 41


def test_nan_is_empty_and_said(tokenizer: Any, rows: Path) -> None:
    with rows.open("a", encoding="utf-8") as out:
        out.write('{"prompt": "p", "completion": "c", "score": NaN}\n')
    report = prepared(tokenizer, rows).report
    assert (found_in(report)["odd_values"], report.skipped) == (1, {})
    report = prepared(tokenizer, rows, checks=ChecksSpec(odd_values="skip")).report
    assert report.skipped == {"data.skip_odd_values": 1}


def test_a_chosen_template_is_used_where_the_model_has_none(tiny_gpt2: Path, rows: Path) -> None:
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(tiny_gpt2)
    found = prepared(plain, rows, chat_template="zephyr")
    assert found.report.own_template == "zephyr" == templates.name_of(plain)
    assert "<|user|>" in found.report.samples[0].text


def names(report: Any) -> Sequence[str]:
    return sorted(report.formats)


def test_a_folder_an_archive_and_a_packed_file_are_read_together(
    tokenizer: Any, rows: Path, tmp_path: Path
) -> None:
    import gzip
    import zipfile

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.csv").write_text("질문,답변\n하나?,하나.\n둘?,둘.\n", encoding="cp949")
    (folder / "b.csv.gz").write_bytes(gzip.compress("질문,답변\n셋?,셋.\n".encode()))
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("inside/c.jsonl", '{"prompt": "p", "completion": "c"}\n')
    spec = DataSpec(files=(str(folder), str(archive), str(rows)))
    report = prepare(spec, tokenizer, 0).report
    assert (report.rows, report.format, report.encoding) == (44, "mixed", "mixed")
    assert report.encodings["folder/a.csv"] == "cp949"
    assert "all.zip/inside/c.jsonl" in names(report)

"""Texts and their labels: which column is which, the classes, what is held out, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_studio.data import labels
from lora_studio.data.encoding import IGNORE_INDEX
from lora_studio.data.examples import Example, Record
from lora_studio.data.formats import understand
from lora_studio.data.preparation import prepare
from lora_studio.data.prepared import Prepared
from lora_studio.data.reading import class_names
from lora_studio.data.reading.sources import open_sources
from lora_studio.data.splitting import hold_out_of_classes, shares
from lora_studio.data.turns import UnusableRowError
from lora_studio.errors import DatasetError
from lora_studio.recipe import ChecksSpec, DataSpec

Row = dict[str, Any]
FILE = "reviews.csv"


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture
def beginning(tokenizer: Any) -> Any:
    """A tokenizer that puts its beginning token before a text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    return tokenizer


def reviews(*sizes: int) -> list[Row]:
    """Rows of classes a, b, c …, each text different."""
    return [
        {"text": f"Review {at} of kind {name} is its own.", "label": name}
        for name, size in zip("abcdefgh", sizes, strict=False)
        for at in range(size)
    ]


def prepared(rows: Iterable[Row], tokenizer: Any, folder: Path, **values: Any) -> Prepared:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    spec = DataSpec(files=(str(file),), format="classification", **values)
    found = prepare(spec, tokenizer, 0, cache=folder / "cache")
    report = found.report
    assert report.rows == len(found.train) + len(found.evaluation) + sum(report.skipped.values())
    assert report.trained_tokens == len(found.train)
    assert sum(train for _, train, _ in report.labels) == len(found.train)
    assert sum(held for _, _, held in report.labels) == len(found.evaluation)
    return found


def found_in(found: Prepared) -> dict[str, int]:
    return {finding.check: finding.count for finding in found.report.findings}


def read(rows: Sequence[Row | str], **values: Any) -> list[Example]:
    head = [Record(FILE, at, row) for at, row in enumerate(rows, start=2)]
    meaning = understand(FILE, head, DataSpec(format="classification", **values))
    return [example for record in head for example in meaning.examples(record)]


def pairs_of(rows: Sequence[Row], **values: Any) -> set[tuple[str, str]]:
    return {(example.text, example.label) for example in read(rows, **values)}


# Columns


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("text", "label"),
        ("sentence", "sentiment"),
        ("Review Text", "Class Name"),
        ("utterance", "intent"),
        ("리뷰", "감정"),
        ("문장", "라벨"),
        ("민원 내용", "분류"),
        ("title", "category"),
    ],
)
def test_text_and_label_are_known_by_their_names(text: str, label: str) -> None:
    rows = [{"id": 7, text: "Good soup.", label: "pos"}, {"id": 8, text: "No.", label: "neg"}]
    assert pairs_of(rows) == {("Good soup.", "pos"), ("No.", "neg")}


def test_the_name_of_a_class_goes_before_its_number() -> None:
    rows = [{"text": "x", "label": 3, "label_text": "pos"}]
    assert pairs_of(rows) == {("x", "pos")}


def test_where_names_tell_nothing_few_short_values_are_the_label() -> None:
    kinds = ["spam", "ham", "spam", "ham"]
    rows = [{"what": f"Message {at} {kind}", "how": kind} for at, kind in enumerate(kinds)]
    assert ("Message 0 spam", "spam") in pairs_of(rows)
    asked = [{"question": f"Is {at} even?", "answer": at % 2 == 0} for at in range(6)]
    assert ("Is 3 even?", "false") in pairs_of(asked)


def test_two_columns_that_may_be_the_text_are_asked_about() -> None:
    rows = [{"one": f"a {at}", "two": f"b {at}", "label": "x"} for at in range(4)]
    with pytest.raises(DatasetError) as caught:
        read(rows)
    assert caught.value.key == "data.wrong_format"
    assert pairs_of(rows[:1], columns={"text": "two"}) == {("b 0", "x")}


def test_a_named_column_is_taken_whatever_it_holds() -> None:
    rows = [{"text": "t", "label": "l", "question": "q", "kind": "k"}]
    assert pairs_of(rows, columns={"text": "question", "label": "kind"}) == {("q", "k")}
    assert pairs_of(rows, columns={"question": "question"}) == {("q", "l")}
    with pytest.raises(DatasetError) as caught:
        read(rows, columns={"label": "mood"})
    assert caught.value.key == "data.no_such_column"


def test_a_label_that_no_column_can_be_is_named_as_missing() -> None:
    with pytest.raises(DatasetError) as caught:
        read([{"one": "a b", "two": "c d"}], columns={"text": "one"})
    assert caught.value.key == "data.part_missing"
    assert caught.value.values["part"] == "label"


def test_a_template_makes_the_text() -> None:
    rows = [{"title": "Hi", "body": "there", "label": "x"}]
    assert pairs_of(rows, template="{{title}}: {{body}}") == {("Hi: there", "x")}


def test_a_table_is_not_taken_for_a_classification_unasked() -> None:
    head = [Record(FILE, 2, {"text": "A text.", "label": "pos"})]
    meaning = understand(FILE, head, DataSpec(columns={"label": "label"}))
    assert meaning.format == "text"
    assert not meaning.examples(head[0])[0].label


def test_a_document_has_no_labels() -> None:
    with pytest.raises(DatasetError) as caught:
        read(["Once upon a time."])
    assert caught.value.key == "data.no_labels_in_document"
    assert "label" in str(caught.value)


# Names of classes


@pytest.mark.parametrize(
    ("cell", "name"),
    [(" pos ", "pos"), (1, "1"), (1.0, "1"), (0.5, "0.5"), (True, "true"), (["pos"], "pos"),
     ("very  good", "very good"), ("\u1100\u1161\u11b7", "\uac10")],
)  # fmt: skip
def test_a_cell_names_a_class(cell: Any, name: str) -> None:
    assert labels.name_of(cell) == name


@pytest.mark.parametrize(
    ("cell", "reason"),
    [("  ", "skip_no_label"), (None, "skip_no_label"), (float("nan"), "skip_no_label"),
     ([], "skip_no_label"), (["a", "b"], "skip_many_labels"), ({"a": 1}, "skip_many_labels")],
)  # fmt: skip
def test_a_row_without_just_one_label_is_skipped(cell: Any, reason: str) -> None:
    with pytest.raises(UnusableRowError) as caught:
        labels.name_of(cell)
    assert caught.value.reason == f"data.{reason}"


def test_classes_are_in_the_order_of_numbers_where_all_are() -> None:
    assert labels.ordered(["10", "2", "-1"]) == ["-1", "2", "10"]
    assert labels.ordered(["10", "2", "x"]) == ["10", "2", "x"]
    assert labels.ordered(["nan", "1"]) == ["1", "nan"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_dataset_that_names_its_classes_apart_gives_the_names(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "n": {"_type": "Value"}}
    known = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": ["a", "b", "c", "d"], "label": [1, 0, -1, 7], "n": [1, 0, 1, 0]})
    table = table.replace_schema_metadata(known)
    file = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        parquet.write_table(table, file)
    else:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    with open_sources([file]) as sources:
        records = [record for source in sources for record in source.records()]
    rows = [record.value for record in records if isinstance(record, Record)]
    assert [row["label"] for row in rows if isinstance(row, dict)] == ["pos", "neg", None, 7]
    assert [row["n"] for row in rows if isinstance(row, dict)] == [1, 0, 1, 0]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"info": {"features": {"label": 3}}}', "null"])
def test_odd_notes_on_classes_are_passed_over(text: str) -> None:
    assert class_names.of_schema({b"huggingface": text.encode()}) == {}


# Rows


def test_a_row_is_its_text_as_the_tokenizer_gives_it_and_a_class(
    beginning: Any, tmp_path: Path
) -> None:
    rows = reviews(12, 6)
    found = prepared(reversed(rows), beginning, tmp_path, eval_fraction=0.2)
    assert [name for name, _, _ in found.report.labels] == ["a", "b"]
    assert found.report.format == "classification"
    for part in (found.train, found.evaluation):
        for row in part:
            text = beginning.decode(row.input_ids, skip_special_tokens=True)
            assert row.input_ids == beginning(text)["input_ids"]
            assert row.label == int("kind b" in text)
            assert set(row.labels) == {IGNORE_INDEX}
            assert row.trained_tokens == 1


def test_a_cut_text_keeps_its_beginning_token(beginning: Any, tmp_path: Path) -> None:
    rows = reviews(6, 6)
    end, start = (
        prepared(rows, beginning, tmp_path, max_length=8, truncation=side)
        for side in ("end", "start")
    )
    whole = beginning(rows[0]["text"])["input_ids"]
    assert end.train[0].input_ids == whole[:8]
    assert start.train[0].input_ids == [beginning.bos_token_id, *whole[-7:]]
    for row in (end.train[0], start.train[0]):
        assert row.cut_start + len(row.input_ids) + row.cut_end == row.length == len(whole)
    assert not {"lost_ends"} & found_in(end).keys()

    rows += [{"text": "Ok.", "label": name} for name in "ab"]
    drop = prepared(rows, beginning, tmp_path, max_length=8, truncation="drop", eval_fraction=0)
    assert drop.report.labels == (("a", 1, 0), ("b", 1, 0))
    assert drop.report.skipped == {"data.skip_too_long": 12}


def test_a_written_dataset_has_a_class_for_each_row(tokenizer: Any, tmp_path: Path) -> None:
    found = prepared(reviews(12, 6), tokenizer, tmp_path)
    written = found.to_dataset(tmp_path / "arrow")
    assert written.column_names == ["input_ids", "labels"]
    assert written["labels"][:] == [row.label for row in found.train]
    assert written[0]["input_ids"] == found.train[0].input_ids


def test_a_sample_shows_the_class_and_nothing_as_learned(tokenizer: Any, tmp_path: Path) -> None:
    found = prepared(reviews(12, 6), tokenizer, tmp_path)
    (shown,) = found.page("train", 1, search="Review 3 of kind b")["rows"]
    assert shown["label"] == "b"
    assert not any(shown["mask"])
    assert json.loads(json.dumps(found.report.to_dict()))["samples"][0]["label"] == "a"


def test_texts_to_try_are_held_out_and_of_different_classes(tokenizer: Any, tmp_path: Path) -> None:
    found = prepared(reviews(40, 20), tokenizer, tmp_path, eval_fraction=0.2)
    held = {tokenizer.decode(row.input_ids) for row in found.evaluation}
    assert len(found.report.prompts) == 2
    assert held.issuperset(found.report.prompts)
    assert [("kind a" in text) for text in found.report.prompts] == [True, False]


def test_rows_without_a_label_are_skipped_and_told_of(tokenizer: Any, tmp_path: Path) -> None:
    rows = [*reviews(6, 6), {"text": "Nobody knows.", "label": ""}, {"text": "", "label": "a"}]
    found = prepared(rows, tokenizer, tmp_path)
    assert found.report.skipped == {"data.skip_no_label": 1, "data.skip_empty_text": 1}
    assert found_in(found)["empty_answers"] == 2


# Holding out


def test_each_class_is_held_out_alike(tokenizer: Any, tmp_path: Path) -> None:
    rows = reviews(60, 30, 10)
    found = prepared(rows, tokenizer, tmp_path, eval_fraction=0.2)
    assert found.report.labels == (("a", 48, 12), ("b", 24, 6), ("c", 8, 2))
    again = prepared(rows, tokenizer, tmp_path / "cache", eval_fraction=0.2)
    assert [row.input_ids for row in again.evaluation] == [
        row.input_ids for row in found.evaluation
    ]


@pytest.mark.parametrize(
    ("sizes", "fraction", "expected"),
    [
        ([100, 50], 0.1, [10, 5]),
        ([10, 10], 0.01, [1, 1]),
        ([4] * 20, 0.1, [1] * 8 + [0] * 12),
        ([1, 1, 1], 0.5, [0, 0, 0]),
        ([2, 30], 0.5, [1, 15]),
        ([100, 50], 0.0, [0, 0]),
    ],
)
def test_shares_of_classes_add_up_to_that_of_all(
    sizes: list[int], fraction: float, expected: list[int]
) -> None:
    assert shares(np.array(sizes), fraction).tolist() == expected


def test_rows_with_one_text_are_held_out_together_and_no_class_is_lost() -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        documents = rng.integers(0, 12, 60).astype("uint64")
        kinds = rng.integers(0, 5, 60).astype("int32")
        held = hold_out_of_classes(documents, kinds, fraction=0.4, seed=seed)
        assert not set(documents[held]) & set(documents[~held])
        assert set(kinds[~held]) == set(kinds)
        same = hold_out_of_classes(documents, kinds, fraction=0.4, seed=seed)
        assert (same == held).all()


def test_nothing_is_held_out_of_nothing() -> None:
    nothing = np.zeros(0, "int32")
    assert len(hold_out_of_classes(nothing, nothing, fraction=0.1, seed=0)) == 0


# Checks


def test_one_text_with_two_labels_is_found(tokenizer: Any, tmp_path: Path) -> None:
    rows = [*reviews(8, 8), {"text": "It is what it is.", "label": "a"}]
    rows += [{"text": "It is what it is.", "label": "b"}, rows[0]]
    kept = prepared(rows, tokenizer, tmp_path)
    assert found_in(kept)["label_conflicts"] == 2
    assert found_in(kept)["duplicates"] == 1
    (finding,) = (each for each in kept.report.findings if each.check == "label_conflicts")
    assert finding.example == "a / b: It is what it is."
    assert [number for _, number in finding.rows] == [17, 18]

    checks = ChecksSpec(label_conflicts="skip")
    skipped = prepared(rows, tokenizer, tmp_path, checks=checks)
    assert skipped.report.skipped == {"data.skip_label_conflicts": 2}
    with pytest.raises(DatasetError, match="another label"):
        prepared(rows, tokenizer, tmp_path, checks=ChecksSpec(label_conflicts="stop"))


def test_near_repeats_with_another_label_are_no_repeats(tokenizer: Any, tmp_path: Path) -> None:
    long = "The blue jacket came late, but the colour and the cloth are just as they were shown"
    rows = [*reviews(6, 6), {"text": f"{long}.", "label": "a"}, {"text": f"{long}!", "label": "b"}]
    assert "near_duplicates" not in found_in(prepared(rows, tokenizer, tmp_path))
    rows[-1]["label"] = "a"
    assert found_in(prepared(rows, tokenizer, tmp_path))["near_duplicates"] == 1


def test_classes_with_few_rows_are_kept_skipped_or_stop(tokenizer: Any, tmp_path: Path) -> None:
    rows = reviews(20, 3, 20)
    kept = prepared(rows, tokenizer, tmp_path)
    assert found_in(kept)["rare_labels"] == 3
    assert [name for name, _, _ in kept.report.labels] == ["a", "b", "c"]

    skipped = prepared(rows, tokenizer, tmp_path, checks=ChecksSpec(rare_labels="skip"))
    assert [name for name, _, _ in skipped.report.labels] == ["a", "c"]
    assert {row.label for row in skipped.train} == {0, 1}
    assert skipped.report.skipped == {"data.skip_rare_labels": 3}
    with pytest.raises(DatasetError, match="fewer than five"):
        prepared(rows, tokenizer, tmp_path, checks=ChecksSpec(rare_labels="stop"))


def test_one_answer_in_most_rows_is_no_finding_of_classes(tokenizer: Any, tmp_path: Path) -> None:
    assert "same_answers" not in found_in(prepared(reviews(30, 6), tokenizer, tmp_path))


# What cannot be learned


def test_one_class_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        prepared(reviews(8), tokenizer, tmp_path)
    assert caught.value.key == "data.one_class"
    assert caught.value.values["columns"] == ["text", "label"]
    with pytest.raises(DatasetError) as caught:
        prepared(reviews(1), tokenizer, tmp_path)
    assert caught.value.key == "data.too_few_rows"


@pytest.mark.parametrize(("classes", "rows_each"), [(21, 1), (1001, 3)])
def test_too_many_classes_are_another_column(
    tokenizer: Any, tmp_path: Path, classes: int, rows_each: int
) -> None:
    rows = [
        {"text": f"Row {at}", "label": f"kind {at % classes}"} for at in range(classes * rows_each)
    ]
    with pytest.raises(DatasetError) as caught:
        prepared(rows, tokenizer, tmp_path)
    assert caught.value.key == "data.too_many_classes"
    assert "“kind 0”" in str(caught.value)


def test_twenty_classes_of_one_row_each_are_few_enough(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"text": f"Row {at}", "label": at} for at in range(20)]
    found = prepared(rows, tokenizer, tmp_path)
    assert [name for name, _, _ in found.report.labels] == [str(at) for at in range(20)]

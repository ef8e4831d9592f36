from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_studio.data import templates
from lora_studio.data.encoding import IGNORE_INDEX, Encoded
from lora_studio.data.preparation import prepare
from lora_studio.data.preview import Sample, sample
from lora_studio.errors import DatasetError, ModelError
from lora_studio.recipe import ChecksSpec, DataSpec, ModelSpec, Recipe
from lora_studio.settings import Settings
from lora_studio.workbench import Workbench


def add_beginning(tokenizer: Any) -> None:
    """Have the tokenizer put its beginning token before a text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A",
        pair="<|im_start|> $A $B",
        special_tokens=[("<|im_start|>", tokenizer.bos_token_id)],
    )


E2E = Path(__file__).resolve().parents[2] / "shared" / "data" / "e2e_valid.jsonl"


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture
def plain(tiny_gpt2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_gpt2)


def spec(*files: Path, **values: Any) -> DataSpec:
    return DataSpec(files=tuple(map(str, files)), **values)


def rows_file(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_rows_add_up(tmp_path: Path, tokenizer: Any) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"p{at}", "completion": f"c{at}"} for at in range(40)]
    rows[4]["completion"] = ""
    rows[9]["prompt"] = "long " * 300
    rows[7]["completion"] = None
    result = prepare(spec(rows_file(tmp_path, rows), max_length=100), tokenizer, 0)
    report = result.report
    assert (
        report.rows == 40 == report.trained_rows + report.eval_rows + sum(report.skipped.values())
    )
    assert (len(result.train), len(result.evaluation)) == (report.trained_rows, report.eval_rows)
    assert report.eval_rows == 2
    assert [(row.number, row.reason) for row in report.skipped_rows] == [
        (5, "data.skip_no_answer"),
        (8, "data.skip_no_answer"),
        (10, "data.skip_answer_cut"),
    ]


def test_the_report_is_json_and_says_what_was_understood(pairs: Path, tokenizer: Any) -> None:
    result = prepare(spec(pairs), tokenizer, 0)
    report = result.report.to_dict()
    assert json.loads(json.dumps(report)) == report
    assert report["format"] == "prompt_completion"
    assert report["formats"] == {"pairs.jsonl": "prompt_completion"}
    assert (report["trained_rows"], report["eval_rows"], report["truncated"]) == (19, 1, 0)
    assert not report["own_template"]
    assert len(report["prompts"]) == 2
    assert report["tokens"] == sum(len(row.input_ids) for row in result.train)
    assert report["trained_tokens"] == sum(row.trained_tokens for row in result.train)
    assert sum(count for _, _, count in report["histogram"]) == 20
    lengths = [row.length for row in [*result.train, *result.evaluation]]
    assert report["tokens_longest"] == max(lengths)


def test_the_first_prompt_is_a_held_out_question(pairs: Path, tokenizer: Any) -> None:
    result = prepare(spec(pairs), tokenizer, 0)
    held = tokenizer.decode(result.evaluation[0].input_ids)
    assert result.report.prompts[0] in held
    trained = [tokenizer.decode(row.input_ids) for row in result.train]
    assert not any(result.report.prompts[0] in text for text in trained)


def test_the_preview_joins_to_the_row_and_marks_the_answer(pairs: Path, tokenizer: Any) -> None:
    result = prepare(spec(pairs), tokenizer, 0)
    assert len(result.report.samples) == 5
    for row, shown in zip(result.train, result.report.samples, strict=False):
        assert "".join(shown.tokens) == shown.text == tokenizer.decode(row.input_ids)
        pieces = zip(shown.tokens, shown.mask, strict=True)
        assert "".join(text for text, on in pieces if on).endswith(" area .<|im_end|>")
        assert shown.end_token
        assert len(shown.tokens) == len(row.input_ids)


def shown_of(text: str, tokenizer: Any) -> Sample:
    """Return a plain text as it is shown, its end token included."""
    ids = [*templates.token_ids(tokenizer, [text])[0], tokenizer.eos_token_id]
    row = Encoded(ids, ids, len(ids))
    shown = sample(row, "a.txt", 1, tokenizer, frozenset({tokenizer.eos_token_id}))
    assert shown.text == tokenizer.decode(ids)
    return shown


def test_characters_of_several_tokens_are_shown_whole(plain: Any) -> None:
    text = "꽃 🍋 그리고 \ufffd 그다음 👩‍👩‍👧"
    shown = shown_of(text, plain)
    assert shown.text == f"{text}<|endoftext|>"
    assert "🍋" in shown.tokens
    assert shown.end_token


def test_spaces_of_a_sentencepiece_tokenizer_are_shown() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=100, special_tokens=["<s>", "</s>"], show_progress=False
    )
    backend.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert "the quick fox jumps" in shown_of("the quick fox jumps", tokenizer).text


def test_a_cut_answer_has_no_end_token_in_its_preview(pairs: Path, tokenizer: Any) -> None:
    whole = prepare(spec(pairs), tokenizer, 0).train[0]
    cut = prepare(spec(pairs, max_length=whole.answer_start + 8), tokenizer, 0)
    assert cut.report.truncated > 0
    assert not cut.report.samples[0].end_token


def test_one_long_text_is_cut_and_its_end_held_out(tmp_path: Path, plain: Any) -> None:
    paragraphs = [f"Paragraph number {at} of the story." for at in range(60)]
    file = tmp_path / "story.txt"
    file.write_text("\n\n".join(paragraphs), encoding="utf-8")
    result = prepare(spec(file, max_length=64), plain, 0)
    held = "".join(plain.decode(row.input_ids) for row in result.evaluation)
    learned = "".join(plain.decode(row.input_ids) for row in result.train)
    assert held == "\n\n".join(paragraphs[57:]) + "<|endoftext|>"
    assert learned == "\n\n".join(paragraphs[:57]) + "<|endoftext|>"
    report = result.report
    assert (report.format, report.records, report.truncated) == ("text", 1, 0)
    assert report.rows == len(result.train) + len(result.evaluation) > 2
    assert result.report.prompts[0].startswith("Paragraph number 57")
    assert not result.report.own_template
    assert plain.chat_template is None


def texts_of(
    folder: Path, texts: Sequence[str], tokenizer: Any, **values: Any
) -> list[list[Encoded]]:
    """Return the rows that each text becomes, nothing held out."""
    found = []
    for at, text in enumerate(texts):
        file = folder / f"{at}.txt"
        file.write_text(text, encoding="utf-8")
        found.append(list(prepare(spec(file, eval_fraction=0, **values), tokenizer, 0).train))
    return found


@pytest.mark.parametrize("overlap", [0.0, 0.25])
@pytest.mark.parametrize("max_length", [8, 33, 100])
@pytest.mark.parametrize("begins", [False, True])
def test_a_text_is_trained_on_exactly_once(
    tmp_path: Path, plain: Any, *, max_length: int, begins: bool, overlap: float
) -> None:
    if begins:
        add_beginning(plain)
    texts = ["한 문단이에요. 🍋 둘째 문장이에요.\n\nThe quick brown fox.\n" * 9, "x" * 500]
    texts = [text.strip() for text in texts]
    found = texts_of(tmp_path, texts, plain, max_length=max_length, chunk_overlap=overlap)
    for text, rows in zip(texts, found, strict=True):
        labels = [label for row in rows for label in row.labels if label != IGNORE_INDEX]
        ids = plain(text, add_special_tokens=False)["input_ids"]
        assert labels == [*ids, plain.eos_token_id]
        assert all(len(row.input_ids) <= max_length and not row.truncated for row in rows)
        assert [row.input_ids[0] == plain.bos_token_id for row in rows] == [begins] * len(rows)


def test_a_piece_begins_with_the_end_of_the_one_before(tmp_path: Path, plain: Any) -> None:
    text = " ".join(f"word{at}" for at in range(200))
    (rows,) = texts_of(tmp_path, [text], plain, max_length=64, chunk_overlap=0.25)
    assert len(rows) > 3
    for before, row in itertools.pairwise(rows):
        repeated = row.labels.count(IGNORE_INDEX)
        assert 0 < repeated <= 16
        assert row.input_ids[:repeated] == before.input_ids[-repeated:]


def test_a_text_is_cut_between_paragraphs_where_it_can_be(tmp_path: Path, plain: Any) -> None:
    paragraph = "The quick brown fox jumps. " * 5
    text = "\n\n".join([paragraph.strip()] * 6)
    (rows,) = texts_of(tmp_path, [text], plain, max_length=100)
    assert len(rows) > 2
    assert all(plain.decode(row.input_ids).endswith("\n\n") for row in rows[:-1])


def test_a_marker_cuts_a_text_and_is_left_out(tmp_path: Path, plain: Any) -> None:
    (rows,) = texts_of(tmp_path, ["one\n***\ntwo\n***\nthree"], plain, cut_marker="***")
    assert [plain.decode(row.input_ids).strip() for row in rows] == [
        "one",
        "two",
        "three<|endoftext|>",
    ]


def test_text_rows_are_documents_of_their_own(tmp_path: Path, plain: Any) -> None:
    rows = [{"text": f"Document {at}."} for at in range(30)]
    result = prepare(spec(rows_file(tmp_path, rows), eval_fraction=0.1), plain, 0)
    assert (len(result.train), len(result.evaluation)) == (27, 3)


def test_texts_and_chats_mix(tmp_path: Path, pairs: Path, plain: Any) -> None:
    story = tmp_path / "story.md"
    story.write_text("\n\n".join(f"Paragraph {at}." for at in range(30)), encoding="utf-8")
    steps: list[tuple[int, int]] = []
    result = prepare(spec(story, pairs), plain, 0, lambda done, total: steps.append((done, total)))
    assert result.report.format == "mixed"
    assert result.report.own_template == "plain"
    assert steps[-1] == (22, 22)  # the story is two rows: its start, and its end held out
    again = prepare(spec(story, pairs), plain, 0)
    assert again.report == result.report
    assert list(again.train) == list(result.train)


def test_the_dataset_has_the_two_columns(pairs: Path, tokenizer: Any, tmp_path: Path) -> None:
    result = prepare(spec(pairs), tokenizer, 0)
    dataset = result.to_dataset(tmp_path)
    assert dataset.column_names == ["input_ids", "labels"]
    assert dataset[0]["labels"] == result.train[0].labels
    assert len(result.to_dataset(tmp_path, "evaluation")) == 1
    assert dataset[0]["labels"][0] == IGNORE_INDEX


def test_no_fraction_holds_nothing_out(pairs: Path, tokenizer: Any, tmp_path: Path) -> None:
    result = prepare(spec(pairs, eval_fraction=0.0), tokenizer, 0)
    assert (len(result.train), list(result.evaluation)) == (20, [])
    assert len(result.to_dataset(tmp_path, "evaluation")) == 0
    assert len(result.report.prompts) == 2


def test_unused_columns_are_reported(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"id": at, "question": f"q{at}", "answer": at} for at in range(4)]
    report = prepare(spec(rows_file(tmp_path, rows)), tokenizer, 0).report
    assert report.unused_columns == {"rows.jsonl": ["id"]}


def refused(tokenizer: Any, *files: Path, **values: Any) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        prepare(spec(*files, **values), tokenizer, 0)
    return caught.value


def test_too_little_data_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    assert refused(tokenizer).key == "data.no_files"
    file = rows_file(tmp_path, [{"prompt": "p", "completion": c} for c in ("c", "", "")])
    error = refused(tokenizer, file)
    assert error.key == "data.too_few_rows"
    assert (error.values["usable"], error.values["rows"], error.values["skipped"]) == (1, 3, 2)


def test_a_length_that_keeps_no_answer_is_refused_with_the_length_needed(
    pairs: Path, tokenizer: Any
) -> None:
    error = refused(tokenizer, pairs, max_length=8)
    assert error.key == "data.answers_cut"
    needed = error.values["needed"]
    assert prepare(spec(pairs, max_length=needed), tokenizer, 0).report.trained_rows > 0


def test_a_template_that_refuses_everything_is_named(pairs: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('never again') }}"
    error = refused(tokenizer, pairs)
    assert error.key == "data.template_refuses"
    assert "never again" in str(error)


def test_a_tokenizer_without_an_end_token_is_refused(pairs: Path, plain: Any) -> None:
    plain.eos_token = None
    with pytest.raises(ModelError):
        prepare(spec(pairs), plain, 0)


def test_missing_answers_can_stop_the_run(tmp_path: Path, tokenizer: Any) -> None:
    file = rows_file(tmp_path, [{"prompt": "p", "completion": c} for c in ("c", "d", "")])
    assert (
        refused(tokenizer, file, checks=ChecksSpec(empty_answers="stop")).values["rows"]
        == "rows.jsonl:3"
    )


def test_a_preview_that_nobody_waits_for_gives_the_next_nothing_of_its_template(
    pairs: Path, tiny_gpt2: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins, comes_next, has_ended = (threading.Event() for _ in range(3))

    def slow(data: DataSpec, tokenizer: Any, *about: Any, **more: Any) -> Any:
        if data.chat_template == "plain":
            comes_next.set()
            assert has_ended.wait(120)
            return prepare(data, tokenizer, *about, **more)
        begins.set()
        assert comes_next.wait(120)
        templates.ensure_chat_template(tokenizer, data.chat_template)
        has_ended.set()
        return None

    monkeypatch.setattr("lora_studio.workbench.prepare", slow)
    bench = Workbench(settings)
    model = ModelSpec(source=str(tiny_gpt2))
    left = bench.preview(Recipe(model=model, data=spec(pairs, chat_template="zephyr")))
    next(left)
    left.close()
    assert begins.wait(120)
    *_, last = bench.preview(Recipe(model=model, data=spec(pairs, chat_template="plain")))
    assert last["result"]["own_template"] == "plain"


@pytest.mark.skipif(not E2E.exists(), reason="the benchmark data is not here")
def test_no_held_out_question_is_trained_on(tokenizer: Any) -> None:
    result = prepare(spec(E2E), tokenizer, 7)
    assert result.report.rows == 4672 == len(result.train) + len(result.evaluation)

    def questions(rows: Sequence[Encoded]) -> set[tuple[int, ...]]:
        return {tuple(row.input_ids[: row.answer_start]) for row in rows}

    assert result.evaluation
    assert not questions(result.train) & questions(result.evaluation)


def test_the_room_imports_no_heavy_library() -> None:
    code = (
        "import sys, pathlib, importlib\n"
        "for file in pathlib.Path('lora_studio/data').rglob('*.py'):\n"
        "    importlib.import_module('.'.join(file.with_suffix('').parts))\n"
        "heavy = {'torch', 'gradio', 'transformers', 'datasets', 'pyarrow', 'peft'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    root = Path(templates.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

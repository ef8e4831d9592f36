"""Measurements: held-out loss, answers, forgetting; against transformers and other libraries."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sorting import LABELS, make_sorter, write_run
from trainings import recipe_over, work
from workers import open_studio

from lora_studio.chat.engine import Engine
from lora_studio.chat.request import Sampling
from lora_studio.cli.main import main
from lora_studio.data.encoding import IGNORE_INDEX
from lora_studio.errors import AdapterError, RunError, StudioError
from lora_studio.judging.batch import Asked
from lora_studio.judging.contenders import Contender
from lora_studio.library.names import PEFT, Origin, write_origin
from lora_studio.measuring import evaluation, measurements, statistics
from lora_studio.measuring.answering import Asked as Asking
from lora_studio.measuring.answering import Written, scored
from lora_studio.measuring.forgetting import LANGUAGES, PROBE, probe_rows, verdict
from lora_studio.measuring.likeness import Words, bleu, is_east_asian, rouge_l
from lora_studio.measuring.matching import has_number, is_exact, last_number, matcher
from lora_studio.measuring.measurements import Measured
from lora_studio.measuring.primitives import Pace
from lora_studio.measuring.remarks import remarks
from lora_studio.measuring.rows import HeldOutRow, held_out
from lora_studio.measuring.sorting import confusion, macro_f1
from lora_studio.measuring.statistics import compared
from lora_studio.measuring.wanted import Wanted
from lora_studio.models.loading import load_tokenizer
from lora_studio.runs.accelerator import Job
from lora_studio.runs.folder import WEIGHTS, RunFolder, create
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.wording import say

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # PEFT asks a transformers model for a name that transformers has deprecated (peft 0.21.2).
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]

NO_PROBE = Wanted(rows=8, answers=3, probe=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Path]:
    """A home with a run that learned twelve rows and held out eight."""
    home = tmp_path_factory.mktemp("home")
    data = home / "pairs.jsonl"
    rows = [
        {"prompt": f"name : {place} | area : {area}", "completion": f"{place} is in the {area} ."}
        for place in ("Cotto", "The Mill", "Zizzi", "Aromi", "The Vaults")
        for area in ("riverside", "city centre", "old town", "harbour")
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    before = signal.getsignal(signal.SIGTERM)
    settings = Settings(home=home, offline=True)
    recipe = recipe_over(
        data, tiny_llama, "data.eval_fraction=0.4", "training.max_steps=6", "training.eval_steps=2"
    )
    work(create(settings.runs, recipe), settings)
    yield home
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def studio(home: Path, tmp_path: Path) -> Iterator[Studio]:
    """A studio with a copy of that run."""
    shutil.copytree(home / "runs", tmp_path / "runs")
    studio = open_studio(tmp_path)
    yield studio
    studio.close()


@pytest.fixture
def run(studio: Studio) -> RunFolder:
    return studio.runs.folders()[0]


def evaluated(studio: Studio, name: str, wanted: Wanted = NO_PROBE, **about: Any) -> Measured:
    *_, last = studio.measurements.evaluate(name, wanted, **about)
    found: Measured = last["result"]
    return found


def kept(studio: Studio, name: str) -> Measured | None:
    """Return what was measured of an adapter on rows of its own run."""
    return next((one for one in studio.measurements.read_all(name) if not one.rows_of), None)


def rows_of(run: RunFolder) -> list[dict[str, list[int]]]:
    from datasets import Dataset

    return list(Dataset.from_file(str(run.data / "evaluation.arrow")))


@torch.inference_mode()
def by_hand(base: Path, adapter: Path | None, rows: list[tuple[list[int], list[int]]]) -> float:
    """Return nats a labelled token as transformers and PEFT give them."""
    model = models_of(base, adapter)
    nll, tokens = 0.0, 0
    for ids, labels in rows:
        scores = model(torch.tensor([ids])).logits[0, :-1].double()
        wanted = torch.tensor(labels[1:])
        loss = torch.nn.functional.cross_entropy(
            scores, wanted, ignore_index=IGNORE_INDEX, reduction="sum"
        )
        nll += float(loss)
        tokens += int((wanted != IGNORE_INDEX).sum())
    return nll / tokens


def models_of(base: Path, adapter: Path | None) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    return model if adapter is None else PeftModel.from_pretrained(model, adapter).eval()


def test_the_loss_is_that_of_transformers_and_of_the_training_itself(
    studio: Studio, run: RunFolder, tiny_llama: Path
) -> None:
    found = evaluated(studio, run.id).loss
    assert found is not None
    rows = [(row["input_ids"], row["labels"]) for row in rows_of(run)]
    base, adapter = (by_hand(tiny_llama, folder, rows) for folder in (None, run.adapter))
    assert (found.mean.base, found.mean.adapter) == pytest.approx((base, adapter), abs=1e-5)
    assert found.perplexity == pytest.approx((math.exp(base), math.exp(adapter)), rel=1e-4)
    assert found.tokens == sum(label != IGNORE_INDEX for _, labels in rows for label in labels)
    evals = studio.runs.history(run.id).evals
    losses = {entry["step"]: entry["loss"] for entry in evals}
    assert found.mean.base == pytest.approx(losses[0], abs=1e-4)
    assert found.mean.adapter == pytest.approx(losses[6], abs=1e-4)
    assert adapter < base - 0.1
    assert found.mean.low is not None and found.mean.high is not None
    assert found.mean.low < adapter - base < found.mean.high < 0


def test_fewer_rows_are_taken_evenly_and_the_count_is_said(
    studio: Studio, run: RunFolder, tiny_llama: Path
) -> None:
    found = evaluated(studio, run.id, Wanted(rows=4, answers=0, probe=False))
    assert found.loss is not None
    assert (found.loss.rows, found.held_out) == (4, 8)
    rows = [(row["input_ids"], row["labels"]) for row in rows_of(run)[::2]]
    assert found.loss.mean.base == pytest.approx(by_hand(tiny_llama, None, rows), abs=1e-5)
    assert found.loss.mean.low is None  # of four rows nothing can be drawn


def test_no_measured_row_was_trained_on(run: RunFolder, tiny_llama: Path) -> None:
    from datasets import Dataset

    trained = Dataset.from_file(str(run.data / "train.arrow"))["input_ids"]
    measured = held_out(run.data, load_tokenizer(tiny_llama), 100)
    assert len(measured.rows) == measured.total == 8
    assert not [row for row in measured.rows if row.ids in trained]


def test_answers_are_the_greedy_ones_of_transformers(
    studio: Studio, run: RunFolder, tiny_llama: Path
) -> None:
    found = evaluated(studio, run.id).answers
    assert found is not None
    assert found.rows == len(found.examples) == 3
    tokenizer = load_tokenizer(tiny_llama)
    rows = rows_of(run)
    chosen = [rows[at * 8 // 3] for at in range(3)]
    for side, folder in (("base", None), ("adapter", run.adapter)):
        model = models_of(tiny_llama, folder)
        for row, example in zip(chosen, found.examples, strict=True):
            start = next(at for at, label in enumerate(row["labels"]) if label != IGNORE_INDEX)
            asked = torch.tensor([row["input_ids"][:start]])
            written = model.generate(
                input_ids=asked,
                attention_mask=torch.ones_like(asked),
                do_sample=False,
                max_new_tokens=found.max_new_tokens,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=0,
            )[0, start:]
            text = tokenizer.decode(written, skip_special_tokens=True).strip("\ufffd").strip()
            assert getattr(example, side) == text


def test_questions_and_references_are_those_of_the_data(studio: Studio, run: RunFolder) -> None:
    found = evaluated(studio, run.id).answers
    assert found is not None
    for example in found.examples:
        assert example.question.startswith("name : ")
        place, area = example.question.removeprefix("name : ").split(" | area : ")
        assert example.reference == f"{place} is in the {area} ."


def test_of_a_conversation_the_last_answer_is_asked_for_after_all_that_was_said(
    tmp_path: Path, tiny_llama: Path
) -> None:
    from lora_studio.data.preparation import prepare
    from lora_studio.recipe import DataSpec

    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Which river?"},
        {"role": "assistant", "content": "The Cam."},
        {"role": "user", "content": "Which city?"},
        {"role": "assistant", "content": "Cambridge."},
    ]
    file = tmp_path / "talks.jsonl"
    alone = [{"messages": [*turns[1:2], {"role": "assistant", "content": f"{n}."}]} for n in "1234"]
    file.write_text("".join(json.dumps(row) + "\n" for row in [{"messages": turns}, *alone]))
    tokenizer = load_tokenizer(tiny_llama)
    prepared = prepare(DataSpec(files=(str(file),), eval_fraction=0.0), tokenizer, 1)
    prepared.to_dataset(tmp_path, "train")
    (tmp_path / "train.arrow").rename(tmp_path / "evaluation.arrow")
    talk, *rest = held_out(tmp_path, tokenizer, 10).rows
    assert talk.prompt == tokenizer.apply_chat_template(
        turns[:-1], tokenize=False, add_generation_prompt=True
    )
    assert (talk.reference, talk.is_alone) == ("Cambridge.", False)
    counted = [token for token, counts in zip(talk.ids, talk.counted, strict=True) if counts]
    assert tokenizer.decode(counted) == "The Cam.<|im_end|>Cambridge.<|im_end|>"
    assert [(row.question, row.is_alone) for row in rest] == [("Which river?", True)] * 4


def test_a_row_that_was_cut_within_its_answer_is_not_asked(
    run: RunFolder, tmp_path: Path, tiny_llama: Path
) -> None:
    import pyarrow as pa

    columns = {"input_ids": [], "labels": []}
    for row in rows_of(run):
        for name, column in columns.items():
            column.append(row[name][:-4])
    table = pa.table({name: pa.array(column) for name, column in columns.items()})
    file = str(tmp_path / "evaluation.arrow")
    with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    found = held_out(tmp_path, load_tokenizer(tiny_llama), 10)
    assert len(found.rows) == 8
    assert {row.prompt for row in found.rows} == {""}


def test_a_table_of_answers_holds_what_each_would_have_said_alone(
    studio: Studio, run: RunFolder
) -> None:
    *_, last = studio.measurements.held_out(run.id, 3)
    prompts = last["result"]
    assert [prompt.reference.endswith(" .") for prompt in prompts] == [True] * 3
    contenders = (Contender.of(), Contender.of(run.id), Contender.of(run.id, 0.5))
    sampling = Sampling(greedy=True, max_new_tokens=8)
    source = run.read_recipe().model.source
    batch = studio.judging.begin(
        Asked(base=source, contenders=contenders, prompts=tuple(prompts), sampling=sampling)
    )
    *_, end = studio.judging.fill(batch, run.id)
    assert (end["done"], end["total"], batch.pending()) == (3, 3, [])
    for row, prompt in zip(batch.table(), prompts, strict=True):
        for who, found in zip(contenders, row["answers"], strict=True):
            events = studio.answers.ask(run.id, [who.pane(prompt.messages)], sampling)
            alone = "".join(event["text"] for event in events if "text" in event)
            assert found["text"] == alone.strip()


def test_scores_are_those_of_rouge_score_and_sacrebleu(studio: Studio, run: RunFolder) -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu

    found = evaluated(studio, run.id, Wanted(rows=8, answers=8, match="(riverside)", probe=False))
    assert found.answers is not None
    examples, scores = found.answers.examples, found.answers.scores
    assert set(scores) == {"exact", "rouge_l", "match", "bleu"}
    scorer = RougeScorer(["rougeL"])
    rouge = [scorer.score(one.reference, one.adapter)["rougeL"].fmeasure for one in examples]
    assert scores["rouge_l"].adapter == pytest.approx(float(np.mean(rouge)), abs=0.02)
    expected = corpus_bleu([one.adapter for one in examples], [[one.reference for one in examples]])
    assert scores["bleu"].adapter == pytest.approx(expected.score)
    assert "tok:13a" in found.answers.bleu_signature
    assert 0 <= found.answers.cut_off <= 16


def test_what_is_forgotten_is_the_loss_of_transformers_on_the_shipped_texts(
    studio: Studio, run: RunFolder, tiny_llama: Path
) -> None:
    found = evaluated(studio, run.id, Wanted(rows=1, answers=0)).forgetting
    tokenizer = load_tokenizer(tiny_llama)
    assert [entry.language for entry in found] == ["en", "ko"]
    english = (PROBE / "en.txt").read_text(encoding="utf-8").strip().split("\n\n")
    pieces = []
    for paragraph in english:
        ids = tokenizer(paragraph, add_special_tokens=False)["input_ids"]
        pieces += [ids[at : at + 256] for at in range(0, len(ids), 256)]
    rows = [(ids, ids) for ids in pieces]
    assert found[0].base == pytest.approx(by_hand(tiny_llama, None, rows), abs=1e-4)
    assert found[0].adapter == pytest.approx(by_hand(tiny_llama, run.adapter, rows), abs=1e-4)
    assert found[0].tokens == sum(len(ids) - 1 for ids in pieces)
    assert found[0].perplexity == (math.exp(found[0].base), math.exp(found[0].adapter))


def test_the_shipped_texts_are_of_some_length_and_all_of_them_is_read(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    rows = probe_rows(tokenizer)
    for language in LANGUAGES:
        text = (PROBE / f"{language}.txt").read_text(encoding="utf-8")
        assert 600 <= len(text.split()) <= 900
        read = tokenizer.decode([token for row in rows[language] for token in row.ids])
        assert read == text.strip().replace("\n\n", "")


def test_more_is_forgotten_the_more_the_loss_rises() -> None:
    words = [verdict(2.0, adapter) for adapter in (1.5, 2.0, 2.03, 2.1, 2.3, 3.0, 40.0)]
    assert words == ["unchanged", "unchanged", "unchanged", "slight", "clear", "bad", "bad"]


def test_what_was_measured_is_kept_and_replaced(studio: Studio, run: RunFolder) -> None:
    assert kept(studio, run.id) is None
    first = evaluated(studio, run.id)
    assert kept(studio, run.id) == first
    second = evaluated(studio, run.id, Wanted(rows=2, answers=0, probe=False))
    assert kept(studio, run.id) == second
    fields = json.loads((run.path / measurements.NAME).read_text(encoding="utf-8"))
    assert fields["version"] == 1
    assert fields["loss"]["perplexity"]["base"] == pytest.approx(math.exp(second.loss.mean.base))
    assert set(fields["versions"]) >= {"torch", "transformers", "peft", "sacrebleu"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1}', "null"])
def test_a_file_that_says_something_else_counts_for_nothing(
    studio: Studio, run: RunFolder, text: str
) -> None:
    (run.path / measurements.NAME).write_text(text)
    assert kept(studio, run.id) is None


def test_other_weights_were_not_measured(studio: Studio, run: RunFolder) -> None:
    evaluated(studio, run.id, Wanted(rows=1, answers=0, probe=False))
    weights = run.adapter / WEIGHTS
    weights.write_bytes(weights.read_bytes() + b" ")
    assert kept(studio, run.id) is None


def test_a_checkpoint_is_measured_by_itself_and_kept_beside_its_run(
    studio: Studio, run: RunFolder
) -> None:
    step = run.checkpoint_steps()[0]
    found = evaluated(studio, f"{run.id}@{step}", Wanted(rows=8, answers=0, probe=False))
    whole = evaluated(studio, run.id, Wanted(rows=8, answers=0, probe=False))
    assert found.adapter == f"{run.id}@{step}"
    assert found.loss.mean.base == pytest.approx(whole.loss.mean.base, abs=1e-6)
    assert found.loss.mean.adapter != whole.loss.mean.adapter
    assert kept(studio, run.id) == whole
    assert kept(studio, f"{run.id}@{step}") == found
    shutil.copyfile(run.adapter / WEIGHTS, run.checkpoint(step) / WEIGHTS)
    assert kept(studio, f"{run.id}@{step}") is None


def test_an_adapter_that_was_made_smaller_is_measured_on_the_rows_of_its_run(
    studio: Studio, run: RunFolder
) -> None:
    made = studio.settings.adapters / "smaller-a1"
    shutil.copytree(run.adapter, made / PEFT)
    source = run.read_recipe().model.source
    write_origin(made, Origin(kind="shrunk", of=run.id, source=source, precision="fp32"))
    found = evaluated(studio, "smaller-a1", Wanted(rows=8, answers=0, probe=False))
    whole = evaluated(studio, run.id, Wanted(rows=8, answers=0, probe=False))
    assert found.loss == whole.loss
    assert kept(studio, "smaller-a1") == found
    *_, last = studio.measurements.compare_losses(run.id, "smaller-a1")
    assert last["result"].mean.base == last["result"].mean.adapter == whole.loss.mean.adapter


def test_an_adapter_of_no_run_has_no_rows_unless_one_is_named(
    studio: Studio, run: RunFolder
) -> None:
    came = studio.settings.adapters / "came-a1"
    shutil.copytree(run.adapter, came / PEFT)
    source = run.read_recipe().model.source
    write_origin(came, Origin(kind="zip", of="came.zip", source=source, precision="fp32"))
    nothing = evaluated(studio, "came-a1")
    assert (nothing.loss, nothing.notes) == (None, ("measuring.no_rows_of",))
    found = evaluated(studio, "came-a1", Wanted(rows=8, answers=0, probe=False), rows_of=run.id)
    assert (found.loss is not None, found.rows_of, found.seen) == (True, run.id, None)
    assert said_of(found)[1] == "Whether it learned from some of these rows is not known."
    assert studio.measurements.read_all("came-a1") == [nothing, found]


def said_of(found: Measured) -> list[str]:
    return [say(key, **values) for key, values in remarks(found)]


@pytest.fixture
def other(run: RunFolder) -> RunFolder:
    """A run that drew its rows anew from the same data: it learned what the first held out."""
    other = RunFolder(run.path.with_name("other-1"))
    shutil.copytree(run.path, other.path)
    held_out, learned = other.data / "evaluation.arrow", other.data / "train.arrow"
    held_out.rename(other.data / "aside")
    learned.rename(held_out)
    (other.data / "aside").rename(learned)
    return other


def test_rows_of_another_run_are_named_and_those_it_learned_from_are_counted(
    studio: Studio, run: RunFolder, other: RunFolder
) -> None:
    wanted = Wanted(rows=12, answers=0, probe=False)
    own = evaluated(studio, run.id, wanted)
    assert (own.rows_of, own.seen, said_of(own)) == (
        "", 0, ["Measured on 8 of 8 held-out rows."]
    )  # fmt: skip
    assert evaluated(studio, run.id, wanted, rows_of=run.id).rows_of == ""
    own = kept(studio, run.id)
    found = evaluated(studio, run.id, wanted, rows_of=other.id)
    assert (found.rows_of, found.seen, found.loss.rows) == (other.id, 12, 12)
    assert said_of(found) == [
        "Measured on 12 of the 12 rows that other-1 held out, not on those of its own run.",
        say("measuring.seen", seen="12"),
    ]
    assert kept(studio, run.id) == own
    assert studio.measurements.read_all(run.id) == [own, found]
    fields = json.loads((run.path / measurements.NAME).read_text(encoding="utf-8"))
    assert Measured.from_dict(fields) == own


def test_of_rows_it_never_learned_from_that_is_said_where_it_can_be_known(
    studio: Studio, run: RunFolder, other: RunFolder
) -> None:
    shutil.copyfile(run.data / "evaluation.arrow", other.data / "evaluation.arrow")
    wanted = Wanted(rows=8, answers=0, probe=False)
    found = evaluated(studio, run.id, wanted, rows_of=other.id)
    assert (found.seen, said_of(found)[1]) == (0, "It learned from none of these rows.")
    recipe = other.read_recipe().changed(["data.max_length=64"])
    other.recipe.write_text(recipe.to_yaml(), encoding="utf-8")
    assert evaluated(studio, run.id, wanted, rows_of=other.id).seen is None
    (run.data / "train.arrow").unlink()
    assert evaluated(studio, run.id, wanted, rows_of=other.id).seen is None


def test_rows_of_other_classes_are_refused(
    studio: Studio, run: RunFolder, other: RunFolder
) -> None:
    say_of(other, labels=["good", "bad"])
    with pytest.raises(StudioError, match="have other classes"):
        evaluated(open_studio(studio.settings.home), run.id, rows_of=other.id)


def test_rows_of_another_base_are_refused(studio: Studio, run: RunFolder, other: RunFolder) -> None:
    recipe = other.read_recipe().changed(["model.source=owner/another-model"])
    other.recipe.write_text(recipe.to_yaml(), encoding="utf-8")
    with pytest.raises(StudioError, match="written as tokens of owner/another-model"):
        evaluated(studio, run.id, rows_of=other.id)


def test_what_an_earlier_version_kept_is_still_read(studio: Studio, run: RunFolder) -> None:
    found = evaluated(studio, run.id, Wanted(rows=1, answers=0))
    file = run.path / measurements.NAME
    fields = json.loads(file.read_text(encoding="utf-8"))
    del fields["rows_of"], fields["seen"]
    for entry in fields["forgetting"]:
        del entry["perplexity"]
    file.write_text(json.dumps(fields))
    assert kept(studio, run.id) == found


def test_a_run_that_held_out_nothing_says_so(studio: Studio, run: RunFolder) -> None:
    (run.data / "evaluation.arrow").unlink()
    gone = evaluated(studio, run.id, NO_PROBE)
    assert (gone.loss, gone.notes) == (None, ("measuring.rows_gone",))
    say_of(run, held_out_rows=0)
    found = evaluated(open_studio(studio.settings.home), run.id, Wanted(rows=1))
    assert (found.loss, found.answers, found.held_out) == (None, None, 0)
    assert found.notes == ("measuring.nothing_held_out",)
    assert len(found.forgetting) == 2


def say_of(run: RunFolder, **about: Any) -> None:
    """Change what a run noted when it started."""
    lines = map(json.loads, run.events.read_text(encoding="utf-8").splitlines())
    changed = [line | about if line["event"] == "started" else line for line in lines]
    run.events.write_text("".join(json.dumps(line) + "\n" for line in changed))


def test_plain_text_has_a_loss_and_no_questions(studio: Studio, run: RunFolder) -> None:
    say_of(run, format="text")
    found = evaluated(open_studio(studio.settings.home), run.id)
    assert found.loss is not None
    assert (found.answers, found.notes) == (None, ("measuring.nothing_to_ask",))


def test_a_model_that_gives_no_numbers_is_told_and_nothing_is_kept(
    studio: Studio, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(engine: Engine, texts: Any, adapters: Any, **about: Any) -> Iterator[Any]:
        for at in range(len(texts)):
            yield {"text": at, "logprobs": [[-1.0], [math.nan]]}

    monkeypatch.setattr(Engine, "score", score)
    with pytest.raises(StudioError, match="its training diverged"):
        evaluated(studio, run.id)
    assert kept(studio, run.id) is None


def test_progress_tells_how_far_it_is_and_how_long_it_takes(studio: Studio, run: RunFolder) -> None:
    events = list(studio.measurements.evaluate(run.id, Wanted(rows=8, answers=2)))
    measured = [event for event in events if "seconds_left" in event]
    stages = list(dict.fromkeys(event["stage"] for event in measured))
    assert stages == ["measure_loss", "measure_answers", "measure_probe"]
    for stage in stages:
        ours = [event for event in measured if event["stage"] == stage]
        assert ours[0]["done"] == 0
        assert ours[-1]["done"] == ours[-1]["total"] > 0
    assert measured[0]["seconds_left"] is None
    assert measured[-1]["seconds_left"] == 0


def test_what_is_left_is_the_rest_of_a_stage_and_the_stages_to_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace({"read": 100.0, "write": 50.0})
    assert pace.progress("read", 0, 10)["seconds_left"] is None
    now[0] += 5
    assert pace.progress("read", 5, 10)["seconds_left"] == 10  # 5 s here, 50 units at 0.1 s
    now[0] += 5
    assert pace.progress("read", 10, 10)["seconds_left"] == 5
    assert pace.progress("write", 0, 4)["seconds_left"] == 5
    now[0] += 10
    assert pace.progress("write", 1, 4)["seconds_left"] == 30


def test_a_measurement_that_is_closed_leaves_everything_as_it_was(
    studio: Studio, run: RunFolder
) -> None:
    first = evaluated(studio, run.id, Wanted(rows=1, answers=0, probe=False))
    work = studio.measurements.evaluate(run.id)
    for event in work:
        if event.get("stage") == "measure_loss":
            assert studio._machine.accelerator.holder() == Job("evaluate", (run.id,))
            break
    work.close()
    assert studio._machine.accelerator.holder() is None
    assert kept(studio, run.id) == first
    assert evaluated(studio, run.id).loss is not None


@pytest.mark.parametrize("stage", ["measure_loss", "measure_answers"])
def test_a_stop_ends_it_in_words(studio: Studio, run: RunFolder, stage: str) -> None:
    with pytest.raises(StudioError, match="was stopped"):
        for event in studio.measurements.evaluate(run.id, Wanted(rows=8, answers=8)):
            if event.get("stage") == stage:
                stopping(studio)
    assert kept(studio, run.id) is None
    assert studio._machine.accelerator.holder() is None


def stopping(studio: Studio) -> None:
    """Have the next thing that the engine does find that it was stopped."""
    engine = studio._machine.chat
    for method in ("score", "generate"):
        original = getattr(engine._target, method)

        def stopped(*args: Any, original: Any = original, **kwargs: Any) -> Iterator[Any]:
            work = original(*args, **kwargs)
            yield next(work)
            studio.measurements.stop()
            yield from work

        setattr(engine._target, method, stopped)


def test_nobody_trains_or_compares_while_something_is_measured(
    studio: Studio, run: RunFolder
) -> None:
    recipe = run.read_recipe()
    work = studio.measurements.evaluate(run.id)
    for event in work:
        if event.get("stage") == "measure_loss":
            break
    assert studio.line.would_wait()
    with pytest.raises(RunError, match=f"{run.id} is being measured"):
        studio.training.start(recipe)
    rest = list(work)
    assert "result" in rest[-1]


def test_nobody_deletes_an_adapter_while_it_is_measured_and_one_that_is_gone_is_a_sentence(
    studio: Studio, run: RunFolder
) -> None:
    work = studio.measurements.evaluate(run.id)
    next(work)
    assert studio._machine.accelerator.holder() is None
    assert studio.adapters.used() == {run.id}
    (run.adapter / WEIGHTS).unlink()
    with pytest.raises(AdapterError) as caught:
        list(work)
    assert caught.value.key == "library.no_weights"
    assert studio.adapters.used() == set()


@pytest.mark.parametrize(
    ("wanted", "free", "limited"),
    [
        (Wanted(), (64, 16), (64, 16)),
        (Wanted(rows=8, answers=4), (8, 4), (8, 4)),
        (Wanted(rows=500, answers=100), (500, 100), (64, 16)),
        (Wanted(answers=0), (64, 0), (64, 0)),
    ],
)
def test_where_everybody_measures_a_wish_holds_up_to_the_usual(
    wanted: Wanted, free: tuple[int, int], limited: tuple[int, int]
) -> None:
    found = [wanted.settled("cpu", is_limited=is_limited) for is_limited in (False, True)]
    assert [(one.rows, one.answers) for one in found] == [free, limited]


def test_of_a_sorter_that_was_made_smaller_no_loss_is_measured_and_that_is_said(
    tmp_path: Path, tiny_llama: Path
) -> None:
    run = write_run(tmp_path / "runs" / "sorter-1", str(tiny_llama))
    make_sorter(tiny_llama, run.adapter, seed=3)
    studio = open_studio(tmp_path)
    with pytest.raises(StudioError) as caught:
        next(studio.measurements.compare_losses(run.id, run.id))
    assert caught.value.key == "measuring.sorts"
    assert not studio._machine.bench.alive


def test_texts_are_sorted_as_the_engine_sorts_them(tmp_path: Path, tiny_llama: Path) -> None:
    import pyarrow as pa

    run = write_run(tmp_path / "runs" / "sorter-1", str(tiny_llama))
    make_sorter(tiny_llama, run.adapter, seed=3)
    tokenizer = load_tokenizer(tiny_llama)
    texts = [f"A {kind} coffee shop." for kind in ("bad", "good", "fair", "kid friendly", "old")]
    ids, labels = [tokenizer(text)["input_ids"] for text in texts], [0, 2, 1, 2, 0]
    columns = {"input_ids": pa.array(ids, pa.list_(pa.int32())), "label": pa.array(labels)}
    table = pa.table(columns)
    run.data.mkdir()
    file = str(run.data / "evaluation.arrow")
    with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    studio = open_studio(tmp_path)
    found = evaluated(studio, run.id, Wanted(rows=100))
    classes = found.classes
    assert classes is not None
    assert (found.loss, found.forgetting, classes.labels) == (None, (), LABELS)
    for side, score in (("base", classes.accuracy.base), ("adapter", classes.accuracy.adapter)):
        right = 0
        for text, label in zip(texts, labels, strict=True):
            *_, said = studio.answers.classify(run.id, text)
            right += int(np.argmax(said[side])) == label
        assert score == pytest.approx(right / 5)
    assert np.asarray(classes.confusion).sum() == classes.rows == 5


def test_f1_and_confusion_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import confusion_matrix, f1_score

    draw = np.random.default_rng(0)
    for classes in (2, 3, 7):
        true, said = (draw.integers(0, classes - 1, 40).tolist() for _ in range(2))
        table = confusion(true, said, classes)
        assert table == confusion_matrix(true, said, labels=range(classes)).tolist()
        assert macro_f1(table) == pytest.approx(f1_score(true, said, average="macro"))


def test_the_interval_of_a_paired_difference_is_that_of_scipy() -> None:
    from scipy.stats import bootstrap

    draw = np.random.default_rng(1)
    base = draw.normal(60, 10, 40)
    tokens = draw.integers(10, 40, 40).astype(float)
    adapter = base - draw.normal(8, 6, 40)

    def mean(first: Any, second: Any, weight: Any, axis: int) -> Any:
        return (second - first).sum(axis) / weight.sum(axis)

    data, about = (base, adapter, tokens), {"paired": True, "method": "percentile"}
    expected = bootstrap(
        data, mean, n_resamples=4000, rng=np.random.default_rng(2), **about
    ).confidence_interval
    found = compared(base.tolist(), adapter.tolist(), tokens.tolist())
    assert found.base == pytest.approx(base.sum() / tokens.sum())
    assert found.difference == pytest.approx((adapter - base).sum() / tokens.sum())
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.08 * width)
    assert found.high == pytest.approx(expected.high, abs=0.08 * width)
    assert compared(base.tolist(), adapter.tolist(), tokens.tolist()) == found


def test_rows_that_are_few_or_all_alike_give_no_interval() -> None:
    assert compared([1.0] * 7, [2.0, 3.0] * 3 + [1.0]).low is None
    assert compared([0.0] * 20, [0.0] * 20).high is None
    assert compared([0.0] * 20, [0.0, 1.0] * 10).low is not None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = 7 apples.\n#### 7", "7"),
        ("It costs $1,250.50.", "1250.50"),
        ("The range is 10-15", "15"),
        ("It fell to -12.", "-12"),
        ("It fell to −12 °C", "-12"),
        ("답은 ４２입니다.", "42"),
        ("No number at all", None),
        ("1,2,3", "3"),
        ("", None),
    ],
)
def test_the_last_number_of_a_text_is_found(text: str, number: str | None) -> None:
    found = last_number(text)
    assert (None if found is None else str(found)) == number


def test_the_same_number_is_right_however_it_is_written() -> None:
    assert has_number("so 1,000.00 in all", "#### 1000")
    assert not has_number("so 1001 in all", "#### 1000")
    assert not has_number("no idea", "no number either")


def test_an_exact_match_overlooks_case_spaces_quotes_and_a_last_dot() -> None:
    assert is_exact("  The “Mill”  is\nold. ", 'the "mill" is old')
    assert is_exact("안녕하세요。", "안녕하세요")
    assert not is_exact("The Mill is new.", "The Mill is old.")
    assert matcher("exact") is is_exact
    assert matcher("number") is has_number


def test_an_expression_compares_what_it_finds_last() -> None:
    test = matcher(r"(?:answer is|####)\s*\(?([A-D])")
    assert test("The answer is A. No: the answer is (B).", "#### B")
    assert not test("The answer is A.", "#### B")
    assert not test("Nothing", "Nothing")
    assert matcher("yes|no")("Yes, yes", "… yes")


def test_an_expression_that_is_slow_on_a_known_answer_is_refused_before_anything_is_loaded(
    studio: Studio, run: RunFolder
) -> None:
    work = studio.measurements.evaluate(run.id, Wanted(rows=8, answers=2, match=r"^(.|..)+\d$"))
    with pytest.raises(StudioError, match="searched one answer for more than"):
        for _ in work:
            assert studio._machine.accelerator.holder() is None


def test_an_expression_that_is_slow_on_what_was_written_costs_nothing_but_its_score(
    studio: Studio, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered(asked: Asking, primitives: Any) -> Iterator[Written]:
        for row in range(len(asked.rows)):
            yield Written(row=row, base="a" * 60 + "b", adapter="a", cut_off=0)

    monkeypatch.setattr(evaluation, "answered", answered)
    found = evaluated(studio, run.id, Wanted(rows=8, answers=2, match="^(a|aa)+$", probe=False))
    assert found.loss is not None
    assert "match" not in found.answers.scores
    assert "exact" in found.answers.scores
    assert found.notes[0] == "measuring.no_match"
    assert kept(studio, run.id) == found


def test_an_expression_that_never_ends_is_given_up_in_words() -> None:
    began = time.process_time()
    with pytest.raises(StudioError, match="searched one answer for more than"):
        matcher(r"(a|aa)+$")("a" * 60 + "b", "a")
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({"match": "(unclosed"}, "is not a valid regular expression"),
        ({"match": "x" * 501}, "more than 500 characters"),
        ({"rows": 0}, "rows is 0"),
        ({"answers": -1}, "answers is -1"),
        ({"rows": 10**9}, "rows is 1000000000"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_loaded(
    about: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(StudioError, match=sentence):
        Wanted(**about)


@pytest.mark.parametrize("short", [["yes", "no"], ["안녕"], ["The old mill", ""], []])
def test_bleu_says_nothing_of_answers_too_short_for_it(short: list[str]) -> None:
    assert bleu(short, short, short) is None


def test_answers_too_short_for_bleu_say_so_and_are_scored_by_the_rest() -> None:
    rows = [HeldOutRow(ids=[], counted=[], reference=word) for word in ("yes", "no")]
    asked = Asking(rows=rows, adapter="a", sampling=Sampling(greedy=True))
    answers = [Written(row=at, base="", adapter=row.reference, cut_off=0)
               for at, row in enumerate(rows)]  # fmt: skip
    found, notes = scored(asked, answers, match="")
    assert {name: score.adapter for name, score in found.scores.items()} == {
        "exact": 1, "rouge_l": 1
    }  # fmt: skip
    assert notes == ["measuring.no_bleu"]
    assert "no known answer has as many" in say(notes[0])


def test_all_measures_read_a_text_however_it_is_composed() -> None:
    said = "안녕하세요 여러분"
    pieces = unicodedata.normalize("NFD", said)
    assert pieces != said
    assert is_exact(pieces, said)
    assert rouge_l(pieces, said) == rouge_l(said, pieces) == 1
    assert bleu([said], [pieces], [said]).score.adapter == pytest.approx(100)
    assert matcher("여러분")(pieces, said)
    assert matcher(unicodedata.normalize("NFD", "여러분"))(said, said)


def test_the_interval_of_bleu_is_that_of_sacrebleu_over_the_rows_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sacrebleu import corpus_bleu

    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    draw = np.random.default_rng(4)
    words = np.array(["the", "mill", "is", "a", "cheap", "pub", "near", "a", "river"])
    references, base = ([" ".join(draw.choice(words, 9)) for _ in range(24)] for _ in range(2))
    adapter = [*references[:12], *base[12:]]
    found = bleu(base, adapter, references)
    again = np.random.default_rng(statistics.SEED)
    by_hand = []
    for rows in (again.integers(0, 24, 24) for _ in range(20)):
        wanted = [[references[at] for at in rows]]
        scores = [corpus_bleu([side[at] for at in rows], wanted) for side in (base, adapter)]
        by_hand.append(scores[1].score - scores[0].score)
    bounds = (found.score.low, found.score.high)
    assert bounds == pytest.approx(tuple(np.percentile(by_hand, [2.5, 97.5])))
    assert bleu(base, base, references).score.low is None


def test_korean_answers_are_compared_by_syllables() -> None:
    assert Words().tokenize("Seoul은 큰 도시, 2개!") == ["seoul", "은", "큰", "도", "시", "2", "개"]
    assert rouge_l("서울은 큰 도시예요", "서울은 큰 도시예요") == 1
    assert 0.5 < rouge_l("서울은 큰 도시다", "서울은 큰 도시예요") < 1
    assert rouge_l("부산", "서울") == 0
    assert is_east_asian(["서울은 Korea의 수도예요"])
    assert not is_east_asian(["Seoul (서울) is the capital"])
    found = bleu(["서울은 작아요"], ["서울은 큰 도시예요"], ["서울은 큰 도시예요"])
    assert (found.score.adapter, "tok:char" in found.signature) == (pytest.approx(100), True)


def test_the_command_prints_what_was_measured(
    studio: Studio, run: RunFolder, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("LORA_STUDIO_HOME", str(studio.settings.home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    some = ["evaluate", run.id, "--rows", "8", "--answers", "2", "--match", "number"]
    assert main([*some, "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert Measured.from_dict(fields) == kept(studio, run.id)
    assert fields["answers"]["match"] == "number"
    assert main(some) == 0
    said = capsys.readouterr().out
    assert f"{run.id}, base → adapter:" in said
    assert "Measured on 8 of 8 held-out rows." in said
    assert f"loss: {fields['loss']['mean']['base']:.4g}" in said
    assert "on a general text (Korean)" in said
    before = fields["forgetting"][0]["perplexity"]["base"]
    assert f"{before:.4g}" in said
    assert main(["show", run.id]) == 0
    assert said in capsys.readouterr().out
    assert main(["evaluate", run.id, "--match", "("]) != 0
    assert main(["evaluate", "gone"]) == 1
    assert "Traceback" not in capsys.readouterr().err

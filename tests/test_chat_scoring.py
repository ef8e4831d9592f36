"""How likely tokens are, to base and adapters: what a plain forward pass of each says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from answering import ASK, LONGER, answer, byte_fallback_tokenizer, make_adapter, save_taught
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_studio.chat import scoring
from lora_studio.chat.engine import Engine
from lora_studio.chat.request import Pane, Passage, Score
from lora_studio.errors import StudioError
from lora_studio.models.loading import load_model

# See test_chat_engine.py.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.usefixtures("one_thread"),
]

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "어댑터는 작고 서로 바꿔 끼울 수 있어요. 뷁!",
    "A coffee shop",
    "name : The Cricketers | Type : coffee shop | food : English | area : riverside " * 3,
]
WHO = (None, "one", {"one": 0.5}, "dora")


@pytest.fixture(scope="module")
def adapters(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "one": make_adapter(tiny_llama, folder / "one", seed=1),
        "dora": make_adapter(tiny_llama, folder / "dora", seed=2, use_dora=True),
        "head": make_adapter(tiny_llama, folder / "head", seed=3, target_modules=["lm_head"]),
    }


@pytest.fixture(scope="module")
def engine(tiny_llama: Path, adapters: dict[str, str]) -> Engine:
    engine = Engine()
    engine.load(str(tiny_llama), "fp32", "cpu", adapters)
    return engine


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path):
    return AutoTokenizer.from_pretrained(tiny_llama)


def plain(model, ids: list[int]) -> torch.Tensor:
    """Return the log-probabilities of all tokens at each place but the first, shape (T-1, V)."""
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].float(), -1)


def scored(engine: Engine, texts, who, **options):
    """Return the scores by the texts' numbers, and the progress."""
    events = list(engine.score(texts, who, **options))
    scores = {event["text"]: event for event in events if "text" in event}
    return scores, [event for event in events if "total" in event]


def passages(tokenizer) -> list[Passage]:
    found = []
    for number, text in enumerate(TEXTS):
        ids = tokenizer(text)["input_ids"]
        counts = [(place + number) % 3 != 0 for place in range(len(ids))]
        found.append(Passage(ids=ids, counts=counts))
    return found


def test_each_judge_says_what_its_own_model_says(engine, tokenizer, tiny_llama, adapters) -> None:
    models = {None: load_model(tiny_llama, "fp32", "cpu")}
    for name in ("one", "dora", "head"):
        base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
        models[name] = PeftModel.from_pretrained(base, adapters[name]).eval()
    texts = passages(tokenizer)
    scores, progress = scored(engine, texts, list(models), first_choice=True)
    assert progress[0] == {"done": 0, "total": 4}
    assert progress[-1] == {"done": 4, "total": 4}
    for number, text in enumerate(texts):
        places = [place for place, counts in enumerate(text.counts) if counts and place]
        for model, found in zip(models.values(), scores[number]["logprobs"], strict=True):
            chances = plain(model, text.ids)
            expected = [chances[place - 1, text.ids[place]].item() for place in places]
            assert found == pytest.approx(expected, abs=1e-4)
        best, tokens = plain(models[None], text.ids).max(-1)
        likeliest = [int(tokens[place - 1]) for place in places]
        assert scores[number]["is_first"] == [
            token == text.ids[place] for place, token in zip(places, likeliest, strict=True)
        ]
        assert scores[number]["first_logprobs"] == pytest.approx(
            [best[place - 1].item() for place in places], abs=1e-4
        )


def test_the_nf4_base_is_judged_as_the_untouched_nf4_model(tiny_llama, adapters, tokenizer) -> None:
    engine = Engine()
    engine.load(str(tiny_llama), "nf4", "cpu", {"one": adapters["one"]})
    ids = tokenizer(TEXTS[0])["input_ids"]
    (found,) = scored(engine, [Passage(ids=ids, counts=[True] * len(ids))], [None, "one"])[
        0
    ].values()
    chances = plain(load_model(tiny_llama, "nf4", "cpu"), ids)
    expected = [chances[place - 1, token].item() for place, token in enumerate(ids) if place]
    assert found["logprobs"][0] == pytest.approx(expected, abs=1e-3)
    assert found["logprobs"][1] != pytest.approx(expected, abs=1e-1)


@pytest.mark.parametrize("limit", ["BATCH_TOKENS", "BATCH_SCORES"])
def test_batches_of_any_size_say_the_same(engine, tokenizer, monkeypatch, limit) -> None:
    """Also where a single text has more tokens to judge than fit at once."""
    texts = passages(tokenizer)
    expected, _ = scored(engine, texts, WHO, first_choice=True)
    monkeypatch.setattr(scoring, limit, {"BATCH_TOKENS": 1, "BATCH_SCORES": 400 * 4 * 5}[limit])
    found, progress = scored(engine, texts, WHO, first_choice=True)
    assert len(progress) > 4
    assert found.keys() == expected.keys()
    for number, one in found.items():
        assert one["first"] == expected[number]["first"]
        assert one["is_first"] == expected[number]["is_first"]
        assert one["pieces"] == expected[number]["pieces"]
        for mine, other in zip(one["logprobs"], expected[number]["logprobs"], strict=True):
            assert mine == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_is_judged_after_its_prompt_and_its_pieces_are_its_text(
    engine, tokenizer, tiny_llama, text
) -> None:
    pane = Pane(messages=LONGER, continues=text)
    (found,) = scored(engine, [pane], [None, "one"])[0].values()
    assert "".join(found["pieces"]) == text
    prompt = tokenizer.apply_chat_template(LONGER, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    chances = plain(load_model(tiny_llama, "fp32", "cpu"), ids)
    expected = [chances[place - 1, ids[place]].item() for place in range(start, len(ids))]
    assert found["logprobs"][0] == pytest.approx(expected, abs=1e-4)
    assert len(found["pieces"]) == len(expected)


BEGINS, GOES_ON = "a:", " 서울은 물이 맑고, 산이 가까워요."
KINDS = ("byte level", "byte fallback")


@pytest.fixture(scope="module", params=KINDS)
def korean(request, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine whose base writes Korean, most characters in three tokens."""
    folder = tmp_path_factory.mktemp("korean")
    if request.param == "byte level":
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        tokenizer.chat_template = None
    else:
        tokenizer = byte_fallback_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    base = save_taught(folder / "base", tokenizer, [BEGINS + GOES_ON])
    engine = Engine()
    targets = {"target_modules": ["q_proj"]}
    engine.load(
        base, "fp32", "cpu", {"one": make_adapter(Path(base), folder / "one", seed=1, **targets)}
    )
    return engine


def judged(engine: Engine, text: str) -> Score:
    (found,) = scored(
        engine, [Pane(text=BEGINS, continues=text)], [None, "one"], first_choice=True
    )[0].values()
    return found


def test_of_what_the_base_writes_itself_every_token_is_its_first_choice(korean) -> None:
    (text,), _, _ = answer(korean, [Pane(text=BEGINS)], max_new_tokens=30)
    assert text[:8] == GOES_ON[:8]
    found = judged(korean, text)
    assert found["pieces"].count("") > 10
    assert "".join(found["pieces"]) == text
    assert all(found["is_first"])
    for place, (piece, first) in enumerate(zip(found["pieces"], found["first"], strict=True)):
        assert first == next(filter(None, found["pieces"][place:])), piece


def test_a_first_choice_is_a_whole_character_or_said_to_be_part_of_one(korean) -> None:
    found = judged(korean, GOES_ON.replace("울", "욷").replace("맑", "n"))
    place = found["pieces"].index("욷")  # its last byte alone is another
    assert (found["is_first"][place], found["first"][place]) == (False, "울")
    (other,) = [place for place, piece in enumerate(found["pieces"]) if "n" in piece]
    assert (found["is_first"][other], found["first"][other]) == (False, "")
    assert not any("\ufffd" in first for first in found["first"])


def test_four_adapters_without_the_base_are_judged_beside_it(engine) -> None:
    who = [None, "one", {"one": 0.5}, {"one": 1.5}, "dora"]
    panes = [Pane(messages=ASK, continues=text) for text in TEXTS]
    scores, _ = scored(engine, panes, who, first_choice=True)
    for one in scores.values():
        assert len({tuple(chances) for chances in one["logprobs"]}) == 5


def test_what_counts_for_nothing_is_an_empty_score(engine, tokenizer) -> None:
    ids = tokenizer(TEXTS[0])["input_ids"]
    texts = [
        Passage(ids=ids, counts=[False] * len(ids)),
        Passage(ids=ids[:1], counts=[True]),
        Passage(ids=[], counts=[]),
        Pane(messages=ASK),
    ]
    scores, progress = scored(engine, texts, [None, "one"], first_choice=True)
    assert sorted(scores) == [0, 1, 2, 3]
    assert all(one["logprobs"] == [[], []] for one in scores.values())
    assert all((one["pieces"], one["first"]) == ([], []) for one in scores.values())
    assert progress == [{"done": 4, "total": 4}]


def test_nothing_to_judge_is_said_at_once(engine) -> None:
    assert list(engine.score([], [None])) == [{"done": 0, "total": 0}]


def test_pieces_may_be_left_out(engine, tokenizer) -> None:
    scores, _ = scored(engine, passages(tokenizer), [None], pieces=False)
    assert all(one["pieces"] == [] for one in scores.values())
    assert all("first" not in one for one in scores.values())


def test_a_stop_ends_it_after_the_batch(engine, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 1)
    seen = []
    for event in engine.score(passages(tokenizer), [None, "one"]):
        seen.append(event)
        if "text" in event:
            engine.stop()
    assert seen[-1] == {"done": 1, "total": 4}
    assert not engine._stops
    assert scored(engine, passages(tokenizer), [None])[1][-1] == {"done": 4, "total": 4}


def test_what_is_closed_midway_lets_the_next_one_ask(engine, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 1)
    before = engine.logits(Pane(messages=ASK))
    events = engine.score(passages(tokenizer), [None, "one"])
    while "text" not in next(events):
        pass
    assert not torch.is_inference_mode_enabled()
    events.close()
    assert engine.logits(Pane(messages=ASK)) == before


def test_an_exception_midway_leaves_the_model_as_it_was(engine, tokenizer, monkeypatch) -> None:
    before = engine.logits(Pane(messages=ASK))

    def full(*_, **__):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(engine.model.model.norm, "forward", full)
        with pytest.raises(StudioError) as caught:
            list(engine.score(passages(tokenizer), ["one"]))
    assert caught.value.key == "chat.out_of_memory"
    assert not any(module._forward_pre_hooks for module in engine.model.modules())
    assert engine.logits(Pane(messages=ASK)) == before


@pytest.mark.parametrize(
    ("texts", "who", "key"),
    [
        ([Passage(ids=[5] * 513, counts=[True] * 513)], [None], "chat.text_too_long"),
        ([Pane(text="")], [None], "chat.empty_prompt"),
        ([Pane(messages=ASK)], ["nobody"], "chat.unknown_adapter"),
        ([Pane(messages=ASK)], [], "chat.no_panes"),
    ],
)
def test_what_cannot_be_judged_is_a_sentence(engine, texts, who, key) -> None:
    with pytest.raises(StudioError) as caught:
        list(engine.score(texts, who))
    assert caught.value.key == key


def test_a_perplexity_is_that_of_the_librarys_own_loss(engine, tokenizer, tiny_llama) -> None:
    ids = tokenizer(TEXTS[3])["input_ids"]
    (found,) = scored(engine, [Passage(ids=ids, counts=[True] * len(ids))], [None])[0].values()
    model = load_model(tiny_llama, "fp32", "cpu")
    with torch.inference_mode():
        loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    mean = -sum(found["logprobs"][0]) / len(found["logprobs"][0])
    assert math.exp(mean) == pytest.approx(math.exp(loss), rel=1e-4)

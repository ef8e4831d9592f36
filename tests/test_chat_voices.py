"""Strengths, mixtures, seeds of one's own, and answers that are gone on with."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from answering import ASK, LONGER, answer, make_adapter, prompt_of, untouched_logits
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from sorting import LABELS, SEED, make_sorter
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_studio.chat.engine import Engine
from lora_studio.chat.request import Pane, voice
from lora_studio.chat.rows import Share, shares
from lora_studio.errors import StudioError

# See test_chat_engine.py.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.usefixtures("one_thread"),
]

NEAR = 2e-5


@pytest.fixture(scope="module")
def adapters(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("adapters")
    targets = ["embed_tokens", "o_proj", "lm_head"]
    return {
        "one": make_adapter(tiny_llama, folder / "one", seed=1),
        "two": make_adapter(tiny_llama, folder / "two", seed=2, r=8, use_rslora=True),
        "ends": make_adapter(tiny_llama, folder / "ends", seed=3, target_modules=targets),
        "dora": make_adapter(tiny_llama, folder / "dora", seed=5, use_dora=True),
        "head": make_adapter(tiny_llama, folder / "head", seed=6, modules_to_save=["lm_head"]),
    }


@pytest.fixture(scope="module")
def engine(tiny_llama: Path, adapters: dict[str, str]) -> Engine:
    engine = Engine()
    engine.load(str(tiny_llama), "fp32", "cpu", adapters)
    return engine


def pane(adapter: str | None = None, strength: float = 1.0, **settings) -> Pane:
    return Pane(adapter=adapter, strength=strength, **({"messages": ASK} | settings))


def merged_logits(base: Path, folders: dict[str, tuple[str, float]]) -> list[float]:
    """Return what the base says after weight · (W' - W) of each adapter was added to its weights.

    W' are the weights that PEFT merges, so it holds of DoRA and whole layers too.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    total = {name: tensor.clone() for name, tensor in own.items()}
    for folder, weight in folders.values():
        fresh = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        merged = PeftModel.from_pretrained(fresh, folder).merge_and_unload().state_dict()
        for name in total:
            total[name] += weight * (merged[name] - own[name])
    model.load_state_dict(total)
    with torch.inference_mode():
        return model(prompt_of(base, ASK)).logits[0, -1].tolist()


@pytest.mark.parametrize("name", ["one", "two", "ends", "dora", "head"])
def test_at_strength_nought_it_is_the_base_and_at_one_the_adapter(
    engine, tiny_llama, adapters, name
) -> None:
    assert engine.logits(pane(name, 0.0)) == untouched_logits(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapters[name]).eval()
    with torch.inference_mode():
        expected = model(prompt_of(tiny_llama, ASK)).logits[0, -1].tolist()
    assert engine.logits(pane(name)) == pytest.approx(expected, abs=NEAR)


@pytest.mark.parametrize("strength", [0.3, 2.0])
@pytest.mark.parametrize("name", ["one", "two", "dora", "head"])
def test_a_strength_scales_what_the_adapter_changes_of_the_weights(
    engine, tiny_llama, adapters, name, strength
) -> None:
    expected = merged_logits(tiny_llama, {name: (adapters[name], strength)})
    assert engine.logits(pane(name, strength)) == pytest.approx(expected, abs=1e-4)


def test_a_mixture_is_what_peft_makes_of_the_adapters(engine, tiny_llama, adapters) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapters["one"], adapter_name="one")
    model.load_adapter(adapters["two"], adapter_name="two")
    model.add_weighted_adapter(["one", "two"], [0.8, -0.5], "both", combination_type="cat")
    model.set_adapter("both")
    with torch.inference_mode():
        expected = model.eval()(prompt_of(tiny_llama, ASK)).logits[0, -1].tolist()
    mixture = Pane(mixture={"two": -0.5, "one": 0.8}, messages=ASK)
    assert engine.logits(mixture) == pytest.approx(expected, abs=NEAR)
    halved = Pane(mixture={"two": -1.0, "one": 1.6}, strength=0.5, messages=ASK)
    assert engine.logits(halved) == pytest.approx(expected, abs=NEAR)


def test_a_mixture_with_dora_and_a_whole_layer_adds_up_what_each_changes(
    engine, tiny_llama, adapters
) -> None:
    weights = {"dora": 0.6, "head": 0.3, "one": 0.5}
    expected = merged_logits(
        tiny_llama, {name: (adapters[name], weight) for name, weight in weights.items()}
    )
    found = engine.logits(Pane(mixture=weights, messages=ASK))
    assert found == pytest.approx(expected, abs=1e-4)


def test_one_batch_holds_the_base_and_an_adapter_at_two_strengths_and_a_mixture(engine) -> None:
    panes = [
        pane("one", 0.5),
        pane(messages=LONGER),
        pane("one", 1.5, messages=LONGER),
        Pane(mixture={"one": 1, "ends": 0.5}, messages=ASK),
    ]
    texts, _, mode = answer(engine, panes)
    assert mode == {"mode": "batched"}
    assert texts == [answer(engine, [one])[0][0] for one in panes]
    assert len(set(texts)) == 4


def test_an_adapter_that_must_answer_alone_shares_at_strength_nought_and_with_itself(
    engine,
) -> None:
    assert answer(engine, [pane(), pane("dora", 0.0)])[2] == {"mode": "batched"}
    assert answer(engine, [pane("dora"), pane("dora")])[2] == {"mode": "batched"}
    texts, done, mode = answer(engine, [pane("dora"), pane("dora", 0.5), pane()])
    assert (mode["mode"], mode["adapter"]) == ("sequential", "dora")
    assert sorted(done) == [0, 1, 2]
    assert texts == [
        answer(engine, [one])[0][0] for one in (pane("dora"), pane("dora", 0.5), pane())
    ]


def test_rows_are_shared_out_in_runs_and_the_base_is_in_none() -> None:
    voices = [voice(who) for who in ({"a": 1}, {"a": 1, "b": 2}, None, {"a": 0.5}, {"b": 0})]
    assert shares(voices) == [
        Share("a", slice(0, 2), 1.0),
        Share("a", slice(3, 4), 0.5),
        Share("b", slice(1, 2), 2.0),
    ]


def test_identical_panes_draw_the_same_answer_and_a_seed_of_its_own_another(engine) -> None:
    sampling = {"greedy": False, "temperature": 1.3, "top_p": 0.95, "seed": 5}
    panes = [pane("one"), pane(), pane("one"), pane("one", seed=6)]
    texts, _, mode = answer(engine, panes, **sampling)
    assert mode == {"mode": "batched"}
    assert texts[0] == texts[2]
    assert len({texts[0], texts[1], texts[3]}) == 3
    assert texts[3] == answer(engine, [pane("one")], **sampling | {"seed": 6})[0][0]
    assert texts[1] == answer(engine, [pane()], **sampling)[0][0]


def test_tokens_are_drawn_as_often_as_they_are_likely(engine) -> None:
    logits = torch.tensor(engine.logits(pane()))
    chances = torch.softmax(logits / 0.5, -1)
    from lora_studio.chat.drawing import processors
    from lora_studio.chat.request import Sampling

    sampling = Sampling(greedy=False, temperature=0.5, top_p=1.0)
    seeds = list(range(4000))
    drawn = processors(sampling, seeds, torch.device("cpu"))(None, logits.repeat(4000, 1))
    counts = torch.bincount(drawn.argmax(-1), minlength=len(logits)) / 4000
    error = (chances * (1 - chances) / 4000).sqrt()
    assert ((counts - chances).abs() < 5 * error + 1e-3).all()


def test_going_on_shows_the_model_the_prompt_and_the_answers_beginning(engine, tiny_llama) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    prompt = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, tokenize=False)
    (shown,) = engine.render([pane("one", continues="The capital of")])
    assert shown["text"] == prompt + "The capital of"
    assert shown["tokens"] == len(tokenizer(shown["text"], add_special_tokens=False)["input_ids"])
    assert (shown["limit"], shown["cut"], shown["cut_text"]) == (511, 0, "")
    on = answer(engine, [pane("one", continues="The capital of")])[0][0]
    whole = Pane(adapter="one", text=prompt + "The capital of")
    assert answer(engine, [whole])[0][0] == on


def test_a_long_text_is_gone_on_with_too(engine) -> None:
    one, two = Pane(text="The quick", continues=" brown"), Pane(text="The quick brown")
    assert engine.render([one])[0]["text"] == "The quick brown"
    assert answer(engine, [one])[0] == answer(engine, [two])[0]


def test_a_prompt_too_long_is_shown_with_what_would_be_cut_and_not_answered(engine) -> None:
    asked = Pane(text="The quick brown fox. " * 300)
    (shown,) = engine.render([asked])
    assert shown["cut"] == shown["tokens"] - 511 > 0
    assert asked.text.endswith(shown["cut_text"])
    with pytest.raises(StudioError) as caught:
        answer(engine, [asked])
    values = caught.value.values
    assert (values["tokens"], values["cut"]) == (shown["tokens"], shown["cut"])
    start = values["start"].removesuffix("…")
    assert 20 < len(start) <= 60
    assert " ".join(shown["cut_text"].split()).startswith(start)
    assert f"“{values['start']}”" in str(caught.value)


def test_where_the_cut_would_be_is_told_in_whole_characters(engine) -> None:
    with pytest.raises(StudioError) as caught:
        answer(engine, [Pane(text="뷁뷁뷁 " * 400)])
    start = caught.value.values["start"]
    assert "\ufffd" not in start
    assert start.startswith("뷁")


@pytest.mark.parametrize(
    "text", ["a" * 100_000, "The quick brown fox. " * 4762, "어댑터 " * 25_000]
)
def test_a_hundred_thousand_characters_are_a_sentence_at_once(engine, text) -> None:
    started = time.process_time()
    with pytest.raises(StudioError) as caught:
        answer(engine, [Pane(messages=[{"role": "user", "content": text}])])
    assert caught.value.key == "chat.too_long"
    assert time.process_time() - started < 2


def test_each_pane_says_when_its_first_token_came(engine) -> None:
    panes = [pane(), pane("dora")]
    events = list(engine.generate(panes, _short()))
    done = {event["pane"]: event for event in events if event.get("done")}
    for number in (0, 1):
        first, *later = [one for one in events if one.get("pane") == number and "text" in one]
        assert first["first_s"] == done[number]["first_s"]
        assert 0 < done[number]["first_s"] < done[number]["seconds"]
        assert not any("first_s" in one for one in later)


def _short():
    from lora_studio.chat.request import Sampling

    return Sampling(max_new_tokens=12)


def test_a_classifier_takes_strengths_and_mixtures_too(tiny_llama, tmp_path) -> None:
    folders = {
        name: make_sorter(tiny_llama, tmp_path / name, seed=seed)
        for seed, name in enumerate(("one", "two"))
    }
    engine = Engine()
    engine.load(str(tiny_llama), "fp32", "cpu", folders, labels=LABELS, seed=SEED)
    text = "A coffee shop near the city centre."
    asked = [None, "one", {"one": 0.0}, {"one": 1.0}, {"one": 0.5, "two": 0.5}]
    base, one, nought, whole, mixed = engine.classify(text, asked[:4]) + engine.classify(
        text, asked[4:]
    )
    assert nought == base
    assert whole == one
    assert mixed not in (base, one)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"adapter": "one", "strength": 2.1}, "chat.bad_sampling"),
        ({"adapter": "one", "strength": float("nan")}, "chat.bad_sampling"),
        ({"mixture": {"one": 1.0, "two": -3}}, "chat.bad_sampling"),
        ({"adapter": "one", "mixture": {"two": 1.0}}, "chat.adapter_and_mixture"),
        ({"seed": -1}, "chat.bad_sampling"),
    ],
)
def test_a_pane_that_makes_no_sense_is_refused(settings, key) -> None:
    with pytest.raises(StudioError) as caught:
        Pane(messages=ASK, **settings)
    assert caught.value.key == key


def test_more_than_sixteen_panes_and_unknown_parts_of_a_mixture_are_refused(engine) -> None:
    with pytest.raises(StudioError) as caught:
        answer(engine, [pane()] * 17)
    assert caught.value.key == "chat.too_many_panes"
    with pytest.raises(StudioError) as caught:
        answer(engine, [Pane(mixture={"one": 1, "nobody": 1}, messages=ASK)])
    assert (caught.value.key, caught.value.values["name"]) == ("chat.unknown_adapter", "nobody")


def test_gpt2_takes_strengths_in_its_own_kind_of_layers(tiny_gpt2, tmp_path) -> None:
    folder = make_adapter(tiny_gpt2, tmp_path / "a", seed=1, fan_in_fan_out=True)
    engine = Engine()
    engine.load(str(tiny_gpt2), "fp32", "cpu", {"a": folder})
    ids = AutoTokenizer.from_pretrained(tiny_gpt2)("A coffee shop", return_tensors="pt")
    for strength in (0.5, 1.0):
        model = AutoModelForCausalLM.from_pretrained(tiny_gpt2, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, folder).eval()
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.scaling["default"] *= strength
        with torch.inference_mode():
            expected = model(ids["input_ids"]).logits[0, -1].tolist()
        one = Pane(adapter="a", strength=strength, text="A coffee shop")
        assert engine.logits(one) == pytest.approx(expected, abs=NEAR)

"""Answers of base and adapters out of one loaded model: true, repeatable, stoppable."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch
from answering import ASK, LONGER, answer, make_adapter, prompt_of, untouched_logits
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_studio.chat.engine import Engine
from lora_studio.chat.request import Pane, Sampling
from lora_studio.child import Child
from lora_studio.data.templates import PLAIN_TEMPLATE
from lora_studio.errors import AdapterError, StudioError

# PeftModel asks a transformers model for a name that transformers has deprecated (peft 0.21.2,
# peft_model.py); the engine does without PeftModel, the adapters of these tests do not.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def adapters(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "first": make_adapter(tiny_llama, folder / "first", seed=1),
        "v1.2 second": make_adapter(tiny_llama, folder / "second", seed=2, r=8, use_rslora=True),
    }


@pytest.fixture(scope="module")
def shared(tiny_llama, adapters):
    engine = Engine()
    engine.load(str(tiny_llama), "fp32", "cpu", adapters)
    return engine


BASE = Pane(messages=ASK)
FIRST = Pane(adapter="first", messages=ASK)
SECOND = Pane(adapter="v1.2 second", messages=ASK)


def test_base_pane_is_the_untouched_model_bit_for_bit_whatever_happened_before(
    tiny_llama, adapters, monkeypatch
):
    truth = untouched_logits(tiny_llama)
    engine = Engine()
    engine.load(str(tiny_llama), "fp32", "cpu", {})
    assert engine.logits(BASE) == truth
    engine.load(str(tiny_llama), "fp32", "cpu", adapters)
    assert engine.logits(BASE) == truth
    assert engine.logits(FIRST) != truth
    answer(engine, [BASE, FIRST, SECOND])
    assert engine.logits(BASE) == truth
    with monkeypatch.context() as patch:
        patch.setattr(engine.model.lm_head, "forward", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answer(engine, [BASE, FIRST])
    assert engine.logits(BASE) == truth
    events = engine.generate([BASE, FIRST], Sampling(max_new_tokens=200))
    next(events)
    events.close()
    assert engine.logits(BASE) == truth
    engine.load(str(tiny_llama), "fp32", "cpu", {"first": adapters["first"]})
    assert engine.logits(BASE) == truth
    engine.load(str(tiny_llama), "fp32", "cpu", {})
    assert engine.logits(BASE) == truth


def test_an_adapter_pane_is_what_peft_itself_answers(shared, tiny_llama, adapters):
    from peft import PeftModel

    for name, folder in adapters.items():
        base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, folder).eval()
        with torch.inference_mode():
            expected = model(prompt_of(tiny_llama, ASK)).logits[0, -1]
        found = torch.tensor(shared.logits(Pane(adapter=name, messages=ASK)))
        torch.testing.assert_close(found, expected)


def test_answers_of_one_batch_equal_separate_ones_also_with_uneven_prompts(shared):
    panes = [
        BASE,
        Pane(adapter="first", messages=LONGER),
        Pane(adapter="v1.2 second", text="The quick brown"),
        Pane(messages=LONGER),
    ]
    texts, done, mode = answer(shared, panes)
    assert mode == {"mode": "batched"}
    alone = [answer(shared, [pane]) for pane in panes]
    assert texts == [one[0][0] for one in alone]
    assert [done[i]["tokens"] for i in range(4)] == [one[1][0]["tokens"] for one in alone]
    assert len(set(texts)) == 4


def test_an_answer_equals_plain_generate(shared, tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    ids = prompt_of(tiny_llama, ASK)
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
    )
    expected = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert answer(shared, [BASE])[0][0] == expected.rstrip("\ufffd")


def test_rows_end_at_their_own_end_token(shared):
    """The tiny model's first answer token is made an end token: one row ends, the other goes on."""
    texts, _, _ = answer(shared, [BASE, FIRST])
    logits = shared.logits(BASE)
    first_token = logits.index(max(logits))
    own = shared.model.generation_config.eos_token_id
    shared.model.generation_config.eos_token_id = [own, first_token]
    try:
        cut, done, _ = answer(shared, [BASE, FIRST])
    finally:
        shared.model.generation_config.eos_token_id = own
    assert (cut[0], done[0]["tokens"], done[0]["reason"]) == ("", 0, "end")
    assert texts[1].startswith(cut[1])
    assert done[1]["tokens"] > 0


def test_done_events_say_how_many_how_fast_and_why(shared):
    _, done, _ = answer(shared, [BASE, FIRST], max_new_tokens=7)
    assert sorted(done) == [0, 1]
    for event in done.values():
        assert (event["tokens"], event["reason"]) == (7, "length")
        assert event["tokens_per_s"] == pytest.approx(7 / event["seconds"])


def waits_for_its_reader(engine, monkeypatch, *, after):
    """Have the model write so many tokens and no more until the returned event is set.

    Who reads may be kept waiting by the machine for longer than a whole answer takes.
    """
    read = threading.Event()
    tokens, forward = itertools.count(1), engine.model.lm_head.forward

    def held(hidden):
        if next(tokens) > after:
            assert read.wait(120)
        return forward(hidden)

    monkeypatch.setattr(engine.model.lm_head, "forward", held)
    return read


def test_stop_ends_every_answer_within_a_few_tokens(shared, monkeypatch):
    texts = 0
    with monkeypatch.context() as patch:
        has_stopped = waits_for_its_reader(shared, patch, after=20)
        for event in shared.generate([BASE, FIRST], Sampling(max_new_tokens=400)):
            texts += "text" in event
            if texts == 6:
                shared.stop()
                has_stopped.set()
            if event.get("done"):
                assert event["reason"] == "stopped"
                assert event["tokens"] < 25
    assert answer(shared, [BASE])[1][0]["reason"] == "length"


def test_stop_when_nothing_runs_does_not_stop_the_next_answer(shared):
    shared.stop()
    assert answer(shared, [BASE])[1][0]["reason"] == "length"


def test_an_iterator_closed_early_ends_its_thread(shared):
    before = set(threading.enumerate())
    events = shared.generate([BASE], Sampling(max_new_tokens=400))
    list(itertools.islice(events, 3))
    # Threads that earlier tests left may end at any time.
    answering = [
        one for one in set(threading.enumerate()) - before if one.name.startswith("answer")
    ]
    assert answering
    events.close()
    assert not any(thread.is_alive() for thread in answering)


def test_sampled_answers_repeat_by_seed_and_leave_the_random_state_alone(shared):
    sampling = {"greedy": False, "temperature": 1.5, "top_p": 1.0}
    state = torch.get_rng_state()
    one = answer(shared, [BASE, FIRST], seed=7, **sampling)[0]
    assert answer(shared, [BASE, FIRST], seed=7, **sampling)[0] == one
    assert answer(shared, [BASE, FIRST], seed=8, **sampling)[0] != one
    assert torch.equal(torch.get_rng_state(), state)


def test_after_an_exception_inside_generate_the_next_answer_is_the_same(shared, monkeypatch):
    before = answer(shared, [BASE, FIRST])[0]
    calls = itertools.count()
    head = type(shared.model.lm_head).forward

    def broken(hidden):
        if next(calls) == 3:
            message = "broken midway"
            raise RuntimeError(message)
        return head(shared.model.lm_head, hidden)

    with monkeypatch.context() as patch:
        patch.setattr(shared.model.lm_head, "forward", broken)
        with pytest.raises(RuntimeError, match="broken midway"):
            answer(shared, [BASE, FIRST])
    assert not any(module._forward_pre_hooks for module in shared.model.modules())
    assert answer(shared, [BASE, FIRST])[0] == before


def test_running_out_of_memory_is_a_sentence(shared, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(shared.model.lm_head, "forward", full)
        with pytest.raises(StudioError) as caught:
            answer(shared, [BASE])
    assert caught.value.key == "chat.out_of_memory"


def test_a_prompt_longer_than_the_context_names_both_numbers(shared):
    with pytest.raises(StudioError) as caught:
        answer(shared, [Pane(text="The quick brown fox. " * 300)])
    assert caught.value.key == "chat.too_long"
    assert caught.value.values["limit"] == 511
    assert caught.value.values["tokens"] > 511


def test_beside_a_prompt_that_leaves_little_room_a_short_one_has_all_of_its_own(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared.model.config.name_or_path)
    ids = tokenizer(" fox" * 1000)["input_ids"][:500]
    long, short = Pane(text=tokenizer.decode(ids)), Pane(text="The quick brown")
    length = len(tokenizer(long.text)["input_ids"])
    alone = [answer(shared, [pane], max_new_tokens=40) for pane in (short, long)]
    texts, done, mode = answer(shared, [short, long, short], max_new_tokens=40)
    assert mode == {"mode": "sequential", "reason": "chat.one_by_one_room"}
    assert texts == [alone[0][0][0], alone[1][0][0], alone[0][0][0]]
    assert [done[pane]["tokens"] for pane in range(3)] == [40, 512 - length, 40]
    assert answer(shared, [short, long], max_new_tokens=5)[2] == {"mode": "batched"}


def test_an_answer_ends_where_the_context_ends(shared):
    room = 5
    ids = AutoTokenizer.from_pretrained(shared.model.config.name_or_path)(" fox" * 1000)
    tokens_each = len(ids["input_ids"]) / 1000
    text = " fox" * int((512 - room) / tokens_each)
    length = len(AutoTokenizer.from_pretrained(shared.model.config.name_or_path)(text)["input_ids"])
    _, done, _ = answer(shared, [Pane(text=text)], max_new_tokens=100)
    assert (done[0]["tokens"], done[0]["reason"]) == (512 - length, "length")


@pytest.mark.parametrize(
    ("panes", "key"),
    [
        ([], "chat.no_panes"),
        ([Pane(adapter="nobody", messages=ASK)], "chat.unknown_adapter"),
        ([Pane(messages=[{"role": "user", "content": "  "}])], "chat.empty_prompt"),
        ([Pane(text="")], "chat.empty_prompt"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_sentence(shared, panes, key):
    with pytest.raises(StudioError) as caught:
        answer(shared, panes)
    assert caught.value.key == key


def test_asking_before_loading_is_refused():
    engine = Engine()
    assert engine.model is None
    with pytest.raises(StudioError) as caught:
        answer(engine, [BASE])
    assert caught.value.key == "chat.not_loaded"


@pytest.mark.parametrize("change", [{"temperature": 0}, {"top_p": 2}, {"max_new_tokens": 0}])
def test_sampling_out_of_range_is_refused(change):
    with pytest.raises(StudioError):
        Sampling(**change)


def test_loading_again_loads_only_what_is_new(tiny_llama, adapters):
    engine = Engine()
    engine.load(str(tiny_llama), "fp32", "cpu", {"first": adapters["first"]})
    model, weight = engine.model, engine._loaded.adapters["first"]
    engine.load(str(tiny_llama), "fp32", "cpu", adapters)
    assert engine.model is model
    assert engine._loaded.adapters["first"] is weight
    before = engine.logits(SECOND)
    engine.load(str(tiny_llama), "fp32", "cpu", {"v1.2 second": adapters["v1.2 second"]})
    assert engine.logits(SECOND) == before
    with pytest.raises(StudioError):
        engine.logits(FIRST)


def test_an_adapter_trained_anew_in_its_folder_is_loaded_anew(tiny_llama, tmp_path):
    engine = Engine()
    folder = make_adapter(tiny_llama, tmp_path / "one", seed=1)
    engine.load(str(tiny_llama), "fp32", "cpu", {"first": folder})
    before = engine.logits(FIRST)
    make_adapter(tiny_llama, tmp_path / "one", seed=9)
    engine.load(str(tiny_llama), "fp32", "cpu", {"first": folder})
    assert engine.logits(FIRST) != before


def test_gpt2_answers_chats_in_plain_words_and_continues_text(tiny_gpt2, tmp_path):
    engine = Engine()
    folder = make_adapter(tiny_gpt2, tmp_path / "a", seed=1, fan_in_fan_out=True)
    engine.load(str(tiny_gpt2), "fp32", "cpu", {"first": folder})
    panes = [BASE, FIRST, Pane(text="A coffee shop"), Pane(adapter="first", text="A coffee shop")]
    texts, _, mode = answer(engine, panes)
    assert mode == {"mode": "batched"}
    assert texts == [answer(engine, [pane])[0][0] for pane in panes]
    assert engine._loaded.tokenizer.chat_template == PLAIN_TEMPLATE


def test_a_base_without_a_template_is_asked_with_the_adapters(tiny_gpt2, tiny_llama, tmp_path):
    engine = Engine()
    folder = make_adapter(
        tiny_gpt2, tmp_path / "a", seed=1, fan_in_fan_out=True, tokenizer=tiny_llama
    )
    engine.load(str(tiny_gpt2), "fp32", "cpu", {"first": folder})
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    assert engine._loaded.tokenizer.chat_template == tokenizer.chat_template
    assert tokenizer.eos_token_id in engine._loaded.end_ids
    engine.load(str(tiny_gpt2), "fp32", "cpu", {})
    assert engine._loaded.tokenizer.chat_template == PLAIN_TEMPLATE


def test_adapters_of_two_chat_templates_are_not_asked_together(tiny_gpt2, tiny_llama, tmp_path):
    folders = {
        name: make_adapter(
            tiny_gpt2, tmp_path / name, seed=1, fan_in_fan_out=True, tokenizer=tiny_llama
        )
        for name in ("first", "same", "other")
    }
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folders["other"])
    engine = Engine()
    engine.load(str(tiny_gpt2), "fp32", "cpu", {one: folders[one] for one in ("first", "same")})
    before = engine.logits(FIRST)
    with pytest.raises(AdapterError) as caught:
        engine.load(
            str(tiny_gpt2), "fp32", "cpu", {one: folders[one] for one in ("first", "other")}
        )
    assert caught.value.key == "chat.other_template"
    assert caught.value.values == {"name": "other", "other": "first"}
    assert engine.logits(FIRST) == before
    engine.load(str(tiny_gpt2), "fp32", "cpu", {"other": folders["other"]})
    assert engine._loaded.tokenizer.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_stay_out_of_the_base_and_of_other_adapters(tiny_gpt2, tmp_path, bias):
    from peft import PeftModel

    folders = {
        name: make_adapter(tiny_gpt2, tmp_path / name, seed=seed, fan_in_fan_out=True, bias=kind)
        for name, seed, kind in [("first", 1, bias), ("other", 2, bias), ("plain", 3, "none")]
    }
    prompt = AutoTokenizer.from_pretrained(tiny_gpt2)("A coffee shop", return_tensors="pt")
    base = AutoModelForCausalLM.from_pretrained(tiny_gpt2, dtype=torch.float32).eval()
    with torch.inference_mode():
        truth = base(prompt["input_ids"]).logits[0, -1].tolist()
        peft = PeftModel.from_pretrained(base, folders["first"]).eval()
        first = peft(prompt["input_ids"]).logits[0, -1].tolist()
    engine = Engine()
    engine.load(str(tiny_gpt2), "fp32", "cpu", folders)
    base_pane, first_pane, other, plain = (
        Pane(adapter=name, text="A coffee shop") for name in [None, "first", "other", "plain"]
    )
    assert engine.logits(base_pane) == truth
    assert engine.logits(first_pane) == pytest.approx(first, abs=1e-5)
    panes = [first_pane, base_pane, other, plain]
    texts, done, mode = answer(engine, panes)
    assert mode == {
        "mode": "sequential",
        "reason": "chat.one_by_one_overrides",
        "adapter": "first",
    }
    assert sorted(done) == [0, 1, 2, 3]
    assert texts == [answer(engine, [pane])[0][0] for pane in panes]
    assert engine.logits(base_pane) == truth


def test_a_whole_layer_trained_beside_the_adapter_stays_out_of_the_base(tiny_llama, tmp_path):
    from peft import PeftModel

    folder = make_adapter(tiny_llama, tmp_path / "a", seed=1, modules_to_save=["lm_head"])
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    peft = PeftModel.from_pretrained(base, folder).eval()
    with torch.inference_mode():
        expected = peft(prompt_of(tiny_llama, ASK)).logits[0, -1].tolist()
    engine = Engine()
    engine.load(str(tiny_llama), "fp32", "cpu", {"first": folder})
    assert engine.logits(FIRST) == pytest.approx(expected, abs=1e-5)
    assert answer(engine, [BASE, FIRST])[2]["mode"] == "sequential"
    assert engine.logits(BASE) == untouched_logits(tiny_llama)


def test_dora_adapters_answer_one_after_the_other(tiny_llama, adapters, tmp_path):
    from peft import PeftModel

    folder = make_adapter(tiny_llama, tmp_path / "dora", seed=5, use_dora=True)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, folder).eval()
    with torch.inference_mode():
        expected = peft(prompt_of(tiny_llama, ASK)).logits[0, -1].tolist()
    engine = Engine()
    engine.load(str(tiny_llama), "fp32", "cpu", {"dora": folder} | adapters)
    dora = Pane(adapter="dora", messages=ASK)
    assert engine.logits(dora) == pytest.approx(expected, abs=1e-5)
    texts, done, mode = answer(engine, [dora, BASE, FIRST])
    assert mode == {"mode": "sequential", "reason": "chat.one_by_one_dora", "adapter": "dora"}
    assert sorted(done) == [0, 1, 2]
    assert texts == [answer(engine, [pane])[0][0] for pane in (dora, BASE, FIRST)]
    assert engine.logits(BASE) == untouched_logits(tiny_llama)


def test_stop_also_ends_the_answers_that_had_not_begun(tiny_llama, tmp_path, monkeypatch):
    engine = Engine()
    folder = make_adapter(tiny_llama, tmp_path / "dora", seed=5, use_dora=True)
    engine.load(str(tiny_llama), "fp32", "cpu", {"dora": folder})
    panes = [BASE, Pane(adapter="dora", messages=ASK)]
    done = {}
    has_stopped = waits_for_its_reader(engine, monkeypatch, after=20)
    for event in engine.generate(panes, Sampling(max_new_tokens=400)):
        if "text" in event:
            engine.stop()
            has_stopped.set()
        if event.get("done"):
            done[event["pane"]] = event
    assert [done[pane]["reason"] for pane in (0, 1)] == ["stopped", "stopped"]
    assert done[1]["tokens"] == 0


def test_nf4_base_pane_is_the_untouched_nf4_model(tiny_llama, adapters):
    truth = untouched_logits(tiny_llama, precision="nf4")
    engine = Engine()
    engine.load(str(tiny_llama), "nf4", "cpu", adapters)
    assert engine.logits(BASE) == truth
    texts, _, mode = answer(engine, [BASE, FIRST])
    assert mode == {"mode": "batched"}
    assert texts == [answer(engine, [pane])[0][0] for pane in (BASE, FIRST)]
    assert engine.logits(BASE) == truth


class Halting(Engine):
    """Writes some tokens and no more until somebody stops it."""

    def load(self, *asked, **about):
        super().load(*asked, **about)
        self.has_stopped = waits_for_its_reader(self, pytest.MonkeyPatch(), after=20)

    def stop(self, ticket=""):
        super().stop(ticket)
        self.has_stopped.set()


def test_the_engine_answers_from_a_child_and_stops_there(tiny_llama, adapters):
    child = Child(Halting)
    try:
        with pytest.raises(AdapterError):
            child.call(
                "load",
                model_folder=str(tiny_llama),
                precision="fp32",
                device="cpu",
                adapters={"none": str(tiny_llama)},
            )
        child.call(
            "load",
            model_folder=str(tiny_llama),
            precision="fp32",
            device="cpu",
            adapters=adapters,
        )
        events = child.stream(
            "generate", panes=[BASE, FIRST], sampling=Sampling(max_new_tokens=450)
        )
        assert next(events) == {"mode": "batched"}
        child.interrupt("stop")
        done = [event for event in events if event.get("done")]
        assert {event["reason"] for event in done} == {"stopped"}
        events = child.stream("generate", panes=[BASE], sampling=Sampling(max_new_tokens=450))
        next(events)
        events.close()
        left = list(child.stream("generate", panes=[BASE], sampling=Sampling(max_new_tokens=5)))
        assert left[-1]["tokens"] == 5
    finally:
        child.close()

"""The quick way of training is the library's way: the same loss, the same gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trainings import gradients, wake, without_dropout
from transformers import AutoModelForCausalLM

from lora_studio.data.encoding import IGNORE_INDEX
from lora_studio.recipe import TrainingSpec
from lora_studio.training.adapting import cast_trained
from lora_studio.training.documents import (
    EndToEnd,
    Padded,
    as_it_comes,
    attend_by_document,
    shared_beginning,
)
from lora_studio.training.engine import _difference, choose_engine
from lora_studio.training.fused import TokenLoss, fuse, separate
from lora_studio.training.writing import summed_loss

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]

Rows = list[dict[str, list[int]]]


def rows(*, shared: int = 6, trained_from: int = 4) -> Rows:
    """Uneven rows that begin alike; what is trained begins after `trained_from` tokens."""
    made = []
    for number, length in enumerate((9, 14, 7, 23)):
        ids = [5 + at for at in range(shared)]
        ids += [(7 * number + 3 * at) % 50 + 40 for at in range(length - shared)]
        labels = [IGNORE_INDEX] * min(trained_from, length) + ids[trained_from:]
        made.append({"input_ids": ids, "labels": labels})
    return made


def adapted(folder: Path, **about: Any) -> Any:
    """A small model in float32 whose adapter has something to say."""
    about = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | about
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    is_gpt2 = "gpt2" in type(base).__name__.lower()
    config = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=is_gpt2, **about)
    torch.manual_seed(0)  # what A is drawn from decides how far two ways of computing part
    model = get_peft_model(base, config)
    wake(model)
    without_dropout(model)
    return model


def by_the_library(model: Any, some: Rows) -> tuple[float, dict[str, torch.Tensor]]:
    """The library's loss, row by row and summed, and its gradients."""
    separate(model)
    with as_it_comes(model):
        total = sum(
            model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
            * sum(label >= 0 for label in row["labels"][1:])
            for row in some
            if any(label >= 0 for label in row["labels"][1:])
        )
        return total.item(), gradients(model, total)


def assert_same(
    found: torch.Tensor, model: Any, expected: tuple[float, dict[str, torch.Tensor]]
) -> None:
    made = gradients(model, found)
    assert found.item() == pytest.approx(expected[0], rel=1e-5)
    assert made.keys() == expected[1].keys() != set()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(made[name], gradient, atol=2e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("shared", [0, 6])
@pytest.mark.parametrize("trained_from", [1, 4, 8])
def test_rows_end_to_end_have_the_loss_and_gradients_of_separate_ones(
    model: str, shared: int, trained_from: int, request: pytest.FixtureRequest
) -> None:
    some = rows(shared=shared, trained_from=trained_from)
    net = adapted(request.getfixturevalue(model))
    expected = by_the_library(net, some)
    attend_by_document(net)
    batch = EndToEnd(shares=True)(some)
    own = sum(len(row["input_ids"]) for row in some)
    assert batch["input_ids"].shape == (1, own - 3 * shared)
    assert batch["tokens"] == own
    assert_same(summed_loss(net, batch), net, expected)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
def test_padded_rows_have_the_loss_and_gradients_of_separate_ones(
    model: str, request: pytest.FixtureRequest
) -> None:
    net = adapted(request.getfixturevalue(model))
    expected = by_the_library(net, rows())
    assert_same(summed_loss(net, Padded(3)(rows())), net, expected)


@pytest.mark.parametrize(
    "about",
    [{}, {"use_rslora": True}, {"bias": "all"}, {"rank_pattern": {"q_proj|c_attn": 2}}],
    ids=lambda about: next(iter(about), "plain"),
)
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
def test_fused_layers_have_the_loss_and_gradients_of_the_librarys(
    model: str, about: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    net = adapted(request.getfixturevalue(model), **about)
    expected = by_the_library(net, rows())
    done = fuse(net)
    assert done["adapted"] == sum(hasattr(part, "lora_A") for part in net.modules())
    assert ("norm" in done and "gated" in done) is (model == "tiny_llama")
    assert_same(summed_loss(net, Padded(3)(rows())), net, expected)


def test_both_together_and_recomputed_have_the_loss_and_gradients_of_the_librarys(
    tiny_llama: Path,
) -> None:
    net = adapted(tiny_llama)
    expected = by_the_library(net, rows())
    attend_by_document(net)
    fuse(net)
    net.enable_input_require_grads()
    net.activation_checkpointing_enable({"use_reentrant": False})
    assert_same(summed_loss(net, EndToEnd(shares=True)(rows())), net, expected)


@pytest.mark.parametrize(
    "about",
    [{"lora_dropout": 0.1}, {"use_dora": True}],
    ids=["dropout", "DoRA"],
)
def test_an_adapter_that_is_more_than_lora_keeps_the_librarys_arithmetic(
    tiny_llama: Path, about: dict[str, Any]
) -> None:
    assert "adapted" not in fuse(adapted(tiny_llama, **about))


def test_a_fused_model_without_its_adapter_is_the_base(tiny_llama: Path) -> None:
    net = adapted(tiny_llama)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    fuse(net)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad(), net.disable_adapter():
        torch.testing.assert_close(net(ids).logits, base(ids).logits, atol=1e-6, rtol=1e-5)


def test_layers_come_apart_again(tiny_llama: Path) -> None:
    net = adapted(tiny_llama)
    before = {name: part.forward for name, part in net.named_modules()}
    fuse(net)
    assert any(part.forward != before[name] for name, part in net.named_modules())
    separate(net)
    assert all(part.forward == before[name] for name, part in net.named_modules())


@pytest.mark.parametrize("chunk", [2, 5, 100])
def test_the_loss_of_tokens_and_its_gradient_are_torchs(chunk: int) -> None:
    torch.manual_seed(0)
    scores = torch.randn(5, 11, requires_grad=True)
    labels = torch.tensor([0, 10, 3, 3, 7])
    expected = torch.nn.functional.cross_entropy(scores, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(expected * 0.5, scores)
    again = scores.detach().clone().requires_grad_()
    total = TokenLoss.apply(again * 1, labels, chunk)
    (found,) = torch.autograd.grad(total * 0.5, again)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(found, gradient)


def test_no_labelled_token_is_a_finite_zero(tiny_llama: Path) -> None:
    net = adapted(tiny_llama)
    bare = [row | {"labels": [IGNORE_INDEX] * len(row["input_ids"])} for row in rows()]
    attend_by_document(net)
    total = summed_loss(net, EndToEnd(shares=True)(bare))
    total.backward()
    assert total.item() == 0.0


@pytest.mark.parametrize(
    ("lists", "count"),
    [
        ([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 9]], 4),
        ([[1, 2, 3, 4, 5, 6], [1, 2, 3, 9, 9]], 0),
        ([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]], 5),
        ([[1, 2, 3, 4, 5, 6]], 0),
        ([[1], [1]], 0),
    ],
)
def test_a_beginning_is_shared_if_it_is_long_enough(lists: list[list[int]], count: int) -> None:
    assert shared_beginning(lists) == count


def test_a_sliding_window_is_kept_within_each_row(tiny_llama: Path) -> None:
    from lora_studio.training.documents import Documents, attend

    torch.manual_seed(0)
    states = [torch.randn(1, 2, 12, 4) for _ in range(3)]
    found, _ = attend(None, *states, None, documents=Documents((5, 7)), sliding_window=3)
    for start, stop in ((0, 5), (5, 12)):
        part = [one[:, :, start:stop] for one in states]
        size = stop - start
        seen = torch.ones(size, size, dtype=torch.bool).tril().triu(-2)
        expected = torch.nn.functional.scaled_dot_product_attention(*part, attn_mask=seen)
        torch.testing.assert_close(found[:, start:stop], expected.transpose(1, 2))


# What is chosen


def test_the_quickest_way_is_taken_where_it_gives_the_same_loss(tiny_llama: Path) -> None:
    net = adapted(tiny_llama)
    engine = choose_engine(net, rows(), TrainingSpec(), precision="fp32", autocast=None, padding=3)
    assert engine.packing and engine.shares_beginning
    assert engine.fused == {"adapted": 14, "norm": 5, "gated": 2}
    assert engine.difference < 1e-5


@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_in_16_bit_the_loss_is_the_librarys_as_far_as_rounding_goes(
    tiny_gpt2: Path, bias: str
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_gpt2, dtype=torch.bfloat16)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, fan_in_fan_out=True, bias=bias,
                        target_modules=["c_attn", "c_fc", "c_proj"])  # fmt: skip
    torch.manual_seed(0)
    net = get_peft_model(base, config)
    wake(net)
    cast_trained(net)
    engine = choose_engine(
        net, rows(), TrainingSpec(), precision="bf16", autocast="bf16", padding=3
    )
    assert engine.packing
    with torch.autocast("cpu", torch.bfloat16):
        loss = summed_loss(net, engine.collator(rows()))
    made = gradients(net, loss)
    assert all(torch.isfinite(gradient).all() for gradient in made.values())
    assert any(gradient.abs().max() > 0 for gradient in made.values())


def test_either_can_be_switched_off(tiny_llama: Path) -> None:
    for spec in (TrainingSpec(packing=False), TrainingSpec(fused_layers=False)):
        engine = choose_engine(
            adapted(tiny_llama), rows(), spec, precision="fp32", autocast=None, padding=3
        )
        assert engine.packing is spec.packing
        assert bool(engine.fused) is spec.fused_layers


def test_with_dropout_no_beginning_is_shared(tiny_llama: Path) -> None:
    net = adapted(tiny_llama, lora_dropout=0.1)
    net.train()
    for part in net.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.1
    engine = choose_engine(net, rows(), TrainingSpec(), precision="fp32", autocast=None, padding=3)
    assert engine.packing and not engine.shares_beginning


def test_a_way_that_gives_another_loss_is_taken_back(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_studio.training import documents

    def every_row_sees_all(*rows: Any, **more: Any) -> Any:
        lengths = [one.shape[2] for one in rows[0]]
        (mixed,) = real(*([torch.cat(list(states), dim=2)] for states in rows), **more)
        return mixed.split(lengths, dim=1)

    real = documents._one_by_one
    monkeypatch.setattr(documents, "_one_by_one", every_row_sees_all)
    net = adapted(tiny_llama)
    engine = choose_engine(net, rows(), TrainingSpec(), precision="fp32", autocast=None, padding=3)
    assert not engine.packing
    assert engine.fused
    assert_same(summed_loss(net, engine.collator(rows())), net, by_the_library(net, rows()))


def test_layers_that_forget_an_adapter_are_caught_before_it_has_learned_anything(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_studio.training import fused

    monkeypatch.setitem(fused._FORWARD, "adapted", lambda layer, x: layer.get_base_layer()(x))
    net = adapted(tiny_llama)
    trained = [one for name, one in net.named_parameters() if "lora_B" in name]
    for one in trained:
        torch.nn.init.zeros_(one)
    drawn = torch.get_rng_state()
    engine = choose_engine(net, rows(), TrainingSpec(), precision="fp32", autocast=None, padding=3)
    assert engine.packing and not engine.fused
    assert trained and not any(one.any() for one in trained)
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("seed", range(12))
def test_what_an_adapter_begins_with_does_not_hide_a_wrong_way(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    from lora_studio.training import fused

    monkeypatch.setitem(fused._FORWARD, "adapted", lambda layer, x: layer.get_base_layer()(x))
    net = adapted(tiny_llama)
    torch.manual_seed(seed)
    for name, one in net.named_parameters():
        if "lora_A" in name:
            torch.nn.init.kaiming_uniform_(one, a=5**0.5)  # as PEFT draws it
        elif "lora_B" in name:
            torch.nn.init.zeros_(one)
    engine = choose_engine(net, rows(), TrainingSpec(), precision="fp32", autocast=None, padding=3)
    assert engine.packing and not engine.fused


def test_losses_that_differ_are_not_made_up_for_by_others() -> None:
    expected = torch.tensor([2.0, 2.0])
    assert _difference(expected + torch.tensor([0.3, -0.3]), expected) > 0.1
    assert _difference(expected + 0.2, expected) == pytest.approx(0.1)
    assert _difference(expected, expected) == 0
    assert _difference(torch.empty(0), torch.empty(0)) == 0


def test_long_rows_are_compared_by_both_their_ends(tiny_llama: Path) -> None:
    net, seen = adapted(tiny_llama), []
    hook = net.get_base_model().model.register_forward_pre_hook(
        lambda *given: seen.append(given[2]["input_ids"].numel()), with_kwargs=True
    )
    long = [{"input_ids": [1] * 90 + [2] * 10, "labels": [-100] * 95 + [2] * 5} for _ in range(3)]
    engine = choose_engine(net, long, TrainingSpec(), precision="fp32", autocast=None, padding=3)
    hook.remove()
    assert engine.packing and engine.fused
    assert max(seen) == 3 * 48


def test_a_model_that_says_no_is_padded(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = adapted(tiny_llama)
    base = net.get_base_model()
    monkeypatch.setattr(type(base), "_can_set_attn_implementation", classmethod(lambda _: False))
    engine = choose_engine(net, rows(), TrainingSpec(), precision="fp32", autocast=None, padding=3)
    assert not engine.packing
    assert engine.fused

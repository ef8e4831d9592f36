"""Every way of adapting that is offered: trained, saved, loaded again and compared.

A pair of methods may be chosen together only if some case of the matrix has both.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import trainings
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file, save_file
from trainings import runs_in
from transformers import LlamaConfig, LlamaForCausalLM

from lora_studio import hardware
from lora_studio.chat.engine import Engine
from lora_studio.chat.request import Pane, Sampling
from lora_studio.errors import RecipeError, StudioError
from lora_studio.methods import (
    BIASES,
    CLASHES,
    METHODS,
    STARTS,
    chosen,
    offers,
    problems,
    rank_problems,
)
from lora_studio.models.loading import load_model, load_tokenizer
from lora_studio.recipe import Recipe
from lora_studio.runs.events import read_events
from lora_studio.runs.folder import RunFolder
from lora_studio.settings import Settings
from lora_studio.training import session as session_module
from lora_studio.training.adapting import EVA_BATCHES, EVA_TOKENS, StoredWeights, eva_batches
from lora_studio.training.session import Session
from lora_studio.wording import table

# PEFT asks a transformers model for a name that transformers has deprecated (peft 0.21.2).
# Loading a trained embedding that is also the head onto the base warns of merging (adapting.py).
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True"),
    pytest.mark.filterwarnings("ignore:You have requested .ensure_weight_tying"),
]

SETTINGS = {
    "rslora": "adapter.use_rslora=true",
    "dora": "adapter.use_dora=true",
    "loraplus": "training.loraplus_lr_ratio=16",
    "gaussian": "adapter.init_lora_weights=gaussian",
    "eva": "adapter.init_lora_weights=eva",
    "loftq": "adapter.init_lora_weights=loftq",
    "pissa": "adapter.init_lora_weights=pissa",
    "bias_all": "adapter.bias=all",
    "bias_lora_only": "adapter.bias=lora_only",
    "layers": "adapter.layers_to_transform=[1]",
    "ranks": "adapter.rank_pattern={<first>: 2}",
    "alphas": "adapter.alpha_pattern={<last>: 12}",
    "head": "adapter.modules_to_save=[lm_head]",
    "embedding": "adapter.modules_to_save=[<embedding>]",
}
"""What a case of the matrix may be made of: the methods, and the settings they must bear."""
ALONE = ["rslora", "dora", "loraplus", "gaussian", "eva", "pissa", "bias_all", "bias_lora_only"]
TOGETHER = [
    "rslora dora loraplus gaussian bias_all head layers ranks alphas",
    "rslora dora loraplus eva bias_lora_only embedding layers ranks alphas",
    "rslora loraplus loftq bias_all embedding ranks alphas",
    "loftq bias_lora_only head layers",
    "rslora loraplus pissa layers",
    "pissa loraplus ranks alphas",
    "dora gaussian bias_lora_only embedding ranks",
    "eva bias_all head",
]
PRECISIONS = ("fp32", "nf4", "int8", "bf16")
DEVICE = hardware.probe().device
MODELS = {
    "tiny_llama": {"<first>": "q_proj", "<last>": "down_proj", "<embedding>": "embed_tokens"},
    "tiny_gpt2": {"<first>": "c_attn", "<last>": "c_proj", "<embedding>": "wte"},
}
TOLERANCE = {"fp32": 1e-5, "nf4": 1e-5, "int8": 1e-4, "bf16": 0.05}
"""How far logits may be off after loading. In bf16 whole layers and bias vectors, trained in
float32, are rounded to the base's format; int8 rounds inputs by the largest of a row."""


def recipe_of(parts: Sequence[str], model: str = "tiny_llama") -> Recipe:
    """Return a recipe made of these parts, named as the model names them."""
    base = {
        "name": "test",
        "model": {"source": "somewhere"},
        "precision": "fp32",
        "adapter": {"r": 4, "lora_alpha": 8},
        "training": {"max_steps": 2, "learning_rate": 0.01, "warmup_ratio": 0, "eval_steps": 2},
    }
    settings = [SETTINGS[part] for part in parts]
    for word, name in MODELS.get(model, MODELS["tiny_llama"]).items():
        settings = [setting.replace(word, name) for setting in settings]
    return Recipe.from_dict(base).changed(settings)


@cache
def is_offered(parts: tuple[str, ...], precision: str) -> bool:
    return not problems(recipe_of(parts), precision, DEVICE)


def cases(precision: str) -> Iterator[tuple[str, ...]]:
    """Yield what is offered of each group of parts; what lies within another is left out."""
    groups = [*TOGETHER, *(ALONE if precision == "fp32" else [])]
    fitting = []
    for group in groups:
        parts: tuple[str, ...] = ()
        for part in group.split():
            parts = (*parts, part) if is_offered((*parts, part), precision) else parts
        fitting.append(parts)
    for parts in dict.fromkeys(fitting):
        is_part = any(set(parts) < set(other) for other in fitting)
        if not is_part or (precision == "fp32" and len(parts) == 1):
            yield parts


CASES = [
    (model, precision, parts)
    for model, precision in [*itertools.product(MODELS, PRECISIONS)]
    for parts in cases(precision)
] + [
    ("tied_llama", precision, parts)
    for precision in ("fp32", "nf4")
    for parts in [("head", "dora", "bias_all"), ("embedding", "rslora")]
]


@pytest.fixture(autouse=True, scope="module")
def many_small_runs() -> Iterator[None]:
    """Matrices this small wait longer for a second thread than they take; so does collecting.

    A trainer and the engine look for garbage among all that the libraries made, each time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tied_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose head is its embedding, as in most small models."""
    folder = tmp_path_factory.mktemp("models") / "tied-llama"
    shutil.copytree(tiny_llama, folder)
    config = LlamaConfig.from_pretrained(tiny_llama, tie_word_embeddings=True)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@dataclass
class Run:
    """A training in this process."""

    folder: RunFolder
    source: Path
    precision: str
    session: Session
    ids: torch.Tensor

    @property
    def model(self) -> Any:
        return self.session._trainer.model

    def base(self) -> Any:
        return load_model(self.source, self.precision, DEVICE)


def heard(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return a model's logits in float32, shape (1, T, V)."""
    with torch.inference_mode():
        return model.eval()(ids.to(model.device)).logits.float().cpu()


def without_questions(run: trainings.Run) -> Run:
    """Return a run that answers nothing on its way, with its first row."""
    run.reporter._questions = {}
    recipe, ids = run.folder.read_recipe(), run.batch(slice(0, 1))["input_ids"]
    return Run(run.folder, Path(recipe.model.source), recipe.precision, run.session, ids)


Build = Callable[..., Run]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home and rows that all cases share, so that the rows are encoded once a model."""
    folder = tmp_path_factory.mktemp("shared")
    rows = [
        {"prompt": f"name : {name} | area : {area}", "completion": f"{name} is in the {area} ."}
        for name in ["Cotto", "The Mill", "Zizzi", "Aromi", "The Vaults"]
        for area in ["riverside", "city centre", "old town", "harbour"]
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def build(
    shared: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Build]:
    machine = replace(hardware.probe(), has_bf16=True)
    monkeypatch.setattr(session_module, "probe", lambda: machine)
    settings = Settings(home=shared / "home", offline=True)
    with runs_in(tmp_path / "runs", settings) as start:

        def make(model: str, precision: str, parts: Sequence[str], *changes: str) -> Run:
            source = request.getfixturevalue(model)
            about = [f"precision={precision}", f"model.source={source}", "data.eval_fraction=0"]
            recipe = recipe_of(parts, model).changed([*about, *changes])
            return without_questions(start(recipe.with_files([str(shared / "pairs.jsonl")])))

        yield make


def digest(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def tensors(model: Any, *, frozen: bool = False) -> dict[str, torch.Tensor]:
    """Return copies of the base's own tensors by the base's names; `frozen` only."""
    found = {}
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        is_adapter = "lora_" in name or ".modules_to_save." in name
        if not is_adapter and not (frozen and tensor.requires_grad):
            plain = name.removeprefix("base_model.model.")
            plain = re.sub(r"\.(base_layer|original_module)\.", ".", plain)
            found[plain] = tensor.detach().clone()
    return found


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left
    changed = [
        name for name, tensor in left.items()
        if tensor.dtype != right[name].dtype or not torch.equal(tensor, right[name])
    ]  # fmt: skip
    assert not changed


def answers(engine: Engine, *panes: Pane) -> tuple[Any, list[str]]:
    """Return how the panes were answered, and each one's text."""
    events = list(engine.generate(panes, Sampling(max_new_tokens=6)))
    texts = [
        "".join(event.get("text", "") for event in events if event.get("pane") == at)
        for at in range(len(panes))
    ]
    return events[0], texts


def expected_reason(parts: tuple[str, ...], saved: dict[str, torch.Tensor]) -> str | None:
    """Return why base and adapter cannot share a batch, None where they can."""
    if "dora" in parts:
        return "chat.one_by_one_dora"
    is_plain = all(".lora_" in name for name in saved)
    return None if is_plain else "chat.one_by_one_overrides"


def named(value: object) -> str:
    return "+".join(value) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(("model", "precision", "parts"), CASES, ids=named)
def test_what_is_offered_trains_saves_loads_and_compares(
    build: Build, model: str, precision: str, parts: tuple[str, ...]
) -> None:
    run = build(model, precision, parts)
    files, base = digest(run.source), run.base()
    untouched, plain = tensors(base), heard(base, run.ids)
    before = tensors(run.model, frozen=True)
    if "pissa" not in parts:
        assert_same(before, untouched)
    run.session.train()
    assert run.session.steps == 2
    assert_same(before, tensors(run.model, frozen=True))
    adapter = run.session.save(run.folder)
    assert digest(run.source) == files

    # Loaded by plain PEFT on a fresh base; the last checkpoint holds the same.
    live, tolerance = heard(run.model, run.ids), TOLERANCE[precision]
    loaded = heard(PeftModel.from_pretrained(base, adapter), run.ids)
    torch.testing.assert_close(loaded, live, atol=tolerance, rtol=0)
    assert (live - plain).abs().max() > 1e-3
    saved, kept = (
        load_file(place / "adapter_model.safetensors")
        for place in (adapter, run.folder.checkpoints / "checkpoint-2")
    )
    assert_same(saved, kept)

    # Compared: each pane says what its model says alone, in one batch or one after the other.
    engine = Engine()
    engine.load(str(run.source), precision, DEVICE, {"mine": str(adapter)})
    text = load_tokenizer(run.source).decode(run.ids[0])
    panes = [Pane(text=text), Pane(adapter="mine", text=text)]
    assert torch.equal(torch.tensor(engine.logits(panes[0])), plain[0, -1])
    scores = torch.tensor(engine.logits(panes[1]))
    torch.testing.assert_close(scores, live[0, -1], atol=tolerance, rtol=0)
    alone = [answers(engine, pane)[1] for pane in panes]
    mode, together = answers(engine, *panes)
    assert together == [text for texts in alone for text in texts]
    assert mode.get("reason") == expected_reason(parts, saved)
    assert torch.equal(torch.tensor(engine.logits(panes[0])), plain[0, -1])
    assert_same(untouched, tensors(engine.model))


def test_methods_are_offered_together_only_if_a_case_has_both() -> None:
    names = [*METHODS, "ranks", "alphas", "head", "embedding", "layers"]
    untried = [
        (model, precision, pair)
        for model, precision in itertools.product(MODELS, PRECISIONS)
        for pair in itertools.combinations(names, 2)
        if not any(set(pair) <= set(group) for group in (STARTS, BIASES, ("head", "embedding")))
        and is_offered(pair, precision)
        and not any(
            set(pair) <= set(parts)
            for tried, at, parts in CASES
            if (tried, at) == (model, precision)
        )
    ]
    assert untried == []


# The starts


def product(layer: Any) -> torch.Tensor:
    """Return what A and B add to a layer's weight, shape (d_out, d_in)."""
    return (
        layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    )


def adapted_layers(run: Run) -> dict[str, Any]:
    named_modules = run.model.get_base_model().named_modules()
    return {name: module for name, module in named_modules if isinstance(module, LoraLayer)}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scale", ["adapter.lora_alpha=32", "adapter.use_rslora=true"])
@torch.no_grad()
def test_loftq_takes_back_as_much_of_the_rounding_as_rank_r_can(
    build: Build, model: str, scale: str
) -> None:
    run = build(model, "nf4", ("loftq",), scale)
    true = load_model(run.source, "fp32", DEVICE)
    for name, layer in adapted_layers(run).items():
        weight = true.get_submodule(name).weight
        weight = weight.T if model == "tiny_gpt2" else weight
        rounding = weight - dequantize_module_weight(layer.get_base_layer())
        left = torch.linalg.svdvals(rounding)[4:].square().sum().sqrt()
        assert (rounding - product(layer)).norm() == pytest.approx(left.item(), rel=1e-3)
        assert left < rounding.norm()


def test_loftq_says_which_weight_it_does_not_find(build: Build, tmp_path: Path) -> None:
    save_file({"other": torch.zeros(2)}, tmp_path / "model.safetensors")
    stored = StoredWeights(tmp_path, "model")
    assert stored.read("model.other").shape == (2,)
    with pytest.raises(StudioError) as caught:
        stored.read("model.layers.0.weight")
    assert caught.value.key == "training.loftq_no_weight"
    assert "model.layers.0.weight" in str(caught.value)


@torch.no_grad()
def test_eva_begins_at_r_directions_of_each_layers_inputs(build: Build) -> None:
    run = build("tiny_llama", "fp32", ("eva",))
    run.model.eval()
    layers = adapted_layers(run)
    given: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: given[name].append(inputs[0].flatten(0, 1))
        )
    for row in run.session._trainer.train_dataset["input_ids"]:
        run.model(torch.tensor([row]))
    for name, layer in layers.items():
        seen = torch.cat(given[name])
        matrix = layer.lora_A["default"].weight
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(4), atol=1e-4, rtol=0)
        centred = seen - seen.mean(0)
        best = torch.linalg.svdvals(centred)[:4].square().sum()
        assert (centred @ matrix.T).square().sum() == pytest.approx(best.item(), rel=1e-3), name
    base = heard(run.base(), run.ids)
    torch.testing.assert_close(heard(run.model, run.ids), base, atol=1e-6, rtol=0)


def test_eva_says_how_many_tokens_it_lacks() -> None:
    with pytest.raises(StudioError) as caught:
        eva_batches([[1, 2, 3], [4]], r=5)
    assert (caught.value.key, caught.value.values["tokens"]) == ("training.eva_few_tokens", 4)


def test_eva_reads_rows_in_batches_that_hold_r_tokens_each() -> None:
    rows = [[7] * 600 for _ in range(5)]
    batches = eva_batches(rows, r=4)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 600), (2, 600), (1, 600)]
    assert len(eva_batches(rows * 9, r=4)) == EVA_BATCHES
    (batch,) = eva_batches([[7] * 9000, [8, 9]], r=4)
    assert batch["input_ids"].shape == (1, EVA_TOKENS)
    (batch,) = eva_batches([[7, 7, 7], [8]], r=4)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@torch.no_grad()
def test_pissa_trains_the_largest_directions_and_saves_only_what_changed(build: Build) -> None:
    run = build("tiny_gpt2", "fp32", ("pissa",))
    base = run.base()
    for name, layer in adapted_layers(run).items():
        whole = layer.get_base_layer().weight + product(layer).T
        torch.testing.assert_close(whole, base.get_submodule(name).weight, atol=1e-6, rtol=0)
    adapter = run.session.save(run.folder)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 16, True)
    assert "rank 2·r" in (adapter / "README.md").read_text(encoding="utf-8")


def test_saving_a_pissa_checkpoint_does_not_disturb_the_run(build: Build) -> None:
    curves = []
    for every in (1, 4):
        run = build(
            "tiny_llama", "fp32", ("pissa",),
            f"training.eval_steps={every}", "training.max_steps=4", "adapter.lora_dropout=0.3",
        )  # fmt: skip
        run.session.train()
        events, _ = read_events(run.folder.events)
        curves.append([event["loss"] for event in events if event["event"] == "step"])
        trained = {name for name, one in run.model.named_parameters() if one.requires_grad}
        assert trained
        assert all(name.endswith(".default.weight") for name in trained)
    assert len(curves[0]) == 4
    assert curves[0] == curves[1]


def test_with_loraplus_b_learns_faster_than_a_by_the_ratio(build: Build) -> None:
    run = build("tiny_gpt2", "fp32", ("loraplus", "bias_lora_only"))
    trainer = run.session._trainer
    trainer.args.weight_decay = 0.1
    optimizer = trainer.create_optimizer()
    names = {id(one): name for name, one in run.model.named_parameters()}
    rates = {
        names[id(one)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for one in group["params"]
    }
    assert {rates[name] for name in rates if "lora_A" in name} == {(0.01, 0.1)}
    assert {rates[name] for name in rates if "lora_B" in name} == {(0.16, 0.1)}
    assert {rates[name] for name in rates if name.endswith("bias")} == {(0.16, 0.0)}
    assert len(rates) == sum(one.requires_grad for one in run.model.parameters())
    assert optimizer.defaults["fused"] is True


# What is not offered


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_offered_may_be_chosen_and_what_is_not_says_why(precision: str) -> None:
    for first in [(), *((name,) for name in METHODS)]:
        recipe = recipe_of(first)
        if problems(recipe, precision, "cpu"):
            continue
        for name, offer in offers(recipe, precision, "cpu").items():
            rivals = next((group for group in (STARTS, BIASES) if name in group), ())
            kept = [part for part in first if part not in rivals]
            found = problems(recipe_of((*kept, name)), precision, "cpu")
            assert offer.is_offered is not bool(found)
            if offer.reason is not None:
                assert offer.reason.key in {problem.key for problem in found}


def test_every_clash_is_a_sentence_in_both_languages() -> None:
    for clash in CLASHES:
        values = table()[clash.key]
        assert StudioError(clash.key, precision="nf4", device="cpu").say("ko") != values["en"]


def test_a_recipe_is_refused_with_all_its_clashes_before_the_model_is_loaded(build: Build) -> None:
    parts = ("dora", "pissa", "bias_all")
    with pytest.raises(RecipeError) as caught:
        build("tiny_llama", "int8", parts, "adapter.r=64")
    assert [problem.key for problem in caught.value.problems] == [
        "methods.pissa_needs_fp32",
        "methods.pissa_saves_matrices_only",
        "methods.dora_needs_a_zero_start",
        "methods.dora_not_in_int8",
        *["methods.rank_over_size"] * 7,
    ]
    assert "int8" in str(caught.value)


def test_a_start_that_takes_r_directions_wants_layers_that_have_them() -> None:
    sizes = {"q_proj": 32, "gate": 8}
    assert rank_problems(recipe_of(("gaussian",)).adapter, {"gate": 2}) == []
    assert rank_problems(recipe_of(("pissa",)).adapter, sizes) == []
    larger = recipe_of(("pissa",)).changed(["adapter.rank_pattern={q_proj: 16}"])
    (problem,) = rank_problems(larger.adapter, sizes)
    assert (problem.values["name"], problem.values["size"], problem.values["r"]) == ("gate", 8, 16)


def test_the_methods_of_a_recipe_are_listed_by_name() -> None:
    assert chosen(Recipe()) == ()
    assert chosen(recipe_of(("eva", "bias_all", "rslora"))) == ("rslora", "eva", "bias_all")

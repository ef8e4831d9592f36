"""Compiled layers learn what the library's learn, and where compiling fails nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import Build, Run, gradients, recipe_over, runs_in, wake
from transformers import AttentionInterface

from lora_studio.errors import RunError, from_dict
from lora_studio.settings import Settings
from lora_studio.training import compiled
from lora_studio.training.compiled import as_written, compile_layers
from lora_studio.training.documents import ATTENTION, attend

pytestmark = [
    pytest.mark.usefixtures("one_thread", "no_compiler"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    # Raised and passed over by torch's compiler itself while it looks at a tensor (torch 2.13).
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

ON = "training.torch_compile=true"
SORTS = ("data.format=classification", "data.columns={text: text, label: label}")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are made and run as they are: the same way, without a compiler of C++."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    yield
    torch.compiler.reset()
    AttentionInterface.register(ATTENTION, attend)


@pytest.fixture
def build(settings: Settings, pairs: Path, tiny_llama: Path, tmp_path: Path) -> Iterator[Build]:
    with runs_in(tmp_path / "runs", settings) as start:

        def make(*changes: str, data: Path = pairs) -> Run:
            run = start(recipe_over(data, tiny_llama, "training.max_steps=2", *changes))
            run.reporter._questions = {"Who?": "Who?"} if data == pairs else {}
            return run

        yield make


def graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def test_compiled_layers_have_the_loss_and_gradients_of_the_librarys(build: Build) -> None:
    run = build("training.fused_layers=false")
    wake(run.model)
    run.model.train()
    batches = [run.batch(slice(0, 4)), run.batch(slice(4, 9))]
    expected = [gradients(run.model, run.trainer.compute_loss(run.model, one)) for one in batches]
    torch.compiler.reset()
    before = graphs()
    assert compile_layers(run.model, run.trainer.loss_of_some, tolerance=1e-4) > 0
    made = graphs()
    assert made > before
    for batch, wanted in zip(batches, expected, strict=True):
        found = gradients(run.model, run.trainer.compute_loss(run.model, batch))
        assert found.keys() == wanted.keys() != set()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    assert graphs() == made, "rows of another length are no other graph"


def test_layers_are_compared_in_the_number_format_of_a_step(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = build(), []
    narrow = torch.autocast("cpu", torch.bfloat16)
    monkeypatch.setattr(run.trainer.accelerator, "autocast", lambda: narrow)

    def compute_loss(*_: Any) -> torch.Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return torch.zeros(())

    monkeypatch.setattr(run.trainer, "compute_loss", compute_loss)
    run.trainer.loss_of_some()
    assert seen == [(True, torch.bfloat16)]


def test_a_compiled_run_learns_what_one_that_is_not_learns(build: Build) -> None:
    whole = build()
    whole.session.train()
    run = build(ON)
    assert "compile" in run.stages
    assert not run.events("warning")
    (started,) = run.events("started")
    assert started["engine"]["compile_s"] >= 0
    assert started["engine"]["fused"] == {}
    made = graphs()
    run.session.train()
    assert graphs() == made, "held-out rows and answers are computed as they come"
    assert run.events("eval") and run.events("sample")
    assert run.losses() == pytest.approx(whole.losses(), rel=1e-5)
    evals = [[event["loss"] for event in one.events("eval")] for one in (run, whole)]
    assert evals[0] == pytest.approx(evals[1], rel=1e-5)
    assert not run.events("warning")
    steps = [one.events("step")[-1]["tokens_seen"] for one in (run, whole)]
    assert steps[0] == steps[1]


def test_a_run_with_dropout_and_one_that_sorts_are_compiled_too(
    build: Build, pairs: Path, tmp_path: Path
) -> None:
    labelled = tmp_path / "labelled.csv"
    lines = (f"a chair {'by the wall ' * (n % 4)}{n},l{n % 2}\n" for n in range(20))
    labelled.write_text("text,label\n" + "".join(lines), encoding="utf-8")
    for changes, data in ((("adapter.lora_dropout=0.1",), pairs), (SORTS, labelled)):
        run = build(ON, *changes, data=data)
        assert not run.events("warning")
        assert run.events("started")[0]["engine"]["compile_s"] >= 0
        run.session.train()
        assert len(run.losses()) == 2


def refused(run: Run) -> RunError:
    (warning,) = run.events("warning")
    cause = from_dict(warning["cause"])
    assert isinstance(cause, RunError)
    (started,) = run.events("started")
    assert started["engine"]["compile_s"] is None
    assert started["engine"]["fused"], "the layers are those put together by hand again"
    assert all(part._compiled_call_impl is None for part in run.model.modules())
    return cause


def test_a_run_goes_on_where_compiling_fails(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no C++ compiler was found")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    whole = build()
    whole.session.train()
    run = build(ON)
    cause = refused(run)
    assert cause.key == "training.not_compiled"
    assert "no C++ compiler" in str(cause)
    run.session.train()
    assert run.losses() == whole.losses()


def test_compiled_layers_that_give_another_loss_are_taken_back(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(graph: torch.fx.GraphModule, _: Any) -> Any:
        return lambda *given: [
            part * 1.1 if torch.is_tensor(part) and part.is_floating_point() else part
            for part in graph(*given)
        ]

    monkeypatch.setattr(compiled, "BACKEND", wrong)
    assert refused(build(ON)).key == "training.compiled_differs"


def test_activations_that_are_computed_again_are_not_compiled(build: Build) -> None:
    run = build(ON, "training.activation_checkpointing=true")
    assert refused(run).key == "training.not_compiled_here"


def test_memory_that_runs_out_while_compiling_is_said_as_such(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.")

    monkeypatch.setattr(compiled, "BACKEND", full)
    with pytest.raises(RunError, match="Memory ran out"):
        build(ON)


def test_layers_compute_as_written_inside_the_block_only(build: Build) -> None:
    run = build(ON)
    layers = [part for part in run.model.modules() if part._compiled_call_impl is not None]
    assert len(layers) == 2
    with as_written(run.model):
        assert all(layer._compiled_call_impl is None for layer in layers)
    assert all(layer._compiled_call_impl is not None for layer in layers)

"""Trainings in this process, whose parts a test can look at and change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lora_studio.recipe import Recipe
from lora_studio.runs.events import EventWriter, read_events
from lora_studio.runs.folder import RunFolder, create
from lora_studio.runs.history import History
from lora_studio.settings import Settings
from lora_studio.training import worker
from lora_studio.training.reporting import Reporter
from lora_studio.training.session import Session

Event = dict[str, Any]


class Run:
    """A training built in this process, with its folder and its events."""

    def __init__(self, folder: RunFolder, settings: Settings) -> None:
        self.folder = folder
        self.stages: list[str] = []
        self.writer = EventWriter(folder.events)
        self.session = Session(
            folder.read_recipe(), settings, lambda stage, *_: self.stages.append(stage)
        )
        self.reporter: Reporter = self.session.build(folder, self.writer)
        self.trainer = self.session._trainer
        self.model = self.trainer.model

    def events(self, kind: str) -> list[Event]:
        return [event for event in read_events(self.folder.events)[0] if event["event"] == kind]

    def losses(self) -> list[float]:
        return [event["loss"] for event in self.events("step")]

    def batch(self, rows: slice, part: str = "train_dataset") -> dict[str, torch.Tensor]:
        data = getattr(self.trainer, part)
        return self.trainer.data_collator([data[at] for at in range(*rows.indices(len(data)))])


Build = Callable[..., Run]


@contextmanager
def runs_in(folder: Path, settings: Settings) -> Iterator[Callable[[Recipe], Run]]:
    """Build runs of recipes in a folder; their events are closed in the end."""
    writers: list[EventWriter] = []

    def build(recipe: Recipe) -> Run:
        run = Run(create(folder, recipe), settings)
        writers.append(run.writer)
        return run

    yield build
    for writer in writers:
        writer.close()


def work(folder: RunFolder, settings: Settings) -> History:
    """Train a run in this process as its worker would, to its end.

    The worker takes SIGTERM as its own: use it with the fixture `signals_put_back`.
    """
    with EventWriter(folder.events) as events:
        worker.run(folder, folder.read_recipe(), events, settings)
    return History(folder).update()


def recipe_over(data: Path, model: Path, *changes: str) -> Recipe:
    """Return a recipe of four steps; settings are given as on the command line."""
    base = {
        "name": "test",
        "model": {"source": str(model)},
        "precision": "fp32",
        "data": {"files": [str(data)], "eval_fraction": 0.2},
        "adapter": {"r": 4, "lora_alpha": 8},
        "training": {"max_steps": 4, "learning_rate": 0.01, "warmup_ratio": 0},
    }
    return Recipe.from_dict(base).changed(changes)


def wake(model: Any, seed: int = 1) -> None:
    """Give B values, so that every adapter weight has a gradient."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a loss says to each parameter that is trained."""
    model.zero_grad()
    loss.backward()
    found = model.named_parameters()
    return {name: one.grad.clone() for name, one in found if one.grad is not None}


def without_dropout(model: Any) -> None:
    """Have GPT-2 leave nothing to chance, which drops out by itself."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

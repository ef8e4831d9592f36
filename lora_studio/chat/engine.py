"""The engine of the comparison: one base model, many adapters, answers that stream side by side.

Loaded with the names of classes it says how likely each class is instead of answering.

It knows nothing of processes or pages: the app serves it in a child process
(`Child("lora_studio.chat.engine:Engine")`), the command line calls it directly.
"""

from __future__ import annotations

import gc
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from lora_studio.chat.base import LoadedBase
from lora_studio.chat.classes import probabilities
from lora_studio.chat.prompts import encode, pad_left
from lora_studio.chat.request import Event, ModeEvent, Pane, Sampling
from lora_studio.chat.streaming import Detokenizer, Row, RowStreamer, StopFlag
from lora_studio.errors import StudioError
from lora_studio.models.loading import load_classifier, load_model, load_tokenizer

Emit = Callable[[Event], None]


class Engine:
    """Loads one base model with its adapters and answers as any of them.

    Methods may be called from several threads: loading and answering take turns, `stop` does
    not wait.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._stops: set[threading.Event] = set()
        self._loaded: LoadedBase | None = None
        self._loaded_as: tuple[Any, ...] | None = None

    @property
    def model(self) -> Any:
        """The transformers model with its LoRA layers, or None."""
        return None if self._loaded is None else self._loaded.model

    def load(
        self,
        model_folder: str,
        precision: str,
        device: str,
        adapters: dict[str, str],
        *,
        labels: Sequence[str] = (),
        seed: int = 42,
    ) -> None:
        """Load a base model and make `adapters` the ones it answers as.

        What is loaded already is not loaded again; adapters no longer named are dropped.

        Args:
            model_folder: The base model's folder.
            precision: Number format of its weights, as `models.load_model` takes it.
            device: Where it runs, as in `cpu` or `cuda`.
            adapters: Name to PEFT folder.
            labels: Names of the classes texts are sorted into; none to write answers.
            seed: What the classifier's untrained head is drawn from; the recipe's.

        Raises:
            ModelError: If the base cannot be loaded.
            AdapterError: If an adapter cannot be used with it; the others stay as they were.
        """
        wanted = (model_folder, precision, device, *((seed, *labels) if labels else ()))
        with self._turn:
            if self._loaded is None or self._loaded_as != wanted:
                self._drop()
                folder = Path(model_folder)
                if labels:
                    model = load_classifier(folder, precision, device, labels=labels, seed=seed)
                else:
                    model = load_model(folder, precision, device)
                tokenizer = load_tokenizer(folder)
                self._loaded = LoadedBase(model.eval(), tokenizer, classifies=bool(labels))
                self._loaded_as = wanted
            self._loaded.attach({name: Path(folder) for name, folder in adapters.items()})

    def unload(self) -> None:
        """Forget the model. What the device's own libraries hold is freed by the process's end."""
        with self._turn:
            self._drop()

    def stop(self) -> None:
        """End the answers that are being written, at their next token; returns at once."""
        for flag in list(self._stops):
            flag.set()

    def generate(self, panes: Sequence[Pane], sampling: Sampling) -> Iterator[Event]:
        """Answer all panes and yield events as the text comes.

        First one `ModeEvent`; then `TextEvent`s of all panes interleaved, or pane by pane when
        sequential; and one `DoneEvent` for each pane. Closing the iterator stops the answers.

        Raises:
            StudioError: If nothing is loaded, an adapter is unknown, a prompt is empty or too
                long, or memory runs out.
        """
        stop = threading.Event()
        inbox: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._stops.add(stop)
        with ThreadPoolExecutor(1, thread_name_prefix="answer") as thread:
            work = thread.submit(self._answer, _Request(panes, sampling, inbox.put, stop))
            # Whatever way the work ends, its reader is woken; the error waits in `work`.
            work.add_done_callback(lambda _: inbox.put(None))
            try:
                while (event := inbox.get()) is not None:
                    yield event
                work.result()
            finally:
                stop.set()
                self._stops.discard(stop)

    def logits(self, pane: Pane) -> list[float]:
        """Return the scores of the token that would follow a pane's prompt, shape (V,)."""
        with self._turn, torch.inference_mode():
            loaded = self._need([pane.adapter])
            ids = torch.tensor([self._prompt(pane, loaded)], device=loaded.model.device)
            with loaded.answering_as([pane.adapter]):
                scores: list[float] = loaded.model(ids).logits[0, -1].float().tolist()
            return scores

    def classify(self, text: str, adapters: Sequence[str | None]) -> list[list[float]]:
        """Say how likely each of the classes is for a text.

        Args:
            text: What is sorted, as training reads it: no chat template around it.
            adapters: Who sorts: names of loaded adapters, None for the base, whose head is
                untrained and only guesses.

        Returns:
            For each of `adapters` the probabilities of the classes, in the order of `labels`.

        Raises:
            StudioError: If no classifier is loaded, an adapter is unknown, the text is empty or
                too long, or memory runs out.
        """
        with self._turn, torch.inference_mode():
            loaded = self._need(adapters, to_classify=True)
            try:
                return probabilities(loaded, text, adapters)
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise StudioError("chat.out_of_memory") from error

    def _drop(self) -> None:
        self._loaded = self._loaded_as = None
        gc.collect()  # a model holds itself in circles, and the next one needs its room
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _need(self, adapters: Sequence[str | None], *, to_classify: bool = False) -> LoadedBase:
        """Return what is loaded, once it is known that it can do what is asked as all of them."""
        if self._loaded is None:
            raise StudioError("chat.not_loaded")
        if self._loaded.classifies != to_classify:
            raise StudioError("chat.no_classes" if to_classify else "chat.only_classes")
        if not adapters:
            raise StudioError("chat.no_panes")
        known = self._loaded.adapters
        for name in adapters:
            if name is not None and name not in known:
                names = ", ".join(known) or "–"
                raise StudioError("chat.unknown_adapter", name=name, known=names)
        return self._loaded

    def _prompt(self, pane: Pane, loaded: LoadedBase) -> list[int]:
        """Encode a pane's prompt, and refuse one that leaves no room for an answer."""
        ids = encode(pane, loaded.tokenizer)
        limit = loaded.context
        if limit is not None and len(ids) >= limit:
            raise StudioError("chat.too_long", tokens=len(ids), limit=limit - 1)
        return ids

    def _answer(self, request: _Request) -> None:
        """Run a request from encoding to the last event, on the generating thread."""
        with self._turn, torch.inference_mode():
            loaded = self._need([pane.adapter for pane in request.panes])
            prompts = [self._prompt(pane, loaded) for pane in request.panes]
            request.emit(_mode(loaded, request.panes))
            for rows in _batches(loaded, request.panes):
                try:
                    _answer_batch(loaded, request, {row: prompts[row] for row in rows})
                except (torch.OutOfMemoryError, MemoryError) as error:
                    raise StudioError("chat.out_of_memory") from error


@dataclass(frozen=True, slots=True)
class _Request:
    panes: Sequence[Pane]
    sampling: Sampling
    emit: Emit
    stop: threading.Event


def _answer_batch(loaded: LoadedBase, request: _Request, prompts: dict[int, list[int]]) -> None:
    """Answer the panes of `prompts` (pane number to token ids) in one batch."""
    end_ids = _end_ids(loaded)
    rows = [Row(pane, Detokenizer(loaded.tokenizer, ids)) for pane, ids in prompts.items()]
    streamer = RowStreamer(rows, end_ids=end_ids, emit=request.emit, stopped=request.stop.is_set)
    if request.stop.is_set():
        streamer.end()
        return
    pad_id = loaded.tokenizer.pad_token_id
    ids, mask = pad_left(list(prompts.values()), pad_id)
    device = loaded.model.device
    config = _generation_config(request.sampling, end_ids, pad_id)
    limit = loaded.context
    if limit is not None:
        config.max_new_tokens = min(config.max_new_tokens, limit - ids.shape[1])
    adapters = [request.panes[pane].adapter for pane in prompts]
    with loaded.answering_as(adapters), _seeded(request.sampling.seed, device):
        loaded.model.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([StopFlag(request.stop)]),
        )


def _generation_config(sampling: Sampling, end_ids: list[int], pad_id: int) -> GenerationConfig:
    """Return settings that owe nothing to the model's own: only weights shall differ."""
    picking: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    if not sampling.greedy:
        picking = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
        }
    return GenerationConfig(
        **picking,
        max_new_tokens=sampling.max_new_tokens,
        repetition_penalty=1.0,
        eos_token_id=end_ids or None,
        pad_token_id=pad_id,
    )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the random numbers of what follows, and leave everyone else's as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _batches(loaded: LoadedBase, panes: Sequence[Pane]) -> list[list[int]]:
    """Return the panes' numbers, those that can share a batch together."""

    def alone(row: int) -> str:
        name = panes[row].adapter
        return name if name is not None and loaded.adapters[name].alone else ""

    # The batch that can be shared comes first; sorting keeps the panes' order within each.
    return [
        list(rows) for _, rows in itertools.groupby(sorted(range(len(panes)), key=alone), alone)
    ]


def _mode(loaded: LoadedBase, panes: Sequence[Pane]) -> ModeEvent:
    if len(_batches(loaded, panes)) == 1:
        return {"mode": "batched"}
    names = [pane.adapter for pane in panes if pane.adapter is not None]
    name, reason = next((name, why) for name in names if (why := loaded.adapters[name].alone))
    return {"mode": "sequential", "reason": reason, "adapter": name}


def _end_ids(loaded: LoadedBase) -> list[int]:
    """Return every token that ends an answer, by the model's, tokenizer's or template's account."""
    own = loaded.model.generation_config.eos_token_id
    ids = set(own) if isinstance(own, (list, tuple)) else {own}
    return sorted((ids | loaded.end_ids) - {None})

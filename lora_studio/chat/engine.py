"""The engine of the comparison: one base model, many adapters, answers that stream side by side.

Loaded with the names of classes it says how likely each class is instead of answering.

It knows nothing of processes or pages: the app serves it in a child process
(`Child("lora_studio.chat.engine:Engine")`), the command line calls it directly.
"""

from __future__ import annotations

import gc
import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lora_studio.adapters.lineage import other_weights
from lora_studio.adapters.reading import read_config
from lora_studio.chat.answering import Request, answer
from lora_studio.chat.base import LoadedBase
from lora_studio.chat.classes import probabilities
from lora_studio.chat.prompts import passage, prompt_ids, rendered
from lora_studio.chat.request import (
    MOST_ROWS,
    Event,
    Pane,
    Passage,
    Rendered,
    Sampling,
    Score,
    ScoreProgress,
    Who,
    names_of,
)
from lora_studio.chat.scoring import ScoreTask, score
from lora_studio.errors import StudioError
from lora_studio.models.fingerprint import weight_files, weights_fingerprint
from lora_studio.models.loading import load_classifier, load_model, load_tokenizer, reading

TICKETS = 256
"""So many of those that were stopped are remembered; one that comes later is long given up."""


class Engine:
    """Loads one base model with its adapters and answers as any of them.

    Methods may be called from several threads: loading and answering take turns, `stop` does
    not wait.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._stops: dict[threading.Event, str] = {}
        self._stopped: deque[str] = deque(maxlen=TICKETS)
        self._loaded: LoadedBase | None = None
        self._loaded_as: tuple[Any, ...] | None = None
        self._fingerprint: str | None = None

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
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        """Load a base model and make `adapters` the ones it answers as.

        What is loaded already is not loaded again, unless its files were replaced; adapters no
        longer named are dropped.

        Args:
            model_folder: The base model's folder.
            precision: Number format of its weights, as `models.load_model` takes it.
            device: Where it runs, as in `cpu` or `cuda`.
            adapters: Name to PEFT folder.
            labels: Names of the classes texts are sorted into; none to write answers.
            seed: What the classifier's untrained head is drawn from; the recipe's.
            fingerprints: What `models.fingerprint` said of the base that an adapter was trained
                on, for those of which it is known.

        Raises:
            ModelError: If the base cannot be loaded.
            AdapterError: If an adapter cannot be used with it; the others stay as they were.
        """
        folder = Path(model_folder)
        task = (seed, *labels) if labels else ()
        with self._turn:
            wanted = (folder, _stamp(folder), precision, device, *task)
            if self._loaded is None or self._loaded_as != wanted:
                self._drop()
                if labels:
                    model = load_classifier(folder, precision, device, labels=labels, seed=seed)
                else:
                    model = load_model(folder, precision, device)
                tokenizer = load_tokenizer(folder)
                self._loaded = LoadedBase(model.eval(), tokenizer, classifies=bool(labels))
                self._loaded_as = wanted
            self._refuse_other_base(folder, adapters, fingerprints or {})
            self._loaded.attach({name: Path(place) for name, place in adapters.items()})

    def stop(self, ticket: str = "") -> None:
        """End answers that are being written, at their next token; returns at once.

        Args:
            ticket: Under which they were asked for; those that are still to be asked for under it
                end before they begin. Without one: all that are being written.
        """
        if ticket:
            self._stopped.append(ticket)
        for flag, under in list(self._stops.items()):
            if ticket in ("", under):
                flag.set()

    def render(self, panes: Sequence[Pane]) -> list[Rendered]:
        """Return each pane's prompt as the model sees it, also one that is too long to answer.

        Raises:
            StudioError: If nothing is loaded, an adapter is unknown, or a prompt is empty.
        """
        with self._turn:
            loaded = self._need([pane.who for pane in panes])
            return [rendered(pane, loaded.tokenizer, loaded.context) for pane in panes]

    def generate(
        self, panes: Sequence[Pane], sampling: Sampling, *, ticket: str = ""
    ) -> Iterator[Event]:
        """Answer all panes and yield events as the text comes.

        First one `ModeEvent`; then `TextEvent`s of all panes interleaved, or pane by pane when
        sequential; and one `DoneEvent` for each pane. Closing the iterator stops the answers, and
        so does `stop` by the ticket.

        Raises:
            StudioError: If nothing is loaded, an adapter is unknown, a prompt is empty or too
                long, or memory runs out.
        """
        inbox: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        with (
            self._stoppable(ticket) as stop,
            ThreadPoolExecutor(1, thread_name_prefix="answer") as thread,
        ):
            work = thread.submit(self._answer, Request(panes, sampling, inbox.put, stop))
            # Whatever way the work ends, its reader is woken; the error waits in `work`.
            work.add_done_callback(lambda _: inbox.put(None))
            try:
                while (event := inbox.get()) is not None:
                    yield event
                work.result()
            finally:
                stop.set()

    def logits(self, pane: Pane) -> list[float]:
        """Return the scores of the token that would follow a pane's prompt, shape (V,)."""
        with self._turn, torch.no_grad():
            loaded = self._need([pane.who])
            ids = torch.tensor([prompt_ids(pane, loaded.tokenizer, loaded.context)])
            with loaded.answering_as([pane.who]):
                scores: list[float] = (
                    loaded.model(ids.to(loaded.model.device)).logits[0, -1].float().tolist()
                )
            return scores

    def classify(self, text: str | Sequence[int], adapters: Sequence[Who]) -> list[list[float]]:
        """Say how likely each of the classes is for a text.

        Args:
            text: What is sorted, as training reads it: no chat template around it. Or its tokens.
            adapters: Who sorts: names of loaded adapters, or several with a weight each, None
                for the base, whose head is untrained and only guesses.

        Returns:
            For each of `adapters` the probabilities of the classes, in the order of `labels`.

        Raises:
            StudioError: If no classifier is loaded, an adapter is unknown, the text is empty or
                too long, or memory runs out.
        """
        with self._turn, torch.no_grad():
            loaded = self._need(adapters, to_classify=True)
            try:
                return probabilities(loaded, text, adapters)
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise StudioError("chat.out_of_memory") from error

    def score(
        self,
        texts: Sequence[Passage | Pane],
        adapters: Sequence[Who],
        *,
        first_choice: bool = False,
        pieces: bool = True,
        ticket: str = "",
    ) -> Iterator[ScoreProgress | Score]:
        """Say how likely the tokens of texts are, to the base and to adapters.

        Args:
            texts: What is judged. Of a pane these are the tokens of `continues`, after its prompt;
                who answers it does not matter here.
            adapters: Who judges: names of loaded adapters, or several with a weight each, None
                for the base.
            first_choice: Whether to say what the base would rather have written; the base must be
                among `adapters` then.
            pieces: Whether to say what each token writes.
            ticket: As in `generate`.

        Yields:
            A `ScoreProgress` before the first batch and after each, and one `Score` for each text,
            as they get ready: long texts first. A stop ends it after the batch.

        Raises:
            StudioError: If nothing is loaded, an adapter is unknown, a text is longer than the
                model reads, or memory runs out.
        """
        with self._stoppable(ticket) as stop, self._turn:
            loaded = self._need(adapters)
            passages = [
                passage(text, loaded.tokenizer) if isinstance(text, Pane) else text
                for text in texts
            ]
            task = ScoreTask(passages, adapters, first_choice, pieces)
            yield from score(loaded, task, stop.is_set)

    def _refuse_other_base(
        self, base: Path, adapters: Mapping[str, str], fingerprints: Mapping[str, str]
    ) -> None:
        """Refuse an adapter that was trained on other weights than those of the base."""
        known = {name: found for name, found in fingerprints.items() if name in adapters}
        if not known:
            return
        if self._fingerprint is None:
            with reading(base):
                self._fingerprint = weights_fingerprint(base)
        for name, found in known.items():
            if found != self._fingerprint:
                trained_on = read_config(Path(adapters[name])).base_model_name_or_path
                raise other_weights(
                    name, of=found, found=self._fingerprint, trained_on=trained_on or "?"
                )

    @contextmanager
    def _stoppable(self, ticket: str) -> Iterator[threading.Event]:
        """Give what `stop` sets, as long as the work takes; it may be set from the beginning."""
        stop = threading.Event()
        self._stops[stop] = ticket
        if ticket in self._stopped:
            stop.set()
        try:
            yield stop
        finally:
            del self._stops[stop]

    def _answer(self, request: Request) -> None:
        """Run a request on the generating thread."""
        with self._turn, torch.no_grad():
            answer(self._need([pane.who for pane in request.panes]), request)

    def _drop(self) -> None:
        self._loaded = self._loaded_as = self._fingerprint = None
        gc.collect()  # a model holds itself in circles, and the next one needs its room
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _need(self, asked: Sequence[Who], *, to_classify: bool = False) -> LoadedBase:
        """Return what is loaded, once it is known that it can do what is asked of all of them."""
        if self._loaded is None:
            raise StudioError("chat.not_loaded")
        if self._loaded.classifies != to_classify:
            raise StudioError("chat.no_classes" if to_classify else "chat.only_classes")
        if not asked:
            raise StudioError("chat.no_panes")
        if len(asked) > MOST_ROWS:
            raise StudioError("chat.too_many_panes", count=len(asked), most=MOST_ROWS)
        known = self._loaded.adapters
        for who in asked:
            for name in names_of(who):
                if name not in known:
                    names = ", ".join(known) or "–"
                    raise StudioError("chat.unknown_adapter", name=name, known=names)
        return self._loaded


def _stamp(base: Path) -> tuple[tuple[str, int, int], ...]:
    """Return what tells a base's weights from others that took their place: names, times, sizes.

    Raises:
        ModelError: If they cannot be read.
    """
    with reading(base):
        found = [(file.name, file.stat()) for file in weight_files(base)]
    return tuple((name, at.st_mtime_ns, at.st_size) for name, at in found)

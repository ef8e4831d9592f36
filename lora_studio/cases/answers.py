"""Answers: from the base, adapters and mixtures of them, out of one loaded model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from lora_studio.cases.adapters import Adapters
from lora_studio.cases.loading import Loading, Work
from lora_studio.cases.machine import Machine
from lora_studio.chat.request import DoneEvent, Pane, Sampling, Who, names_of
from lora_studio.chat.tickets import Ticket
from lora_studio.errors import AdapterError, StudioError
from lora_studio.library.names import Named

KIND = "compare"


class Answers:
    """Answers of a base and its adapters.

    Args:
        machine: Whose chat process answers.
        adapters: Knows adapters by name.
        loading: Loads them.
    """

    def __init__(self, machine: Machine, adapters: Adapters, loading: Loading) -> None:
        self._adapters = adapters
        self._loading = loading
        self._chat = machine.chat

    def ticket(self, asker: str) -> AbstractContextManager[Ticket]:
        """Give a ticket for several things that are asked one after the other; see `stop`."""
        return self._loading.ticket(asker)

    def ask(
        self,
        name: str,
        panes: Sequence[Pane],
        sampling: Sampling,
        *,
        ticket: Ticket | None = None,
        asker: str = "",
    ) -> Iterator[dict[str, Any]]:
        """Answer with a base and adapters out of one loaded model.

        Args:
            name: The adapter whose base and precision are used; the base goes by None in a pane.
                Where nobody but the base answers, it is asked in the words of this one.
            panes: Who answers what.
            sampling: How.
            ticket: One that is held; otherwise one is taken.
            asker: Who takes it, as `stop` knows them.

        Yields:
            As `Loading.loaded`, then the engine's events, see `chat.engine.Engine.generate`. What
            was stopped before it began is told as answers without a token.

        Raises:
            StudioError: If an adapter is not there or of another base, sorts texts into classes,
                or a training has the accelerator.
        """
        if ticket is None:
            with self.ticket(asker) as taken:
                yield from self.ask(name, panes, sampling, ticket=taken)
            return

        def answers() -> Iterator[dict[str, Any]]:
            asked = {"panes": list(panes), "sampling": sampling, "ticket": ticket.id}
            yield from self._chat.stream("generate", **asked)

        has_begun = False
        for event in self._loaded(name, [pane.who for pane in panes], answers, ticket):
            has_begun = has_begun or "mode" in event
            yield event
        if not has_begun:
            yield from (_unanswered(pane) for pane in range(len(panes)))

    def score(self, name: str, panes: Sequence[Pane], who: Sequence[Who]) -> Iterator[Any]:
        """Say how likely the answers in panes (`continues`) are to those who judge.

        Args:
            name: As in `ask`.
            panes: Prompts with their answers.
            who: Who judges; None, the base, among them: its own first choices are said too.

        Yields:
            As `Loading.loaded`, then those of `chat.engine.Engine.score`.

        Raises:
            StudioError: As `ask`.
        """

        def scores() -> Iterator[dict[str, Any]]:
            asked = {"texts": list(panes), "adapters": list(who), "first_choice": True}
            yield from self._chat.stream("score", **asked)

        yield from self._loaded(name, [*(pane.who for pane in panes), *who], scores)

    def render(self, name: str, panes: Sequence[Pane]) -> Iterator[dict[str, Any]]:
        """Show the prompts of panes as the model sees them.

        Yields:
            As `Loading.loaded`, at last `{"result": list[chat.request.Rendered]}`.

        Raises:
            StudioError: As `ask`.
        """

        def found() -> Iterator[dict[str, Any]]:
            yield {"result": self._chat.call("render", panes=list(panes))}

        yield from self._loaded(name, [pane.who for pane in panes], found)

    def labels(self, name: str) -> list[str]:
        """Return the classes an adapter sorts texts into, in their order; none if it writes.

        Raises:
            StudioError: If there is no such adapter.
        """
        return list(self._adapters.resolve(name).labels)

    def classify(self, name: str, text: str) -> Iterator[dict[str, Any]]:
        """Say how likely each class is for a text, to the base and to an adapter.

        Args:
            name: The adapter; the base's head is the untrained one that its run began with.
            text: What is sorted.

        Yields:
            As `Loading.loaded`, at last `{"labels", "base", "adapter"}`: names, and probabilities
            in the same order.

        Raises:
            StudioError: As `ask`, or if the adapter does not sort texts into classes.
        """
        named = self._adapters.resolve(name)
        if not named.labels:
            raise StudioError("chat.no_classes")

        def found() -> Iterator[dict[str, Any]]:
            base, adapter = self._chat.call("classify", text=text, adapters=[None, name])
            yield {"labels": list(named.labels), "base": base, "adapter": adapter}

        yield from self._loading.loaded([named], found, kind=KIND)

    def stop(self, asker: str = "") -> None:
        """Stop what somebody asked for: in the line, while it loads, or at the next token."""
        self._loading.stop(asker)

    def _loaded(
        self, name: str, asked: Iterable[Who], work: Work, ticket: Ticket | None = None
    ) -> Iterator[dict[str, Any]]:
        """Load everybody who is asked, on the base of one, then do some work."""
        first = self._adapters.resolve(name)
        if first.labels:
            raise StudioError("chat.only_classes")
        wanted = dict.fromkeys(other for who in asked for other in names_of(who))
        named = [self._adapters.resolve(other) for other in wanted or [name]]
        for other in named:
            _refuse_other_source(other, first)
        yield from self._loading.loaded(named, work, kind=KIND, of=first, ticket=ticket)


def _unanswered(pane: int) -> dict[str, Any]:
    """Return the end of an answer that was stopped before it began, as the engine tells it."""
    return dict(
        DoneEvent(
            pane=pane, done=True, tokens=0, seconds=0.0, first_s=None, tokens_per_s=0.0,
            reason="stopped",
        )
    )  # fmt: skip


def _refuse_other_source(adapter: Named, first: Named) -> None:
    """Refuse an adapter of another base than the first; its shapes are looked at when it loads."""
    if adapter.source != first.source:
        raise AdapterError(
            "chat.other_source", name=adapter.name, source=adapter.source, base=first.source
        )

"""The Compare tab: type once, the base and the adapter answer side by side.

A run that sorts texts into classes has a box of its own there, see `classify`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from lora_studio.chat.request import Message, Pane, Sampling
from lora_studio.errors import StudioError
from lora_studio.ui import numbers, render
from lora_studio.ui.classify import ClassifyBox
from lora_studio.ui.controls import slider
from lora_studio.ui.language import Voice, text
from lora_studio.ui.visitors import Door
from lora_studio.wording import say

YIELD_EVERY_S = 1 / 12
MOST_CHARS = 20_000
LATEX: list[dict[str, str | bool]] = []


class CompareTab:
    """Builds the tab and answers its events.

    Each side keeps a history of its own, because each is asked on from its own answers.
    """

    def __init__(self, door: Door) -> None:
        self.door = door
        with gr.Row(elem_classes="ls-line"):
            self.run = gr.Dropdown(
                [],
                label=text("compare_run"),
                info=text("compare_run_why"),
                elem_id="compare-run",
                scale=3,
            )
            self.clear = gr.Button(
                text("compare_clear"), elem_id="compare-clear", scale=0, min_width=160
            )
        with gr.Column() as self.talk:
            self.note = gr.HTML(elem_id="compare-note")
            with gr.Row():
                self.base, self.base_rate = self._side("base", text("base_side"))
                self.adapter, self.adapter_rate = self._side("adapter", text("adapter_side"))
            self._ask()
            self._settings()
        self.classes = ClassifyBox(door, self.run)
        self.base_history = gr.State([])
        self.adapter_history = gr.State([])
        self._wire()

    def _side(self, name: str, label: Any) -> tuple[gr.Chatbot, gr.HTML]:
        with gr.Column(min_width=280):
            chat = gr.Chatbot(
                label=label, elem_id=f"{name}-chat", height=420, buttons=["copy", "copy_all"],
                latex_delimiters=LATEX, allow_tags=False, placeholder=text(f"{name}_empty"),
            )  # fmt: skip
            rate = gr.HTML(elem_id=f"{name}-rate", elem_classes="ls-rate")
        return chat, rate

    def _ask(self) -> None:
        with gr.Row(elem_classes="ls-line"):
            self.question = gr.Textbox(
                label=text("question"), placeholder=text("question_hint"), lines=2, max_lines=6,
                scale=6, elem_id="question", submit_btn=False,
            )  # fmt: skip
            self.send = gr.Button(
                text("send"), variant="primary", elem_id="send", scale=0, min_width=120
            )
            self.stop = gr.Button(
                text("stop"), elem_id="stop", scale=0, min_width=120, interactive=False
            )

    def _settings(self) -> None:
        with gr.Accordion(text("compare_more"), open=False, elem_id="compare-more"):
            with gr.Row():
                self.temperature = slider(
                    0,
                    2,
                    value=0,
                    step=0.05,
                    label=text("temperature"),
                    info=text("temperature_why"),
                    elem_id="temperature",
                )
                self.top_p = slider(
                    0.05, 1, value=0.9, step=0.05, label="top_p", info=text("top_p_why")
                )
                self.tokens = slider(
                    8,
                    1024,
                    value=128,
                    step=8,
                    label=text("max_new_tokens"),
                    info=text("max_new_tokens_why"),
                    elem_id="max-new-tokens",
                )
                self.seed = gr.Number(42, label=text("seed"), precision=0, info=text("seed_why"))
            self.mode = gr.Radio(
                [(text("mode_chat"), "chat"), (text("mode_text"), "text")], value="chat",
                label=text("mode"), info=text("mode_why"),
            )  # fmt: skip
            self.system = gr.Textbox(label=text("system"), info=text("system_why"), max_lines=4)

    def _wire(self) -> None:
        inputs = [
            self.run, self.question, self.base_history, self.adapter_history, self.temperature,
            self.top_p, self.tokens, self.seed, self.mode, self.system,
        ]  # fmt: skip
        outputs = [
            self.base, self.adapter, self.base_rate, self.adapter_rate, self.base_history,
            self.adapter_history, self.question, self.send, self.stop, self.note,
        ]  # fmt: skip
        gr.on(
            [self.send.click, self.question.submit], self.answer, inputs, outputs,
            concurrency_id="gpu", concurrency_limit=1, show_progress="hidden",
        )  # fmt: skip
        self.stop.click(self.halt, None, None, queue=False)
        fresh = [
            self.base,
            self.adapter,
            self.base_rate,
            self.adapter_rate,
            self.base_history,
            self.adapter_history,
            self.note,
        ]
        gr.on(
            [self.clear.click, self.run.change, self.base.clear, self.adapter.clear],
            lambda: ([], [], "", "", [], [], ""),
            None,
            fresh,
            show_progress="hidden",
            queue=False,
        )
        self.run.change(
            self.describe,
            self.run,
            [self.adapter, self.mode, self.talk, self.clear, *self.classes.shown],
            show_progress="hidden",
        )

    # Handlers

    def choices(self, request: gr.Request, wanted: str | None = None) -> Any:
        """Offer the runs that have an adapter, the wanted or newest one chosen."""
        usable = [
            folder.id
            for folder in self.door.enter(request).folders()
            if folder.newest_adapter() is not None
        ]
        chosen = wanted if wanted in usable else (usable[0] if usable else None)
        return gr.Dropdown(choices=usable, value=chosen)

    def refreshed(self, request: gr.Request, run: Any) -> Any:
        """Offer what is there now and keep the choice."""
        return self.choices(request, run)

    def describe(self, request: gr.Request, run: Any) -> list[Any]:
        """Name the adapter's side after the run; a run on plain text continues text.

        A run that sorts texts into classes gets its own box instead.
        """
        voice, studio = Voice(request), self.door.enter(request)
        try:
            history = studio.history(str(run))
            recipe, labels = history.folder.read_recipe(), studio.labels(str(run))
        except StudioError:
            return [gr.skip()] * (4 + len(self.classes.shown))
        mode = "text" if history.plan.get("format") == "text" else "chat"
        label = voice("adapter_named", run=history.folder.id, r=recipe.adapter.r)
        answers = gr.Column(visible=not labels), gr.Button(visible=not labels)
        return [
            gr.Chatbot(label=label), mode, *answers, *self.classes.show(history, labels, voice)
        ]  # fmt: skip

    def halt(self, request: gr.Request) -> None:
        """Stop both answers at the next token."""
        self.door.enter(request).stop_answering()

    def answer(
        self, request: gr.Request, run: Any, question: Any, base: Any, adapter: Any,
        temperature: Any, top_p: Any, tokens: Any, seed: Any, mode: Any, system: Any,
    ) -> Iterator[Any]:  # fmt: skip
        """Stream both answers to one question."""
        voice, studio = Voice(request), self.door.enter(request)
        idle = (gr.Button(interactive=True), gr.Button(interactive=False))
        same = (gr.skip(),) * 6
        asked = str(question or "").strip()
        if not run or not asked or len(asked) > MOST_CHARS:
            key = "no_runs_yet" if not run else "ask_first" if not asked else "ask_shorter"
            yield *same, gr.skip(), *idle, render.note(voice(key, most=MOST_CHARS), "warn")
            return
        talk = Talk(asked, base, adapter, as_text=mode == "text", system=str(system or ""))
        busy = (gr.Button(interactive=False), gr.Button(interactive=True))
        yield *talk.shown(voice), "", *busy, render.busy(voice("compare_loading"))
        try:
            sampling = sampling_of(temperature, top_p=top_p, tokens=tokens, seed=seed)
            for note in talk.follow(studio.ask(str(run), talk.panes(str(run)), sampling), voice):
                yield *talk.shown(voice), gr.skip(), *busy, note
        except StudioError as error:
            talk.drop_empty()
            yield *talk.shown(voice), question, *idle, render.problem(error, voice)
            return
        yield *talk.shown(voice), gr.skip(), *idle, talk.note


def sampling_of(temperature: Any, *, top_p: Any, tokens: Any, seed: Any) -> Sampling:
    """Return how to pick tokens from the controls' values; temperature 0 is greedy.

    Raises:
        StudioError: If a value is no number or out of range.
    """
    try:
        return Sampling(
            greedy=not temperature,
            temperature=float(temperature or 1),
            top_p=float(top_p),
            max_new_tokens=int(tokens),
            seed=int(seed or 0),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise StudioError("page.not_numbers") from error


class Talk:
    """One question to both sides, and what has been answered so far.

    Args:
        question: What was typed.
        base, adapter: Each side's turns so far, as `{"role", "content"}`.
        as_text: Continue the text instead of answering in a chat.
        system: The system prompt, or nothing.
    """

    def __init__(
        self, question: str, base: Any, adapter: Any, *, as_text: bool, system: str
    ) -> None:
        asked: Message = {"role": "user", "content": question}
        self._as_text = as_text
        self._question = question
        self._system: list[Message] = (
            [{"role": "system", "content": system}] if system.strip() else []
        )
        self._turns: list[list[Message]] = [[*base, asked], [*adapter, asked]]
        self._answers = ["", ""]
        self._ends: list[dict[str, Any] | None] = [None, None]
        self.note = ""

    def panes(self, run: str) -> list[Pane]:
        """Return the two panes to ask the engine for: base, adapter."""
        names = (None, run)
        if self._as_text:
            return [Pane(adapter=name, text=self._question) for name in names]
        return [
            Pane(adapter=name, messages=[*self._system, *turns])
            for name, turns in zip(names, self._turns, strict=True)
        ]

    def follow(self, events: Iterator[dict[str, Any]], voice: Voice) -> Iterator[str]:
        """Take in the engine's events; yield a note about twelve times a second."""
        due = 0.0
        for event in events:
            if "stage" in event:
                yield render.stage(event, voice)
                continue
            if "mode" in event:
                self.note = self._mode_note(event, voice)
            elif "done" in event:
                self._ends[event["pane"]] = event
            else:
                self._answers[event["pane"]] += event["text"]
            if time.monotonic() >= due:
                due = time.monotonic() + YIELD_EVERY_S
                yield self.note

    def drop_empty(self) -> None:
        """Take the question back if nothing was answered."""
        if not any(self._answers):
            self._turns = [turns[:-1] for turns in self._turns]

    def shown(self, voice: Voice) -> tuple[Any, ...]:
        """Return both chats, both rates and both histories."""
        chats = [
            [*turns, {"role": "assistant", "content": answer}] if answer else turns
            for turns, answer in zip(self._turns, self._answers, strict=True)
        ]
        rates = [self._rate(end, voice) for end in self._ends]
        return (*chats, *rates, *chats)

    def _rate(self, end: dict[str, Any] | None, voice: Voice) -> str:
        if end is None:
            return ""
        return voice(
            f"rate_{end['reason']}",
            rate=f"{end['tokens_per_s']:.1f}",
            tokens=end["tokens"],
            time=numbers.duration(end["seconds"], voice.language),
        )

    def _mode_note(self, event: dict[str, Any], voice: Voice) -> str:
        if event["mode"] == "batched":
            return ""
        return render.note(
            say(event["reason"], voice.language, name=event.get("adapter", "")), "warn"
        )

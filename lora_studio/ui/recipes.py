"""Recipes on the page: saved under a name, as a script, as a command, and what differs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.errors import RecipeError, StudioError
from lora_studio.recipe import Recipe
from lora_studio.recipes.command import in_one_line, train_settings
from lora_studio.recipes.diff import Change, changes
from lora_studio.recipes.library import Saved
from lora_studio.studio import Studio
from lora_studio.ui import numbers, render
from lora_studio.ui.language import Voice, text
from lora_studio.ui.outgoing import fresh_folder, hand_out, handed
from lora_studio.ui.render import toast
from lora_studio.ui.visitors import Door

SAVED, RUN = "saved:", "run:"
"""What the page's settings can be compared with, before its name."""

RecipeOf = Callable[..., Recipe]
"""From a request and the values of the page's controls to the recipe they show."""
Show = Callable[[Recipe, gr.Request], Sequence[Any]]
"""From a recipe to what the page's controls show for it."""


class RecipePanel:
    """Builds the panel and answers its events.

    Args:
        door: Opens the studio of a request.
    """

    def __init__(self, door: Door) -> None:
        self.door = door
        with gr.Accordion(text("recipes"), open=False, elem_id="recipes"):
            self._lay_out_library()
            self._lay_out_code()
            self._lay_out_diff()
        self._recipe_of: RecipeOf = lambda *_: Recipe()

    def _lay_out_library(self) -> None:
        with gr.Row(elem_classes="ls-line"):
            self.name = gr.Textbox(
                label=text("recipes_name"), max_lines=1, max_length=80, min_width=140, scale=2,
                elem_id="recipes-name",
            )  # fmt: skip
            self.keep = _button("recipes_keep")
            self.replace = _button("recipes_replace", visible=False)
        with gr.Row(elem_classes="ls-line"):
            self.saved = gr.Dropdown(
                [], value=None, label=text("recipes_saved"), min_width=140, scale=2,
                elem_id="recipes-saved",
            )  # fmt: skip
            self.load = _button("recipes_load")
            self.delete = _button("recipes_delete")
            self.sure = _button("recipes_sure", "stop", visible=False)

        self.said = gr.HTML(elem_id="recipes-said")

    def _lay_out_code(self) -> None:
        with gr.Row(elem_classes="ls-line"):
            self.script = _button("recipes_script")
            self.command = _button("recipes_command")
            self.pack = _button("recipes_pack")
        self.exported = gr.HTML(elem_id="recipes-exported")
        self.code = gr.Code(
            interactive=False, visible=False, max_lines=18, wrap_lines=True, show_label=False,
            show_line_numbers=False, buttons=["copy"], elem_id="recipes-code",
        )  # fmt: skip
        self.file = handed("recipes-file")

    def _lay_out_diff(self) -> None:
        with gr.Row(elem_classes="ls-line"):
            self.other = gr.Dropdown(
                [], value=None, label=text("recipes_other"), min_width=140, scale=2,
                elem_id="recipes-other",
            )  # fmt: skip
            self.differ = _button("recipes_differ")
        self.diff = gr.HTML(elem_id="recipes-diff")

    @property
    def lists(self) -> list[Any]:
        """What `refreshed` takes and fills."""
        return [self.saved, self.other]

    def wire(
        self,
        inputs: Sequence[Any],
        recipe_of: RecipeOf,
        *,
        shown: Sequence[Any],
        show: Show,
        token: Any,
    ) -> None:
        """Connect the panel with the page's controls.

        Args:
            inputs: The controls.
            recipe_of: Reads them.
            shown: The components that a loaded recipe changes.
            show: Gives their values.
            token: The box with the Hub token.
        """
        self._recipe_of = recipe_of
        kept = [self.said, self.replace, *self.lists]
        gr.on(
            [self.keep.click, self.name.submit],
            self.keep_as, [self.name, *inputs], kept, show_progress="hidden",
        )  # fmt: skip
        self.replace.click(self.replace_as, [self.name, *inputs], kept, show_progress="hidden")
        # What was asked counts for the name it was asked for.
        self.name.input(lambda: ("", gr.Button(visible=False)), None, kept[:2], queue=False)
        self._wire_saved(shown, show)
        self._wire_code(inputs, token)
        self.differ.click(
            self.show_difference, [self.other, *inputs], self.diff, show_progress="hidden"
        )

    def _wire_saved(self, shown: Sequence[Any], show: Show) -> None:
        def load(saved: Any, request: gr.Request) -> Sequence[Any]:
            return show(self._saved(saved, request), request)

        self.load.click(load, self.saved, list(shown), show_progress="hidden")
        pair = [self.delete, self.sure]
        self.delete.click(lambda: _swapped(asking=True), None, pair, queue=False)
        self.saved.input(lambda: _swapped(asking=False), None, pair, queue=False)
        after = [self.said, self.replace, *pair, *self.lists]
        self.sure.click(self.drop, self.saved, after, show_progress="hidden")

    def _wire_code(self, inputs: Sequence[Any], token: Any) -> None:
        code = [self.code, self.exported]
        self.script.click(self.show_script, list(inputs), code, show_progress="hidden")
        self.command.click(self.show_command, list(inputs), code, show_progress="hidden")
        packing = self.pack.click(
            self.write_zip, [token, *inputs], [self.file, self.exported], show_progress="hidden"
        )
        hand_out(packing, self.file)

    # Handlers

    def refreshed(self, saved: Any, other: Any, request: gr.Request) -> list[Any]:
        """Return both lists as they are now, what was chosen in them still chosen."""
        return self._lists(Voice(request), self.door.enter(request), saved, other)

    def keep_as(self, request: gr.Request, name: Any, *values: Any) -> list[Any]:
        """Save the page's settings under a name; ask first where it is taken."""
        return self._keep(request, name, values, overwrite=False)

    def replace_as(self, request: gr.Request, name: Any, *values: Any) -> list[Any]:
        """Save the page's settings in place of those of the same name."""
        return self._keep(request, name, values, overwrite=True)

    def _keep(
        self, request: gr.Request, name: Any, values: Sequence[Any], *, overwrite: bool
    ) -> list[Any]:
        voice, studio = Voice(request), self.door.enter(request)
        try:
            recipe = self._recipe_of(request, *values)
            kept = studio.recipes.save(str(name or ""), recipe, overwrite=overwrite)
        except StudioError as error:
            asks = error.key == "recipes.exists"
            said = render.note(error.say(voice.language), "warn" if asks else "bad")
            return [said, gr.Button(visible=asks), gr.skip(), gr.skip()]
        said = render.note(voice("recipes_kept", name=kept), "good")
        return [said, gr.Button(visible=False), *self._lists(voice, studio, kept, None)]

    def drop(self, saved: Any, request: gr.Request) -> list[Any]:
        """Delete the chosen recipe."""
        voice, studio = Voice(request), self.door.enter(request)
        try:
            studio.recipes.delete(_name(saved))
            said = render.note(voice("recipes_deleted", name=_name(saved)), "good")
        except StudioError as error:
            said = render.problem(error, voice)
        put = (gr.Button(visible=False), *_swapped(asking=False))
        return [said, *put, *self._lists(voice, studio, None, None)]

    def show_script(self, request: gr.Request, *values: Any) -> tuple[Any, str]:
        """Show the settings as a Python script."""
        voice, studio = Voice(request), self.door.enter(request)
        try:
            script = studio.scripts.text(self._recipe_of(request, *values), voice.language)
        except StudioError as error:
            return gr.Code(visible=False), render.problem(error, voice)
        return gr.Code(script, language="python", visible=True), ""

    def show_command(self, request: gr.Request, *values: Any) -> tuple[Any, str]:
        """Show the settings as one line for the shell of the browser's system."""
        voice = Voice(request)
        is_windows = "windows" in str(request.headers.get("user-agent", "")).lower()
        try:
            recipe = self._recipe_of(request, *values)
        except StudioError as error:
            return gr.Code(visible=False), render.problem(error, voice)
        line = train_settings(recipe, "windows" if is_windows else "posix")
        if line is None:
            return gr.Code(visible=False), render.note(voice("recipes_by_file"), "warn")
        return gr.Code(line, language="shell", visible=True), ""

    def write_zip(self, request: gr.Request, token: Any, *values: Any) -> Iterator[Any]:
        """Write the script with its rows into one file for download."""
        voice, studio = Voice(request), self.door.enter(request)
        place = fresh_folder()
        try:
            recipe = self._recipe_of(request, *values)
            written = studio.scripts.write(
                recipe, place / "script", voice.language, token=token or None
            )
            for event in written:
                if "result" not in event:
                    yield gr.skip(), render.stage(event, voice)
                    continue
                file = shutil.make_archive(str(place / "script"), "zip", place / "script")
                yield file, render.note(voice("recipes_packed", **event["result"]), "good")
        except StudioError as error:
            raise toast(error, request) from error
        finally:
            shutil.rmtree(place / "script", ignore_errors=True)

    def show_difference(self, request: gr.Request, other: Any, *values: Any) -> str:
        """Show in which settings the page and the chosen recipe or run differ."""
        voice = Voice(request)
        try:
            here, there = self._recipe_of(request, *values), self._other(other, request)
        except StudioError as error:
            return render.problem(error, voice)
        return difference(changes(here, there), _name(other).partition(":")[2], voice)

    # Beneath

    def _saved(self, saved: Any, request: gr.Request) -> Recipe:
        try:
            return self.door.enter(request).recipes.load(_name(saved))
        except StudioError as error:
            raise toast(error, request) from error

    def _other(self, other: Any, request: gr.Request) -> Recipe:
        studio, name = self.door.enter(request), _name(other)
        if name.startswith(SAVED):
            return studio.recipes.load(name.removeprefix(SAVED))
        if name.startswith(RUN):
            return studio.runs.history(name.removeprefix(RUN)).folder.read_recipe()
        raise RecipeError.of([StudioError("recipes.none_chosen")])

    def _lists(self, voice: Voice, studio: Studio, saved: Any, other: Any) -> list[Any]:
        kept = studio.recipes.listed()
        names = [recipe.name for recipe in kept]
        others = [(recipe.name, f"{SAVED}{recipe.name}") for recipe in kept if recipe.recipe]
        others += [
            (voice("recipes_run", run=folder.id), f"{RUN}{folder.id}")
            for folder in studio.runs.folders()
        ]
        known = [value for _, value in others]
        return [
            gr.Dropdown(
                choices=[(label(recipe, voice), recipe.name) for recipe in kept],
                value=saved if saved in names else None,
            ),
            gr.Dropdown(choices=others, value=other if other in known else None),
        ]


def label(saved: Saved, voice: Voice) -> str:
    """Return a saved recipe's name with its date, or that it cannot be read."""
    when = numbers.moment(saved.saved_at)
    return f"{saved.name} · {voice('recipes_broken') if saved.problem else when}"


def difference(found: Iterable[Change], other: str, voice: Voice) -> str:
    """Return the settings that differ as a table: their name, the page's value, the other's."""
    rows = "".join(
        f"<tr><td><code>{escape(change.name)}</code></td>"
        f"<td>{_value(change.name, change.left)}</td><td>{_value(change.name, change.right)}</td>"
        "</tr>"
        for change in found
    )
    if not rows:
        return render.note(voice("recipes_same", name=other), "good")
    titles = (voice("diff_setting"), voice("diff_here"), other)
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    return (
        '<div class="ls-scroll"><table class="ls-table ls-diff">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _value(name: str, value: Any) -> str:
    """Return a value as a recipe file has it; of uploads only the name."""
    if name == "data.files":
        value = [Path(file).name for file in value]
    return escape(in_one_line(value))


def _swapped(*, asking: bool) -> tuple[gr.Button, gr.Button]:
    """Return the button that deletes and the one that asks again, one of them in sight."""
    return gr.Button(visible=not asking), gr.Button(visible=asking)


def _name(chosen: Any) -> str:
    return chosen if isinstance(chosen, str) else ""


def _button(name: str, variant: Any = "secondary", *, visible: bool = True) -> gr.Button:
    return gr.Button(
        text(name), size="sm", variant=variant, visible=visible, min_width=80,
        elem_id=name.replace("_", "-"),
    )  # fmt: skip

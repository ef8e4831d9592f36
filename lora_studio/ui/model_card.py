"""Card 1: the base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.errors import ModelError
from lora_studio.models.description import ModelInfo
from lora_studio.models.sources import local_models
from lora_studio.settings import STARTER
from lora_studio.studio import Studio
from lora_studio.ui import numbers, render
from lora_studio.ui.language import Voice, text

KINDS = ("starter", "hub", "folder")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The components other cards and handlers need."""

    card: gr.Accordion
    kind: gr.Radio
    repo: gr.Textbox
    token: gr.Textbox
    folder: gr.Dropdown
    look: gr.Button
    info: gr.HTML
    source: gr.State
    """The chosen model as a recipe names it; empty while none is found."""

    @property
    def shown(self) -> list[gr.components.Component | gr.blocks.BlockContext]:
        """What shows a model, in the order of `show`."""
        return [self.source, self.kind, self.repo, self.folder, self.info, self.card]


def build(studio: Studio) -> ModelCard:
    """Lay out the card."""
    with gr.Accordion(
        text("card_model"), open=False, elem_id="card-model", elem_classes="ls-card"
    ) as card:
        kinds = KINDS[:1] if studio.settings.is_showcase else KINDS
        kind = gr.Radio(
            [(text(f"model_{name}"), name) for name in kinds],
            value="starter",
            label=text("model_choice"),
            elem_id="model-kind",
        )
        with gr.Group(visible=False) as hub:
            repo = gr.Textbox(
                label=text("model_repo"),
                placeholder="owner/name",
                max_lines=1,
                elem_id="model-repo",
            )
            token = gr.Textbox(
                label=text("model_token"),
                info=text("model_token_why"),
                type="password",
                max_lines=1,
            )
            look = gr.Button(text("model_look"), elem_id="model-look")
        with gr.Group(visible=False) as local:
            folder = gr.Dropdown(
                sorted(local_models(studio.settings)),
                value=None,
                label=text("model_folder"),
                info=text("model_folder_why"),
                elem_id="model-folder",
            )
        info = gr.HTML(elem_id="model-info")
    kind.change(
        lambda name: (gr.Group(visible=name == "hub"), gr.Group(visible=name == "folder")),
        kind,
        [hub, local],
        show_progress="hidden",
        queue=False,
    )
    source = gr.State(STARTER)
    return ModelCard(card, kind, repo, token, folder, look, info, source)


def source_of(kind: Any, repo: Any, folder: Any, studio: Studio) -> str:
    """Return what the card's controls name, as a recipe's `model.source`.

    A folder is chosen by its name in the list and never by a path.

    Raises:
        ModelError: If nothing usable is named.
    """
    if kind == "starter":
        return STARTER
    if studio.settings.is_showcase:
        raise ModelError("page.space_only_starter")
    if kind == "folder":
        known = local_models(studio.settings)
        if folder not in known:
            raise ModelError("page.no_folder", home=str(studio.settings.models))
        return str(known[folder])
    name = str(repo or "").strip()
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError("page.no_repo", repo=name or "–")
    return name


def choice(source: str, studio: Studio) -> tuple[str, str, str | None]:
    """Return the controls' values that name a source: kind, repository id, folder name."""
    if source == STARTER:
        return "starter", "", None
    for name, path in local_models(studio.settings).items():
        if str(path) == source:
            return "folder", "", name
    return "hub", source, None


def show(source: str, studio: Studio, voice: Voice) -> list[Any]:
    """Return the values of `ModelCard.shown` for a model; an unknown one is to be looked up."""
    kind, repo, folder = choice(source, studio)
    info = studio.models.known(source)
    if info is None:
        waiting = render.busy(voice(f"model_{kind}_next"))
        return ["", kind, repo, folder, waiting, gr.Accordion(label=voice("card_model"), open=True)]
    card = gr.Accordion(label=title(info, voice))
    return [source, kind, repo, folder, render.model(info, voice), card]


def title(info: ModelInfo, voice: Voice) -> str:
    """Return the folded card's line."""
    name = voice("starter_name") if info.source == STARTER else info.source.rsplit("/", 1)[-1]
    return voice("card_model_done", name=name, size=numbers.count(info.parameters))

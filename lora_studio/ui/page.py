"""The whole page: head and tabs, and what ties the tabs together."""

from __future__ import annotations

from typing import Any

import gradio as gr

from lora_studio.studio import Studio
from lora_studio.ui.compare import CompareTab
from lora_studio.ui.head import head
from lora_studio.ui.language import text
from lora_studio.ui.learn import LearnPanel
from lora_studio.ui.library import LibraryTab, asked_for
from lora_studio.ui.train import TrainTab
from lora_studio.ui.visitors import Door

TRAIN, COMPARE, LIBRARY, LEARN = "train", "compare", "library", "learn"


def build_page(studio: Studio) -> gr.Blocks:
    """Build the page over a studio; nothing heavy is imported."""
    door = Door(studio)
    with gr.Blocks(
        title="LoRA Studio", fill_width=True, analytics_enabled=False, delete_cache=(3600, 86_400)
    ) as page:
        head(door)
        if studio.settings.space_id and studio.settings.is_showcase:
            _space_note(studio.settings.space_id)
        with gr.Tabs(selected=TRAIN, elem_id="tabs") as tabs:
            with gr.Tab(text("tab_train"), id=TRAIN, elem_id="tab-train"):
                train = TrainTab(door)
            with gr.Tab(text("tab_compare"), id=COMPARE, elem_id="tab-compare") as compare_tab:
                compare = CompareTab(door)
            with gr.Tab(text("tab_library"), id=LIBRARY, elem_id="tab-library"):
                library = LibraryTab(door)
            with gr.Tab(text("tab_learn"), id=LEARN, elem_id="tab-learn") as learn_tab:
                learn = LearnPanel(door)
        library.wire(train.model.token)
        learn.wire(train.model.source, train.model.token)
        learn_tab.select(train.picture, train.inputs, learn.picture, show_progress="hidden")
        page.load(
            train.sum.recipes.refreshed, train.sum.recipes.lists, train.sum.recipes.lists,
            show_progress="hidden",
        )  # fmt: skip
        page.load(train.restore, train.draft, train.restored(), show_progress="hidden")
        page.load(compare.refreshed, compare.run, compare.found, show_progress="hidden")
        compare_tab.select(
            compare.come_back, [compare.run, *compare.offered],
            [*compare.found, *compare.offered], show_progress="hidden",
        )  # fmt: skip

        def lead(request: gr.Request, run: Any) -> list[Any]:
            return [gr.Tabs(selected=COMPARE), *compare.choices(request, str(run))]

        train.panel.compare.click(
            lead, train.panel.run, [tabs, *compare.found], show_progress="hidden"
        )

        def lead_from_library(event: gr.EventData, request: gr.Request) -> list[Any]:
            return lead(request, asked_for(event))

        def reuse(event: gr.EventData, request: gr.Request) -> list[Any]:
            return [gr.Tabs(selected=TRAIN), *train.reuse(asked_for(event), request)]

        library.sheet.submit(
            lead_from_library, None, [tabs, *compare.found], show_progress="hidden"
        )
        library.sheet.retry(reuse, None, [tabs, *train.shown], show_progress="hidden")
    return page


def _space_note(space: str) -> None:
    """Lay out the line that says what this Space can do and offers one of one's own."""
    with gr.Row(elem_classes="ls-note", equal_height=True):
        gr.Markdown(text("space_note"))
        gr.Button(
            text("space_duplicate"),
            link=f"https://huggingface.co/spaces/{space}?duplicate=true",
            link_target="_blank",  # the page stands in a frame that huggingface.co may not fill
            size="sm",
            min_width=160,
            scale=0,
        )

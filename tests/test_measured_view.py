"""What the page shows of a measurement: under whose name, in which colour, in the sheet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from kept import write_run
from workers import open_studio

from lora_studio.adapters.configuration import WEIGHTS, weights_of
from lora_studio.library.names import resolve
from lora_studio.measuring import measurements
from lora_studio.measuring.measurements import Answers, Compared, Loss, Measured
from lora_studio.studio import Studio
from lora_studio.ui.language import Voice
from lora_studio.ui.library_sheet import described
from lora_studio.ui.measure_panel import MeasurePanel
from lora_studio.ui.measured import measured
from lora_studio.ui.visitors import Door
from lora_studio.wording import say

NOBODY: Any = None
LOSS = Loss(rows=9, tokens=90, mean=Compared(base=2.5, adapter=1.25, low=-1.5, high=-1.0))


def found_of(name: str, weights: str = "", **about: Any) -> Measured:
    kept = {
        "measured_at": "2026-11-23T01:00:00+00:00", "seconds": 1.0, "base": "b", "seed": 42,
        "precision": "fp32", "device": "cpu", "held_out": 9, "loss": LOSS,
    }  # fmt: skip
    return Measured(adapter=name, weights=weights, **kept | about)


def keep(studio: Studio, name: str, **about: Any) -> None:
    named = resolve(name, studio.settings)
    found = found_of(name, weights_of(named.folder), **about)
    measurements.keep(named.run.path, found)


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    """A studio with two runs, one of them measured."""
    studio = open_studio(tmp_path)
    for name in ("poems", "news"):
        write_run(studio.settings, name)
    keep(studio, "poems-1")
    yield studio
    studio.close()


def colours(shown: str) -> dict[str, str]:
    cells = re.findall(r"<tr><td>(.+?)</td><td>.+?</td><td class=\"by ?(.*?)\">", shown)
    return dict(cells)


def test_a_difference_is_coloured_only_where_its_interval_leaves_out_nothing() -> None:
    scores = {
        "exact": Compared(base=0.1, adapter=0.3, low=-0.1, high=0.5),
        "rouge_l": Compared(base=0.1, adapter=0.3, low=0.1, high=0.3),
        "match": Compared(base=0.3, adapter=0.1, low=-0.3, high=-0.1),
        "bleu": Compared(base=1.0, adapter=90.0),
    }
    answers = Answers(rows=9, max_new_tokens=9, cut_off=0, match="number", scores=scores)
    voice = Voice(None)
    shown = colours(measured([found_of("a", answers=answers)], "a", voice))
    keys = ("loss", "perplexity", "exact", "rouge_l", "match_score", "bleu")
    assert [shown[voice(f"measure_{key}")] for key in keys] == ["up", "up", "", "up", "down", ""]
    worse = Loss(rows=9, tokens=9, mean=Compared(base=1.0, adapter=2.0, low=0.5, high=1.5))
    unsure = Loss(rows=9, tokens=9, mean=Compared(base=1.0, adapter=2.0, low=-0.5, high=2.5))
    for loss, colour in ((worse, "down"), (unsure, "")):
        shown = colours(measured([found_of("a", loss=loss)], "a", voice))
        assert set(shown.values()) == {colour}


def test_each_block_has_the_name_it_goes_by_and_whose_rows_they_were() -> None:
    shown = measured(
        [found_of("a"), found_of("a", rows_of="b-1", seen=3)], "<b>Mine</b>", Voice(None)
    )
    heads = re.findall(r"<h4>(.+?)</h4>", shown)
    assert [head.split(", measured 2026-11-2")[0] for head in heads] == [
        "&lt;b&gt;Mine&lt;/b&gt;", "&lt;b&gt;Mine&lt;/b&gt; on rows of b-1"
    ]  # fmt: skip
    assert say("measuring.seen", seen="3") in shown
    assert "<b>" not in shown


def test_the_panel_shows_what_was_measured_of_the_adapter_that_is_chosen_now(
    studio: Studio,
) -> None:
    panel = MeasurePanel.__new__(MeasurePanel)
    panel.door = Door(studio)
    found, note = panel.show("poems-1", NOBODY)
    assert ("poems-1, measured" in found, note) == (True, "")
    assert panel.show("news-1", NOBODY) == ("", "")
    assert panel.show("gone", NOBODY) == ("", "")
    keep(studio, "news-1")
    found, note = panel.settle("poems-1", "news-1", NOBODY)
    assert "poems-1, measured" in found
    assert "news-1" not in found
    assert say("page.measure_elsewhere", name="news-1") in note
    unchanged = [gr.skip(), gr.skip()]
    assert list(panel.settle("news-1", "news-1", NOBODY)) == unchanged
    assert list(panel.settle("news-1", "", NOBODY)) == unchanged


def test_the_sheet_says_what_was_measured_or_where_it_can_be(studio: Studio) -> None:
    def sheet(name: str) -> str:
        return str(described(studio, {"id": name}, Voice(None))["measured"])

    assert "poems-1, measured" in sheet("poems-1")
    assert "Measured on 9 of 9 held-out rows." in sheet("poems-1")
    assert say("page.measure_none") in sheet("news-1")
    (resolve("poems-1", studio.settings).folder / WEIGHTS).write_bytes(b"others")
    assert say("page.measure_none") in sheet("poems-1")
    korean: Any = SimpleNamespace(cookies={}, headers={"accept-language": "ko"})
    assert "아직 재지 않았어요" in described(studio, {"id": "news-1"}, Voice(korean))["measured"]

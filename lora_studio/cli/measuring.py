"""The command that measures an adapter."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from lora_studio.cli.parser import Command
from lora_studio.cli.showing import DONE, print_json, result_of, studio_of
from lora_studio.measuring.measurements import Compared, Measured
from lora_studio.measuring.remarks import remarks
from lora_studio.measuring.wanted import Wanted
from lora_studio.settings import Settings
from lora_studio.wording import say

SHARES = ("exact", "rouge_l", "match")


def add(command: Command) -> None:
    """Add the command that measures an adapter."""
    evaluate = command("evaluate", _evaluate)
    evaluate.add_argument("name", metavar="RUN")
    evaluate.add_argument("--rows", type=int, metavar="N", help=say("cli.evaluate_rows"))
    evaluate.add_argument("--answers", type=int, metavar="N", help=say("cli.evaluate_answers"))
    evaluate.add_argument(
        "--match", default="", metavar="exact|number|REGEX", help=say("cli.evaluate_match")
    )
    evaluate.add_argument("--of", metavar="RUN", help=say("cli.evaluate_of"))
    evaluate.add_argument("--json", action="store_true")


def _evaluate(options: argparse.Namespace, settings: Settings) -> int:
    wanted = Wanted(rows=options.rows, answers=options.answers, match=options.match)
    studio = studio_of(settings)
    found: Measured = result_of(
        studio.measurements.evaluate(options.name, wanted, rows_of=options.of)
    )
    if options.json:
        print_json(found.to_dict())
    else:
        print_measured(found)
    return DONE


def print_measured(found: Measured) -> None:
    """Print what was found as a person reads it."""
    print(say("cli.evaluate_head", name=found.adapter))
    for line in _numbers(found):
        print(line)
    for key, values in remarks(found):
        print(say(key, **values))


def _numbers(found: Measured) -> Iterable[str]:
    if found.loss is not None:
        base, adapter = found.loss.perplexity
        yield f"loss: {_pair(found.loss.mean)}"
        yield f"perplexity: {base:.4g} → {adapter:.4g}"
    if found.answers is not None:
        for name, score in found.answers.scores.items():
            yield f"{name}: {_pair(score, as_share=name in SHARES)}"
    if found.classes is not None:
        yield f"accuracy: {_pair(found.classes.accuracy, as_share=True)}"
        yield f"f1: {_pair(found.classes.f1, as_share=True)}"


def _pair(score: Compared, *, as_share: bool = False) -> str:
    """Return base, adapter and the interval of the difference."""
    form = "{:.1%}" if as_share else "{:.4g}"
    shown = f"{form.format(score.base)} → {form.format(score.adapter)}"
    if score.low is None or score.high is None:
        return shown
    signed = form.replace(":", ":+")
    return f"{shown} ({signed.format(score.low)} … {signed.format(score.high)}, 95 %)"

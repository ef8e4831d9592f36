"""Commands that start a run, line it up, or end it."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress

from lora_studio.cli.following import LOOK_EVERY_S, follow, print_remedies
from lora_studio.cli.parser import Command
from lora_studio.cli.recipes import recipe_of, take_recipe
from lora_studio.cli.showing import DONE, FAILED, code_of, studio_of
from lora_studio.errors import RunError
from lora_studio.recipe import Recipe
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.wording import say


def add(command: Command) -> None:
    """Add the commands that start a run, or end it."""
    train = command("train", _train)
    train.add_argument("--queue", action="store_true", help=say("cli.queue_line"))
    take_recipe(train)
    retry = command("retry", _retry)
    retry.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    resume = command("resume", _resume)
    stop = command("stop", _stop)
    how = stop.add_mutually_exclusive_group()
    how.add_argument("--discard", action="store_true", help=say("cli.stop_discard"))
    how.add_argument("--pause", action="store_true", help=say("cli.stop_pause"))
    for added in (retry, resume, stop):
        added.add_argument("run_id", metavar="RUN")
    queue = command("queue", _queue)
    queue.add_argument("--to", type=int, default=1, metavar="PLACE", help=say("cli.queue_to"))
    act = queue.add_mutually_exclusive_group()
    act.add_argument("--run", action="store_true", dest="work", help=say("cli.queue_run"))
    act.add_argument("--move", metavar="RUN", help=say("cli.queue_move"))
    act.add_argument("--remove", metavar="RUN", help=say("cli.queue_remove"))


def _train(options: argparse.Namespace, settings: Settings) -> int:
    studio = studio_of(settings)
    if options.queue:
        return _line_up(studio, recipe_of(options))
    return _until_over(studio, studio.training.start(recipe_of(options)))


def _retry(options: argparse.Namespace, settings: Settings) -> int:
    """Train a run's recipe again with other settings; where another run trains, line it up."""
    studio = studio_of(settings)
    return _follow_or_say_place(studio, studio.retrying.retry(options.run_id, options.set))


def _resume(options: argparse.Namespace, settings: Settings) -> int:
    """Let a run go on from its last checkpoint; where another run trains, line it up."""
    studio = studio_of(settings)
    studio.training.resume(options.run_id)
    return _follow_or_say_place(studio, options.run_id)


def _stop(options: argparse.Namespace, settings: Settings) -> int:
    studio = studio_of(settings)
    if options.pause:
        studio.training.pause(options.run_id)
    else:
        studio.training.stop(options.run_id, keep=not options.discard)
    return DONE


def _follow_or_say_place(studio: Studio, run: str) -> int:
    return _say_place(studio, run) if run in studio.line.waiting() else _until_over(studio, run)


def _until_over(studio: Studio, run: str) -> int:
    """Follow a run to its end and print its id; Ctrl-C stops it, a second one leaves it alone."""
    try:
        history = follow(studio, run)
    except KeyboardInterrupt:
        print(say("cli.stopping"), file=sys.stderr)
        with suppress(RunError):  # it may have ended just now
            studio.training.stop(run, keep=True)
        try:
            history = follow(studio, run)
        except KeyboardInterrupt:
            print(say("cli.left_running", run=run), file=sys.stderr)
            print(run)
            return DONE
    cause = history.cause
    if cause is not None:
        print(cause, file=sys.stderr)
    print_remedies(studio, run)
    if history.resumable is not None:
        print(say("cli.resume_with", step=history.resumable, run=run), file=sys.stderr)
    print(run)
    return DONE if cause is None or history.status == "stopped" else code_of(cause)


def _line_up(studio: Studio, recipe: Recipe) -> int:
    return _say_place(studio, studio.training.line_up(recipe))


def _say_place(studio: Studio, run: str) -> int:
    place = studio.line.waiting().index(run) + 1
    print(say("cli.queue_joined", run=run, place=place), file=sys.stderr)
    print(run)
    return DONE


def _queue(options: argparse.Namespace, settings: Settings) -> int:
    """List who waits, or change that; or start one after the other."""
    studio = studio_of(settings)
    if options.work:
        try:
            return _work_through(studio)
        except KeyboardInterrupt:
            return DONE  # what trains goes on, and the others go on waiting
    if options.remove is not None:
        studio.line.remove(options.remove)
    if options.move is not None:
        studio.line.reorder(options.move, to=options.to - 1)
    waiting = studio.line.waiting()
    if not waiting:
        print(say("cli.queue_empty"), file=sys.stderr)
    for place, run in enumerate(waiting, 1):
        print(f"{place}\t{run}")
    return DONE


def _work_through(studio: Studio) -> int:
    """Start whoever is next when the accelerator is free; end when nobody waits."""
    code = DONE
    while waiting := studio.line.waiting():
        started = studio.line.start_next()
        if started is not None:
            follow(studio, started)
        for run in waiting:
            history = studio.runs.history(run)
            if run in studio.line.waiting() or not history.is_over:
                continue
            print(run)
            if history.cause is not None:
                print(history.cause, file=sys.stderr)
                code = FAILED
        if started is None:
            time.sleep(LOOK_EVERY_S)
    return code

"""The command line: `python -m lora_studio`. Thin, over the same functions as the page.

Exit codes: 0 done, 1 failed run or model, 2 bad recipe or usage with all problems listed. What a
program reads goes to stdout, what a person reads to stderr.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lora_studio.chat.request import Pane, Sampling
from lora_studio.errors import DatasetError, RecipeError, RunError, StudioError
from lora_studio.models.description import ModelInfo
from lora_studio.recipe import Recipe
from lora_studio.recipes.command import in_one_line
from lora_studio.recipes.diff import changes
from lora_studio.recipes.library import Library
from lora_studio.recipes.upgrade import read_recipe
from lora_studio.runs.history import History
from lora_studio.settings import STARTER, Settings
from lora_studio.studio import SCRIPT, Machine, Studio
from lora_studio.wording import say

LOOK_EVERY_S = 0.3
PREPARING = "{desc}: {percentage:3.0f}%|{bar}|"
"""Before the first step: what is counted is bytes, or rows of which all is an estimate."""
DONE, FAILED, UNUSABLE = 0, 1, 2
USAGE = ("settings.not_whole", "chat.bad_sampling")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    # Inherited by every process that computes. torch's threads (GNU OpenMP) spin while they wait
    # for each other, which stalls a machine whose owner is also working. Spinning less is 1.2
    # times as fast beside one busy process, and 2 to 11 % slower on a quiet machine
    # (benchmarks/waiting_threads.py).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        settings = Settings.from_environment(
            host=getattr(options, "host", None),
            port=getattr(options, "port", None),
            model_folders=tuple(getattr(options, "model_folder", None) or ()) or None,
        )
        code: int = options.run(options, settings)
    except StudioError as error:
        print(error, file=sys.stderr)
        return _code(error)
    return code


def _code(error: StudioError) -> int:
    """Return 2 for what the person who typed can mend: recipe, data, environment, options."""
    mendable = isinstance(error, (RecipeError, DatasetError))
    return UNUSABLE if mendable or error.key in USAGE else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lora_studio", description=say("cli.description"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=say(f"cli.{name}"))
        added.set_defaults(run=run)
        return added

    serve = command("serve", _serve)
    serve.add_argument("--host")
    serve.add_argument("--port", type=int)
    serve.add_argument("--model-folder", type=Path, action="append", metavar="DIR")
    train = command("train", _train)
    train.add_argument("--queue", action="store_true", help=say("cli.queue_line"))
    preview = command("preview", _preview)
    script = command("script", _script)
    script.add_argument("--out", type=Path, metavar="FOLDER")
    guess = command("estimate", _estimate)
    for added in (train, preview, script, guess):
        # Without a file, the default recipe and what --set says.
        added.add_argument("recipe", type=Path, metavar="RECIPE.yaml", nargs="?")
        added.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    command("runs", _runs)
    command("recipes", _recipes).add_argument("name", nargs="?", metavar="NAME")
    diff = command("diff", _diff)
    for side in ("left", "right"):
        diff.add_argument(side, metavar="RECIPE|NAME|RUN")
    retry = command("retry", _retry)
    retry.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    resume = command("resume", _resume)
    show = command("show", _show)
    stop = command("stop", _stop)
    how = stop.add_mutually_exclusive_group()
    how.add_argument("--discard", action="store_true", help=say("cli.stop_discard"))
    how.add_argument("--pause", action="store_true", help=say("cli.stop_pause"))
    queue = command("queue", _queue)
    queue.add_argument("--to", type=int, default=1, metavar="PLACE", help=say("cli.queue_to"))
    act = queue.add_mutually_exclusive_group()
    act.add_argument("--run", action="store_true", dest="work", help=say("cli.queue_run"))
    act.add_argument("--move", metavar="RUN", help=say("cli.queue_move"))
    act.add_argument("--remove", metavar="RUN", help=say("cli.queue_remove"))
    xray = command("xray", _xray)
    ask = command("ask", _ask)
    for added in (retry, resume, show, stop, xray, ask):
        added.add_argument("run_id", metavar="RUN")
    ask.add_argument("question")
    ask.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    ask.add_argument("--greedy", action="store_true")
    inspect = command("inspect", _inspect)
    inspect.add_argument("model", metavar="MODEL")
    for added in (show, xray, ask, inspect, preview, guess):
        added.add_argument("--json", action="store_true")
    return parser


def _studio(settings: Settings) -> Studio:
    return Studio(settings, Machine.open(settings, isolated=False))


def _serve(_: argparse.Namespace, settings: Settings) -> int:
    from lora_studio.ui.server import serve

    print(say("cli.address", url=f"http://{settings.host}:{settings.port}"), file=sys.stderr)
    try:
        serve(settings)
    except OSError as error:
        if "port" not in str(error).lower():
            raise
        sentence = say("cli.port_taken", port=settings.port, other=settings.port + 1)
        print(sentence, file=sys.stderr)
        return FAILED
    return DONE


def _train(options: argparse.Namespace, settings: Settings) -> int:
    studio = _studio(settings)
    if options.queue:
        return _line_up(studio, _recipe(options))
    return _until_over(studio, studio.start(_recipe(options)))


def _retry(options: argparse.Namespace, settings: Settings) -> int:
    """Train a run's recipe again with other settings; where another run trains, line it up."""
    studio = _studio(settings)
    return _follow_or_say_place(studio, studio.retry(options.run_id, options.set))


def _resume(options: argparse.Namespace, settings: Settings) -> int:
    """Let a run go on from its last checkpoint; where another run trains, line it up."""
    studio = _studio(settings)
    studio.resume(options.run_id)
    return _follow_or_say_place(studio, options.run_id)


def _follow_or_say_place(studio: Studio, run: str) -> int:
    return _say_place(studio, run) if run in studio.queue() else _until_over(studio, run)


def _until_over(studio: Studio, run: str) -> int:
    """Follow a run to its end and print its id; Ctrl-C stops it, a second one leaves it alone."""
    try:
        history = _follow(studio, run)
    except KeyboardInterrupt:
        print(say("cli.stopping"), file=sys.stderr)
        with suppress(RunError):  # it may have ended just now
            studio.stop(run, keep=True)
        try:
            history = _follow(studio, run)
        except KeyboardInterrupt:
            print(say("cli.left_running", run=run), file=sys.stderr)
            print(run)
            return DONE
    cause = history.cause
    if cause is not None:
        print(cause, file=sys.stderr)
    _print_remedies(studio, run)
    if history.resumable is not None:
        print(say("cli.resume_with", step=history.resumable, run=run), file=sys.stderr)
    print(run)
    return DONE if cause is None or history.status == "stopped" else _code(cause)


def _follow(studio: Studio, run: str) -> History:
    """Show a run's progress until it is over; a log file gets a line where something changed."""
    history, shown = studio.history(run), None
    said = 0
    with tqdm(unit="step", file=sys.stderr, dynamic_ncols=True) as bar:
        while True:
            now = (history.status, history.step, history.stage)
            if now != shown or sys.stderr.isatty():
                _draw(bar, history)
                shown = now
            said = _print_concerns(history, said)
            if history.is_over:
                return history
            time.sleep(LOOK_EVERY_S)
            history.update()


def _print_concerns(history: History, said: int) -> int:
    """Print what the watchdogs say beyond so many sentences; return how many there are."""
    concerns = history.concerns
    for concern in concerns[said:]:
        tqdm.write(str(concern), file=sys.stderr)
    return len(concerns)


def _print_remedies(studio: Studio, run: str) -> None:
    for remedy in studio.remedies(run):
        settings = " ".join(f"--set {change}" for change in remedy["changes"])
        print(say("cli.retry_with", run=run, settings=settings), file=sys.stderr)


def _draw(bar: tqdm[Any], history: History) -> None:
    if not history.total_steps:
        stage = history.stage
        bar.total, bar.n = stage.get("total") or None, stage.get("done", 0)
        bar.bar_format = PREPARING if bar.total else "{desc}"
        bar.set_description_str(say(f"page.stage_{stage.get('stage', 'start')}"))
        return
    bar.total, bar.n, bar.bar_format = history.total_steps, history.step, None
    bar.set_description_str(history.status, refresh=False)
    last = history.newest
    if last and last["loss"] is not None:
        rate = f"loss {last['loss']:.3f}, {last['tokens_per_s']:.0f} tokens/s"
        bar.set_postfix_str(rate, refresh=False)
    bar.refresh()


def _runs(_: argparse.Namespace, settings: Settings) -> int:
    found = _studio(settings).runs()
    if not found:
        print(say("cli.no_runs"), file=sys.stderr)
    for history in found:
        loss = history.summary()["last_train_loss"]
        shown = "–" if loss is None else f"{loss:.3f}"
        print(f"{history.folder.id}\t{history.status}\t{history.step} steps\tloss {shown}")
    return DONE


def _show(options: argparse.Namespace, settings: Settings) -> int:
    studio = _studio(settings)
    history = studio.history(options.run_id)
    summary = history.summary() | {"resumable_step": history.resumable}
    if options.json:
        _print_json(summary)
        return DONE
    warnings = summary.pop("warnings")
    _print_facts({name: value for name, value in summary.items() if value != []})
    if history.cause is not None:
        print(history.cause)
    if history.resumable is not None:
        print(say("cli.resume_with", step=history.resumable, run=options.run_id))
    for warning in warnings:
        print(warning)
    _print_remedies(studio, options.run_id)
    return DONE


def _xray(options: argparse.Namespace, settings: Settings) -> int:
    found = _result(_studio(settings).xray(options.run_id))
    if options.json:
        _print_json(found)
        return DONE
    print(say("cli.xray_line", rank=found["rank"], effective=found["effective_rank"]))
    for module in found["modules"]:
        share = module["relative_norm"]
        shown = "–" if share is None else f"{share:.2%}"
        print(
            say(
                "cli.xray_module",
                name=module["name"],
                share=shown,
                effective=module["effective_rank"],
                rank=module["rank"],
            )
        )
    return DONE


def _stop(options: argparse.Namespace, settings: Settings) -> int:
    studio = _studio(settings)
    if options.pause:
        studio.pause(options.run_id)
    else:
        studio.stop(options.run_id, keep=not options.discard)
    return DONE


def _line_up(studio: Studio, recipe: Recipe) -> int:
    return _say_place(studio, studio.line_up(recipe))


def _say_place(studio: Studio, run: str) -> int:
    place = studio.queue().index(run) + 1
    print(say("cli.queue_joined", run=run, place=place), file=sys.stderr)
    print(run)
    return DONE


def _queue(options: argparse.Namespace, settings: Settings) -> int:
    """List who waits, or change that; or start one after the other."""
    studio = _studio(settings)
    if options.work:
        try:
            return _work_through(studio)
        except KeyboardInterrupt:
            return DONE  # what trains goes on, and the others go on waiting
    if options.remove is not None:
        studio.unqueue(options.remove)
    if options.move is not None:
        studio.reorder(options.move, to=options.to - 1)
    waiting = studio.queue()
    if not waiting:
        print(say("cli.queue_empty"), file=sys.stderr)
    for place, run in enumerate(waiting, 1):
        print(f"{place}\t{run}")
    return DONE


def _work_through(studio: Studio) -> int:
    """Start whoever is next when the accelerator is free; end when nobody waits."""
    code = DONE
    while waiting := studio.queue():
        started = studio.start_next()
        if started is not None:
            _follow(studio, started)
        for run in waiting:
            history = studio.history(run)
            if run in studio.queue() or not history.is_over:
                continue
            print(run)
            if history.cause is not None:
                print(history.cause, file=sys.stderr)
                code = FAILED
        if started is None:
            time.sleep(LOOK_EVERY_S)
    return code


def _ask(options: argparse.Namespace, settings: Settings) -> int:
    sampling = Sampling(greedy=options.greedy, max_new_tokens=options.max_new_tokens)
    studio = _studio(settings)
    if studio.labels(options.run_id):
        return _classify(options, studio)
    question = [{"role": "user", "content": options.question}]
    panes = [
        Pane(adapter=None, messages=question),  # type: ignore[arg-type]
        Pane(adapter=options.run_id, messages=question),  # type: ignore[arg-type]
    ]
    answers = ["", ""]
    for event in studio.ask(options.run_id, panes, sampling):
        if "text" in event:
            answers[event["pane"]] += event["text"]
    found = dict(zip(("base", "adapter"), (answer.strip() for answer in answers), strict=True))
    if options.json:
        _print_json(found)
    else:
        _print_facts(found)
    return DONE


def _classify(options: argparse.Namespace, studio: Studio) -> int:
    """Print how likely each class is to the base and to the adapter, the likeliest first."""
    found: dict[str, Any] = {}
    for event in studio.classify(options.run_id, options.question):
        if "labels" in event:
            found = event
    shown = {
        side: dict(zip(found["labels"], found[side], strict=True)) for side in ("base", "adapter")
    }
    if options.json:
        _print_json(shown)
        return DONE
    print(say("cli.untrained_head"), file=sys.stderr)
    for side, shares in shown.items():
        ordered = sorted(shares.items(), key=lambda pair: -pair[1])
        print(f"{side}: " + ", ".join(f"{label} {share:.1%}" for label, share in ordered))
    return DONE


def _inspect(options: argparse.Namespace, settings: Settings) -> int:
    info: ModelInfo = _result(_studio(settings).inspect(options.model))
    modules = [
        {name: getattr(group, name) for name in ("name", "count", "d_in", "d_out", "kind")}
        for group in info.modules
    ]
    names = ("architecture", "parameters", "layers", "context_length", "chat_template")
    found = {name: getattr(info, name) for name in names}
    if options.json:
        _print_json(found | {"modules": modules})
        return DONE
    _print_facts(found)
    for group in modules:
        print("  {name}: {count} × {kind} {d_in} → {d_out}".format(**group))
    return DONE


def _preview(options: argparse.Namespace, settings: Settings) -> int:
    found = _result(_studio(settings).preview(_recipe(options)))
    if options.json:
        _print_json(found)
        return DONE
    _print_facts({name: value for name, value in found.items() if isinstance(value, (int, str))})
    for label, train, held in found["labels"]:
        print(say("cli.class_rows", label=label, train=train, held=held))
    for sample in found["samples"]:
        print(f"--- {sample['label']}".rstrip())
        tokens = zip(sample["tokens"], sample["mask"], strict=True)
        print("".join(f"[{text}]" if trained else text for text, trained in tokens))
    return DONE


def _script(options: argparse.Namespace, settings: Settings) -> int:
    """Print a recipe as a script, or write it into a folder with the rows it trains on."""
    studio, recipe = _studio(settings), _recipe(options)
    if options.out is None:
        print(studio.script(recipe), end="")
        return DONE
    found = _result(studio.export(recipe, options.out))
    print(say("cli.script_written", folder=str(options.out), **found), file=sys.stderr)
    print(options.out / SCRIPT)
    return DONE


def _recipes(options: argparse.Namespace, settings: Settings) -> int:
    """List the saved recipes, or print one as a recipe file."""
    library = Library.of(settings)
    if options.name is not None:
        print(library.load(options.name).to_yaml(), end="")
        return DONE
    found = library.listed()
    if not found:
        print(say("cli.no_recipes"), file=sys.stderr)
    for saved in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(saved.saved_at))
        print(f"{saved.name}\t{when}")
        if saved.problem is not None:
            print(saved.problem, file=sys.stderr)
    return DONE


def _diff(options: argparse.Namespace, settings: Settings) -> int:
    studio = _studio(settings)
    left, right = (_found(studio, name) for name in (options.left, options.right))
    for change in changes(left, right):
        print(f"{change.name}: {in_one_line(change.left)} → {in_one_line(change.right)}")
    return DONE


def _found(studio: Studio, name: str) -> Recipe:
    """Return the recipe that a file, a saved name or a run's id stands for."""
    if Path(name).is_file():
        return _read(Path(name))
    if any(saved.name == name for saved in studio.recipes.listed()):
        return studio.recipes.load(name)
    try:
        return studio.history(name).folder.read_recipe()
    except RunError as error:
        raise RecipeError.of([StudioError("recipes.unknown_anywhere", name=name)]) from error


def _estimate(options: argparse.Namespace, settings: Settings) -> int:
    """Say what a recipe would take, without training it."""
    studio, recipe = _studio(settings), _recipe(options)
    _result(studio.inspect(recipe.model.source))
    problems = studio.outlook(recipe).problems
    if problems:
        raise RecipeError.of(problems)
    report = _result(studio.preview(recipe))
    _result(studio.calibrate(recipe))
    outlook = studio.outlook(recipe, report)
    found = outlook.estimate
    if found is None:
        raise RecipeError.of(outlook.problems)
    if options.json:
        _print_json(found.to_dict())
        return DONE
    memory, place = found.memory, found.place
    for name, value in (
        ("trainable_parameters", f"{found.parameters.trainable:,}"),
        ("total_parameters", f"{found.parameters.total:,}"),
        ("adapter", _megabytes(found.parameters.adapter_bytes)),
        ("peak_memory", _megabytes(memory.total)),
        *((f"  {part}", _megabytes(size)) for part, size in memory.parts.items()),
        ("free_memory", _megabytes(place.free)),
        ("optimizer_steps", found.steps),
        ("seconds", round(found.seconds or 0)),
    ):
        print(f"{name}: {value}")
    print(say(f"prediction.{found.verdict}"))
    for fix in outlook.fixes:
        settings_ = " ".join(f"--set {change}" for change in fix.changes)
        print(say("prediction.fix_setting", settings=settings_, saved=_megabytes(fix.saved)))
    return DONE


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _recipe(options: argparse.Namespace) -> Recipe:
    """Read the recipe file; what it names is looked for beside it."""
    file: Path = options.recipe or Path("recipe.yaml")
    recipe = _read(file) if options.recipe else Recipe()
    changed = recipe.changed(options.set)
    beside = file.resolve().parent
    model = changed.model.source.strip()
    if model != STARTER and (beside / model).is_dir():
        changed = replace(changed, model=replace(changed.model, source=str(beside / model)))
    return changed.with_files(str(beside / Path(name).expanduser()) for name in changed.data.files)


def _read(file: Path) -> Recipe:
    """Read a recipe file, of this version or an earlier one."""
    try:
        return read_recipe(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError.of([StudioError("cli.recipe_missing", file=str(file))]) from error
    except UnicodeDecodeError as error:
        raise RecipeError.of([StudioError("cli.recipe_encoding", file=str(file))]) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        problem = StudioError("cli.recipe_unreadable", file=str(file), reason=reason)
        raise RecipeError.of([problem]) from error


def _result(events: Iterable[dict[str, Any]]) -> Any:
    """Show the stages of a question to the workbench and return its answer."""
    found = None
    with tqdm(file=sys.stderr, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        for event in events:
            if "result" in event:
                found = event["result"]
                continue
            bar.set_description_str(say(f"page.stage_{event['stage']}"))
            bar.total, bar.n = event["total"] or None, event["done"]
            bar.refresh()
    return found


def _print_json(found: Any) -> None:
    print(json.dumps(found, ensure_ascii=False))


def _print_facts(found: dict[str, Any]) -> None:
    for name, value in found.items():
        print(f"{name}: {value}")

"""LoRA Studio against the tools people use today: the same LoRA, the same rows, the same steps.

    python -m benchmarks.training [--rounds 3] [--llamafactory PYTHON] [--only e2e|gsm8k]

Each contestant trains in a fresh process, one after the other, round after round, so that whatever
else the machine does meets them all: this program's worker, the script of tutorials, TRL's
SFTTrainer as it comes, and LLaMA-Factory where a Python that has it is given. On a CPU all get the
model in float32: LLaMA-Factory takes what the file has, and bfloat16 is many times slower there.

Tokens are those of the rows, padding not counted, over the time of all steps but the first; the
start is from the process to the beginning of the first step. The held-out loss is measured by plain
PEFT, row by row, on answers only, for all in the same way. Nobody evaluates; this program answers
two prompts after the first step and after the last, which counts to its wall time only. It is
measured twice: from a fresh process, and with a worker that has imported everything beforehand.
Medians over the rounds; ratios are this program's to the other's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from lora_studio.runs.standby import FLAG, LATE, hand_over

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DATA = ROOT.parent / "shared" / "data"
OURS = "LoRA Studio"
READY = "its ready worker"
"""The same with a worker that has waited for its run, as the app has one when a person is about to
train; from the hand-over, which is the click."""
MINE = (OURS, READY)
HELD_OUT = 64
TARGETS = {"tokens_per_s": 1.5, "start_s": 0.7, "loss": 1.01}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What everybody is given."""

    model: str
    train: str
    held_out: str
    out: str
    times: str
    steps: int
    batch: int
    r: int = 16
    learning_rate: float = 5e-4
    max_length: int = 1024
    seed: int = 42


@dataclass(frozen=True)
class DataSet:
    """Rows of one kind."""

    file: str
    columns: tuple[str, str]
    batch: int
    steps: int


DATA_SETS = {
    "e2e": DataSet("e2e_valid.jsonl", ("prompt", "completion"), batch=8, steps=8),
    "gsm8k": DataSet("gsm8k_train.jsonl", ("question", "answer"), batch=8, steps=5),
}


def write_rows(data: DataSet, folder: Path) -> tuple[Path, Path]:
    """Write as many rows as are trained on, each once, and others to measure on."""
    lines = (DATA / data.file).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    random.Random(1).shuffle(rows)
    named = [
        json.dumps(dict(zip(("prompt", "completion"), map(row.get, data.columns), strict=True)))
        for row in rows
    ]
    count = data.batch * data.steps
    train, held_out = folder / "train.jsonl", folder / "held_out.jsonl"
    train.write_text("\n".join(named[:count]), encoding="utf-8")
    held_out.write_text("\n".join(named[count : count + HELD_OUT]), encoding="utf-8")
    return train, held_out


def in_float32(model: str, folder: Path) -> str:
    """Write the model once more as everybody is to load it, on a CPU in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if torch.cuda.is_available():
        return model
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return str(folder)


def command(name: str, task: Task, folder: Path, python: str) -> list[str]:
    """Return how a contestant is started, its settings written to the folder."""
    if name == OURS:
        return [*WORKER, str(our_run(task, folder))]
    settings = folder / "task.json"
    settings.write_text(json.dumps(asdict(task)), encoding="utf-8")
    return [python, str(HERE / "peers" / f"{FILES[name]}.py"), str(settings)]


WORKER = (sys.executable, "-u", "-m", "lora_studio.training.worker")
FILES = {"tutorial script": "tutorial", "SFTTrainer": "sft", "LLaMA-Factory": "llamafactory"}


def our_run(task: Task, folder: Path) -> Path:
    """Make a run folder of the task."""
    from lora_studio.recipe import Recipe
    from lora_studio.runs.folder import create

    training = {
        "max_steps": task.steps,
        "per_device_train_batch_size": task.batch,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0,
        "save_steps": 1_000_000,
    }
    recipe = {
        "name": "measured",
        "model": {"source": task.model},
        "data": {"files": [task.train], "max_length": task.max_length, "eval_fraction": 0},
        "adapter": {"r": task.r, "lora_alpha": 2 * task.r},
        "training": training,
        "seed": task.seed,
    }
    return create(folder / "runs", Recipe.from_dict(recipe)).path


def race(name: str, task: Task, folder: Path, python: str) -> dict[str, float]:
    """Have one contestant train once; return what was measured."""
    folder.mkdir(parents=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    if name in MINE:
        environment |= {"LORA_STUDIO_HOME": str(folder / "home"), "GOMP_SPINCOUNT": "10000"}
    if name == READY:
        run = our_run(task, folder)
        process = ready_worker(environment)
        start = time.time()
        hand_over(process, [str(run)], environment)
    else:
        started = command(name, task, folder, python)
        start = time.time()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                started, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True
            )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.time() - start
    if status:
        (log_file, *_) = (*folder.glob("runs/*/stdout.log"), folder / "log")
        raise SystemExit(f"{name}:\n" + log_file.read_text(errors="replace")[-3000:])
    began, ends, adapter = our_times(folder) if name in MINE else their_times(task)
    return {
        "start_s": began - start,
        "steps_s": ends[-1] - ends[0],
        "first_step_s": ends[0] - began,
        "wall_s": wall,
        "peak_mb": usage.ru_maxrss / 1e3,
        "loss": held_out_loss(task, adapter),
    }


def ready_worker(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a worker that waits, and wait until it has imported all it will."""
    early = {name: value for name, value in environment.items() if name not in LATE}
    process = subprocess.Popen(
        [*WORKER, FLAG], stdin=subprocess.PIPE, env=early, start_new_session=True
    )
    worked = -1.0
    while (now := sum(psutil.Process(process.pid).cpu_times()[:2])) != worked or now < 1:
        worked = now
        time.sleep(1)
    return process


def our_times(folder: Path) -> tuple[float, list[float], str]:
    """Return when steps began, when each ended, and where the adapter is, from the run's events.

    What comes between steps, the base's answers after the first one, is taken out of the ends.
    """
    (run,) = (folder / "runs").iterdir()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    first = next(at for at, event in enumerate(events) if event.get("stage") == "train")
    ends, away_s, left = [], 0.0, None
    for event in events[first:]:
        if event["event"] == "step":
            ends.append(event["time"] - away_s)
        elif event.get("stage") == "train":
            away_s += event["time"] - left if left else 0.0
            left = None
        elif event["event"] == "stage":
            left = left or event["time"]
    return events[first]["time"], ends, str(run / "adapter")


def their_times(task: Task) -> tuple[float, list[float], str]:
    """Return the same of another tool."""
    times = json.loads(Path(task.times).read_text())
    return times["began"], times["ends"], task.out


def held_out_loss(task: Task, adapter: str) -> float:
    """Return the mean loss over the answers' tokens of the held-out rows."""
    asked = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.training",
        "--measure",
        json.dumps([asdict(task), adapter]),
    ]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return float(done.stdout.splitlines()[-1])


def measure(task: dict[str, Any], adapter: str) -> float:
    """Measure it, in a process of its own."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    base = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32).to(device)
    model = PeftModel.from_pretrained(base, adapter).eval()
    total = count = 0.0
    for line in Path(task["held_out"]).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        asked = [{"role": "user", "content": row["prompt"]}]
        both = [*asked, {"role": "assistant", "content": row["completion"]}]
        start = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(both, tokenize=False)
        ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt")["input_ids"].to(
            device
        )
        first = len(tokenizer(start, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logits = model(ids).logits[0, first - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, first:], reduction="sum")
        total, count = total + loss.item(), count + len(logits)
    return total / count


def tokens_of(task: Task) -> list[int]:
    """Return the tokens of every training row."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task.model)
    rows = map(json.loads, Path(task.train).read_text(encoding="utf-8").splitlines())
    texts = [
        tokenizer.apply_chat_template(
            [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ],
            tokenize=False,
        )
        for row in rows
    ]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def main() -> int:
    """Run all rounds and print a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llamafactory", metavar="PYTHON", help="a Python with llamafactory 0.9.5")
    parser.add_argument("--only", choices=DATA_SETS, action="append")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(measure(*json.loads(options.measure)))
        return 0
    from lora_studio.models.sources import resolve
    from lora_studio.settings import STARTER, Settings

    names = [*MINE, "tutorial script", "SFTTrainer"]
    names += ["LLaMA-Factory"] if options.llamafactory else []
    met = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        starter = str(resolve(STARTER, Settings.from_environment()))
        model = in_float32(starter, folder / "model")
        for name in options.only or DATA_SETS:
            data = DATA_SETS[name]
            (folder / name).mkdir()
            train, held_out = write_rows(data, folder / name)
            found: dict[str, list[dict[str, float]]] = {tool: [] for tool in names}
            for round_ in range(options.rounds):
                # Another one begins each round.
                for tool in names[round_ % len(names) :] + names[: round_ % len(names)]:
                    place = folder / name / f"{round_}-{names.index(tool)}"
                    task = Task(
                        model=model,
                        train=str(train),
                        held_out=str(held_out),
                        out=str(place / "adapter"),
                        times=str(place / "times.json"),
                        steps=data.steps,
                        batch=data.batch,
                    )
                    python = options.llamafactory if tool == "LLaMA-Factory" else sys.executable
                    found[tool].append(race(tool, task, place, python))
                    print(f"{name} {round_ + 1} {tool}: {found[tool][-1]}", file=sys.stderr)
            met &= report(name, data, tokens_of(task), found)
    return 0 if met else 1


def report(
    name: str, data: DataSet, tokens: list[int], found: dict[str, list[dict[str, float]]]
) -> bool:
    """Print medians and ratios of one data set; return whether the targets are met."""
    # The first step warms up; which rows it had is not known, so each step counts alike.
    timed = sum(tokens) * (data.steps - 1) / data.steps
    print(
        f"\n{name}: {data.steps} steps of {data.batch} rows, {sum(tokens)} tokens"
        f" ({min(tokens)} to {max(tokens)} a row), medians of {len(found[OURS])}"
    )
    print(f"{'':16}{'tokens/s':>10}{'start s':>10}{'wall s':>10}{'peak MB':>10}{'loss':>9}")
    medians = {}
    for tool, rounds in found.items():
        values = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        values["tokens_per_s"] = statistics.median(timed / one["steps_s"] for one in rounds)
        medians[tool] = values
        print(
            f"{tool:16}{values['tokens_per_s']:10.1f}{values['start_s']:10.1f}"
            f"{values['wall_s']:10.1f}{values['peak_mb']:10.0f}{values['loss']:9.4f}"
        )
    met = True
    for tool in [name for name in found if name not in MINE]:
        # Side by side: each round's own ratio, then the middle of them.
        faster = statistics.median(
            theirs["steps_s"] / ours["steps_s"]
            for ours, theirs in zip(found[OURS], found[tool], strict=True)
        )
        cold, sooner = (
            statistics.median(
                ours["start_s"] / theirs["start_s"]
                for ours, theirs in zip(found[mine], found[tool], strict=True)
            )
            for mine in MINE
        )
        off = medians[OURS]["loss"] / medians[tool]["loss"]
        good = faster >= TARGETS["tokens_per_s"] and sooner <= TARGETS["start_s"]
        if tool == "SFTTrainer":
            good &= off <= TARGETS["loss"]
        met &= good
        print(
            f"against {tool}: tokens/s {faster:.2f}×, start {sooner:.2f}× ready and {cold:.2f}×"
            f" cold, loss {off:.3f}×"
            f" – {'met' if good else 'MISSED'} (≥ 1.5, ≤ 0.7, ≤ 1.01 of SFTTrainer's)"
        )
    return met


if __name__ == "__main__":
    sys.exit(main())

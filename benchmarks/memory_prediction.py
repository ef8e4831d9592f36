"""Predicted against measured memory and time of a training, over settings and two model sizes.

    python benchmarks/memory_prediction.py [--only TEXT] [--keep FILE]

Each setting trains two steps of its longest batch through the program's own session in a fresh
process: the starter model, and a random Llama and a random GPT-2 written to a temporary folder.
The formula's constants were found on the known settings; the fresh ones it had not seen.
On a CPU the measure is the highest resident memory over the worker that has imported everything
and loaded nothing; on CUDA the allocator's peak. Workers are told to give back freed memory, as
one that is short of it is; with plenty free they hold up to 1.6 times as much.

Time is that of the second step, against a calibration of one second in the same process. What else
runs on the machine disturbs it, so it is given twice: by the clock, and in processor seconds for
each thread, which is the time on a quiet machine. Then whole runs of 30 steps over rows of uneven
length: what was said before the first step, after 3 and after 10, against what they took.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TARGET_MEAN, TARGET_WORST = 5.0, 10.0
TARGET_TIME, TARGET_TIME_SEEN = 30.0, 10.0
STEPS = 30
MODELS: dict[str, dict[str, Any]] = {
    "llama-381m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "gpt2-123m": {
        "model_type": "gpt2",
        "vocab_size": 49152,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
    },
}
CPU_SETTINGS: list[dict[str, Any]] = [
    {"precision": "fp32", "r": 16, "batch": 2, "length": 128},
    {"precision": "fp32", "r": 64, "batch": 1, "length": 128, "labelled": 0.25},
    {"precision": "fp32", "r": 4, "batch": 4, "length": 64, "labelled": 0.5},
    {"precision": "fp32", "r": 16, "batch": 1, "length": 384, "labelled": 0.5},
    {"precision": "fp32", "r": 16, "batch": 2, "length": 128, "checkpointing": True},
    {"precision": "fp32", "r": 8, "batch": 2, "length": 128, "target": ["q_proj", "v_proj"]},
    {"precision": "nf4", "r": 16, "batch": 2, "length": 128},
    {"precision": "nf4", "r": 64, "batch": 1, "length": 256, "labelled": 0.25},
    {"precision": "nf4", "r": 16, "batch": 2, "length": 192, "checkpointing": True},
    {"precision": "int8", "r": 16, "batch": 2, "length": 128},
    {"precision": "fp32", "r": 16, "batch": 1, "length": 128, "model": "llama-381m"},
    {"precision": "nf4", "r": 16, "batch": 1, "length": 128, "model": "llama-381m"},
    {"precision": "nf4", "r": 32, "batch": 2, "length": 64, "labelled": 0.5, "model": "llama-381m"},
    {
        "precision": "int8",
        "r": 8,
        "batch": 1,
        "length": 96,
        "checkpointing": True,
        "model": "llama-381m",
    },
]
FRESH: list[dict[str, Any]] = [
    {"precision": "fp32", "r": 32, "batch": 3, "length": 96, "labelled": 0.3},
    {"precision": "fp32", "r": 8, "batch": 1, "length": 640, "labelled": 0.5},
    {"precision": "fp32", "r": 128, "batch": 2, "length": 192},
    {"precision": "fp32", "r": 16, "batch": 4, "length": 160, "checkpointing": True},
    {"precision": "nf4", "r": 8, "batch": 4, "length": 96},
    {"precision": "nf4", "r": 16, "batch": 1, "length": 512, "target": ["q_proj", "v_proj"]},
    {"precision": "int8", "r": 32, "batch": 1, "length": 320, "labelled": 0.5},
    {"precision": "fp32", "r": 64, "batch": 2, "length": 96, "model": "llama-381m"},
    {"precision": "nf4", "r": 8, "batch": 2, "length": 160, "model": "llama-381m"},
    {"precision": "fp32", "r": 16, "batch": 2, "length": 128, "model": "gpt2-123m"},
    {"precision": "fp32", "r": 32, "batch": 1, "length": 384, "model": "gpt2-123m"},
    {"precision": "nf4", "r": 16, "batch": 2, "length": 192, "model": "gpt2-123m"},
]
WHOLE_RUNS: list[dict[str, Any]] = [
    {"precision": "fp32", "r": 16, "batch": 2, "length": 256, "steps": STEPS},
    {"precision": "fp32", "r": 16, "batch": 4, "length": 96, "labelled": 0.3, "steps": STEPS},
    {"precision": "fp32", "r": 8, "batch": 2, "length": 192, "checkpointing": True, "steps": STEPS},
    {"precision": "nf4", "r": 16, "batch": 2, "length": 256, "steps": STEPS},
    {"precision": "int8", "r": 16, "batch": 2, "length": 128, "steps": STEPS},
    {"precision": "fp32", "r": 16, "batch": 2, "length": 128, "steps": STEPS, "model": "gpt2-123m"},
    {"precision": "fp32", "r": 16, "batch": 1, "length": 96, "steps": STEPS, "model": "llama-381m"},
]
CUDA_SETTINGS: list[dict[str, Any]] = [
    {
        "precision": precision,
        "r": r,
        "batch": batch,
        "length": length,
        "checkpointing": checkpointing,
        **model,
    }
    for model in ({}, {"model": "llama-381m"})
    for precision, r, batch, length, checkpointing in (
        ("bf16", 16, 4, 512, False),
        ("bf16", 64, 8, 1024, False),
        ("bf16", 16, 8, 2048, True),
        ("nf4", 16, 4, 512, False),
        ("nf4", 64, 8, 1024, True),
        ("int8", 16, 4, 512, False),
        ("fp32", 16, 4, 512, False),
    )
]


def write_model(name: str, folder: Path, tokenizer_of: Path) -> Path:
    """Write a random model of `MODELS` with the starter model's tokenizer; return its folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**MODELS[name], pad_token_id=2, bos_token_id=1, eos_token_id=2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    model.tie_weights()
    for parameter in model.parameters():
        parameter.data.uniform_(-0.03, 0.03)
    for buffer in model.buffers():
        buffer.data.zero_()
    model.save_pretrained(folder / name)
    for file in tokenizer_of.iterdir():
        if file.name.startswith(("token", "special", "vocab", "merges", "chat")):
            shutil.copy(file, folder / name)
    return folder / name


def write_rows(file: Path, setting: dict[str, Any]) -> None:
    """Write rows of which the labelled share is about as asked.

    Of a whole run they are uneven, half the limit in the middle; else longer than the limit, so
    that after cutting all are as long as may be.
    """
    length, share = setting["length"], setting.get("labelled", 1.0)
    steps = setting.get("steps")
    chance = random.Random(7)
    rows = []
    for at in range((steps or 4) * setting["batch"]):
        tokens = min(int(chance.lognormvariate(0, 0.5) * length / 2), length) if steps else length
        asked = " red" * max(round((1 - share) * tokens) - 5, 1)
        extra = 0 if steps else at
        answer = " blue" * max(round(share * tokens) + extra, 1)
        rows.append({"prompt": f"{at}{asked}", "completion": answer})
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def measure(setting: dict[str, Any], model: str) -> dict[str, Any]:
    """Train in this process; return what was predicted and measured."""
    import gc

    import bitsandbytes  # noqa: F401 - a part of the idle worker
    import torch

    import lora_studio.training.worker  # noqa: F401
    from lora_studio.hardware import probe
    from lora_studio.models.inspection import inspect_model
    from lora_studio.models.sources import resolve
    from lora_studio.prediction.calibration import measure as calibrate
    from lora_studio.prediction.estimate import estimate
    from lora_studio.prediction.memory import Place
    from lora_studio.recipe import Recipe
    from lora_studio.runs.events import EventWriter, read_events
    from lora_studio.runs.folder import create
    from lora_studio.settings import Settings
    from lora_studio.training import rehearsal
    from lora_studio.training.session import Session

    settings = Settings.from_environment()
    count = setting.get("steps", 2)
    with tempfile.TemporaryDirectory() as temporary:
        rows = Path(temporary) / "rows.jsonl"
        write_rows(rows, setting)
        adapter = {"r": setting["r"], "target_modules": setting.get("target", "all-linear")}
        recipe = Recipe.from_dict(
            {
                "name": "measured",
                "model": {"source": model},
                "precision": setting["precision"],
                "data": {
                    "files": [str(rows)],
                    "max_length": setting["length"],
                    "eval_fraction": 0.0,
                },
                "adapter": adapter,
                "training": {
                    "max_steps": count,
                    "per_device_train_batch_size": setting["batch"],
                    "activation_checkpointing": setting.get("checkpointing", False),
                    "eval_steps": 1000,
                },
            }
        )
        folder = create(Path(temporary) / "runs", recipe)
        gc.collect()
        rehearsal.reset_peak()
        idle = rehearsal.peak_bytes()
        # The rehearsal sets the peak back to measure itself; here all of the run counts.
        rehearsal.reset_peak = lambda: None
        with EventWriter(folder.events) as events:
            session = Session(recipe, settings, lambda *_: None)
            session.build(folder, events)._questions = {}  # noqa: SLF001
            ends: list[float] = []
            session._trainer.add_callback(note_step_ends(ends))  # noqa: SLF001
            hardware = probe()
            place = Place.of(hardware, setting["precision"])
            highest = rehearsal.peak_bytes()
            rate = calibrate(hardware.device, place.width)
            session.train()
        highest = max(highest, rehearsal.peak_bytes())
        found = read_events(folder.events)[0]
        report = json.loads((folder.data / "report.json").read_text(encoding="utf-8"))
        steps = [event for event in found if event["event"] == "step"]
        times = [event["time"] for event in steps]
        info = inspect_model(resolve(model, settings), model)
        predicted = estimate(info, recipe, place, report, rate=rate, steps=count)
        return {
            "device": hardware.device,
            "measured": highest - (idle if hardware.device == "cpu" else 0),
            "predicted": predicted.memory.total,
            "parts": dict(predicted.memory.parts),
            "idle": idle,
            "step_s": times[1] - times[0],
            "run": whole_run(steps, predicted.seconds) if count > 2 else {},
            "processor_step_s": (ends[1] - ends[0]) / torch.get_num_threads(),
            "predicted_step_s": predicted.step_seconds,
            "rate": rate,
        }


def whole_run(steps: list[dict[str, Any]], predicted_s: float) -> dict[str, tuple[float, float]]:
    """Return predicted and measured seconds: before the first step, after 3 and after 10.

    The first step's own time is not among the events; it is taken for as long as the second's.
    """
    times = [step["time"] for step in steps]
    whole = times[-1] - times[0]
    said = {
        f"after {at}": (steps[at - 1]["seconds_left"], times[-1] - times[at - 1]) for at in (3, 10)
    }
    return {"before": (predicted_s * (len(times) - 1) / len(times), whole), **said}


def note_step_ends(ends: list[float]) -> Any:
    """Return a callback that notes this process's processor seconds at the end of each step."""
    from transformers import TrainerCallback

    class Noted(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.process_time())

    return Noted()


def main() -> int:
    """Measure every setting in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only settings whose line contains this")
    parser.add_argument("--keep", type=Path, help="write what was measured as JSON lines")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        asked = json.loads(options.one)
        print(json.dumps(measure(asked["setting"], asked["model"])))
        return 0
    from lora_studio.hardware import probe
    from lora_studio.models.sources import resolve
    from lora_studio.settings import STARTER, Settings

    on_cuda = probe().device == "cuda"
    groups = {"known": CUDA_SETTINGS if on_cuda else CPU_SETTINGS, "fresh": FRESH}
    if on_cuda:
        del groups["fresh"]
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer_of = Path(resolve(STARTER, Settings.from_environment()))
        sources = {name: str(write_model(name, Path(temporary), tokenizer_of)) for name in MODELS}
        verdicts = []
        for group, settings in {**groups, "runs": WHOLE_RUNS}.items():
            chosen = [setting for setting in settings if options.only in f"{group} {line(setting)}"]
            found = [(s, in_process(s, sources.get(s.get("model"), STARTER))) for s in chosen]
            results += found
            if found:
                print(f"-- {group}")
                verdicts.append(summed_runs(found) if group == "runs" else summed(found))
    if options.keep:
        kept = [json.dumps({"setting": setting} | found) for setting, found in results]
        options.keep.write_text("\n".join(kept), encoding="utf-8")
    return 0 if all(verdicts) else 1


def line(setting: dict[str, Any]) -> str:
    """Return a setting in words."""
    size = setting.get("model", "starter")
    marks = [
        f"labelled {setting['labelled']:.0%}" if "labelled" in setting else "",
        "recomputed" if setting.get("checkpointing") else "",
        "+".join(setting.get("target", [])),
    ]
    return (
        f"{size:10} {setting['precision']:4} r={setting['r']:<3}"
        f" {setting['batch']}×{setting['length']:<5} {' '.join(filter(None, marks))}"
    )


def in_process(setting: dict[str, Any], model: str) -> dict[str, Any]:
    """Measure one setting in a fresh process, with the memory settings of a worker; print it."""
    from lora_studio.runs.process import ALLOCATION

    root = Path(__file__).resolve().parents[1]
    # A whole run's time is that of a worker with room, which keeps freed memory.
    allocation = {} if "steps" in setting else ALLOCATION
    environment = {**allocation, "GOMP_SPINCOUNT": "10000", **os.environ, "PYTHONPATH": str(root)}
    asked = json.dumps({"setting": setting, "model": model})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--one", asked],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found["run"]:
        said = "   ".join(f"{at} {p:6.1f} {m:6.1f} s" for at, (p, m) in found["run"].items())
        print(f"{line(setting):66} {said}", flush=True)
        return found
    off = error(found)
    print(
        f"{line(setting):66} {found['predicted'] / 1e6:8.0f} {found['measured'] / 1e6:8.0f} MB"
        f" {off:+6.1f} %   {found['predicted_step_s']:7.2f} {found['step_s']:7.2f}"
        f" {found['processor_step_s']:7.2f} s {time_error(found):+6.0f} %"
        f" {time_error(found, 'processor_step_s'):+6.0f} %",
        flush=True,
    )
    return found


def error(found: dict[str, Any]) -> float:
    """Return how far the predicted memory is off, in percent of the measured."""
    return 100 * (found["predicted"] / found["measured"] - 1)


def time_error(found: dict[str, Any], measured: str = "step_s") -> float:
    """Return how far the predicted time of a step is off, in percent of a measured one."""
    return 100 * (found["predicted_step_s"] / found[measured] - 1)


def summed_runs(results: list[tuple[dict[str, Any], dict[str, Any]]]) -> bool:
    """Print how far a run's time was off when it was said; return whether the targets are met."""
    met = True
    for at in ("before", "after 3", "after 10"):
        off = [100 * abs(found["run"][at][0] / found["run"][at][1] - 1) for _, found in results]
        target = TARGET_TIME_SEEN if at == "after 10" else TARGET_TIME
        met &= max(off) <= target
        print(
            f"time of a run, said {at}: mean error {statistics.mean(off):.0f} %,"
            f" worst {max(off):.0f} %: {'met' if max(off) <= target else 'MISSED'}"
            f" (target {target:g} %)"
        )
    return met


def summed(results: list[tuple[dict[str, Any], dict[str, Any]]]) -> bool:
    """Print mean and worst errors; return whether memory's targets are met."""
    memory = [abs(error(found)) for _, found in results]
    met = statistics.mean(memory) <= TARGET_MEAN and max(memory) <= TARGET_WORST
    print(
        f"memory: mean error {statistics.mean(memory):.1f} %, worst {max(memory):.1f} %"
        f" over {len(memory)} settings: {'met' if met else 'MISSED'}"
        f" (target {TARGET_MEAN:g} and {TARGET_WORST:g} %)"
    )
    on_cpu = results[0][1]["device"] == "cpu"
    for measure, name in (("step_s", "by the clock"), ("processor_step_s", "in processor time")):
        times = [abs(time_error(found, measure)) for _, found in results]
        if measure == "step_s" or on_cpu:
            print(
                f"time of a step {name}: mean error {statistics.mean(times):.0f} %,"
                f" worst {max(times):.0f} %:"
                f" {'met' if max(times) <= TARGET_TIME else 'MISSED'} (target {TARGET_TIME:g} %)"
            )
    return met


if __name__ == "__main__":
    sys.exit(main())

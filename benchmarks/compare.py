"""How long base and adapter take side by side, and how much memory, against the other ways.

    python -m benchmarks.compare [--rounds 5] [--tokens 32] [--threads 2]

The starter model and a random adapter of rank 16 on all its linear layers answer one question,
greedily and all of the tokens, in processes of their own that are asked in turns, so that whatever
else the machine does meets them all: this program's engine; PEFT's own mixed batch; two models
loaded at once; and transformers' generate with the base alone. Ratios are made within each round,
and their medians printed. The peak of memory is each process's own; on a GPU, of
what torch allocated there. Seconds of the processor are
printed beside those of the clock, because other programs change them less.

An adapter switch is the time until the engine is ready to answer as another one: between two that
are attached, and with one that is read from disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
QUESTION = [{"role": "user", "content": "Tell me a long story about a lighthouse and its keeper."}]
NAMES = ("a", "b", "c")
PROCESSES = ("engine", "peft", "two", "plain")
TOGETHER = {"cuda": 1.1, "cpu": 1.7}
FIRST = 1.5
SWITCH_S = 0.1

Timed = dict[str, float]
Measure = Callable[[], dict[str, Timed]]


def make_adapters(model: str, folder: Path) -> None:
    """Write adapters whose change is small but not nothing, as after a short training."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    wrapped = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    for name in NAMES:
        for key, parameter in wrapped.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=1e-3)
        wrapped.save_pretrained(folder / name, save_embedding_layers=False)


@contextmanager
def timed(found: Timed) -> Iterator[None]:
    """Note how long the block takes, by the clock and by the processor."""
    started = time.perf_counter(), time.process_time()
    yield
    found["wall_s"] = time.perf_counter() - started[0]
    found["cpu_s"] = time.process_time() - started[1]


def engine(model: str, adapters: Path, device: str, tokens: int) -> Measure:
    """Return what measures this program: answers alone, together, in turn; and switches."""
    from lora_studio.chat.engine import Engine
    from lora_studio.chat.request import Pane, Sampling

    precision = "bf16" if device == "cuda" else "fp32"
    folders = {name: str(adapters / name) for name in NAMES}
    base, adapter = (Pane(adapter=name, messages=QUESTION) for name in (None, "a"))
    one = Engine()

    def load(*names: str) -> None:
        one.load(model, precision, device, {name: folders[name] for name in names})

    def asked(*calls: list[Pane]) -> Timed:
        found: Timed = {}
        started = time.perf_counter()
        with timed(found):
            for panes in calls:
                for event in one.generate(panes, Sampling(max_new_tokens=tokens)):
                    if "text" in event:
                        found.setdefault("first_s", time.perf_counter() - started)
                    if event.get("done") and event["tokens"] != tokens:  # type: ignore[typeddict-item]
                        raise SystemExit("an answer ended before its time")
        return found

    def switched(start: tuple[str, ...], end: tuple[str, ...]) -> Timed:
        load(*start)
        found: Timed = {}
        with timed(found):
            load(*end)
            loaded = one._loaded  # noqa: SLF001 - what a switch is, without an answer
            assert loaded is not None
            with loaded.answering_as([None, end[-1]]):
                pass
        return found

    def measure() -> dict[str, Timed]:
        load("a")
        found = {
            "base alone": asked([base]),
            "adapter alone": asked([adapter]),
            "together": asked([base, adapter]),
            "two calls": asked([base], [adapter]),
        }
        found["switch: attached"] = switched(("a", "b"), ("a", "b"))
        found["switch: from disk, beside another"] = switched(("a",), ("a", "c"))
        found["switch: from disk, in place of another"] = switched(("a",), ("c",))
        return found

    load()
    return measure


class First:
    """Notes when generate gives its first token; a streamer, as transformers has them."""

    def __init__(self) -> None:
        self.seen = 0
        self.first_s = 0.0
        self._start = time.perf_counter()

    def put(self, _value: Any) -> None:
        """Take the prompt, then tokens."""
        self.seen += 1
        if self.seen == 2:
            self.first_s = time.perf_counter() - self._start

    def end(self) -> None:
        """Do nothing."""


def library(model: str, adapters: Path, device: str, tokens: int, way: str) -> Measure:
    """Return what measures the libraries themselves."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(model, dtype=dtype, device_map=device).eval()

    tokenizer = AutoTokenizer.from_pretrained(model)
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    plain = base() if way != "peft" else None
    adapted = PeftModel.from_pretrained(base(), adapters / "a").eval() if way != "plain" else None

    def generated(asked: Any, rows: int = 1, **options: Any) -> First:
        first = First()
        batch = tokenizer([text] * rows, add_special_tokens=False, return_tensors="pt").to(device)
        settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        asked.generate(**batch, **settings, streamer=first, **options)
        return first

    def measure() -> dict[str, Timed]:
        found: Timed = {}
        with timed(found):
            if way == "peft":
                first = generated(adapted, 2, adapter_names=["__base__", "default"])
            else:
                first = generated(plain)
            if way == "two":
                generated(adapted)
        return {way: found | {"first_s": first.first_s}}

    return measure


def serve(options: argparse.Namespace) -> int:
    """Measure once for each line that comes, in a process of its own."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = (options.model, Path(options.adapters), device, options.tokens)
    with torch.no_grad():
        way = options.serve
        measure = engine(*arguments) if way == "engine" else library(*arguments, way)
        measure()  # warms up
        print(json.dumps(device), flush=True)
        for _ in sys.stdin:
            print(json.dumps(measure()), flush=True)
    print(json.dumps(peak_mb(device)), flush=True)
    return 0


def peak_mb(device: str) -> float:
    """Return the most memory this process ever had where its model is, in MB."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


class Contestant:
    """A process that measures when asked."""

    def __init__(self, way: str, model: str, adapters: Path, options: argparse.Namespace) -> None:
        command = [
            sys.executable, "-W", "ignore", "-m", "benchmarks.compare", "--serve", way,
            "--model", model, "--adapters", str(adapters), "--tokens", str(options.tokens),
            "--threads", str(options.threads),
        ]  # fmt: skip
        environment = {"GOMP_SPINCOUNT": "10000"} | os.environ | {"HF_HUB_OFFLINE": "1"}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        self.device = str(self._read())

    def measure(self) -> dict[str, Timed]:
        """Have it measure once."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, Timed] = self._read()
        return found

    def end(self) -> float:
        """End it; return the most memory it ever had, as `peak_mb`."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        peak = float(self._read())
        self._process.wait()
        return peak

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise SystemExit(self._errors.read().decode(errors="replace")[-3000:])
        return json.loads(line)


def main() -> int:
    """Measure all rounds and print; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    for hidden in ("--serve", "--model", "--adapters"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options)
    from lora_studio.models.sources import resolve
    from lora_studio.settings import STARTER, Settings

    model = str(resolve(STARTER, Settings.from_environment()))
    with tempfile.TemporaryDirectory() as temporary:
        adapters = Path(temporary)
        make_adapters(model, adapters)
        contestants = {way: Contestant(way, model, adapters, options) for way in PROCESSES}
        rounds: list[dict[str, Timed]] = []
        for number in range(options.rounds):
            found: dict[str, Timed] = {}
            for way in PROCESSES[number % 4 :] + PROCESSES[: number % 4]:
                found |= contestants[way].measure()
            rounds.append(found)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        device = contestants["engine"].device
        memory = {way: one.end() for way, one in contestants.items()}
    return report(rounds, memory, device)


LABELS = {
    "base alone": ("engine", "the base's answer alone"),
    "adapter alone": ("engine", "the adapter's answer alone"),
    "together": ("engine", "both in one batch"),
    "two calls": ("engine", "both, one call after the other"),
    "peft": ("peft", "PEFT's own mixed batch"),
    "two": ("two", "two loaded models, one after the other"),
    "plain": ("plain", "transformers' generate, the base alone"),
}


def report(rounds: list[dict[str, Timed]], memory: dict[str, float], device: str) -> int:
    """Print medians and ratios; return 1 if a target is missed."""

    def middle(way: str, what: str) -> float:
        return statistics.median(one[way][what] for one in rounds)

    def ratio(way: str, other: str, what: str = "wall_s") -> float:
        return statistics.median(one[way][what] / one[other][what] for one in rounds)

    print(f"\n{device}, medians of {len(rounds)} rounds")
    print(f"{'':42}{'s':>8}{'CPU s':>8}{'first s':>9}{'peak MB':>9}{'× base':>8}{'CPU ×':>7}")
    for way, (process, label) in LABELS.items():
        print(
            f"{label:42}{middle(way, 'wall_s'):8.2f}{middle(way, 'cpu_s'):8.2f}"
            f"{middle(way, 'first_s'):9.3f}{memory[process]:9.0f}{ratio(way, 'base alone'):8.2f}"
            f"{ratio(way, 'base alone', 'cpu_s'):7.2f}"
        )
    targets = [
        ("both to one answer", ratio("together", "base alone"), TOGETHER[device]),
        ("the same in processor time", ratio("together", "base alone", "cpu_s"), TOGETHER[device]),
        ("both to two calls", ratio("together", "two calls"), 1.0),
        ("both to two loaded models", ratio("together", "two"), 1.0),
        ("memory to two loaded models", memory["engine"] / memory["two"], 1.0),
        ("first text to generate's token", ratio("base alone", "plain", "first_s"), FIRST),
        (
            "the same where both read the question first",
            ratio("together", "plain", "first_s"),
            FIRST,
        ),
    ]
    for way in [name for name in rounds[0] if name.startswith("switch")]:
        targets.append((f"{way}, s", middle(way, "wall_s"), SWITCH_S))
        targets.append((f"{way}, CPU s", middle(way, "cpu_s"), SWITCH_S))
    print()
    for label, value, target in targets:
        verdict = "met" if value <= target else "missed"
        print(f"{label:52}{value:8.3f}   target {target:5.2f}   {verdict}")
    return int(any(value > target for _, value, target in targets))


if __name__ == "__main__":
    sys.exit(main())

"""Does compiling a model's layers pay? The same batches in three ways, turn by turn.

    python -m benchmarks.compiling [--steps 6] [--layers 30]

One model with random weights in the starter model's shapes and LoRA on all linear layers takes each
batch three times: with the library's layers, with those put together by hand (`training/fused.py`)
and with compiled ones (`training/compiled.py`). Rows are laid end to end, 8 of 30 to 90 tokens, so
that no two batches are equally long. Printed: the seconds that compiling took, and for each way the
median of tokens per second and per second of processor time, which other programs do not change.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from lora_studio.training.compiled import as_written, compile_layers
from lora_studio.training.documents import EndToEnd, attend_by_document
from lora_studio.training.fused import fuse, separate
from lora_studio.training.writing import summed_loss

WAYS = ("library", "by hand", "compiled")
ROWS = 8


def make_model(layers: int, device: str) -> Any:
    """Return a random model in the starter model's shapes, its rows attending end to end."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    base = LlamaForCausalLM(config).to(device, dtype)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).train()
    attend_by_document(model)
    return model


def batches(device: str) -> Iterator[dict[str, Any]]:
    """Yield batches of rows of random length, half of each to be learned."""
    chance, collate = random.Random(3), EndToEnd(shares=True)
    while True:
        rows = []
        for _ in range(ROWS):
            ids = [chance.randrange(5, 49_000) for _ in range(chance.randint(30, 90))]
            half = len(ids) // 2
            rows.append({"input_ids": ids, "labels": [-100] * half + ids[half:]})
        batch = collate(rows)
        yield {
            name: part.to(device) if hasattr(part, "to") else part for name, part in batch.items()
        }


@contextmanager
def computed(model: Any, way: str) -> Iterator[None]:
    """Have a compiled model compute in a way inside the block."""
    if way == "compiled":
        yield
        return
    if way == "by hand":
        fuse(model)
    with as_written(model):
        yield
    separate(model)


def timed(step: Callable[[], torch.Tensor], device: str) -> tuple[float, float, float]:
    """Return the seconds of a step by the clock and by the processor, and its loss."""
    started = time.perf_counter(), time.process_time()
    loss = step().item()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started[0], time.process_time() - started[1], loss


def main() -> int:
    """Measure and print; fail where two ways differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--layers", type=int, default=30)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, stream = make_model(options.layers, device), batches(device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
    batch = next(stream)

    def loss() -> torch.Tensor:
        with autocast:
            return summed_loss(model, batch) / len(batch["labels"])

    def step() -> torch.Tensor:
        found = loss()
        found.backward()
        model.zero_grad(set_to_none=True)
        return found

    began = time.process_time()
    seconds = compile_layers(model, loss, tolerance=1e-4 if device == "cpu" else 2e-2)
    print(f"compiling: {seconds:.0f} s, {time.process_time() - began:.0f} s here", flush=True)
    rates: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    worst = 0.0
    for turn in range(options.steps + 1):
        batch, losses = next(stream), []
        for way in WAYS:
            with computed(model, way):
                wall, own, value = timed(step, device)
            losses.append(value)
            if turn:  # the first of each way warms up
                rates[way].append((batch["tokens"] / wall, batch["tokens"] / own))
        worst = max(worst, max(losses) - min(losses))
    print(f"{'':12}{'tokens/s':>10}{'tokens / processor s':>22}")
    for way, found in rates.items():
        wall, own = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{way:12}{wall:10.0f}{own:22.1f}")
    print(f"the three losses of a batch differ by {worst:.2g} at most")
    return 0 if worst < 0.05 else 1


if __name__ == "__main__":
    sys.exit(main())

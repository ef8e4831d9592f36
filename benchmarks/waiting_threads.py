"""How long should torch's threads spin while they wait for each other?

    python benchmarks/waiting_threads.py --rounds 2

Measures matrix work as a training does it and answers as a chat does them, on a quiet machine
and beside one other busy process: with GNU OpenMP's default, with spinning cut short as LoRA
Studio sets it, and with none. Weights are random, in the starter model's shapes: nothing is
downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

SETTINGS = {
    "default": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
MEASURE = """
import json, time, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
x, up, down = torch.randn(750, 576), torch.randn(1536, 576), torch.randn(576, 1536)
def work():
    start = time.perf_counter()
    for _ in range(60):
        torch.nn.functional.silu(x @ up.T) @ down.T
    return 60 / (time.perf_counter() - start)
config = LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536,
                     num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3)
model = LlamaForCausalLM(config).eval()
ids = torch.ones(2, 8, dtype=torch.long)
def answer(tokens):
    start = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
                   min_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return 2 * tokens / (time.perf_counter() - start)
work(), answer(2)
print(json.dumps({"matrix": work(), "answer": answer(16)}))
"""


def measure(environment: dict[str, str]) -> dict[str, float]:
    """Return layer products and answered tokens a second, in a fresh process."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(output.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print medians, and their ratio to the default, for each setting and surrounding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    for surrounding in ("quiet", "one busy process"):
        busy = surrounding != "quiet"
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
        try:
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
            for _ in range(rounds):
                for name, environment in SETTINGS.items():
                    runs[name].append(measure(environment))
        finally:
            if other:
                other.kill()
                other.wait()
        for kind in ("matrix", "answer"):
            medians = {
                n: statistics.median(run[kind] for run in found) for n, found in runs.items()
            }
            for name, median in medians.items():
                ratio = median / medians["default"]
                print(f"{surrounding:18} {kind:8} {name:26} {median:8.2f}/s  {ratio:5.2f}×")


if __name__ == "__main__":
    main()

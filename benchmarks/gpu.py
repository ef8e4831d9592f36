"""Speed and memory of a training step on one GPU, over Llama's shapes with random weights; no hub.

    python -m benchmarks.gpu [--only TEXT] [--tiny]

Each line is a process of its own: this program's arithmetic (rows end to end, fused layers, scores
of labelled tokens only), the same without packing, without fused layers or compiled, the loop that
people write over PEFT, and TRL's SFTTrainer as it comes. Rows are as long as may be (2×2048 and
4×2048), and once uneven. Printed: tokens a second without padding, which share of the arithmetic
limit that is, the allocator's peak, and the norm of the gradient, which must not be zero.

The limit is the rate of a large product of matrices in the same process over the FLOP of a token:
4·N + 6·N_lora + 6·s·d·L, and 2·(N - V·H) again where activations are recomputed. `--tiny` runs
everything over a toy on any machine, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "vocab_size",
)  # fmt: skip
SHAPES: dict[str, dict[str, int]] = {
    name: dict(zip(SIZES, sizes, strict=True))
    for name, sizes in {
        "1B": (2048, 8192, 16, 32, 8, 128_256),
        "3B": (3072, 8192, 28, 24, 8, 128_256),
        "8B": (4096, 14_336, 32, 32, 8, 128_256),
        "tiny": (64, 128, 2, 4, 2, 512),
    }.items()
}
WARM_UP, TIMED = 2, 4
RANK = 16
SMALL = ("1B", "3B")
"""Their embedding is their head, as in Llama 3.2."""
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One line of the table."""

    shape: str
    precision: str = "bf16"
    rows: int = 2
    length: int = 2048
    way: str = "ours"
    """`ours`, `no packing`, `not fused`, `compiled`, `PEFT`, `SFTTrainer`."""
    uneven: bool = False
    checkpointing: bool = False

    @property
    def line(self) -> str:
        """The setting in words."""
        marks = [self.way, "uneven" * self.uneven, "recomputed" * self.checkpointing]
        size = f"{self.rows}×{self.length}"
        return f"{self.shape:5}{self.precision:5}{size:8}{' '.join(filter(None, marks))}"


def settings(*, tiny: bool) -> list[Setting]:
    """Return what is measured, within eight minutes on one GPU."""
    if tiny:
        ways = ("ours", "no packing", "not fused", "PEFT", "SFTTrainer")
        return [Setting(shape="tiny", precision="fp32", length=32, way=way) for way in ways]
    return [
        *(Setting(shape="1B", way=way, rows=4, uneven=True)
          for way in ("ours", "no packing", "not fused", "compiled", "PEFT", "SFTTrainer")),
        *(Setting(shape="3B", precision=precision, rows=4) for precision in ("bf16", "nf4")),
        *(Setting(shape="8B", precision=precision, rows=rows)
          for precision in ("bf16", "nf4") for rows in (2, 4)),
        Setting(shape="8B", precision="nf4", checkpointing=True),
        Setting(shape="8B", way="PEFT"),
        Setting(shape="8B", way="SFTTrainer"),
        Setting(shape="8B", precision="nf4", way="SFTTrainer"),
    ]  # fmt: skip


def make_model(setting: Setting, device: str) -> Any:
    """Return a random model with an adapter on all linear layers, frozen weights as asked."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        **SHAPES[setting.shape],
        tie_word_embeddings=setting.shape in SMALL,
        max_position_embeddings=8192,
    )
    dtype = torch.float32 if setting.precision == "fp32" else torch.bfloat16
    with torch.device(device):
        base = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if setting.precision == "nf4":
        quantise(base, device)
    if setting.way == "SFTTrainer":
        return base
    model = get_peft_model(
        base, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=ALL, task_type="CAUSAL_LM")
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if setting.checkpointing:
        model.enable_input_require_grads()
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model.train()


def quantise(base: Any, device: str) -> None:
    """Put NF4 layers in place of all linear ones but the head."""
    import torch
    from bitsandbytes.nn import Linear4bit

    for path, module in list(base.named_modules()):
        if type(module) is not torch.nn.Linear or path == "lm_head":
            continue
        small = Linear4bit(
            module.in_features, module.out_features, bias=False,
            compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4",
        )  # fmt: skip
        small.weight.data = module.weight.data.cpu()
        parent, _, name = path.rpartition(".")
        setattr(base.get_submodule(parent), name, small.to(device))
    base.is_loaded_in_4bit = True
    base.is_quantized = True
    base.requires_grad_(requires_grad=False)


def make_rows(setting: Setting, count: int) -> list[dict[str, list[int]]]:
    """Return rows of random tokens, half of each to be learned."""
    chance = random.Random(3)
    vocabulary = SHAPES[setting.shape]["vocab_size"]
    rows = []
    for _ in range(count):
        share = min(chance.lognormvariate(-1, 0.6), 1) if setting.uneven else 1
        length = max(int(setting.length * share), 8)
        ids = [chance.randrange(5, vocabulary) for _ in range(length)]
        rows.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    return rows


def our_step(
    setting: Setting, model: Any, some: list[Any], device: str
) -> Callable[[list[Any]], Any]:
    """Return what makes an optimizer step of a batch and returns the gradient's norm.

    Layers that are compiled are compared on `some` rows with those that are not.
    """
    import torch

    from lora_studio.training.compiled import compile_layers
    from lora_studio.training.documents import EndToEnd, Padded, attend_by_document
    from lora_studio.training.engine import TOLERANCE
    from lora_studio.training.fused import fuse
    from lora_studio.training.writing import summed_loss

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    collate: Any = Padded(0)
    if setting.way in ("ours", "not fused", "compiled"):
        attend_by_document(model)
        collate = EndToEnd(shares=False)
    if setting.way in ("ours", "no packing"):
        fuse(model)
    autocast = torch.autocast(device, torch.bfloat16, enabled=setting.precision != "fp32")

    def our_loss(rows: list[Any]) -> Any:
        batch = {
            name: part.to(device) if hasattr(part, "to") else part
            for name, part in collate(rows).items()
        }
        return summed_loss(model, batch) / len(batch["labels"])

    def loss_of(rows: list[Any]) -> Any:
        with autocast:
            return library_loss(model, rows, device) if setting.way == "PEFT" else our_loss(rows)

    if setting.way == "compiled":
        compile_layers(model, lambda: loss_of(some), tolerance=TOLERANCE[setting.precision])

    def step(rows: list[Any]) -> Any:
        loss_of(rows).backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return norm

    return step


def library_loss(model: Any, rows: list[Any], device: str) -> Any:
    """Return the model's own loss of padded rows, as the loop of a tutorial has it."""
    import torch

    stack = torch.nn.utils.rnn.pad_sequence
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    return model(
        input_ids=stack(ids, batch_first=True).to(device),
        attention_mask=stack([torch.ones_like(row) for row in ids], batch_first=True).to(device),
        labels=stack(labels, batch_first=True, padding_value=-100).to(device),
        use_cache=False,
    ).loss


def timed_steps(setting: Setting, model: Any, rows: list[Any], device: str) -> tuple[float, float]:
    """Return the seconds of the timed steps and the last gradient's norm."""
    batches = [rows[at : at + setting.rows] for at in range(0, len(rows), setting.rows)]
    step = our_step(setting, model, batches[0], device)
    for batch in batches[:WARM_UP]:
        step(batch)
    settle(device)
    start = time.perf_counter()
    for batch in batches[WARM_UP:]:
        norm = step(batch)
    settle(device)
    return time.perf_counter() - start, float(norm)


def trl_steps(setting: Setting, model: Any, rows: list[Any], device: str) -> tuple[float, float]:
    """Return the same of TRL's SFTTrainer as it comes."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from benchmarks.toy_tokenizer import toy_tokenizer

    ends: list[float] = []

    class Noted(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            settle(device)
            ends.append(time.perf_counter())

    tokenizer: PreTrainedTokenizerFast = toy_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                max_steps=WARM_UP + TIMED,
                per_device_train_batch_size=setting.rows,
                max_length=setting.length,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                use_cpu=device == "cpu",
                bf16=device != "cpu",
                disable_tqdm=True,
                train_sampling_strategy="sequential",
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=RANK, lora_alpha=2 * RANK, target_modules=ALL, task_type="CAUSAL_LM"
            ),
            callbacks=[Noted()],
        )
        trainer.train()
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    return ends[-1] - ends[WARM_UP - 1], float(norms[-1])


def measure(setting: Setting) -> dict[str, float]:
    """Measure one setting in this process."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    limit = matmul_rate(device, setting)
    model = make_model(setting, device)
    rows = make_rows(setting, setting.rows * (WARM_UP + TIMED))
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    run = trl_steps if setting.way == "SFTTrainer" else timed_steps
    seconds, norm = run(setting, model, rows, device)
    tokens = sum(len(row["input_ids"]) for row in rows[WARM_UP * setting.rows :])
    rate = tokens / seconds
    return {
        "tokens_per_s": rate,
        "limit": rate * flop_per_token(setting) / limit,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0,
        "grad_norm": norm,
    }


def flop_per_token(setting: Setting) -> float:
    """Return the FLOP that a token takes at least; see the module."""
    shape = SHAPES[setting.shape]
    wide, inner, layers = (
        shape[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    narrow = wide * shape["num_key_value_heads"] // shape["num_attention_heads"]
    sizes = [(wide, wide), (wide, narrow), (wide, narrow), (wide, wide)]
    sizes += [(wide, inner), (wide, inner), (inner, wide)]
    body = layers * sum(d_in * d_out for d_in, d_out in sizes)
    adapter = layers * RANK * sum(map(sum, sizes))
    head = wide * shape["vocab_size"]
    attention = 6 * setting.length * wide * layers
    again = 2 * body if setting.checkpointing else 0
    return 4 * (body + head) + 6 * adapter + attention + again


def matmul_rate(device: str, setting: Setting) -> float:
    """Return the FLOP a second of a large product of matrices."""
    import torch

    size = 8192 if device == "cuda" else 512
    dtype = torch.float32 if setting.precision == "fp32" else torch.bfloat16
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    settle(device)
    start = time.perf_counter()
    for _ in range(10):
        a @ b
    settle(device)
    return 10 * 2 * size**3 / (time.perf_counter() - start)


def settle(device: str) -> None:
    """Wait for what the device still does."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    """Measure each setting in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only settings whose line contains this")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(Setting(**json.loads(options.one)))))
        return 0
    failed = False
    print(f"{'':50}{'tokens/s':>10}{'of limit':>10}{'peak GB':>9}{'grad norm':>11}")
    for setting in settings(tiny=options.tiny):
        if options.only not in setting.line:
            continue
        asked = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu"]
        asked += ["--one", json.dumps(asdict(setting))]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            failed = True
            print(f"{setting.line:50} {done.stderr.strip().splitlines()[-1][:120]}", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        failed |= not found["grad_norm"] > 0
        print(
            f"{setting.line:50}{found['tokens_per_s']:10,.0f}{found['limit']:10.0%}"
            f"{found['peak_gb']:9.1f}{found['grad_norm']:11.4f}",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

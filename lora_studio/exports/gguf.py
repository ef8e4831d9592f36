"""A merged model as one GGUF file, for llama.cpp, Ollama and their relatives.

What was written is loaded again, by transformers, and compared with the merged model: each of its
tensors, what it says of a few texts, and the answers that it gives.
"""

from __future__ import annotations

import gc
import itertools
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lora_studio.data import templates
from lora_studio.data.examples import Message
from lora_studio.errors import StudioError
from lora_studio.exports import converter
from lora_studio.exports.difference import (
    LONGEST,
    TEXTS,
    Difference,
    compare,
    logits_of,
)
from lora_studio.exports.merged import Merge, merged_bytes, write_merged
from lora_studio.exports.orders import QUANTIZATIONS
from lora_studio.models.fingerprint import weight_files
from lora_studio.models.hub import OnProgress
from lora_studio.models.loading import load_model, load_tokenizer, reading
from lora_studio.settings import Settings

TOLERANCE: dict[str, float] = {"f16": 0.002, "q8_0": 0.25}
"""Largest `Difference.relative` from the merged model: f16 is the same numbers once more, q8_0
rounds each to one of 255 steps. 0.065 for the starter model in q8_0."""
ROUNDED = {"f16": 0.002, "q8_0": 0.026}
"""Largest ‖W - W'‖ / ‖W‖ of a right tensor. In q8_0 each of 32 numbers is off by at most 1/254 of
the largest of them, and their scale by 1/2048: √32 · (1/254 + 1/2048) = 0.025 at the worst."""
NEAR = 0.02
"""Two tokens whose logits are so close may change places in a file of the same numbers."""
MERGED = "fp16"
PROMPTS = (
    "Name three things to look at first in a town by the sea.",
    "비 오는 날에 할 만한 일을 한 가지만 알려 주세요.",
)
"""Questions that are answered, greedily."""
ANSWER_TOKENS = 12


def gguf_bytes(asked: Merge, quantization: str) -> int:
    """Return the bytes of the merged model in fp16 and of the file, which lie side by side."""
    merged = merged_bytes(asked, MERGED)
    return merged + int(merged / 2 * QUANTIZATIONS[quantization])


def write_gguf(
    asked: Merge,
    folder: Path,
    name: str,
    quantization: str,
    settings: Settings,
    progress: OnProgress,
) -> dict[str, Any]:
    """Fill a folder with base and adapter as `NAME-QUANTIZATION.gguf`, and compare it with them.

    They are merged in fp16, which are GGUF's 16 bit; so f16 has the same numbers once more.

    Args:
        asked: What is merged.
        folder: Empty; what a failure leaves in it is the caller's to remove.
        name: Of the file, and of the model in it.
        quantization: What the weights of linear layers are written in.
        settings: Where the converter is kept.
        progress: As in `write_merged`.

    Returns:
        `file`; `check` and `change` of the merge; `again`, what the file says against the merged
        model: a `Difference` with `answers`, how many of the first tokens of each greedy answer
        are the same, of `answer_tokens`; None where transformers cannot read such a file.

    Raises:
        StudioError: As `write_merged`; or if the converter cannot be had, does not know the
            model, or what it wrote says something else.
    """
    if asked.labels:
        raise StudioError("shipping.gguf_sorts")
    tool = converter.ensure(settings, progress)
    merged = folder / name
    merged.mkdir()
    found = write_merged(asked, merged, MERGED, progress)
    file = folder / f"{name}-{quantization}.gguf"
    converter.convert(tool, merged, file, quantization, progress)
    again = _compared(merged, file, quantization, progress)
    shutil.rmtree(merged)
    return {"file": file.name, **found, "again": again}


def _compared(
    merged: Path, file: Path, quantization: str, progress: OnProgress
) -> dict[str, Any] | None:
    """Return how far the file is from the merged model it was made of, None if it is not read.

    Raises:
        StudioError: If it is too far.
    """
    progress("verify", 0, 2)
    tokenizer = load_tokenizer(merged)
    rows = [tokenizer(text)["input_ids"][:LONGEST] for text in TEXTS]
    model = load_model(merged, MERGED, "cpu")
    answered = [_answered(model, question) for question in _questions(tokenizer)]
    wanted = logits_of(model, [*rows, *answered])
    del model
    gc.collect()
    progress("verify", 1, 2)
    again = _read(file)
    if again is None:
        return None
    _require_tensors(merged, again, quantization)
    found = logits_of(again, [*rows, *answered])
    difference = compare(wanted, found)
    _require_same(difference, quantization)
    answers = list(zip(wanted[len(rows) :], found[len(rows) :], strict=True))
    if quantization == "f16":
        for pair in answers:
            _require_answer(*pair)
    return difference.to_dict() | {
        "answers": [_same_start(*pair) for pair in answers],
        "answer_tokens": ANSWER_TOKENS,
    }


def _questions(tokenizer: Any) -> list[list[int]]:
    """Return the prompts' token ids, as the model's chat template writes them."""
    templates.ensure_chat_template(tokenizer)
    return [templates.prompt_ids(tokenizer, [Message("user", text)]) for text in PROMPTS]


@torch.no_grad()
def _answered(model: Any, question: list[int]) -> list[int]:
    """Return a question with a model's greedy answer of `ANSWER_TOKENS`, but for the last one."""
    ids = torch.tensor([question])
    options = {"max_new_tokens": ANSWER_TOKENS, "min_new_tokens": ANSWER_TOKENS}
    given = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **options
    )
    tokens: list[int] = given[0, :-1].tolist()
    return tokens


def _read(file: Path) -> Any:
    """Return the model of a GGUF file, None where transformers does not know its architecture."""
    from transformers import AutoModelForCausalLM, GgufConfig

    with reading(file.parent):
        try:
            return AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float16,
                local_files_only=True,
            ).eval()
        except ValueError as error:
            if "not supported" in str(error):
                return None
            raise


def _same_start(one: torch.Tensor, other: torch.Tensor) -> int:
    """Return at how many places of an answer two models choose the same token before they part.

    Both have logits of shape (T, V), the last `ANSWER_TOKENS` of which choose the answer's tokens.
    """
    chosen = (rows[-ANSWER_TOKENS:].argmax(-1).tolist() for rows in (one, other))
    pairs = zip(*chosen, strict=True)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


@torch.no_grad()
def _require_tensors(merged: Path, again: Any, quantization: str) -> None:
    """Compare each tensor of the file with that of the merged model's folder, one after the other.

    Raises:
        StudioError: If one differs by more than the format rounds away.
    """
    found, allowed = again.state_dict(), ROUNDED[quantization]
    for file in weight_files(merged):
        with safe_open(file, framework="pt", device="cpu") as weights:
            for name in found.keys() & set(weights.keys()):
                wanted = weights.get_tensor(name).float()
                lack = (found[name].float() - wanted).norm() / wanted.norm().clamp_min(1e-30)
                if not lack <= allowed:
                    raise StudioError(
                        "shipping.gguf_tensor", tensor=name, measured=f"{float(lack):.2g}",
                        allowed=f"{allowed:g}", quantization=quantization,
                    )  # fmt: skip


def _require_answer(wanted: torch.Tensor, found: torch.Tensor) -> None:
    """Refuse a file of the same numbers that answers something else; see `_same_start`.

    Raises:
        StudioError: If they part where the two tokens are further apart than `NEAR`.
    """
    same = _same_start(wanted, found)
    if same == ANSWER_TOKENS:
        return
    logits, other = wanted[-ANSWER_TOKENS:][same], found[-ANSWER_TOKENS:][same].argmax()
    ahead = float(logits.max() - logits[other])
    if not ahead <= NEAR:
        raise StudioError("shipping.gguf_answers_otherwise", token=same + 1, ahead=f"{ahead:.2g}")


def _require_same(found: Difference, quantization: str) -> None:
    if not found.relative <= TOLERANCE[quantization]:
        raise StudioError(
            "shipping.gguf_says_otherwise",
            measured=f"{found.relative:.2g}",
            allowed=f"{TOLERANCE[quantization]:g}",
        )

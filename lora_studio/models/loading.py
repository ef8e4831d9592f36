"""Loads a model folder's tokenizer and weights, in the number format asked for.

Takes only folders that `sources.resolve` returned, reads only safetensors, and never runs code
from a model's repository.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from lora_studio.errors import ModelError
from lora_studio.models.accounting import fan_in_fan_out, target_modules
from lora_studio.models.description import CLASS_HEAD, HEAD_STD

__all__ = [
    "fan_in_fan_out",
    "load_classifier",
    "load_model",
    "load_tokenizer",
    "reading",
    "target_modules",
]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LAYS_OUT_ANEW = "support_avx512bf16_for_cpu"
"""What `bitsandbytes.nn.Linear4bit` goes by."""
LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


def load_tokenizer(folder: Path) -> Any:
    """Return the folder's tokenizer; one without a padding token pads with its end token.

    Raises:
        ModelError: If the files are missing or need a library that is not installed.
    """
    with reading(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: Path, precision: str, device: str) -> Any:
    """Return the causal language model in `folder`, in evaluation mode, on one device.

    Args:
        folder: A folder from `sources.resolve`.
        precision: `nf4`, `int8`, `bf16`, `fp16` or `fp32`; never `auto`.
        device: `cuda`, `mps` or `cpu`. Started by a launcher, each process takes its own GPU.

    Raises:
        ModelError: If it does not fit into memory, or the files are missing or broken.
    """
    with reading(folder):
        model = AutoModelForCausalLM.from_pretrained(
            folder, **_placed(device), **_number_format(precision, device), **LOCAL
        )
    _keep_layout(model)
    return model


def load_classifier(
    folder: Path, precision: str, device: str, *, labels: Sequence[str], seed: int
) -> Any:
    """Return the model in `folder` with an untrained head over classes, in evaluation mode.

    It scores the last token that is no padding. The head is never quantised, and drawn anew from
    the seed alone: one seed gives one head on every machine. `config.pad_token_id` is what batches
    are to be padded with.

    Args:
        folder: A folder from `sources.resolve`, of a model that `can_classify`.
        precision: As in `load_model`.
        device: As in `load_model`.
        labels: The classes' names; a class's number is its place.
        seed: The recipe's.

    Raises:
        ModelError: As `load_model`.
    """
    padding = load_tokenizer(folder).pad_token_id
    with reading(folder):
        config = AutoConfig.from_pretrained(folder, **LOCAL)
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: number for number, name in enumerate(labels)}
        config.pad_token_id = config.get_text_config().pad_token_id = padding
        with _without_report():
            model, found = AutoModelForSequenceClassification.from_pretrained(
                folder,
                config=config,
                output_loading_info=True,
                **_placed(device),
                **_number_format(precision, device, whole=[CLASS_HEAD]),
                **LOCAL,
            )
    missing = sorted(found["missing_keys"] - {f"{CLASS_HEAD}.weight"})
    if missing:
        reason = f"no weights for {', '.join(missing[:3])}"
        raise ModelError("model.unreadable", source=_name_of(folder), reason=reason)
    _draw_head(model.get_submodule(CLASS_HEAD), seed)
    _keep_layout(model)
    return model


def _keep_layout(model: Any) -> None:
    """Have 4-bit weights stay as they were read, on every CPU.

    On one with AVX512-BF16, bitsandbytes 0.50 lays them out anew at their first evaluation, rounds
    their scales to bfloat16, and multiplies without a gradient from then on.
    """
    for layer in model.modules():
        if hasattr(layer, LAYS_OUT_ANEW):
            setattr(layer, LAYS_OUT_ANEW, False)


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from reporting that a head is new, which is meant; see what is missing."""
    reporter = logging.getLogger("transformers.modeling_utils")
    before = reporter.level
    reporter.setLevel(logging.ERROR)
    try:
        yield
    finally:
        reporter.setLevel(before)


@torch.no_grad()
def _draw_head(head: Any, seed: int) -> None:
    """Fill a head from a generator of its own; drawn in float64, then rounded to what it is in."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty(head.weight.shape, dtype=torch.float64)
    head.weight.copy_(drawn.normal_(std=HEAD_STD, generator=generator).float())


def _placed(device: str) -> dict[str, Any]:
    """Return `from_pretrained`'s options for a device; each launched process takes its own GPU."""
    place = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device
    return {"use_safetensors": True, "device_map": {"": place}}


def _number_format(precision: str, device: str, whole: Sequence[str] = ()) -> dict[str, Any]:
    """Return `from_pretrained`'s options for a precision; `whole` names what is not quantised.

    NF4 with double quantisation is QLoRA's (arXiv 2305.14314, sections 3.1 and 3.2).
    """
    skipped = list(whole) or None
    if precision in DTYPES:
        return {"dtype": DTYPES[precision]}
    compute = _compute_dtype(device)
    if precision == "int8":
        # bitsandbytes says at every layer of every step that it rounds the inputs to 16 bit.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    else:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=skipped,
        )
    return {"dtype": compute, "quantization_config": quantization}


def _compute_dtype(device: str) -> torch.dtype:
    """Return what quantised weights are multiplied in."""
    if device != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn what torch, transformers and safetensors raise inside the block into ModelError."""
    try:
        yield
    except (
        MemoryError, RuntimeError, OSError, ValueError, KeyError, ImportError, SafetensorError
    ) as error:  # fmt: skip
        known = translate(error, folder)
        if known is None:
            raise
        raise known from error


def translate(error: Exception, folder: Path) -> ModelError | None:
    """Return the sentence for an exception while a model is read, or None for a bug of ours."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in text or "can't allocate memory" in text)
    ):
        return ModelError("model.out_of_memory", source=_name_of(folder))
    if isinstance(error, ImportError):
        reason = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        return ModelError("model.missing_library", source=_name_of(folder), reason=reason)
    if isinstance(error, RuntimeError):
        return None
    reason = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return ModelError("model.unreadable", source=_name_of(folder), reason=reason[:300])


def _name_of(folder: Path) -> str:
    """Return a folder's name; that of a Hub snapshot, `…/models--owner--name/…`, is the Hub id."""
    for part in folder.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return folder.name

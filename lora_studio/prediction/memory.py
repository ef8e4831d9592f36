"""How much memory a run takes at its highest moment, part by part. No torch.

The formula counts what autograd keeps for the backward pass of a decoder layer with LoRA, as seen
with `torch.autograd.graph.saved_tensors_hooks` (tests/test_prediction.py looks again), at the
moment the backward pass begins: everything is kept then, and the logits' gradients are made.
Constants that were measured say so; `benchmarks/memory_prediction.py` measures again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from lora_studio.hardware import QUANTISED, Hardware
from lora_studio.models.accounting import classifying, count
from lora_studio.models.description import FUSED_FAMILIES, ModelInfo, ModuleGroup
from lora_studio.models.targets import rank_of, selected
from lora_studio.prediction.workload import Workload
from lora_studio.recipe import AdapterSpec, Recipe

PARTS = (
    "weights", "adapters", "gradients", "optimizer", "activations", "logits", "overhead"
)  # fmt: skip
FLOAT32 = 4
# NF4 with double quantisation: half a byte, an 8-bit scale for 64 of them, and a float32 for 256
# scales (QLoRA, arXiv 2305.14314, section 3).
WEIGHT_BYTES = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "int8": 1.0,
    "nf4": 0.5 + 1 / 64 + 4 / (64 * 256),
}
LOSS_CHUNK = 1024
"""So many positions' scores at a time are turned into float32 for the loss (`training.writing`),
which leaves the gradient in the logits' place."""
OVERHEAD = {"cpu": 68 << 20, "mps": 68 << 20, "cuda": 64 << 20}
"""Trainer, data and the libraries' scratch space. CPU: measured; others were not measured."""
LOADING = 40 << 20
"""Of that, what is there while weights are read: measured, CPU."""
HOLES = 1.75
"""glibc's malloc keeps freed tensors in a heap with holes: a training on a CPU held 1.2 to 1.6
times what it needed (fp32, nf4, int8; recomputed or not). Where there is room for that it is the
faster way: giving every tensor pages of its own took a third more processor time."""
WORKER_BYTES = {"cpu": 510 << 20, "mps": 510 << 20, "cuda": 0}
"""The worker's own programs before anything is loaded, not part of the total: measured, CPU."""
ERRORS = {"cpu": (3.1, 7.7)}
"""Mean and worst error in percent, as `benchmarks/memory_prediction.py` finds it on a device over
settings that the formula had not seen: eleven."""
PLENTY = 3.0
"""Where so many times what is predicted is free, nothing needs to be tried out beforehand."""
TIGHT = 1.10
"""A run fits if this much more than predicted were there: the worst error aimed at is 10 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes at a run's highest moment."""

    parts: Mapping[str, int]
    """Bytes of each of PARTS."""
    checkpointing: bool
    """Whether activations are recomputed rather than kept."""
    worker: int
    """Bytes of the worker's own programs, beside the parts."""

    @property
    def total(self) -> int:
        """Sum of the parts: peak over the idle worker, or the CUDA allocator's peak."""
        return sum(self.parts.values())

    @property
    def needed(self) -> int:
        """What must be free before the worker starts."""
        return self.total + self.worker

    def has_room(self, free: int) -> bool:
        """Return whether a process on a CPU may hold on to freed memory, which is faster."""
        return self.worker + HOLES * self.total <= free

    def has_plenty(self, free: int) -> bool:
        """Return whether it fits however wrong the prediction may be of a model it never met."""
        return PLENTY * self.needed <= free

    def verdict(self, free: int) -> str:
        """Return `fits`, `tight` or `will_not_fit` for so many free bytes.

        Tight is within a tenth of what is free, the largest error the prediction aims at.
        """
        if self.needed > free:
            return "will_not_fit"
        return "fits" if self.needed * TIGHT <= free else "tight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run happens."""

    device: str
    """`cuda`, `mps` or `cpu`."""
    precision: str
    """`nf4`, `int8`, `bf16`, `fp16` or `fp32`; never `auto`."""
    free: int
    """Free bytes of the device."""
    total: int
    """All its bytes."""

    @classmethod
    def of(cls, hardware: Hardware, precision: str, free: int | None = None) -> Self:
        """Return a machine's place for a concrete precision; `free` where it is known afresh."""
        return cls(
            device=hardware.device,
            precision=precision,
            free=hardware.device_free_bytes if free is None else free,
            total=hardware.device_total_bytes,
        )

    @property
    def width(self) -> int:
        """Bytes of a number that is computed with."""
        if self.precision in ("bf16", "fp16"):
            return 2
        return 2 if self.device == "cuda" and self.precision in QUANTISED else 4

    @property
    def casts_inputs(self) -> bool:
        """Whether every adapter keeps its own 16-bit copy of its input.

        PEFT turns the input of a float32 adapter on an ordinary layer into float32, and autocast
        turns that back, once a layer (peft 0.21.2, `_cast_input_dtype`).
        """
        return self.precision in ("bf16", "fp16")


def predict(
    info: ModelInfo,
    recipe: Recipe,
    place: Place,
    work: Workload | None = None,
) -> Memory:
    """Predict a run's highest memory in well under five milliseconds.

    Args:
        info: The base model.
        recipe: What is trained. `activation_checkpointing` None recomputes where it would not
            fit comfortably otherwise.
        place: Device and concrete precision.
        work: Tokens; from the recipe alone where None.

    Raises:
        RecipeError: If the model does not have what the adapter names.
    """
    work = reading(info, work or Workload.of(recipe))
    info, adapter = classifying(info, recipe.adapter, work.labels)
    chosen = recipe.training.activation_checkpointing
    plain = _predict(info, adapter, place, work, checkpointing=bool(chosen))
    if chosen is not None or plain.verdict(place.free) == "fits":
        return plain
    spared = _predict(info, adapter, place, work, checkpointing=True)
    return spared if spared.total < plain.total else plain


def reading(info: ModelInfo, work: Workload) -> Workload:
    """Return what a model makes of the work: one that drops out by itself reads each row anew."""
    return replace(work, shared=0) if is_gpt2(info) else work


def _predict(
    info: ModelInfo, adapter: AdapterSpec, place: Place, work: Workload, *, checkpointing: bool
) -> Memory:
    trained = count(info, adapter).trainable
    chosen = list(selected(info, adapter))
    weights = _weights(info, place)
    logits = _logits(info, place, work)
    layer = _layer(info, place, work) * work.tokens
    depth = _depth(info, adapter)
    adapted = _adapted(adapter, place, work, chosen) * work.tokens
    # Adapters' weights are kept once more in 16 bit where they are cast.
    adapted += 2 * trained if place.casts_inputs else 0
    whole = depth * layer + adapted
    if checkpointing:
        kept = info.layers * work.tokens * info.hidden_size * place.width
        one = layer + adapted / max(depth, 1)
        # The last layer is computed again while the logits' gradients are still held.
        activations = kept + one + _step_back(info, place, work)
    else:
        activations = whole + max(_step_back(info, place, work) - logits, 0)
    gradients = FLOAT32 * trained
    if work.accumulation == 1:
        # They come to be while activations go, and take their place.
        activations = max(activations - gradients, 0)
    parts = {
        "weights": weights,
        "adapters": FLOAT32 * trained,
        "gradients": gradients,
        "optimizer": 2 * FLOAT32 * trained,
        "activations": activations,
        "logits": logits,
        "overhead": OVERHEAD[place.device],
    }
    if place.device == "cpu":
        # While weights are read, the file's pages are resident beside them.
        loading = weights + info.size_bytes + LOADING
        parts["overhead"] += max(loading - sum(parts.values()), 0)
    return Memory(
        parts={name: round(parts[name]) for name in PARTS},
        checkpointing=checkpointing,
        worker=WORKER_BYTES[place.device],
    )


def _weights(info: ModelInfo, place: Place) -> float:
    """Return the frozen weights' bytes; what is quantised is every linear layer but the head."""
    linear = sum(group.count * group.d_in * group.d_out for group in info.modules)
    if place.precision not in QUANTISED:
        return info.parameters * WEIGHT_BYTES[place.precision]
    other = (info.parameters - linear) * place.width
    # 8-bit rows have a float32 scale each (LLM.int8(), arXiv 2208.07339, section 3).
    scales = sum(group.count * group.d_out for group in info.modules) * FLOAT32
    return (
        linear * WEIGHT_BYTES[place.precision]
        + other
        + (scales if place.precision == "int8" else 0)
    )


def _layer(info: ModelInfo, place: Place, work: Workload) -> float:
    """Return the bytes a token that one decoder layer keeps, its adapters left out.

    Both norms keep their input, in float32 unless they are fused; attention keeps queries, keys,
    values and its output, the keys and values repeated for every head where a batch is padded; the
    feed-forward keeps its gate, its values, and unless fused the gate's activation.
    """
    heads, narrow = info.num_attention_heads, info.num_key_value_heads
    padded = work.rows > 1 and not work.packed
    if padded:
        narrow = heads
    attention = 2 * (heads + narrow) * info.head_dim
    if is_gpt2(info):
        # GELU spelt out keeps four tensors; attention with dropout keeps its scores three times,
        # and of packed rows queries and keys once more, scaled, beside what they were cut from.
        scores = 3 * heads * work.length + work.packed * heads * info.head_dim
        return place.width * (4 * info.hidden_size + attention + 4 * _inner(info) + scores)
    fused = work.fused and info.architecture.startswith(FUSED_FAMILIES)
    inner = (2 if fused else 3) if _is_gated(info) else 1
    mask = work.length if padded else 0
    kept = attention + inner * _inner(info) + mask
    norms = (place.width if fused else FLOAT32) * 2 * info.hidden_size
    return place.width * kept + norms + FLOAT32 * (heads + 2)


def _adapted(
    adapter: AdapterSpec,
    place: Place,
    work: Workload,
    chosen: Sequence[tuple[ModuleGroup, Sequence[str]]],
) -> float:
    """Return the bytes a token that all adapters keep: their inputs and what A makes of them.

    Layers that read the same keep it once, unless it is cast or dropped out for each of them.
    """
    numbers = 0.0
    shared: dict[tuple[str, int], int] = {}
    for group, paths in chosen:
        numbers += _ranks(adapter, paths)
        if adapter.use_dora:
            numbers += 2 * group.d_out * len(paths)
        if adapter.lora_dropout:
            # What is left, and which were dropped: a number on a CPU, a byte on CUDA.
            dropped = 1.0 if place.device != "cuda" else 1 / place.width
            numbers += (1 + dropped) * group.d_in * len(paths)
        elif place.casts_inputs and not work.fused:
            numbers += group.d_in * len(paths)
        elif _reads_attention(group):
            # Attention keeps its output anyway; of packed rows it keeps each row's.
            numbers += group.d_in * len(paths) * work.packed
        else:
            parent = group.path.rpartition(".")[0]
            shared[parent, group.d_in] = max(shared.get((parent, group.d_in), 0), len(paths))
    numbers += sum(width * layers for (_, width), layers in shared.items())
    return place.width * numbers


def _ranks(adapter: AdapterSpec, paths: Sequence[str]) -> int:
    if not adapter.rank_pattern:
        return adapter.r * len(paths)
    return sum(rank_of(path, adapter) for path in paths)


def _reads_attention(group: ModuleGroup) -> bool:
    """Say whether a layer reads attention's output, which attention keeps anyway."""
    parent, _, name = group.path.rpartition(".")
    return "attn" in parent and name in ("o_proj", "out_proj", "c_proj", "dense")


def _depth(info: ModelInfo, adapter: AdapterSpec) -> int:
    """Return how many blocks keep anything: none below the first adapter does."""
    return info.layers - min(adapter.layers_to_transform, default=0)


def _logits(info: ModelInfo, place: Place, work: Workload) -> float:
    if work.labels is not None:
        # Every token is scored and the last one taken; the head, being trained, keeps its input.
        return work.tokens * place.width * (2 * work.labels + info.hidden_size)
    chunk = FLOAT32 * min(work.scored, LOSS_CHUNK)
    return (place.width * work.scored + chunk) * info.vocab_size


def _step_back(info: ModelInfo, place: Place, work: Workload) -> float:
    """Return what one layer's backward pass makes beside what is kept.

    The feed-forward's gradients, and of a quantised layer its weight in full.
    """
    wide = place.width * work.tokens * (3 * _inner(info) + 2 * info.hidden_size)
    largest = max((group.d_in * group.d_out for group in info.modules), default=0)
    return wide + (largest * place.width if place.precision in QUANTISED else 0)


def _inner(info: ModelInfo) -> int:
    return info.intermediate_size


def _is_gated(info: ModelInfo) -> bool:
    """Say whether the feed-forward multiplies two projections, as Llama's does (SwiGLU)."""
    return any("gate" in group.name for group in info.modules)


def is_gpt2(info: ModelInfo) -> bool:
    """Say whether the model is built as GPT-2."""
    return any(group.kind == "Conv1D" for group in info.modules)

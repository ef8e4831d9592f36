"""Which ways of adapting go together, and with which number formats: one table of clashes.

Pure rules, no torch: the page greys a choice with the reason, a recipe is refused with all of them.
What stands in no clash is trained, saved, loaded again and compared by `tests/test_methods.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lora_studio.errors import StudioError
from lora_studio.recipe import AdapterSpec, Recipe

SWITCHES = ("rslora", "dora", "loraplus")
"""Methods that are on or off."""
STARTS = ("gaussian", "eva", "loftq", "pissa")
"""Ways for A and B to begin beside the default one; names of `init_lora_weights`."""
BIASES = ("bias_all", "bias_lora_only")
"""Kinds of `bias` beside none."""
METHODS = SWITCHES + STARTS + BIASES
PRECISIONS = ("nf4", "int8", "bf16", "fp16", "fp32")
SIZED_STARTS = ("pissa",)
"""Starts that take r directions from a weight, which must have as many."""


@dataclass(frozen=True, slots=True)
class Clash:
    """Choices that cannot all stand in one recipe, and why."""

    names: frozenset[str]
    """Methods, a precision, a device, a setting that may be given at all, or `seq_cls` where texts
    are sorted."""
    key: str
    """Key of the sentence; its values are `precision` and `device`."""


def _each(name: str, others: Iterable[str], key: str) -> tuple[Clash, ...]:
    return tuple(Clash(frozenset({name, other}), key) for other in others)


# fp16 is only there on GPUs without bfloat16, and MPS on a Mac: the sums over whole weights that
# these methods need were not tried there.
CLASHES: tuple[Clash, ...] = (
    *_each("loftq", ("int8", "bf16", "fp16", "fp32"), "methods.loftq_needs_nf4"),
    *_each("pissa", ("nf4", "int8", "bf16", "fp16"), "methods.pissa_needs_fp32"),
    *_each("pissa", (*BIASES, "modules_to_save"), "methods.pissa_saves_matrices_only"),
    *_each("pissa", ("seq_cls",), "methods.pissa_saves_no_head"),
    *_each("dora", ("pissa", "loftq"), "methods.dora_needs_a_zero_start"),
    Clash(frozenset({"pissa", "rslora", "rank_pattern"}), "methods.pissa_rslora_patterns"),
    Clash(frozenset({"pissa", "rslora", "alpha_pattern"}), "methods.pissa_rslora_patterns"),
    *_each("dora", ("int8",), "methods.dora_not_in_int8"),
    # On a CPU torch's layer norm takes no float32 bias or input beside bfloat16 weights.
    *(
        Clash(frozenset({part, "bf16", "cpu"}), "methods.parts_not_in_bf16_on_cpu")
        for part in (*BIASES, "modules_to_save")
    ),
    *_each("fp16", ("dora", "eva"), "methods.untried_in_fp16"),
    *_each("mps", ("dora", "eva", "pissa"), "methods.untried_on_mps"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Whether a method may be chosen beside everything else a recipe has."""

    name: str
    """One of METHODS."""
    reason: StudioError | None = None
    """Why not; None where it may."""

    @property
    def is_offered(self) -> bool:
        """Whether the page lets a person choose it."""
        return self.reason is None


def chosen(recipe: Recipe) -> tuple[str, ...]:
    """Return the methods a recipe uses, by their names in METHODS and in its order."""
    adapter = recipe.adapter
    is_used = {
        "rslora": adapter.use_rslora,
        "dora": adapter.use_dora,
        "loraplus": recipe.training.loraplus_lr_ratio is not None,
        adapter.init_lora_weights: True,
        f"bias_{adapter.bias}": True,
    }
    return tuple(name for name in METHODS if is_used.get(name))


def offers(recipe: Recipe, precision: str, device: str) -> dict[str, Offer]:
    """Say for each method whether it goes with the recipe's other choices.

    A start is weighed in place of the chosen start, a kind of bias in place of the chosen one.

    Args:
        recipe: The choices so far.
        precision: The concrete number format, never `auto`.
        device: `cuda`, `mps` or `cpu`.
    """
    everything = _names(recipe, precision, device)
    found = {}
    for name in METHODS:
        rivals = next((group for group in (STARTS, BIASES) if name in group), ())
        names = everything - set(rivals) | {name}
        clash = next((one for one in CLASHES if name in one.names <= names), None)
        reason = _sentence(clash, precision, device) if clash else None
        found[name] = Offer(name=name, reason=reason)
    return found


def problems(recipe: Recipe, precision: str, device: str) -> list[StudioError]:
    """Return a sentence for every clash within a recipe, each once; arguments as in `offers`."""
    names = _names(recipe, precision, device)
    clashes = {one.key: one for one in CLASHES if one.names <= names}
    return [_sentence(one, precision, device) for one in clashes.values()]


def rank_problems(adapter: AdapterSpec, sizes: Mapping[str, int]) -> list[StudioError]:
    """Return a sentence for each layer too small for a start that takes r directions from it.

    Args:
        adapter: The choices.
        sizes: Last name of each target → the smaller of its d_in and d_out.
    """
    if adapter.init_lora_weights not in SIZED_STARTS:
        return []
    r = max((adapter.r, *adapter.rank_pattern.values()))
    return [
        StudioError(
            "methods.rank_over_size",
            method=LABELS[adapter.init_lora_weights],
            name=name,
            size=size,
            r=r,
        )
        for name, size in sizes.items()
        if size < r
    ]


LABELS = {
    "rslora": "rsLoRA",
    "dora": "DoRA",
    "loraplus": "LoRA+",
    "gaussian": "Gaussian",
    "eva": "EVA",
    "loftq": "LoftQ",
    "pissa": "PiSSA",
    "bias_all": "bias=all",
    "bias_lora_only": "bias=lora_only",
}
"""How the literature writes each method; the same in every language."""


def _names(recipe: Recipe, precision: str, device: str) -> frozenset[str]:
    adapter = recipe.adapter
    given = ("modules_to_save", "rank_pattern", "alpha_pattern")
    settings = (name for name in given if getattr(adapter, name))
    return frozenset((recipe.task_type.lower(), precision, device, *chosen(recipe), *settings))


def _sentence(clash: Clash, precision: str, device: str) -> StudioError:
    return StudioError(clash.key, precision=precision, device=device)

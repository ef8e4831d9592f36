"""From a recipe's adapter section to a PEFT model whose A and B stand where the method puts them.

The base is left as it is by every method but PiSSA, which takes its largest directions out while
training; what is saved is then converted (`saving.write_adapter`).
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.incremental_pca import IncrementalPCA
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open

from lora_studio.errors import StudioError
from lora_studio.models.description import ModelInfo
from lora_studio.models.targets import fan_in_fan_out, keeps_tied, peft_targets
from lora_studio.recipe import AdapterSpec, TaskName

ADAPTER = "default"
EVA_TOKENS = 1024
"""Tokens in one of EVA's batches, or r where that is more."""
EVA_BATCHES = 4
"""Batches that EVA looks at: four thousand tokens for some dozen directions."""
POWERS = 16
"""Subspace iterations of a randomised decomposition, which takes seconds where a whole one takes
minutes; with 16 training comes out as good (peft 0.21.2, tuners/lora/config.py)."""

PEFT_STARTS = {"gaussian": "gaussian", "pissa": f"pissa_niter_{POWERS}"}
"""Starts that PEFT makes itself; LoftQ and EVA take the default's place afterwards."""
SWITCHED_OFF_STARTS = ("default", "gaussian", "eva")
"""Starts with B of zeros: the new adapter does nothing yet, and switched off nothing ever."""
LONG_STARTS = ("eva", "loftq", "pissa")
"""Starts that look at data or at every weight, and take their time."""

Stage = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a start may read, and where PiSSA keeps its own."""

    info: ModelInfo
    """What the base is made of."""
    model_folder: Path
    """The base model's files."""
    rows: Sequence[Any]
    """Training rows, each with `input_ids`."""
    initial: Path
    """Folder for the untrained adapter of PiSSA."""
    stage: Stage
    """Told how far it is: name, done, total."""


def lora_config(
    spec: AdapterSpec, info: ModelInfo, *, base: str, task_type: TaskName = "CAUSAL_LM"
) -> LoraConfig:
    """Return PEFT's settings for an adapter section on a model; `base` is what it is saved under.

    For SEQ_CLS PEFT itself adds the head to what is trained whole.

    Raises:
        RecipeError: If the model does not have what the section names.
    """
    targets = peft_targets(info, spec)
    return LoraConfig(
        task_type=task_type,
        r=spec.r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        bias=spec.bias,
        target_modules=targets,
        layers_to_transform=list(spec.layers_to_transform) or None,
        rank_pattern=dict(spec.rank_pattern),
        alpha_pattern=dict(spec.alpha_pattern),
        modules_to_save=list(spec.modules_to_save) or None,
        use_rslora=spec.use_rslora,
        use_dora=spec.use_dora,
        ensure_weight_tying=keeps_tied(info, spec),
        fan_in_fan_out=fan_in_fan_out(info, targets),
        base_model_name_or_path=base,
        init_lora_weights=PEFT_STARTS.get(spec.init_lora_weights, True),
    )


def begins_as_base(spec: AdapterSpec) -> bool:
    """Return whether the model before the first step is what it is with the adapter switched off.

    PEFT leaves trained bias vectors as they are when it switches an adapter off.
    """
    return spec.init_lora_weights in SWITCHED_OFF_STARTS and spec.bias == "none"


def adapt(model: Any, config: LoraConfig, *, seed: int) -> PeftModel:
    """Put the adapter on the model; A and B are float32 whatever the base's weights are."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        # An embedding that is also the head may be trained as either; the adapter keeps only that
        # one, and is loaded onto it. What PEFT warns of is merging it into the base.
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        adapted = get_peft_model(model, config)
    adapted.peft_config[ADAPTER].base_model_name_or_path = config.base_model_name_or_path
    return adapted


def cast_trained(model: Any) -> None:
    """Turn every trained parameter into float32, bias vectors and whole layers too."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def initialise(adapted: PeftModel, spec: AdapterSpec, start: Start, *, seed: int) -> Path | None:
    """Bring A and B to where the recipe's start wants them; the seed chooses EVA's rows.

    Returns:
        The folder of the untrained adapter, without which a PiSSA run cannot be saved; else None.

    Raises:
        StudioError: If EVA has too few tokens, or LoftQ does not find the weights it needs.
    """
    match spec.init_lora_weights:
        case "eva":
            _start_from_inputs(adapted, start, seed)
        case "loftq":
            _start_from_rounding(adapted, start)
        case "pissa":
            return _keep_initial(adapted, start.initial)
    return None


@torch.no_grad()
def _start_from_inputs(adapted: PeftModel, start: Start, seed: int) -> None:
    """EVA: A begins at the main directions of each layer's inputs (arXiv 2410.07170).

    Every layer keeps its r (the paper's rho = 1). PEFT's own `initialize_lora_eva_weights` reads on
    until each direction stands still, which need not ever be (peft 0.21.2, tuners/lora/eva.py:
    more than 256 batches for r = 4 on a random model); here a fixed number of batches is read.
    """
    layers = dict(adapted_layers(adapted))
    most = max(layer.r[ADAPTER] for layer in layers.values())
    order = random.Random(seed).sample(range(len(start.rows)), len(start.rows))
    batches = eva_batches((start.rows[at].input_ids for at in order), most)
    directions = Directions(layers, most, seed)
    adapted.eval()
    with _without_adapter(adapted), directions.watching():
        for done, batch in enumerate(batches):
            start.stage("initialise", done, len(batches))
            here = {name: tensor.to(adapted.device) for name, tensor in batch.items()}
            directions.mask = here["attention_mask"].bool()
            adapted(**here, use_cache=False)
    for name, layer in layers.items():
        found = directions.of(name)
        if found is not None:  # an expert that no token came to keeps the default start
            rows = min(len(found), layer.r[ADAPTER])
            layer.lora_A[ADAPTER].weight[:rows] = found[:rows]


@contextmanager
def _without_adapter(adapted: PeftModel) -> Iterator[None]:
    """Let the base alone answer; its bias vectors, trained later, are still its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Careful, disabling adapter layers", UserWarning)
        with adapted.disable_adapter():
            yield


class Directions:
    """The main directions of what goes into each layer, gathered batch by batch.

    Args:
        layers: The layers by name.
        most: How many directions, or as many as the layer has inputs.
        seed: Of the decomposition, which is a randomised one.
    """

    def __init__(self, layers: dict[str, Any], most: int, seed: int) -> None:
        self.mask: torch.Tensor
        """Which tokens are no padding, bool, shape (B, T)."""
        self._layers = layers
        self._most = most
        self._seed = seed
        self._found: dict[str, IncrementalPCA] = {}
        self._same: dict[str, str] = {}
        self._last: tuple[torch.Tensor | None, str] = (None, "")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take in what the layers are given while the block runs."""
        hooks = [
            layer.register_forward_pre_hook(partial(self._take, name))
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def of(self, name: str) -> torch.Tensor | None:
        """Return a layer's directions, float, shape (r or fewer, d_in); None if nothing came."""
        found = self._found.get(self._same.get(name, name))
        return None if found is None else found.components_

    def _take(self, name: str, _: Any, given: tuple[torch.Tensor, ...]) -> None:
        inputs, (last, first) = given[0], self._last
        if inputs is last:  # query, key and value read the same
            self._same[name] = first
            return
        self._last = (inputs, name)
        # Experts are given tokens that were picked already, without rows.
        is_whole = inputs.shape[:-1] == self.mask.shape
        tokens = inputs[self.mask] if is_whole else inputs.flatten(0, -2)
        count = min(self._most, inputs.shape[-1])
        if len(tokens) < count:
            return
        if name not in self._found:
            # PEFT's own settings for EVA: whole decompositions of wide layers take minutes.
            width = min(2 * count, inputs.shape[-1], len(tokens))
            self._found[name] = IncrementalPCA(
                count, lowrank=True, lowrank_q=width, lowrank_seed=self._seed
            )
        self._found[name].partial_fit(tokens.float())


def eva_batches(rows: Iterable[Sequence[int]], r: int) -> list[dict[str, torch.Tensor]]:
    """Return rows as batches of about 1,024 tokens, or r where that is more, longer rows cut.

    Raises:
        StudioError: If all rows together have fewer than r tokens.
    """
    least = max(EVA_TOKENS, r)
    batches, batch, held = [], [], 0
    for row in rows:
        ids = list(row[:least])
        batch.append(ids)
        held += len(ids)
        if held >= least:
            batches.append(_padded(batch))
            batch, held = [], 0
        if len(batches) == EVA_BATCHES:
            return batches
    if held >= r:  # fewer tokens than directions say nothing
        batches.append(_padded(batch))
    if not batches:
        raise StudioError("training.eva_few_tokens", tokens=held, r=r)
    return batches


def _padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Stack rows; ids and mask are int64, shape (B, T)."""
    width = max(map(len, rows))
    ids = [row + [0] * (width - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@torch.no_grad()
def _start_from_rounding(adapted: PeftModel, start: Start) -> None:
    """LoftQ: B·A begins as the best rank-r part of what rounding to NF4 took (arXiv 2310.08659).

    One step of it, which leaves the rounded base as it is. PEFT's own
    `replace_lora_weights_loftq` runs on CUDA only and leaves out the scaling, so that with
    lora_alpha = 2·r it adds twice what is missing (peft 0.21.2, utils/loftq_utils.py).
    """
    base, layers = adapted.get_base_model(), list(adapted_layers(adapted))
    transposed = {group.name for group in start.info.modules if group.kind == "Conv1D"}
    stored = StoredWeights(start.model_folder, base.base_model_prefix)
    for done, (name, layer) in enumerate(layers):
        start.stage("initialise", done, len(layers))
        rounded = dequantize_module_weight(layer.get_base_layer()).float()
        true = stored.read(f"{name}.weight").to(rounded)
        missing = (true.T if name.rpartition(".")[2] in transposed else true) - rounded
        r = min(layer.r[ADAPTER], *missing.shape)
        # u diag(s) vᵀ = scaling · B A, shared evenly between both.
        u, s, v = torch.svd_lowrank(missing, q=min(2 * r, *missing.shape), niter=POWERS)
        root = (s[:r] / layer.scaling[ADAPTER]).sqrt()
        layer.lora_A[ADAPTER].weight[:r] = root[:, None] * v[:, :r].T
        layer.lora_B[ADAPTER].weight[:, :r] = u[:, :r] * root


def adapted_layers(adapted: PeftModel) -> Iterator[tuple[str, Any]]:
    """Yield the layers with an adapter, by the base model's names."""
    for name, module in adapted.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


class StoredWeights:
    """The tensors of a model folder as they were saved, by the loaded model's names.

    Args:
        folder: A folder with safetensors files.
        prefix: What the model's names may have before those in the files, as `transformer`.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder = folder
        self._prefix = prefix
        self._places = dict(self._found())

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor.

        Raises:
            StudioError: If the files name it otherwise.
        """
        short = name.removeprefix(f"{self._prefix}.")
        stored = next((one for one in (name, short) if one in self._places), None)
        if stored is None:
            raise StudioError("training.loftq_no_weight", name=name, folder=self._folder.name)
        with safe_open(self._places[stored], framework="pt", device="cpu") as file:
            return file.get_tensor(stored)

    def _found(self) -> Iterator[tuple[str, Path]]:
        for path in sorted(self._folder.glob("*.safetensors")):
            with safe_open(path, framework="pt", device="cpu") as file:
                yield from ((name, path) for name in file.keys())  # noqa: SIM118 - not a dict


def _keep_initial(adapted: PeftModel, folder: Path) -> Path:
    """Save PiSSA's untrained A and B, which every save subtracts again (arXiv 2404.02948)."""
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder

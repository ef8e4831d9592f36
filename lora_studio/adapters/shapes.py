"""What shape a LoRA tensor has on a layer of the base."""

from __future__ import annotations

from torch import nn


def expected_shape(name: str, shape: tuple[int, ...], module: nn.Module) -> tuple[int, ...]:
    """Return the shape a LoRA tensor must have on a module; the rank is the file's own.

    A is (r, in) and B is (out, r) (arXiv 2106.09685, section 4.1). Modules of a kind whose
    sizes are not known here, such as fused experts, are left to PEFT.
    """
    sizes = _sizes(module)
    if sizes is None:
        return shape
    inputs, outputs = sizes
    if ".lora_A." in name or ".lora_embedding_A" in name:
        return *shape[:1], inputs
    if name.endswith(".lora_B.weight") or ".lora_embedding_B" in name:
        return outputs, *shape[-1:]
    return (outputs,)


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """Return a layer's inputs and outputs; quantised weights are packed and say nothing."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if hasattr(module, "nf") and hasattr(module, "nx"):  # transformers' Conv1D, as in GPT-2
        return int(module.nx), int(module.nf)
    return None

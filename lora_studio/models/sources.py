"""From what a person names as a model to a checked folder on this machine.

A source is `starter`, a Hub id (`owner/name`) or a folder. Nothing else of the program hands a
name to transformers: only folders that were resolved here are loaded. Torch is imported only to
check a configuration; `local_models` and `hub_name` do without.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lora_studio.errors import ModelError
from lora_studio.models import hub, starter
from lora_studio.models.hub import OnProgress, silent
from lora_studio.settings import STARTER, Settings

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def resolve(
    source: str,
    settings: Settings,
    *,
    token: str | None = None,
    on_progress: OnProgress | None = None,
    weights: bool = True,
) -> Path:
    """Return a local folder that holds the model, fetching it first where needed.

    Args:
        source: `starter`, `owner/name`, or a folder.
        settings: Where models live, whether the Hub may be asked, and its token.
        token: For gated repositories, instead of the settings' token.
        on_progress: Told `download` in bytes and, for the starter model, `convert`.
        weights: False fetches and asks for the configuration and tokenizer only.

    Raises:
        ModelError: If there is no such model, it may not be read, it has no safetensors, or it is
            no causal language model that transformers runs with its own code.
    """
    source = source.strip()
    if source == STARTER:
        return starter.ensure(settings, on_progress=on_progress)
    folder = _as_folder(source)
    if folder is not None:
        folder = folder.resolve()
        if settings.space_id and folder not in local_models(settings).values():
            raise ModelError("model.folder_on_space", source=source)
    elif HUB_ID.fullmatch(source):
        folder = hub.fetch(
            source,
            token=settings.token_for(token),
            weights=weights,
            offline=settings.offline,
            on_progress=on_progress or silent,
        )
    else:
        raise ModelError("model.bad_source", source=source)
    check(folder, source, weights=weights)
    return folder


def _as_folder(source: str) -> Path | None:
    """Return the folder a source means: any full path, and a relative one that exists."""
    try:
        folder = Path(source).expanduser()
        return folder if source and (folder.is_absolute() or folder.is_dir()) else None
    except (OSError, RuntimeError, ValueError):  # too long for a path, or the home of nobody
        return None


def hub_name(source: str) -> str:
    """Return the name that an adapter's files give their base: a Hub id, or the folder."""
    return starter.REPOSITORY if source.strip() == STARTER else source.strip()


def local_models(settings: Settings) -> dict[str, Path]:
    """Return the model folders under `settings.models` and `settings.model_folders` by name.

    Where two share a name, the later one's parent folder is added to it.
    """
    found: dict[str, Path] = {}
    for parent in (settings.models, *settings.model_folders):
        if not parent.is_dir():
            continue
        for folder in sorted(parent.iterdir()):
            if not folder.name.startswith(".") and (folder / "config.json").is_file():
                taken = folder.name in found
                found[f"{folder.name} ({parent})" if taken else folder.name] = folder.resolve()
    return found


def check(folder: Path, source: str, *, weights: bool = True) -> None:
    """Refuse a folder that cannot be trained here.

    Raises:
        ModelError: If it is no folder, an adapter, or has no config.json or no safetensors; if
            it is already quantised, no causal language model, or needs code of its repository.
    """
    with hub.translated(source):
        config = _read_config(folder, source)
        if weights and not any(folder.glob("*.safetensors")):
            raise ModelError("model.no_safetensors", source=source)
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "?")
        raise ModelError("model.quantized", source=source, method=method)
    _require_causal_lm(config, source)


def _read_config(folder: Path, source: str) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        adapter = folder / "adapter_config.json"
        if adapter.is_file():
            base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
            raise ModelError("model.is_adapter", source=source, base=base)
        raise ModelError("model.no_config", source=source)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError("model.bad_config", source=source, reason=str(error)) from error
    if not isinstance(config, dict):
        raise ModelError("model.bad_config", source=source, reason=type(config).__name__)
    return config


def _require_causal_lm(config: dict[str, Any], source: str) -> None:
    """Refuse what `AutoModelForCausalLM` has no class of its own for.

    A BERT is in its table too, as a decoder: so the class that was saved counts as well.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    kind, classes = config.get("model_type"), config.get("architectures") or []
    if kind not in CAUSAL:
        key = "model.remote_code" if config.get("auto_map") else "model.not_causal_lm"
        raise ModelError(key, source=source, kind=classes[0] if classes else kind)
    endings = ("ForCausalLM", "LMHeadModel")
    if classes and not any(name in CAUSAL.values() or name.endswith(endings) for name in classes):
        raise ModelError("model.not_causal_lm", source=source, kind=classes[0])

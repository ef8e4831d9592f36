"""Ready commands and programs that use an adapter or what was exported of it.

Serving is left to servers: each of these answers as OpenAI's API does. Written for vLLM 0.11 and
later, transformers 5.23, peft 0.21.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from lora_studio.adapters.configuration import largest_rank, read_settings

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` takes (vLLM, docs/features/lora.md and `vllm/config/lora.py`)."""
OLLAMA_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,79}", re.ASCII)
"""What a model of Ollama may be called (Ollama, `types/model/name.go`)."""
SERVING = 'pip install "transformers[serving]"\n'
PYTHON = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base}, dtype="auto", device_map="auto")
model = PeftModel.from_pretrained(base, {adapter})
tokenizer = AutoTokenizer.from_pretrained({tokenizer})

messages = [{{"role": "user", "content": "Hello!"}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
).to(model.device)
answer = model.generate(**inputs, max_new_tokens=128)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""
SORTING = """\
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

config = AutoConfig.from_pretrained({adapter})  # the classes
base = AutoModelForSequenceClassification.from_pretrained({base}, config=config)
model = PeftModel.from_pretrained(base, {adapter}).eval()
tokenizer = AutoTokenizer.from_pretrained({tokenizer})

scores = model(**tokenizer("A text.", return_tensors="pt")).logits
print(config.id2label[int(scores.argmax())])
"""
CLIENT = """\
from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")
answer = client.chat.completions.create(
    model={model}, messages=[{{"role": "user", "content": "Hello!"}}]
)
print(answer.choices[0].message.content)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippet:
    """Something to copy."""

    name: str
    """`vllm`, `python`, `openai`, `vllm_merged`, `transformers_merged` or `ollama`."""
    text: str


def of_adapter(name: str, adapter: Path, base: str) -> list[Snippet]:
    """Return how an adapter that writes is used on its base as it is.

    Args:
        name: What a server calls it.
        adapter: Its folder.
        base: Hub id or folder of its base.

    Raises:
        AdapterError: As `read_settings`.
    """
    found = [_python(PYTHON, adapter, base)]
    rank = _vllm_rank(adapter)
    if rank is not None:
        words = ["vllm", "serve", base, "--enable-lora", "--lora-modules", f"{name}={adapter}"]
        words += ["--max-lora-rank", str(rank)]
        found.insert(0, Snippet(name="vllm", text=shlex.join(words) + "\n"))
        found.append(Snippet(name="openai", text=CLIENT.format(model=_quoted(name))))
    return found


def of_classifier(adapter: Path, base: str) -> Snippet:
    """Return how an adapter that sorts texts is used; servers of models that write take none."""
    return _python(SORTING, adapter, base)


def of_merged(folder: Path) -> list[Snippet]:
    """Return how a merged model is served; both take the folder's path as the model's name."""
    place = str(folder)
    served = ["transformers", "serve", place]
    return [
        Snippet(name="vllm_merged", text=shlex.join(["vllm", "serve", place]) + "\n"),
        Snippet(name="transformers_merged", text=f"{SERVING}{shlex.join(served)}\n"),
        Snippet(name="openai", text=CLIENT.format(model=_quoted(place))),
    ]


def of_ollama(name: str, folder: Path) -> list[Snippet]:
    """Return how a folder with a Modelfile becomes a model of Ollama."""
    if not OLLAMA_NAME.fullmatch(name):
        name = f"lora-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    create = shlex.join(["ollama", "create", name, "-f", str(folder / "Modelfile")])
    return [Snippet(name="ollama", text=f"{create}\n{shlex.join(['ollama', 'run', name])}\n")]


def _python(program: str, adapter: Path, base: str) -> Snippet:
    has_tokenizer = (adapter / "tokenizer_config.json").is_file()
    text = program.format(
        base=_quoted(base),
        adapter=_quoted(str(adapter)),
        tokenizer=_quoted(str(adapter) if has_tokenizer else base),
    )
    return Snippet(name="python", text=text)


def _vllm_rank(adapter: Path) -> int | None:
    """Return the `--max-lora-rank` that an adapter needs, None where vLLM does not take it.

    vLLM adds plain LoRA: no DoRA, trained biases or whole layers.
    """
    said = read_settings(adapter)
    is_plain = said.get("bias", "none") == "none" and not any(
        said.get(name) for name in ("use_dora", "modules_to_save", "target_parameters")
    )
    fits = [rank for rank in VLLM_RANKS if rank >= largest_rank(said)]
    return fits[0] if is_plain and fits else None


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

"""Asking an engine, and what transformers and PEFT themselves say, for the tests of the chat."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from lora_studio.chat.request import Sampling
from lora_studio.models.loading import load_model

ASK = [{"role": "user", "content": "What is the capital of France?"}]
LONGER = [
    {"role": "user", "content": "어댑터는 작아요?"},
    {"role": "assistant", "content": "The quick brown fox jumps over the lazy dog."},
    {"role": "user", "content": "A coffee shop near the city centre?"},
]
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def make_adapter(base: Path, folder: Path, *, seed: int, tokenizer: Path | None = None, **config):
    """Save an adapter whose B is not zero, so that it changes every answer."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = {"r": 4, "target_modules": TARGETS[model.config.model_type]} | config
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))
    biases = config.get("bias", "none") != "none"
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad and ("lora_B" in name or "modules_to_save" in name):
            torch.nn.init.normal_(parameter, std=0.5)
        elif biases and name.endswith("bias") and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=1.0)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    if tokenizer is not None:
        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return str(folder)


def answer(engine, panes, **sampling):
    """Return the texts, the done events and the mode event."""
    events = list(engine.generate(panes, Sampling(**{"max_new_tokens": 24} | sampling)))
    texts = ["" for _ in panes]
    done = {event["pane"]: event for event in events if event.get("done")}
    for event in events[1:]:
        texts[event["pane"]] += event.get("text", "")
    return texts, done, events[0]


def prompt_of(folder, messages):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]


def untouched_logits(folder, messages=ASK, precision="fp32"):
    model = load_model(folder, precision, "cpu")
    with torch.inference_mode():
        return model(prompt_of(folder, messages)).logits[0, -1].tolist()


def peft_logits(base, folder, messages=ASK, precision="fp32"):
    """Return the same with PEFT's own model around the base."""
    model = PeftModel.from_pretrained(load_model(base, precision, "cpu"), folder).eval()
    with torch.inference_mode():
        return model(prompt_of(base, messages)).logits[0, -1].tolist()


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """Return one in the manner of SentencePiece: words with ▁, everything else byte by byte."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁a",
        "a",
        "n",
        "d",
        "▁and",
    ]
    bpe = models.BPE(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[("▁", "a"), ("n", "d"), ("▁a", "nd")][:1],
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def save_taught(folder: Path, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> str:
    """Save a small Llama that goes on with each of these texts, whatever word they begin with."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rows = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
    for _ in range(150):
        loss = sum(model(row, labels=row).loss for row in rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)

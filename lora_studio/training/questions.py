"""What a model is asked while it learns: the recipe's prompts or the data's, as it reads them."""

from __future__ import annotations

import sys
from typing import Any

from lora_studio.data.report import Report
from lora_studio.data.templates import adds_beginning, token_ids
from lora_studio.models.description import ModelInfo
from lora_studio.recipe import Recipe
from lora_studio.training.plan import ANSWER_TOKENS


def questions(recipe: Recipe, report: Report, tokenizer: Any, info: ModelInfo) -> dict[str, Any]:
    """Return the try-out prompts that fit the model, each as the trainer's `answers` takes it.

    A model that learns plain text continues it, one that sorts texts is given token ids; every
    other one is asked in a chat.
    """
    prompts = [prompt for prompt in recipe.prompts if prompt.strip()] or list(report.prompts)
    limit = info.context_length or sys.maxsize
    if recipe.task_type == "SEQ_CLS":
        texts = token_ids(tokenizer, prompts, add_special_tokens=True)
        longest = min(recipe.data.max_length, limit)
        # As the rows are cut: a text is as good as its beginning, or as its end.
        cut = slice(-longest, None) if recipe.data.truncation == "start" else slice(longest)
        return {prompt: ids[cut] for prompt, ids in zip(prompts, texts, strict=True) if ids}
    beginning = str(tokenizer.bos_token) if adds_beginning(tokenizer) else ""
    continues = report.format == "text"
    asked = {
        prompt: beginning + prompt if continues else _in_a_chat(tokenizer, prompt)
        for prompt in prompts
    }
    return {
        prompt: rendered
        for prompt, rendered in asked.items()
        if len(tokenizer(rendered, add_special_tokens=False)["input_ids"]) + ANSWER_TOKENS <= limit
    }


def _in_a_chat(tokenizer: Any, prompt: str) -> str:
    chat = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

"""The script that tutorials have people copy: transformers' Trainer, PEFT, padded rows.

    python tutorial.py TASK.json

Answers only are learned, as in the others; all else is as the libraries have it by default.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from steps import Steps
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

task = json.loads(Path(sys.argv[1]).read_text())
on_gpu = torch.cuda.is_available()
tokenizer = AutoTokenizer.from_pretrained(task["model"])
model = AutoModelForCausalLM.from_pretrained(
    task["model"], dtype=torch.bfloat16 if on_gpu else torch.float32
)
model = get_peft_model(
    model.to("cuda") if on_gpu else model,
    LoraConfig(
        r=task["r"], lora_alpha=2 * task["r"], target_modules="all-linear", task_type="CAUSAL_LM"
    ),
)


def encode(row: dict[str, Any]) -> dict[str, list[int]]:
    """Return a row's tokens, those of the question without a label."""
    asked = [{"role": "user", "content": row["prompt"]}]
    both = [*asked, {"role": "assistant", "content": row["completion"]}]
    start = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(both, tokenize=False)
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    count = len(tokenizer(start, add_special_tokens=False)["input_ids"])
    return {"input_ids": ids, "labels": [-100] * count + ids[count:]}


rows = load_dataset("json", data_files=task["train"], split="train")
rows = rows.map(encode, remove_columns=rows.column_names)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=task["out"],
        max_steps=task["steps"],
        per_device_train_batch_size=task["batch"],
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=not on_gpu,
        bf16=on_gpu,
        seed=task["seed"],
    ),
    train_dataset=rows,
    data_collator=DataCollatorForSeq2Seq(tokenizer),
    callbacks=[Steps(Path(task["times"]))],
)
trainer.train()
trainer.save_model(task["out"])

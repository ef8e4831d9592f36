"""TRL's SFTTrainer as it comes: its own settings, but for what the task and the machine ask for.

python sft.py TASK.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from steps import Steps
from trl import SFTConfig, SFTTrainer

task = json.loads(Path(sys.argv[1]).read_text())
on_gpu = torch.cuda.is_available()
rows = load_dataset("json", data_files=task["train"], split="train")
rows = rows.map(
    lambda row: {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }
)
trainer = SFTTrainer(
    model=task["model"],
    args=SFTConfig(
        output_dir=task["out"],
        max_steps=task["steps"],
        per_device_train_batch_size=task["batch"],
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        # Without a GPU it raises unless told so, and takes bfloat16 unless told otherwise.
        use_cpu=not on_gpu,
        bf16=on_gpu,
        model_init_kwargs={"dtype": "bfloat16" if on_gpu else "float32"},
        seed=task["seed"],
    ),
    train_dataset=rows,
    peft_config=LoraConfig(
        r=task["r"], lora_alpha=2 * task["r"], target_modules="all-linear", task_type="CAUSAL_LM"
    ),
    callbacks=[Steps(Path(task["times"]))],
)
trainer.train()
trainer.save_model(task["out"])

"""LLaMA-Factory's own training, started as its command line starts it.

    python llamafactory.py TASK.json

To be run by a Python that has LLaMA-Factory 0.9.5.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = sys.path.pop(0)  # this file has the package's name
from llamafactory.train.tuner import run_exp  # noqa: E402

sys.path.append(HERE)
from steps import Steps  # noqa: E402

task = json.loads(Path(sys.argv[1]).read_text())
data = Path(task["out"]).parent / "llamafactory-data"
data.mkdir(exist_ok=True)
columns = {"prompt": "prompt", "response": "completion"}
known = {"rows": {"file_name": task["train"], "columns": columns}}
(data / "dataset_info.json").write_text(json.dumps(known))
run_exp(
    {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": task["model"],
        "dataset": "rows",
        "dataset_dir": str(data),
        "template": "smollm2",
        "finetuning_type": "lora",
        "lora_rank": task["r"],
        "lora_alpha": 2 * task["r"],
        "lora_target": "all",
        "cutoff_len": task["max_length"],
        "output_dir": task["out"],
        "max_steps": task["steps"],
        "per_device_train_batch_size": task["batch"],
        "gradient_accumulation_steps": 1,
        "learning_rate": task["learning_rate"],
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "overwrite_cache": True,
        "seed": task["seed"],
    },
    [Steps(Path(task["times"]))],
)

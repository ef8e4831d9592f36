"""LoRA Studio: fine-tune a language model by pointing and clicking, and see what changed."""

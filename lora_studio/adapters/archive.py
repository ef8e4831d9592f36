"""An adapter folder as one file."""

from __future__ import annotations

import zipfile
from pathlib import Path

# A checkpoint also holds the optimizer's state, which nobody who uses the adapter needs.
TRAINER_STATE = {
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "training_args.bin",
    "scaler.pt",
}


def zip_adapter(adapter: Path, target: Path) -> Path:
    """Write a PEFT folder's files into the zip `target` and return it.

    Safetensors hardly shrink, so they are stored as they are.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(adapter.iterdir()):
            if file.is_file() and file.name not in TRAINER_STATE:
                method = (
                    zipfile.ZIP_STORED if file.suffix == ".safetensors" else zipfile.ZIP_DEFLATED
                )
                archive.write(file, file.name, compress_type=method)
    return target

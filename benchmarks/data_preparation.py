"""How much memory and time preparing large files takes, and how near encoding is to its limit.

    python -m benchmarks.data_preparation    # 1 GB of JSON Lines, 2 million CSV rows
    python -m benchmarks.data_preparation --mb 100 --csv-rows 200000

Three questions, each in a process of its own so that peaks do not mix:

1. What does preparing a large file cost in time and resident memory, and a second time?
2. How fast are conversations encoded (rendered, tokenised, masked, written to disk), as a ratio to
   `tokenizers.encode_batch` on the same rendered texts, both in turns in one run?
3. What does reading and checking add?

Rows are those of the shipped example, each with a number of its own, so that none repeats.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from lora_studio.data.encoding import ChatEncoder
from lora_studio.data.examples import Example, Message, Record
from lora_studio.data.filling import BATCH, Filling
from lora_studio.data.preparation import prepare
from lora_studio.data.store import StoreWriter
from lora_studio.models.loading import load_tokenizer
from lora_studio.models.sources import resolve
from lora_studio.recipe import DataSpec
from lora_studio.settings import STARTER, Settings

EXAMPLE = Path(__file__).parents[1] / "assets" / "examples" / "lighthouse.jsonl"
ROUNDS = 5
ENCODED_ROWS = 20_000
MOST_MB = 1500
LEAST_RATIO = 0.8


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=1024)
    parser.add_argument("--csv-rows", type=int, default=2_000_000)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(prepared(*options.one)))
        return
    model = str(resolve(STARTER, Settings.from_environment()))
    encoding(model)
    print()
    print("file                      rows        s   rows/s    MB peak    again s")
    with tempfile.TemporaryDirectory() as folder:
        for file in (
            written_json(Path(folder), options.mb * 2**20),
            written_csv(Path(folder), options.csv_rows),
        ):
            cache = f"{folder}/cache-{file.suffix[1:]}"
            first, again = (measured(file, model, cache) for _ in range(2))
            peak = max(first["mb"], again["mb"])
            verdict = "" if peak <= MOST_MB else f"  over {MOST_MB} MB"
            print(
                f"{file.name} {file.stat().st_size / 2**20:5.0f} MB"
                f" {first['rows']:10,} {first['s']:8.1f} {first['rows'] / first['s']:8.0f}"
                f" {peak:10.0f} {again['s']:10.1f}{verdict}"
            )


def rows() -> Iterator[dict[str, str]]:
    """Yield rows without end, no two alike."""
    texts = [json.loads(line) for line in EXAMPLE.read_text(encoding="utf-8").splitlines()]
    for number in count():
        row = texts[number % len(texts)]
        yield row | {"prompt": f"{row['prompt']} (letter {number})"}


def written_json(folder: Path, size: int) -> Path:
    """Write JSON Lines of a size in bytes."""
    file = folder / "rows.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for row in rows():
            out.write(json.dumps(row) + "\n")
            if out.tell() >= size:
                return file
    raise AssertionError


def written_csv(folder: Path, many: int) -> Path:
    """Write a table of so many rows."""
    file = folder / "rows.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(islice(rows(), many))
    return file


def measured(file: Path, model: str, cache: str) -> dict[str, Any]:
    """Prepare a file in a fresh process; return its rows, seconds and peak megabytes."""
    command = [sys.executable, "-m", "benchmarks.data_preparation"]
    done = subprocess.run(
        [*command, "--one", str(file), model, cache], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def prepared(file: str, model: str, cache: str) -> dict[str, Any]:
    """Prepare a file in this process."""
    tokenizer = load_tokenizer(Path(model))
    start = time.perf_counter()
    result = prepare(DataSpec(files=(file,)), tokenizer, 0, cache=Path(cache))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": result.report.rows, "s": seconds, "mb": peak}


def encoding(model: str) -> None:
    """Print the speed of encoding beside that of the tokenizer alone."""
    tokenizer = load_tokenizer(Path(model))
    backend = tokenizer.backend_tokenizer
    examples = [
        Example.of_messages(
            Record("rows", at, ""),
            (Message("user", row["prompt"]), Message("assistant", row["completion"])),
        )
        for at, row in enumerate(islice(rows(), ENCODED_ROWS), 1)
    ]
    texts = [draft.full for draft in ChatEncoder(tokenizer).draft(examples)]  # type: ignore[union-attr]

    def alone() -> None:
        for start in range(0, len(texts), BATCH):
            backend.encode_batch(texts[start : start + BATCH], add_special_tokens=False)

    def whole() -> None:
        filling = Filling(DataSpec(), tokenizer, lambda _done, _total: None)
        with tempfile.TemporaryDirectory() as folder, StoreWriter(Path(folder)) as writer:
            filling.write(iter(examples), writer)

    times: dict[Callable[[], None], list[float]] = {alone: [], whole: []}
    for _ in range(ROUNDS):
        for step, taken in times.items():
            start = time.perf_counter()
            step()
            taken.append(time.perf_counter() - start)
    limit, ours = (ENCODED_ROWS / statistics.median(taken) for taken in times.values())
    ratios = [a / b for a, b in zip(times[alone], times[whole], strict=True)]
    print(f"rows/s                     {ENCODED_ROWS:,} rows, medians of {ROUNDS}")
    print(f"tokenizers.encode_batch    {limit:8.0f}")
    print(f"rendered, masked, written  {ours:8.0f}")
    ratio = statistics.median(ratios)
    verdict = "" if ratio >= LEAST_RATIO else f"  under {LEAST_RATIO}"
    print(f"ratio                      {ratio:8.2f}{verdict}")


if __name__ == "__main__":
    main()

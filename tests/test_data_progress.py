"""How far preparing has come: told while files are read, of which nobody knows the rows."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_studio.data import filling, splitting
from lora_studio.data.filling import _Estimate
from lora_studio.data.preparation import prepare
from lora_studio.data.reading import columnar, texts
from lora_studio.data.reading.sources import open_sources
from lora_studio.recipe import DataSpec

ROWS = 1200


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


def rows() -> list[dict[str, str]]:
    return [
        {"prompt": f"Question {at}", "completion": f"Answer {at}." + " More words." * 9}
        for at in range(ROWS)
    ]


def written(folder: Path, name: str) -> Path:
    """Write the rows in the kind that a file's name says."""
    import pyarrow as pa
    from openpyxl import Workbook
    from pyarrow import feather, parquet

    file = folder / name
    table = pa.Table.from_pylist(rows())
    lines = "".join(json.dumps(row) + "\n" for row in rows()).encode()
    match name:
        case "rows.jsonl":
            file.write_bytes(lines)
        case "rows.jsonl.gz":
            file.write_bytes(gzip.compress(lines))
        case "rows.json":
            file.write_text(json.dumps(rows()), encoding="utf-8")
        case "rows.csv":
            cells = "".join(f"{row['prompt']},{row['completion']}\n" for row in rows())
            file.write_text("prompt,completion\n" + cells, encoding="utf-8")
        case "rows.parquet":
            parquet.write_table(table, file)
        case "rows.feather":
            feather.write_feather(table, file, chunksize=40)
        case "stream.arrow":
            with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
                out.write_table(table, max_chunksize=40)
        case _:
            book = Workbook()
            for row in [["prompt", "completion"], *(list(row.values()) for row in rows())]:
                book.active.append(row)
            book.save(file)
    return file


def shares(steps: Sequence[tuple[int, int]]) -> list[float]:
    return [done / total for done, total in steps if total]


@pytest.mark.parametrize(
    "name",
    [
        *("rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.csv", "rows.parquet", "rows.feather"),
        *("stream.arrow", "rows.xlsx"),
    ],
)
def test_a_file_knows_how_far_it_was_read(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "BLOCK_BYTES", 2**12)
    monkeypatch.setattr(columnar, "BATCH_ROWS", 40)
    with open_sources([written(tmp_path, name)]) as (source,):
        found = [source.position.share for _ in source.records()]
        assert source.position.share == 1
        assert len(found) == ROWS
        assert found == sorted(found)
        assert all(abs(share - at / ROWS) < 0.05 for at, share in enumerate(found, start=1))
        next(source.records())
        assert source.position.share < 0.05


def test_a_document_is_read_or_not(tmp_path: Path) -> None:
    file = tmp_path / "story.html"
    file.write_text("<p>It rained.</p>", encoding="utf-8")
    with open_sources([file]) as (source,):
        assert [source.position.share for _ in source.records()] == [0.0]
        assert source.position.share == 1


def test_the_rows_of_a_large_file_are_estimated_while_it_is_read(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "BLOCK_BYTES", 2**13)
    monkeypatch.setattr(filling, "BATCH", 60)
    files = [str(written(tmp_path, name)) for name in ("rows.jsonl", "rows.csv")]
    steps: list[tuple[int, int]] = []
    prepare(DataSpec(files=tuple(files)), tokenizer, 0, lambda *step: steps.append(step))
    assert len(steps) > 20
    assert steps[-1] == (2 * ROWS, 2 * ROWS)
    assert all(done <= total for done, total in steps if total)
    assert shares(steps) == sorted(shares(steps))
    assert all(abs(total / (2 * ROWS) - 1) < 0.2 for done, total in steps if done > ROWS / 4)


def test_a_file_that_is_read_at_once_is_not_said_to_be_done(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "BATCH", 200)
    file = written(tmp_path, "rows.jsonl")  # fewer bytes than one block
    steps: list[tuple[int, int]] = []
    prepare(DataSpec(files=(str(file),)), tokenizer, 0, lambda *step: steps.append(step))
    assert all(total in (0, ROWS) for _, total in steps)
    assert steps[-1] == (ROWS, ROWS)


def test_one_long_text_is_told_of_block_by_block(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splitting, "LONGEST_BLOCK", 1000)
    monkeypatch.setattr(splitting.blocks, "__defaults__", (1000,))
    file = tmp_path / "story.txt"
    file.write_text("\n\n".join(f"Chapter {at}. It rained." for at in range(600)))
    steps: list[tuple[int, int]] = []
    prepare(DataSpec(files=(str(file),)), tokenizer, 0, lambda *step: steps.append(step))
    assert len(set(shares(steps))) > 10
    assert shares(steps) == sorted(shares(steps))
    assert steps[-1][0] == steps[-1][1]


# A machine that stands still for seconds says nothing about an example.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 50), st.sampled_from([0, 0.001, 0.03, 0.2]))
    )
)
def test_an_estimate_never_falls_back_nor_below_what_is_done(
    moves: list[tuple[int, int, float]],
) -> None:
    estimate = _Estimate()
    done, share, found = 0, 0.0, []
    for more, coming, further in moves:
        done, share = done + more, min(share + further, 1.0)
        found.append((done, estimate.total(done, coming=coming, share=share)))
    known = [(done, total) for done, total in found if total]
    assert all(done <= total for done, total in known)
    assert all(
        before * after <= done * total
        for (before, total), (done, after) in itertools.pairwise(known)
    )
